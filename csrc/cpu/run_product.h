// Runs a product over rows or a graph: chooses the kernel, cuts the work into chunks that do not depend on
// the number of threads, and owns the temporary panels and private sums. No torch, no Python.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "plan.h"
#include "radial_convolution.h"
#include "tensor_product.h"

namespace clebsch {

template <class T>
struct ProductCall {
  const Plan* plan;
  const Graph* graph;  // null: rows
  std::int64_t rows;   // rows of y, w; edges of the graph
  // A null operand counts as zero; a null result is not wanted. All in irreps rows, whatever the kernel.
  Rows<const T> x, y, w, g, ax, ay, aw;
  Rows<T> out, gx, gy, gw;
  bool shared_weights;  // w is one row and gw, if wanted, one row
  // With a graph alone: the weights are made of these, and w, aw and gw are null.
  const RadialWeights<T>* radial;
};

// For tests: what the private sums of a wave of chunks may take; 0 for the rule. Results do not depend on it.
CLEBSCH_API void set_private_bytes(std::int64_t bytes);

// What to compute: see ProductArgs.
enum class Derivative { none, first, second };

// Throws std::bad_alloc if there is no memory for the work space; then results are unspecified.
template <class T>
CLEBSCH_API void run_product(const ProductCall<T>& call, Derivative derivative, Parallel parallel);

}  // namespace clebsch
