// A symmetric contraction as a caller asks for it, whatever runs it.
#pragma once

#include <cstdint>

#include "symmetric_contraction_table.h"

namespace clebsch {

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

}  // namespace clebsch
