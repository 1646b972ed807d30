// The dense products of convolutions whose weights are hidden @ matrix, a block of edges at a time
// (run_radial_convolution.h says what for).
//
//   multiply    to = a B     2 rows depth columns flops. B is packed in panels of up to four vectors; a piece
//                            of a panel, 16 KiB, stays in L1 while the rows of a block pass by.
//   add_outer   B += a^T b   as many flops; b is read in place, an element of a is broadcast.
//
// Sums of a block of 6 or 8 rows by a panel stay in registers (matrix_product.inl.h).
#pragma once

#include "matrix_product.inl.h"
#include "radial_convolution.h"

namespace clebsch {
namespace {

constexpr std::int64_t kPieceBytes = 16 << 10;  // of a panel

template <class T>
std::int64_t radial_packed_size(std::int64_t depth, std::int64_t columns) {
  return depth * ((columns + lanes<T> - 1) / lanes<T>)*lanes<T>;
}

// Lines of a panel from a matrix whose columns lie side by side.
template <class T, int Vectors>
void pack_lines(const DenseMatrix<T>& m, std::int64_t first, T* packed) {
  for (std::int64_t k = 0; k < m.depth; ++k) {
    const T* line = m.data + k * m.step_k + first;
    CLEBSCH_UNROLL
    for (int v = 0; v < Vectors; ++v, packed += lanes<T>) {
      const std::int64_t left = m.columns - first - v * lanes<T>;
      store(packed, load(line + v * lanes<T>, Mask<T>(left < lanes<T> ? static_cast<int>(left) : lanes<T>)));
    }
  }
}

// The same where lines do (a transposed matrix): turned, a square of lanes at a time.
template <class T, int Vectors>
void pack_columns(const DenseMatrix<T>& m, std::int64_t first, T* packed) {
  constexpr int W = lanes<T>;
  for (std::int64_t k = 0; k < m.depth; k += W) {
    const int lines = m.depth - k < W ? static_cast<int>(m.depth - k) : W;
    const Mask<T> mask(lines);
    for (int v = 0; v < Vectors; ++v) {
      Vec<T> square[W];
      for (int j = 0; j < W; ++j) {
        const std::int64_t n = first + v * W + j;
        square[j] = n < m.columns ? load(m.data + n * m.step_n + k, mask) : Vec<T>{};
      }
      transpose<T>(square);
      for (int j = 0; j < lines; ++j) store(packed + (k + j) * Vectors * W + v * W, square[j]);
    }
  }
}

template <class T>
void radial_pack(const DenseMatrix<T>& m, T* packed) {
  each_panel<T>(static_cast<int>(m.columns), [&]<int Vectors>(int first) {
    if (m.step_n == 1) {
      pack_lines<T, Vectors>(m, first, packed);
    } else {
      pack_columns<T, Vectors>(m, first, packed);
    }
    packed += m.depth * Vectors * lanes<T>;
  });
}

template <class T, int R, int Vectors>
void multiply_block(const T* a, std::int64_t a_row, const T* packed, std::int64_t depth, T* to,
                    std::int64_t to_row, bool add) {
  Sums<T, R, Vectors> sums{};
  if (add) {
    CLEBSCH_UNROLL
    for (int i = 0; i < R; ++i) {
      CLEBSCH_UNROLL
      for (int v = 0; v < Vectors; ++v) sums.at[i][v] = load(to + i * to_row + v * lanes<T>);
    }
  }
  multiply_add(a, a_row, 1, packed, Vectors * lanes<T>, depth, sums);
  CLEBSCH_UNROLL
  for (int i = 0; i < R; ++i) {
    CLEBSCH_UNROLL
    for (int v = 0; v < Vectors; ++v) store(to + i * to_row + v * lanes<T>, sums.at[i][v]);
  }
}

template <class T>
void radial_multiply(Rows<const T> a, std::int64_t rows, const T* packed, std::int64_t depth,
                     std::int64_t columns, Rows<T> to, bool add) {
  each_panel<T>(static_cast<int>(columns), [&]<int Vectors>(int first) {
    constexpr std::int64_t width = Vectors * lanes<T>;
    constexpr std::int64_t piece = kPieceBytes / (width * static_cast<std::int64_t>(sizeof(T)));
    std::int64_t k = 0;
    do {  // once even without depth: sums of nothing are written
      const std::int64_t count = depth - k < piece ? depth - k : piece;
      each_block<block_rows(Vectors)>(rows, [&]<int R>(std::int64_t i) {
        multiply_block<T, R, Vectors>(a[i] + k, a.stride, packed, count, to[i] + first, to.stride,
                                      add || k > 0);
      });
      packed += count * width;
      k += count;
    } while (k < depth);
  });
}

template <class T>
void radial_add_outer(Rows<const T> a, Rows<const T> b, std::int64_t rows, std::int64_t depth,
                      std::int64_t columns, T* to) {
  each_panel<T>(static_cast<int>(columns), [&]<int Vectors>(int first) {
    each_block<block_rows(Vectors)>(depth, [&]<int R>(std::int64_t k) {
      Sums<T, R, Vectors> sums{};
      multiply_add(a.data + k, 1, a.stride, b.data + first, b.stride, rows, sums);
      CLEBSCH_UNROLL
      for (int i = 0; i < R; ++i) {
        T* line = to + (k + i) * columns + first;
        CLEBSCH_UNROLL
        for (int v = 0; v < Vectors; ++v) {
          const Mask<T> mask(static_cast<int>(columns) - first - v * lanes<T>);
          store(line + v * lanes<T>, load(line + v * lanes<T>, mask) + sums.at[i][v], mask);
        }
      }
    });
  });
}

template <class T>
constexpr RadialKernels<T> radial_kernels = {radial_packed_size<T>, radial_pack<T>, radial_multiply<T>,
                                             radial_add_outer<T>};

}  // namespace
}  // namespace clebsch
