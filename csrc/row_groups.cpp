#include "row_groups.h"

#include <stdexcept>
#include <string>

namespace clebsch {

RowGroups::RowGroups(const std::int64_t* index, std::int64_t rows, std::int64_t elements) : RowGroups(rows) {
  std::vector<std::int64_t> position(elements);  // where the next row of an element goes
  for (std::int64_t r = 0; r < rows; ++r) {
    if (index[r] < 0 || index[r] >= elements) {
      throw std::invalid_argument("index must lie in [0, " + std::to_string(elements) + "), got " +
                                  std::to_string(index[r]) + " in row " + std::to_string(r));
    }
    ++position[index[r]];
  }
  std::int64_t begin = 0;
  for (std::int64_t element = 0; element < elements; ++element) {
    const std::int64_t count = position[element];
    position[element] = begin;
    if (count > 0) groups_.push_back({element, begin, begin + count});
    begin += count;
  }
  order_.resize(rows);
  for (std::int64_t r = 0; r < rows; ++r) order_[position[index[r]]++] = r;
}

}  // namespace clebsch
