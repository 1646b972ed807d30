// A product over rows or a graph as a caller asks for it, whatever runs it.
#pragma once

#include <cstdint>

#include "plan.h"
#include "radial_convolution.h"
#include "tensor_product.h"

namespace clebsch {

template <class T>
struct ProductCall {
  const Plan* plan;
  const Graph* graph;   // null: rows
  bool y_of_receivers;  // with a graph: x, out, gx are rows of edges, y, ay, gy those of receivers; no sums
  std::int64_t rows;    // rows of w; edges of the graph
  // A null operand counts as zero; a null result is not wanted. All in irreps rows, whatever the kernel.
  Rows<const T> x, y, w, g, ax, ay, aw;
  Rows<T> out, gx, gy, gw;
  bool shared_weights;  // w is one row and gw, if wanted, one row
  // With a graph alone: the weights are made of these, and w, aw and gw are null.
  const RadialWeights<T>* radial;
};

// What to compute: see ProductArgs.
enum class Derivative { none, first, second };

template <class T>
ProductKernel<T> kernel_of(const ProductKernels<T>& kernels, Derivative derivative) {
  return derivative == Derivative::none    ? kernels.forward
         : derivative == Derivative::first ? kernels.backward
                                           : kernels.double_backward;
}

}  // namespace clebsch
