#include "cuda/tables.h"

#include <algorithm>
#include <cstring>

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

BlockTable block(const Block& b) { return {b.offset, b.mul, b.l}; }

template <class Item>
std::int64_t words_for(std::int64_t count) {
  return (count * static_cast<std::int64_t>(sizeof(Item)) + 7) / 8;
}

// Words of the paths, then of the terms, then of the rows.
template <class T>
struct Layout {
  std::int64_t paths, terms, first;
  explicit Layout(const Program& program) {
    std::int64_t term_count = 0, rows = 0;
    for (int n = 0; n < program.path_count; ++n) {
      const Path& p = program.paths[n];
      term_count += 3 * std::int64_t{p.term_count};
      rows += 2 * (p.in1.l + p.in2.l + p.out.l) + 6;
    }
    paths = words_for<PathTable>(program.path_count);
    terms = words_for<TermTable<T>>(term_count);
    first = words_for<int>(rows);
  }
};

template <class Item>
void copy(std::int64_t* to, const std::vector<Item>& items) {
  if (!items.empty()) std::memcpy(to, items.data(), items.size() * sizeof(Item));
}

}  // namespace

template <class T>
std::vector<std::int64_t> plan_words(const Plan& plan) {
  const Program& program = plan.program;
  std::vector<PathTable> paths;
  Sorted<T> sorted;
  for (int n = 0; n < program.path_count; ++n) {
    const Path& p = program.paths[n];
    PathTable t{};
    t.in1 = block(p.in1);
    t.in2 = block(p.in2);
    t.out = block(p.out);
    t.weight = p.weight;
    t.pairs = pairs_of(p);
    t.fan = connects_all(p.mode) ? p.out.mul : 0;
    t.mode = p.mode;
    t.weighted = p.weighted;
    const std::vector<Entry> entries = entries_of(p);
    t.by_out = sorted.add(entries, 2, 2 * p.out.l + 1);
    t.by_in1 = sorted.add(entries, 0, 2 * p.in1.l + 1);
    t.by_in2 = sorted.add(entries, 1, 2 * p.in2.l + 1);
    paths.push_back(t);
  }
  const Layout<T> layout(program);
  std::vector<std::int64_t> words(static_cast<std::size_t>(layout.paths + layout.terms + layout.first));
  copy(words.data(), paths);
  copy(words.data() + layout.paths, sorted.terms);
  copy(words.data() + layout.paths + layout.terms, sorted.first);
  return words;
}

template <class T>
PlanTables<T> view_plan(const Plan& plan, const std::int64_t* words) {
  const Program& program = plan.program;
  const Layout<T> layout(program);
  PlanTables<T> tables{};
  tables.paths = reinterpret_cast<const PathTable*>(words);
  tables.terms = reinterpret_cast<const TermTable<T>*>(words + layout.paths);
  tables.first = reinterpret_cast<const int*>(words + layout.paths + layout.terms);
  tables.dim1 = program.dim1;
  tables.dim2 = program.dim2;
  tables.dim_out = program.dim_out;
  tables.weight_numel = program.weight_numel;
  tables.path_count = program.path_count;
  tables.mul_ir = program.mul_ir;
  return tables;
}

template std::vector<std::int64_t> plan_words<float>(const Plan&);
template std::vector<std::int64_t> plan_words<double>(const Plan&);
template PlanTables<float> view_plan(const Plan&, const std::int64_t*);
template PlanTables<double> view_plan(const Plan&, const std::int64_t*);

}  // namespace clebsch::cuda
