// Linear layers on a device: what kernels are given, and how they are started. No torch, no CUDA: for both
// sides.
#pragma once

#include <cstdint>
#include <vector>

#include "linear_arrangement.h"
#include "tensor_product.h"

namespace clebsch::cuda {

// A LinearProgram in one piece: terms of a target are terms[first] to terms[last - 1]. `tile`: where its
// tiles of columns begin among those of all targets.
struct LinearTargetTable {
  std::int64_t offset, bias;
  int mul, l, first, last, tile;
};
struct LinearTermTable {
  std::int64_t offset, weight, step_u, step_v, step_w, tile, one;  // one: where W[:, v, :] begin, of one v
  int mul, mul_out, l;
  double scale;
};
struct LinearTables {
  const LinearTargetTable* targets;
  const LinearTermTable* terms;
  int target_count, widest;  // the most components of a target
  int term_count;
  std::int64_t tiles;         // of columns of all targets
  std::int64_t weight_tiles;  // of the matrices of all terms
  bool mul_ir;
};

std::vector<std::int64_t> linear_words(const LinearProgram& program, std::int64_t elements);
LinearTables view_linear(const LinearProgram& program, const std::int64_t* words);

// target = source W + bias for each row. order: rows by position, sorted by element; null: in their places,
// all of element 0.
template <class T>
struct DeviceLinear {
  LinearTables tables;
  std::int64_t rows, elements;
  const std::int64_t *order, *index;
  Rows<const T> source;
  const T* weight;
  Rows<const T> bias;
  Rows<T> target;
};
template <class T>
void launch_mix_rows(const DeviceLinear<T>& linear, void* stream);

// The gradient of the weights: tables and source are those of target = source W, g is the cotangent of
// target. Chunks of positions first: parts hold the sum of an element in a chunk, row chunk + element of
// `numel`.
template <class T>
struct LinearWeightSums {
  DeviceLinear<T> linear;
  Rows<const T> g;
  std::int64_t chunk, numel;
  const std::int64_t* sorted;  // elements by position; null with order
  T* parts;
  T* grad_weight;
};
template <class T>
void launch_weight_parts(const LinearWeightSums<T>& sums, void* stream);
template <class T>
void launch_weight_sums(const LinearWeightSums<T>& sums, void* stream);

}  // namespace clebsch::cuda
