// The innermost loop of a matrix product: a block of sums in registers.
//
// Lanes are columns of b; an element of a is broadcast. A step of k loads Vectors vectors and broadcasts Rows
// elements for Rows * Vectors multiply-adds, so that the multiplier is the limit: 24 sums of the 32 registers
// of AVX-512, 12 of the 16 of AVX2.
#pragma once

#include "vec.h"

namespace clebsch {
namespace {

constexpr int kPanelVectors = CLEBSCH_VEC_BYTES == 64 ? 4 : 2;  // columns of a block, at most
constexpr int block_rows(int vectors) { return vectors < kPanelVectors ? 8 : 6; }

template <class T, int Rows, int Vectors>
struct Sums {
  Vec<T> at[Rows][Vectors];
};

// sums[i][v] += sum over k < count of a[i * a_row + k * a_k] * b[k * b_k + v]
template <class T, int Rows, int Vectors>
CLEBSCH_INLINE void multiply_add(const T* a, std::int64_t a_row, std::int64_t a_k, const T* b,
                                 std::int64_t b_k, std::int64_t count, Sums<T, Rows, Vectors>& sums) {
  for (std::int64_t k = 0; k < count; ++k, a += a_k, b += b_k) {
    Vec<T> column[Vectors];
    CLEBSCH_UNROLL
    for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * lanes<T>);
    CLEBSCH_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const Vec<T> element = broadcast(a[i * a_row]);
      CLEBSCH_UNROLL
      for (int v = 0; v < Vectors; ++v) sums.at[i][v] += element * column[v];
    }
  }
}

// sums[i][v] += sum over k < count of a[i][k * a_k] * b[k * b_k + v], for rows that lie anywhere
template <class T, int Rows, int Vectors>
CLEBSCH_INLINE void multiply_add(const T* const (&a)[Rows], std::int64_t a_k, const T* b, std::int64_t b_k,
                                 std::int64_t count, Sums<T, Rows, Vectors>& sums) {
  for (std::int64_t k = 0, at = 0; k < count; ++k, at += a_k, b += b_k) {
    Vec<T> column[Vectors];
    CLEBSCH_UNROLL
    for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * lanes<T>);
    CLEBSCH_UNROLL
    for (int i = 0; i < Rows; ++i) {
      const Vec<T> element = broadcast(a[i][at]);
      CLEBSCH_UNROLL
      for (int v = 0; v < Vectors; ++v) sums.at[i][v] += element * column[v];
    }
  }
}

// f<Rows>(first) for pieces of [0, count): whole blocks, then halves, then one by one.
template <int Rows, class F>
CLEBSCH_INLINE void each_block(std::int64_t count, F f, std::int64_t first = 0) {
  for (; first + Rows <= count; first += Rows) f.template operator()<Rows>(first);
  if constexpr (Rows > 1) {
    if (first < count) each_block<(Rows > 4 ? Rows / 2 : 1)>(count, f, first);
  }
}

// The columns of a matrix in panels of up to kPanelVectors vectors, as even as can be.
struct PanelWidths {
  int vectors, panels;
  template <class T>
  static PanelWidths of(int columns) {
    const int all = (columns + lanes<T> - 1) / lanes<T>;
    return {all, (all + kPanelVectors - 1) / kPanelVectors};
  }
  int begin(int panel) const { return static_cast<int>(std::int64_t{vectors} * panel / panels); }
};

// f<Vectors>(first column) for each panel.
template <class T, class F>
CLEBSCH_INLINE void each_panel(int columns, F f) {
  const auto widths = PanelWidths::of<T>(columns);
  for (int panel = 0; panel < widths.panels; ++panel) {
    const int begin = widths.begin(panel), first = begin * lanes<T>;
    switch (widths.begin(panel + 1) - begin) {
      case 1:
        f.template operator()<1>(first);
        break;
      case 2:
        f.template operator()<2>(first);
        break;
      case 3:
        if constexpr (kPanelVectors > 2) f.template operator()<3>(first);
        break;
      case 4:
        if constexpr (kPanelVectors > 2) f.template operator()<4>(first);
        break;
    }
  }
}

}  // namespace
}  // namespace clebsch
