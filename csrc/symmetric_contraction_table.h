// The table of a symmetric contraction as operators take it, and the program that it holds.
#pragma once

#include <cstdint>
#include <vector>

#include "api.h"
#include "symmetric_contraction.h"

namespace clebsch {

// A table as words of 64 bits: the numbers of ContractionProgram (format, components, weights, pairs, rows,
// targets, groups, entries, terms, reductions), its arrays of integers, a word each, in the order of its
// declaration, and its arrays of numbers as float64, in the same order.
struct TableWords {
  const std::int64_t* data;
  std::int64_t size;
};

struct ContractionSizes {
  std::int64_t components, weights, pairs, rows, targets, groups, entries, terms, reductions;
  std::int64_t products, out_width;
  std::vector<int> widths;  // of the targets
  std::int64_t factors() const { return 1 + components + pairs; }
};

// Throws std::invalid_argument if the words are no table; looks at their head alone.
CLEBSCH_API ContractionSizes contraction_sizes(TableWords table);

// The program of a table. Throws std::invalid_argument if the words are none.
template <class T>
class CLEBSCH_API ContractionTable {
 public:
  explicit ContractionTable(TableWords table);
  ContractionTable(const ContractionTable&) = delete;
  ContractionTable& operator=(const ContractionTable&) = delete;
  const ContractionProgram<T>& program() const { return program_; }

 private:
  std::vector<int> pairs_, targets_, integers_;
  std::vector<T> numbers_;
  ContractionProgram<T> program_{};
};

}  // namespace clebsch
