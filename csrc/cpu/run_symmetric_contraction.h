// Runs a symmetric contraction over nodes: reads its table, sorts the nodes by species, cuts them into
// chunks, and owns the reduced weights and private sums. No torch, no Python.
#pragma once

#include <cstdint>
#include <vector>

#include "api.h"
#include "cpu/parallel.h"

namespace clebsch {

// A table as words of 64 bits: the numbers of ContractionProgram (format, components, weights, pairs, rows,
// targets, groups, entries, terms, reductions), its arrays of integers, a word each, in the order of its
// declaration, and its arrays of numbers as float64, in the same order.
struct TableWords {
  const std::int64_t* data;
  std::int64_t size;
};

struct ContractionSizes {
  std::int64_t components, weights, out_width;
  std::vector<int> widths;  // of the targets
};

// Throws std::invalid_argument if the words are no table.
CLEBSCH_API ContractionSizes contraction_sizes(TableWords table);

// x, ax, grad_x: (nodes, channels, components). grad, out: (nodes, channels * out_width), a block (channels,
// width) for every target. weight, a_weight, grad_weight: (species, weights, channels). index: (nodes,), the
// species of each. A pointer that is null is a tangent that is absent, or a result that is not wanted.
template <class T>
struct ContractionCall {
  TableWords table;
  std::int64_t nodes, channels, species;
  const std::int64_t* index;
  const T *x, *ax, *grad, *weight, *a_weight;
  T *out, *grad_x, *grad_weight;
};

enum class ContractionStep { forward, backward, double_backward };

// Throws std::invalid_argument, before anything is written, if a species is not in [0, species); and
// std::bad_alloc if there is no memory for the work space; then results are unspecified.
template <class T>
CLEBSCH_API void run_symmetric_contraction(const ContractionCall<T>& call, ContractionStep step,
                                           Parallel parallel);

}  // namespace clebsch
