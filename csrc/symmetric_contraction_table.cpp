#include "symmetric_contraction_table.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

namespace clebsch {
namespace {

constexpr std::int64_t kFormat = 1, kHeader = 10, kMost = std::int64_t{1} << 30;

// Words taken from the front of a table, which may hold anything.
class Words {
 public:
  explicit Words(TableWords table) : at_(table.data), left_(table.size) {}

  static void require(bool ok) {
    if (!ok) throw std::invalid_argument("symmetric_contraction: table must be that of a ContractionTable");
  }
  const std::int64_t* take(std::int64_t count) {
    require(count >= 0 && count <= left_);
    const std::int64_t* here = at_;
    at_ += count;
    left_ -= count;
    return here;
  }
  std::int64_t count() {
    const std::int64_t value = *take(1);
    require(value >= 0 && value < kMost);
    return value;
  }
  // Integers in [low, high).
  void integers(std::int64_t count, std::int64_t low, std::int64_t high, int* to) {
    const std::int64_t* from = take(count);
    bool fits = true;
    for (std::int64_t i = 0; i < count; ++i) {
      fits &= from[i] >= low && from[i] < high;
      to[i] = static_cast<int>(from[i]);
    }
    require(fits);
  }
  // Where runs end: ascending, to `total`.
  void ends(std::int64_t count, std::int64_t total, int* to) {
    integers(count, 0, total + 1, to);
    require(std::is_sorted(to, to + count) && (count ? to[count - 1] : 0) == total);
  }
  template <class T>
  void numbers(std::int64_t count, T* to) {
    const std::int64_t* from = take(count);
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(std::bit_cast<double>(from[i]));
  }
  void finish() const { require(left_ == 0); }

 private:
  const std::int64_t* at_;
  std::int64_t left_;
};

// All but products and what follows.
ContractionSizes read_counts(Words& words) {
  Words::require(words.count() == kFormat);
  ContractionSizes n{};
  for (std::int64_t* count : {&n.components, &n.weights, &n.pairs, &n.rows, &n.targets, &n.groups, &n.entries,
                              &n.terms, &n.reductions})
    *count = words.count();
  return n;
}

constexpr std::int64_t kMostComponents = 1 << 24;

}  // namespace

template <class T>
ContractionTable<T>::ContractionTable(TableWords table) {
  Words words(table);
  const ContractionSizes n = read_counts(words);
  // Every count but those of components and weights is that of words which must be there.
  Words::require(n.components < 1 << 20 && n.pairs <= table.size && n.rows <= table.size &&
                 n.targets <= table.size && n.groups <= table.size && n.entries <= table.size &&
                 n.terms <= table.size && n.reductions <= table.size);
  targets_.resize(2 * n.targets);
  pairs_.resize(2 * n.pairs);
  words.integers(2 * n.pairs, 1, 1 + n.components, pairs_.data());
  words.integers(n.targets, 1, 1 << 16, targets_.data());
  words.integers(n.targets, 0, n.rows + 1, targets_.data() + n.targets);
  std::int64_t products = 0, width = 0, rows = 0;
  for (std::int64_t t = 0; t < n.targets; ++t) {
    width += targets_[t];
    rows += targets_[n.targets + t];
    products += std::int64_t{targets_[t]} * targets_[n.targets + t];
    Words::require(products <= table.size && width <= table.size << 16);
  }
  const std::int64_t factors = n.factors();
  // Kernels count vectors of them in int.
  Words::require(rows == n.rows && std::max({factors, products, width}) < kMostComponents);
  integers_.resize(products + 2 * n.groups + 2 * n.entries + factors + 2 * n.terms + n.rows + n.reductions);
  numbers_.resize(2 * n.entries + n.reductions);
  int* next = integers_.data();
  const auto reserve = [&](std::int64_t count) {
    int* here = next;
    next += count;
    return here;
  };
  int* product_end = reserve(products);
  int* group_factor = reserve(n.groups);
  int* group_end = reserve(n.groups);
  int* entry_factor = reserve(n.entries);
  int* factor_end = reserve(factors);
  int* term_factor = reserve(n.terms);
  int* term_end = reserve(n.terms);
  int* term_product = reserve(n.entries);
  int* reduction_end = reserve(n.rows);
  int* reduction_weight = reserve(n.reductions);
  words.ends(products, n.groups, product_end);
  words.integers(n.groups, 0, factors, group_factor);
  words.ends(n.groups, n.entries, group_end);
  words.integers(n.entries, 0, factors, entry_factor);
  words.ends(factors, n.terms, factor_end);
  words.integers(n.terms, 0, factors, term_factor);
  words.ends(n.terms, n.entries, term_end);
  words.integers(n.entries, 0, products, term_product);
  words.ends(n.rows, n.reductions, reduction_end);
  words.integers(n.reductions, 0, n.weights, reduction_weight);
  T* entry_value = numbers_.data();
  T* term_value = entry_value + n.entries;
  T* reduction_value = term_value + n.entries;
  words.numbers(n.entries, entry_value);
  words.numbers(n.entries, term_value);
  words.numbers(n.reductions, reduction_value);
  words.finish();
  program_ = {static_cast<int>(n.components),
              static_cast<int>(factors),
              static_cast<int>(n.pairs),
              static_cast<int>(n.weights),
              static_cast<int>(n.rows),
              static_cast<int>(n.targets),
              static_cast<int>(products),
              static_cast<int>(width),
              pairs_.data(),
              targets_.data(),
              targets_.data() + n.targets,
              product_end,
              group_factor,
              group_end,
              entry_factor,
              entry_value,
              factor_end,
              term_factor,
              term_end,
              term_product,
              term_value,
              reduction_end,
              reduction_weight,
              reduction_value};
}

ContractionSizes contraction_sizes(TableWords table) {
  Words words(table);
  ContractionSizes n = read_counts(words);
  Words::require(n.targets <= table.size);
  words.take(2 * n.pairs);
  n.widths.resize(n.targets);
  std::vector<int> rows(n.targets);
  words.integers(n.targets, 1, 1 << 16, n.widths.data());
  words.integers(n.targets, 0, n.rows + 1, rows.data());
  for (std::int64_t t = 0; t < n.targets; ++t) {
    n.out_width += n.widths[t];
    n.products += std::int64_t{n.widths[t]} * rows[t];
    Words::require(n.products <= table.size);
  }
  Words::require(n.out_width < kMostComponents);
  return n;
}

template class ContractionTable<float>;
template class ContractionTable<double>;

}  // namespace clebsch
