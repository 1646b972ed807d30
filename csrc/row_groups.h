// Rows by what they have in common, so that a kernel reads what they share once for all of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "api.h"

namespace clebsch {

// Rows at the positions [begin, end) of the order, all of one element.
struct RowGroup {
  std::int64_t element, begin, end;
};

class RowGroups {
 public:
  // All rows, in their places, of element 0.
  explicit RowGroups(std::int64_t rows) : rows_(rows), whole_{0, 0, rows} {}
  // Row r is of element index[r]. A counting sort: O(rows + elements), rows of an element stay in their
  // order. Throws std::invalid_argument if an index lies outside [0, elements).
  CLEBSCH_API RowGroups(const std::int64_t* index, std::int64_t rows, std::int64_t elements);

  std::int64_t rows() const { return rows_; }
  // The row at each position, or null: every row is in its place.
  const std::int64_t* order() const { return order_.empty() ? nullptr : order_.data(); }
  // Those that have rows, by element.
  std::span<const RowGroup> groups() const {
    if (order_.empty()) return {&whole_, rows_ > 0 ? std::size_t{1} : std::size_t{0}};
    return groups_;
  }

 private:
  std::int64_t rows_;
  RowGroup whole_;  // all rows in their places: no memory is taken for them
  std::vector<std::int64_t> order_;
  std::vector<RowGroup> groups_;
};

}  // namespace clebsch
