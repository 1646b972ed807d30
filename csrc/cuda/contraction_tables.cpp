#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/device_contraction.h"

namespace clebsch::cuda {
namespace {

template <class Item>
std::int64_t words_for(std::int64_t count) {
  return (count * static_cast<std::int64_t>(sizeof(Item)) + 7) / 8;
}

// Words of the arrays of ContractionTables, in its order: those of 16 bytes an item first, in an even number.
template <class T>
struct Layout {
  std::int64_t entry, term_entry, of_row, by_weight, group, term, target, pair, product_end, factor_end,
      row_end;

  explicit Layout(const ContractionSizes& n) {
    using Weighed = WeighedIndex<T>;
    entry = words_for<Weighed>(n.entries);
    term_entry = words_for<Weighed>(n.entries);
    of_row = words_for<Weighed>(n.reductions);
    by_weight = words_for<WeightOfRow<T>>(n.reductions);
    group = words_for<FactorRun>(n.groups);
    term = words_for<FactorRun>(n.terms);
    target = words_for<ContractionTarget>(n.targets);
    pair = words_for<int>(2 * n.pairs);
    product_end = words_for<int>(n.products);
    factor_end = words_for<int>(n.factors());
    row_end = words_for<int>(n.rows);
  }
  std::int64_t words() const {
    return entry + term_entry + of_row + by_weight + group + term + target + pair + product_end + factor_end +
           row_end;
  }
};

class Writer {
 public:
  explicit Writer(std::int64_t words) : words_(static_cast<std::size_t>(words)) {}
  template <class Item>
  void put(std::int64_t words, const std::vector<Item>& items) {
    if (!items.empty()) std::memcpy(words_.data() + at_, items.data(), items.size() * sizeof(Item));
    at_ += static_cast<std::size_t>(words);
  }
  std::vector<std::int64_t> words_;

 private:
  std::size_t at_ = 0;
};

template <class T>
std::vector<WeighedIndex<T>> weighed(const int* index, const T* value, std::int64_t count) {
  std::vector<WeighedIndex<T>> items;
  for (std::int64_t i = 0; i < count; ++i) items.push_back({index[i], value[i]});
  return items;
}
std::vector<FactorRun> runs(const int* factor, const int* end, std::int64_t count) {
  std::vector<FactorRun> items;
  for (std::int64_t i = 0; i < count; ++i) items.push_back({factor[i], end[i]});
  return items;
}
std::vector<int> copy(const int* from, std::int64_t count) { return {from, from + count}; }

// Rows in their order within each weight.
template <class T>
std::vector<WeightOfRow<T>> by_weight(const ContractionProgram<T>& p) {
  std::vector<WeightOfRow<T>> items;
  for (int r = 0, i = 0; r < p.rows; ++r) {
    for (; i < p.reduction_end[r]; ++i) items.push_back({p.reduction_weight[i], r, p.reduction_value[i]});
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const auto& a, const auto& b) { return a.weight < b.weight; });
  return items;
}

}  // namespace

template <class T>
std::vector<std::int64_t> contraction_words(TableWords table) {
  const ContractionTable<T> parsed(table);
  const ContractionProgram<T>& p = parsed.program();
  const ContractionSizes n = contraction_sizes(table);
  const Layout<T> layout(n);
  std::vector<ContractionTarget> targets;
  for (int t = 0; t < p.targets; ++t) targets.push_back({p.width[t], p.count[t]});
  Writer to(layout.words());
  to.put(layout.entry, weighed(p.entry_factor, p.entry_value, n.entries));
  to.put(layout.term_entry, weighed(p.term_product, p.term_value, n.entries));
  to.put(layout.of_row, weighed(p.reduction_weight, p.reduction_value, n.reductions));
  to.put(layout.by_weight, by_weight(p));
  to.put(layout.group, runs(p.group_factor, p.group_end, n.groups));
  to.put(layout.term, runs(p.term_factor, p.term_end, n.terms));
  to.put(layout.target, targets);
  to.put(layout.pair, copy(p.pair, 2 * n.pairs));
  to.put(layout.product_end, copy(p.product_end, n.products));
  to.put(layout.factor_end, copy(p.factor_end, n.factors()));
  to.put(layout.row_end, copy(p.reduction_end, n.rows));
  return std::move(to.words_);
}

template <class T>
ContractionTables<T> view_contraction(const ContractionSizes& n, const std::int64_t* words) {
  const Layout<T> layout(n);
  const auto take = [&words]<class Item>(const Item*& items, std::int64_t count) {
    items = reinterpret_cast<const Item*>(words);
    words += count;
  };
  ContractionTables<T> t{};
  t.components = static_cast<int>(n.components);
  t.factors = static_cast<int>(n.factors());
  t.pairs = static_cast<int>(n.pairs);
  t.weights = static_cast<int>(n.weights);
  t.rows = static_cast<int>(n.rows);
  t.targets = static_cast<int>(n.targets);
  t.products = static_cast<int>(n.products);
  t.out_width = static_cast<int>(n.out_width);
  t.reductions = static_cast<int>(n.reductions);
  take(t.entry, layout.entry);
  take(t.term_entry, layout.term_entry);
  take(t.of_row, layout.of_row);
  take(t.by_weight, layout.by_weight);
  take(t.group, layout.group);
  take(t.term, layout.term);
  take(t.target, layout.target);
  take(t.pair, layout.pair);
  take(t.product_end, layout.product_end);
  take(t.factor_end, layout.factor_end);
  take(t.row_end, layout.row_end);
  return t;
}

template std::vector<std::int64_t> contraction_words<float>(TableWords);
template std::vector<std::int64_t> contraction_words<double>(TableWords);
template ContractionTables<float> view_contraction(const ContractionSizes&, const std::int64_t*);
template ContractionTables<double> view_contraction(const ContractionSizes&, const std::int64_t*);

}  // namespace clebsch::cuda
