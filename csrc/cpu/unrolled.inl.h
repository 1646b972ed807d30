// Which degrees have code of their own, and the tables that find it.
#pragma once

#include "coupling_unrolled.h"
#include "program.h"
#include "vec.h"

namespace clebsch {
namespace {

// Degrees below kUnrolled are unrolled. Each instruction set says how far (CMakeLists.txt): code for all of
// them in both types is minutes of compiling, and past the limit the general code loses little.
#ifndef CLEBSCH_UNROLLED_FLOAT
#define CLEBSCH_UNROLLED_FLOAT compiled_l_max
#endif
#ifndef CLEBSCH_UNROLLED_DOUBLE
#define CLEBSCH_UNROLLED_DOUBLE compiled_l_max
#endif
template <class T>
constexpr int kUnrolled = (sizeof(T) == 4 ? CLEBSCH_UNROLLED_FLOAT : CLEBSCH_UNROLLED_DOUBLE) + 1;
static_assert(kUnrolled<float> <= compiled_l_max + 1 && kUnrolled<double> <= compiled_l_max + 1);

template <class T>
CLEBSCH_INLINE bool is_unrolled(const Path& p) {
  return p.in1.l < kUnrolled<T> && p.in2.l < kUnrolled<T> && p.out.l < kUnrolled<T>;
}

// The cells (m1, m3) of M, which the coupling makes of y: the term that first touches each, or -1 where it is
// zero; folded away when loops are unrolled.
template <int L1, int L2, int L3>
struct UnrolledCells {
  using C = Coupling<L1, L2, L3>;
  int first[2 * L1 + 1][2 * L3 + 1];
  constexpr UnrolledCells() : first{} {
    for (auto& row : first) {
      for (int& one : row) one = -1;
    }
    for (int n = C::size - 1; n >= 0; --n) first[C::m1[n]][C::m3[n]] = n;
  }
};

// An Entry for every (l1, l2, l3); those that the triangle rule forbids stay empty.
template <class T, class Entry>
struct UnrolledTable {
  static constexpr int n = kUnrolled<T>;
  Entry entries[n * n * n];
  constexpr const Entry& at(int l1, int l2, int l3) const { return entries[(l1 * n + l2) * n + l3]; }
  constexpr const Entry& operator[](const Path& p) const { return at(p.in1.l, p.in2.l, p.out.l); }
};

template <class T, class Entry, int Index, class Make>
constexpr Entry unrolled_entry(Make make) {
  constexpr int n = kUnrolled<T>, l1 = Index / (n * n), l2 = Index / n % n, l3 = Index % n;
  if constexpr (l3 >= (l1 > l2 ? l1 - l2 : l2 - l1) && l3 <= l1 + l2) {
    return make.template operator()<l1, l2, l3>();
  } else {
    return {};
  }
}

// make<l1, l2, l3>() gives an entry.
template <class T, class Entry, class Make>
constexpr UnrolledTable<T, Entry> unrolled_table(Make make) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return UnrolledTable<T, Entry>{{unrolled_entry<T, Entry, static_cast<int>(I)>(make)...}};
  }(std::make_index_sequence<kUnrolled<T> * kUnrolled<T> * kUnrolled<T>>{});
}

template <int N, class F>
CLEBSCH_INLINE void each(F f) {
  [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
    (f.template operator()<static_cast<int>(I)>(), ...);
  }(std::make_index_sequence<N>{});
}

}  // namespace
}  // namespace clebsch
