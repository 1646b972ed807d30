// Linear layers, which mix the copies of each irrep: what a kernel is given, and the kernels of one
// instruction set.
#pragma once

#include <cstdint>

#include "program.h"
#include "tensor_product.h"

namespace clebsch {

// target[w] += scale * sum over u of W[u, v, w] source[u], for each component; W[u, v, w] is element
// weight + u * step_u + v * step_v + w * step_w of the weights. All rows of a call to a kernel have one v.
struct LinearTerm {
  Block source;
  std::int64_t weight, step_u, step_v, step_w;
  double scale;
};

// A block of the result, and the terms that add up to it.
struct LinearTarget {
  Block block;
  const LinearTerm* terms;
  int term_count;
  std::int64_t bias;  // where its bias begins, or -1
};

// From x to the result, or, as the gradient of x, from the result to x.
struct LinearProgram {
  const LinearTarget* targets;
  int target_count;
  bool mul_ir;
};

// Rows with components innermost are turned by code that knows their number up to this degree (panel.inl.h).
constexpr int kPanelDegree = 6;

// The rows at positions [begin, end) of an order; null: every row is in its place.
struct RowRange {
  const std::int64_t* order;
  std::int64_t begin, end;
};

template <class T>
struct LinearKernels {
  // Elements of the weights of one v as `apply` reads them, and bringing them into that order.
  std::int64_t (*packed_size)(const LinearProgram&);
  void (*pack)(const LinearProgram&, const T* weight, std::int64_t v, T* packed);
  // These rows of target. A bias is added where a target has one.
  void (*apply)(const LinearProgram&, Rows<const T> source, const T* packed, Rows<const T> bias,
                Rows<T> target, RowRange rows, T* scratch);
  // grad_weight += the gradient of the weights of one v that these rows give; g is the cotangent of target.
  void (*grad_weight)(const LinearProgram&, Rows<const T> source, Rows<const T> g, T* grad_weight,
                      std::int64_t v, RowRange rows, T* scratch);
  std::int64_t (*scratch_size)(const LinearProgram&);  // elements that either needs
};

}  // namespace clebsch
