#include <algorithm>
#include <cstring>

#include "cuda/device_linear.h"
#include "cuda/linear_tiles.h"

namespace clebsch::cuda {
namespace {

std::int64_t tiles_of(std::int64_t count) { return (count + kLinearTile - 1) / kLinearTile; }
static_assert(sizeof(LinearTargetTable) % 8 == 0 && sizeof(LinearTermTable) % 8 == 0);
template <class Item>
std::int64_t count_of(const std::vector<Item>& items) {
  return static_cast<std::int64_t>(items.size() * sizeof(Item) / 8);
}

}  // namespace

std::vector<std::int64_t> linear_words(const LinearProgram& program, std::int64_t elements) {
  std::vector<LinearTargetTable> targets;
  std::vector<LinearTermTable> terms;
  std::int64_t tile = 0, weight_tile = 0;
  for (int t = 0; t < program.target_count; ++t) {
    const LinearTarget& target = program.targets[t];
    const int first = static_cast<int>(terms.size());
    for (const LinearTerm* term = target.terms; term < target.terms + target.term_count; ++term) {
      terms.push_back({term->source.offset, term->weight, term->step_u, term->step_v, term->step_w,
                       weight_tile, term->weight / std::max<std::int64_t>(elements, 1), term->source.mul,
                       target.block.mul, target.block.l, term->scale});
      weight_tile += tiles_of(term->source.mul) * tiles_of(target.block.mul);
    }
    targets.push_back({target.block.offset, target.bias, target.block.mul, target.block.l, first,
                       static_cast<int>(terms.size()), static_cast<int>(tile)});
    tile += tiles_of(target.block.mul);
  }
  std::vector<std::int64_t> words(static_cast<std::size_t>(count_of(targets) + count_of(terms)));
  if (!targets.empty()) std::memcpy(words.data(), targets.data(), targets.size() * sizeof(LinearTargetTable));
  if (!terms.empty())
    std::memcpy(words.data() + count_of(targets), terms.data(), terms.size() * sizeof(LinearTermTable));
  return words;
}

LinearTables view_linear(const LinearProgram& program, const std::int64_t* words) {
  LinearTables tables{};
  tables.targets = reinterpret_cast<const LinearTargetTable*>(words);
  tables.terms = reinterpret_cast<const LinearTermTable*>(
      words + program.target_count * static_cast<std::int64_t>(sizeof(LinearTargetTable) / 8));
  tables.target_count = program.target_count;
  for (int t = 0; t < program.target_count; ++t) {
    const LinearTarget& target = program.targets[t];
    tables.widest = std::max(tables.widest, 2 * target.block.l + 1);
    tables.tiles += tiles_of(target.block.mul);
    tables.term_count += target.term_count;
    for (int i = 0; i < target.term_count; ++i)
      tables.weight_tiles += tiles_of(target.terms[i].source.mul) * tiles_of(target.block.mul);
  }
  tables.mul_ir = program.mul_ir;
  return tables;
}

}  // namespace clebsch::cuda
