#include "cuda/tables.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

namespace clebsch::cuda {
namespace {

// A term of a path: components of x, y and the output.
struct Entry {
  int component[3];
  double value;
};

std::vector<Entry> entries_of(const Path& p) {
  const int columns = 2 * p.out.l + 1;
  std::vector<Entry> entries;
  for (int n = 0; n < p.term_count; ++n) {
    const Term& t = p.terms[n];
    entries.push_back({{t.dense / columns, t.m2, t.dense % columns}, p.values[n]});
  }
  return entries;
}

template <class T>
struct Sorted {
  std::vector<int> first;
  std::vector<TermTable<T>> terms;

  // Terms by component `key` of the three, the other two in their order; the row where they begin.
  int add(std::vector<Entry> entries, int key, int components) {
    std::stable_sort(entries.begin(), entries.end(),
                     [key](const Entry& a, const Entry& b) { return a.component[key] < b.component[key]; });
    const int row = static_cast<int>(first.size());
    std::size_t next = 0;
    for (int d = 0; d <= components; ++d) {
      while (next < entries.size() && entries[next].component[key] < d) ++next;
      first.push_back(static_cast<int>(terms.size() + next));
    }
    for (const Entry& e : entries) {
      const int a = key == 0 ? 1 : 0, b = key == 2 ? 1 : 2;
      terms.push_back({e.component[a], e.component[b], static_cast<T>(e.value)});
    }
    return row;
  }
};

// The same with cells in the place of the components of x.
std::vector<Entry> by_cell(std::vector<Entry> entries, int columns) {
  for (Entry& e : entries) e.component[0] = e.component[0] * columns + e.component[2];
  return entries;
}

std::int64_t pairs_of(const Path& p) {
  const std::int64_t u = p.in1.mul, v = p.in2.mul;
  switch (p.mode) {
    case Mode::uuw:
    case Mode::uuu:
      return u;
    case Mode::uvu_triangle:
    case Mode::triangle_w:
      return u * (u - 1) / 2;
    default:
      return u * v;
  }
}

bool channelwise(const Program& program) {
  const Path* end = program.paths + program.path_count;
  return std::all_of(program.paths, end, [](const Path& p) { return p.mode == Mode::uvu && p.in2.mul == 1; });
}

struct Blocks {
  std::vector<BlockTable> tables;
  int components = 0;
  Blocks(const Block* blocks, int count) {
    for (const Block* b = blocks; b < blocks + count; ++b) {
      const bool used = b->used && b->mul > 0;
      tables.push_back({b->offset, b->mul, b->l, used ? components : -1});
      if (used) components += 2 * b->l + 1;
    }
  }
  BlockTable of(const Block& b) const {
    for (const BlockTable& t : tables) {
      if (t.offset == b.offset && t.mul == b.mul && t.l == b.l) return t;
    }
    return {b.offset, b.mul, b.l, -1};
  }
};

int cells_of(const Path& p) { return (2 * p.in1.l + 1) * (2 * p.out.l + 1); }

// Output blocks to warps, the most work first to the one that has least, so that each sum has one owner.
std::vector<int> share_blocks(const Program& program) {
  std::map<std::int64_t, std::int64_t> work;  // by offset
  for (int n = 0; n < program.path_count; ++n)
    work[program.paths[n].out.offset] += cells_of(program.paths[n]) + 4;
  std::vector<std::pair<std::int64_t, std::int64_t>> sorted;
  for (const auto& [offset, cells] : work) sorted.push_back({-cells, offset});
  std::sort(sorted.begin(), sorted.end());
  std::array<std::int64_t, kForwardWarps> load{};
  std::map<std::int64_t, int> warp;
  for (const auto& [cells, offset] : sorted) {
    const auto least = std::min_element(load.begin(), load.end());
    *least -= cells;
    warp[offset] = static_cast<int>(least - load.begin());
  }
  std::vector<int> of_path;
  for (int n = 0; n < program.path_count; ++n) of_path.push_back(warp[program.paths[n].out.offset]);
  return of_path;
}

template <class Item>
std::int64_t words_for(std::int64_t count) {
  return (count * static_cast<std::int64_t>(sizeof(Item)) + 7) / 8;
}

// Words of the paths, the blocks, the terms and their rows, one after the other.
template <class T>
struct Layout {
  std::int64_t paths, in1, out, terms, first;
  explicit Layout(const Program& program) {
    const bool cells = channelwise(program);
    std::int64_t term_count = 0, rows = 0;
    for (int n = 0; n < program.path_count; ++n) {
      const Path& p = program.paths[n];
      term_count += (cells ? 4 : 3) * std::int64_t{p.term_count};
      rows += 2 * (p.in1.l + p.in2.l + p.out.l) + 6 + (cells ? cells_of(p) + 1 : 0);
    }
    paths = words_for<PathTable>(program.path_count);
    in1 = words_for<BlockTable>(program.in1_count);
    out = words_for<BlockTable>(program.out_count);
    terms = words_for<TermTable<T>>(term_count);
    first = words_for<int>(rows);
  }
  std::int64_t words() const { return paths + in1 + out + terms + first; }
};

template <class Item>
void copy(std::int64_t* to, const std::vector<Item>& items) {
  if (!items.empty()) std::memcpy(to, items.data(), items.size() * sizeof(Item));
}

}  // namespace

template <class T>
std::vector<std::int64_t> plan_words(const Plan& plan) {
  const Program& program = plan.program;
  const Blocks in1(program.in1, program.in1_count), out(program.out, program.out_count);
  const bool cells = channelwise(program);
  const std::vector<int> warps = share_blocks(program);
  std::vector<PathTable> paths;
  Sorted<T> sorted;
  for (int n = 0, dense = 0; n < program.path_count; ++n) {
    const Path& p = program.paths[n];
    PathTable t{};
    t.in1 = in1.of(p.in1);
    t.in2 = {p.in2.offset, p.in2.mul, p.in2.l, -1};
    t.out = out.of(p.out);
    t.weight = p.weight;
    t.pairs = pairs_of(p);
    t.fan = connects_all(p.mode) ? p.out.mul : 0;
    t.mode = p.mode;
    t.weighted = p.weighted;
    const std::vector<Entry> entries = entries_of(p);
    t.by_out = sorted.add(entries, 2, 2 * p.out.l + 1);
    t.by_in1 = sorted.add(entries, 0, 2 * p.in1.l + 1);
    t.by_in2 = sorted.add(entries, 1, 2 * p.in2.l + 1);
    if (cells) t.by_cell = sorted.add(by_cell(entries, 2 * p.out.l + 1), 0, cells_of(p));
    t.dense = dense;
    t.warp = warps[n];
    dense += cells_of(p);
    paths.push_back(t);
  }
  const Layout<T> layout(program);
  std::vector<std::int64_t> words(static_cast<std::size_t>(layout.words()));
  std::int64_t* to = words.data();
  copy(to, paths);
  copy(to += layout.paths, in1.tables);
  copy(to += layout.in1, out.tables);
  copy(to += layout.out, sorted.terms);
  copy(to += layout.terms, sorted.first);
  return words;
}

template <class T>
PlanTables<T> view_plan(const Plan& plan, const std::int64_t* words) {
  const Program& program = plan.program;
  const Layout<T> layout(program);
  PlanTables<T> tables{};
  tables.paths = reinterpret_cast<const PathTable*>(words);
  tables.in1 = reinterpret_cast<const BlockTable*>(words += layout.paths);
  tables.out = reinterpret_cast<const BlockTable*>(words += layout.in1);
  tables.terms = reinterpret_cast<const TermTable<T>*>(words += layout.out);
  tables.first = reinterpret_cast<const int*>(words += layout.terms);
  tables.dim1 = program.dim1;
  tables.dim2 = program.dim2;
  tables.dim_out = program.dim_out;
  tables.weight_numel = program.weight_numel;
  tables.path_count = program.path_count;
  tables.in1_count = program.in1_count;
  tables.out_count = program.out_count;
  tables.components1 = Blocks(program.in1, program.in1_count).components;
  tables.components_out = Blocks(program.out, program.out_count).components;
  for (int n = 0; n < program.path_count; ++n) tables.dense += cells_of(program.paths[n]);
  for (int n = 0; n < program.in1_count; ++n) tables.widest = std::max(tables.widest, program.in1[n].mul);
  for (int n = 0; n < program.out_count; ++n) tables.widest = std::max(tables.widest, program.out[n].mul);
  tables.mul_ir = program.mul_ir;
  tables.channelwise = channelwise(program) && program.path_count > 0;
  for (int n = 0; n < program.path_count; ++n) tables.fans |= connects_all(program.paths[n].mode);
  return tables;
}

template std::vector<std::int64_t> plan_words<float>(const Plan&);
template std::vector<std::int64_t> plan_words<double>(const Plan&);
template PlanTables<float> view_plan(const Plan&, const std::int64_t*);
template PlanTables<double> view_plan(const Plan&, const std::int64_t*);

}  // namespace clebsch::cuda
