// Products over rows and over the edges of a graph: what a kernel is given, and the kernels of one
// instruction set.
#pragma once

#include <cstdint>

#include "graph.h"
#include "program.h"

namespace clebsch {

// Row r starts at data + r * stride; stride 0 repeats one row for all.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  __attribute__((always_inline)) T* operator[](std::int64_t r) const { return data + r * stride; }
};

// F(g, x, y, w) = <g, product(x, y, w)> is linear in each of its four operands. A kernel computes, in one
// pass,
//   forward           out = F_g
//   backward          gx, gy, gw = F_x, F_y, F_w
//   double_backward   out, gx, gy, gw = the gradient of F_x ax + F_y ay + F_w aw in g, x, y, w.
//
// Without a graph everything is indexed by row. With one, y, w, ay, aw, gy, gw hold a row for every edge, g
// and out a row for every node, gx a panel (program.h) for every slot from first_slot on, and x and ax a
// panel for every node or, if x_by_slot, for every slot from first_slot on. (Where lanes are rows, what is
// said to be a panel is a row.) Results that nobody wants are still computed: their rows point to a scratch
// row with stride 0.
//
// Where weights_by_position, rows of w, aw and gw are not those of edges but those of positions in the sorted
// order, from first_position on: so weights that exist for a few edges at a time are met.
template <class T>
struct ProductArgs {
  const Program* program;
  const Graph* graph;  // null: rows
  std::int64_t rows;   // without one, of all that lie here: what is read next may be asked for
  Rows<const T> x, y, w, g, ax, ay, aw;
  Rows<T> out, gx, gy, gw;
  bool shared_weights;  // one row of w (and aw) for all; gw is one row, added to
  bool shared_y;        // the same of y, ay and gy; without a graph, and where lanes are channels, alone
  bool x_by_slot;
  // Results over rows that are larger than caches and may be written past them.
  bool far_out, far_x, far_y, far_w;
  std::int64_t first_slot;  // of the chunk
  bool weights_by_position;
  std::int64_t first_position;
  // The row of the weights of the edge at this position.
  __attribute__((always_inline)) std::int64_t weight_row(std::int64_t position) const {
    return weights_by_position ? position - first_position : graph->edge[position];
  }
};

// Tasks [begin, end) are rows, or the receivers of a graph.
template <class T>
using ProductKernel = void (*)(const ProductArgs<T>&, std::int64_t begin, std::int64_t end, T* scratch);

template <class T>
struct ProductKernels {
  ProductKernel<T> forward, backward, double_backward;
  std::int64_t (*scratch_size)(const Program&, bool shared_weights);  // elements that each of them needs
};

template <class T>
struct TensorProductKernels {
  ProductKernels<T> channels, rows;  // what lies in the lanes of a vector
  int unrolled_degree;               // channelwise kernels know degrees up to this one at compile time
  // Rows of irreps to panels and back; `blocks` describes either x or out.
  void (*to_panel)(const Block* blocks, int count, bool mul_ir, const T* row, T* panel);
  void (*from_panel)(const Block* blocks, int count, bool mul_ir, const T* panel, T* row);
};

}  // namespace clebsch
