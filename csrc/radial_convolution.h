// Convolutions whose weights are hidden @ matrix, a row for every edge: what is given, and the products of
// small dense matrices that one instruction set has for them.
#pragma once

#include <cstdint>

#include "tensor_product.h"

namespace clebsch {

// w = hidden @ matrix, hidden (edges, size), matrix (size, weight_numel), and what a derivative adds: their
// tangents, the gradients that are wanted. A null operand counts as zero, a null result is not wanted.
template <class T>
struct RadialWeights {
  std::int64_t size;
  Rows<const T> hidden, matrix, ahidden, amatrix;
  Rows<T> grad_hidden;
  T* grad_matrix;  // rows of weight_numel
};

// Element (k, n) of a matrix is data[k * step_k + n * step_n].
template <class T>
struct DenseMatrix {
  const T* data;
  std::int64_t step_k, step_n, depth, columns;  // k < depth, n < columns
};

template <class T>
struct RadialKernels {
  // A matrix as `multiply` reads it. One of the steps is 1.
  std::int64_t (*packed_size)(std::int64_t depth, std::int64_t columns);
  void (*pack)(const DenseMatrix<T>& matrix, T* packed);
  // to[i][n] (or, if add, +=) sum over k of a[i][k] * matrix[k][n], for i < rows. Writes whole vectors: rows
  // of `to` have room for columns up to the next cache line.
  void (*multiply)(Rows<const T> a, std::int64_t rows, const T* packed, std::int64_t depth,
                   std::int64_t columns, Rows<T> to, bool add);
  // to[k][n] += sum over i < rows of a[i][k] * b[i][n], for k < depth, n < columns; rows of b have room up to
  // the next cache line, whatever it holds.
  void (*add_outer)(Rows<const T> a, Rows<const T> b, std::int64_t rows, std::int64_t depth,
                    std::int64_t columns, T* to);
};

}  // namespace clebsch
