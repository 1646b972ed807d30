// Products on a device: what kernels are given, and how they are started. No torch, no CUDA: for both sides.
#pragma once

#include <cstdint>

#include "cuda/graph_view.h"
#include "cuda/tables.h"
#include "storage.h"
#include "tensor_product.h"

namespace clebsch::cuda {

// Degrees that kernels of products know when they are compiled, at most 4: of x and the output, or of the
// output.
constexpr int kUnrolledProducts = 4;

// Where a result goes, one of both: where it is stored, or, where kernels add to it or it is a part of a sum,
// the type of arithmetic. Numbers of 32 bits and more, to which it is the same, are sums.
template <class S>
struct Results {
  Rows<S> stored;
  Rows<Arithmetic<S>> sums;
};
template <class S>
Results<S> written_once(const Rows<S>& rows) {
  if constexpr (kShort<S>) {
    return {rows, {}};
  } else {
    return {{}, rows};
  }
}

// F(g, x, y, w) = <g, product(x, y, w)>, as in tensor_product.h; a null operand counts as zero, a null result
// is not wanted. Without a graph (null order) everything is indexed by row. With one, y, w, ay, aw, gy and gw
// have a row for every edge, g and out one for every node, x and ax too; gx one for each position from
// parts_begin on. With one and y_of_receivers, no edges are summed: y and ay have a row for every node,
// all others one for every edge, but for gy, which has one for each position from first_position on.
template <class S>
struct DeviceProduct {
  PlanTables<Arithmetic<S>> plan;
  GraphView graph;  // edge is null: rows
  bool y_of_receivers;
  std::int64_t rows;   // of w; edges of a graph
  std::int64_t tasks;  // receivers whose edges are summed, or rows, or positions
  Rows<const S> x, y, w, g, ax, ay, aw;
  Results<S> out, gx, gy, gw;
  // Derivatives work on positions (or rows) [first_position, last_position). Shared weights: a row of gw for
  // each positions_of_gw of them, to be summed; else that is 1.
  std::int64_t first_position, last_position;
  std::int64_t parts_begin;  // the position of the first row of gx
  bool shared_weights;
  std::int64_t positions_of_gw;
  // Of a graph, positions [window_begin, window_end) alone: w, aw and gw have a row for each of them, and
  // what they give is added to out. Not for numbers of 16 bits.
  bool windowed;
  std::int64_t window_begin, window_end;
};

// Tasks whose positions lie in [begin, end): as many at most.
template <class S>
std::int64_t tasks_between(const DeviceProduct<S>& product, std::int64_t begin, std::int64_t end) {
  return product.tasks < end - begin ? product.tasks : end - begin;
}
template <class S>
std::int64_t forward_tasks(const DeviceProduct<S>& product) {
  return product.windowed ? tasks_between(product, product.window_begin, product.window_end) : product.tasks;
}
template <class S>
std::int64_t backward_tasks(const DeviceProduct<S>& product) {
  return tasks_between(product, product.first_position, product.last_position);
}

// Any mode, degree and multiplicity (tensor_product_rows.cu). tangent: out and gradients of
// F_x ax + F_y ay + F_w aw, as the double backward needs them. out, gx and gy are added to.
template <class S>
void launch_rows_forward(const DeviceProduct<S>& product, bool tangent, void* stream);
template <class S>
void launch_rows_backward(const DeviceProduct<S>& product, bool tangent, void* stream);
// Of how many of so many positions a block of threads makes a row of gw, where weights are shared.
std::int64_t rows_positions_of_gw(std::int64_t positions);

// Channelwise plans whose sums fit a block's shared memory (tensor_product_channels.cu), which the first two
// say of a plan. gy is added to.
template <class T>
bool channels_serve_forward(const PlanTables<T>& plan, bool tangent);
template <class T>
bool channels_serve_backward(const PlanTables<T>& plan, bool tangent);
template <class S>
void launch_channels_forward(const DeviceProduct<S>& product, bool tangent, void* stream);
template <class S>
void launch_channels_backward(const DeviceProduct<S>& product, bool tangent, void* stream);

// What follows (tensor_product_sums.cu): sums of every sender, or receiver, over its edges from the rows of
// positions [first, last), written or, if add, added to; and the sums of groups of rows.
template <class T>
struct NodeSums {
  GraphView graph;
  bool of_receivers;
  Rows<T> parts;  // a row for each position from first on
  Rows<T> sums;
  std::int64_t first, last;
  bool add;
};
template <class T>
void launch_node_sums(const NodeSums<T>& sums, void* stream);

constexpr int kRowsPerSum = 64;
template <class T>
struct RowSums {
  const T* parts;
  std::int64_t rows, length;
  T* sums;  // a row for each kRowsPerSum rows of parts
  std::int64_t groups;
  bool add;  // to what is there
};
// Of no rows one sum, zero.
inline std::int64_t row_groups(std::int64_t rows) { return rows > 0 ? (rows - 1) / kRowsPerSum + 1 : 1; }
template <class T>
void launch_row_sums(const RowSums<T>& sums, void* stream);
template <class T>
struct ZeroRows {
  Rows<T> rows;
  std::int64_t count, length;
};
template <class T>
void launch_clear(const ZeroRows<T>& rows, void* stream);

// Sums to numbers of 16 bits.
template <class S>
struct RoundedSums {
  const float* sums;
  S* to;
  std::int64_t count;
};
template <class S>
void launch_round(const RoundedSums<S>& sums, void* stream);

}  // namespace clebsch::cuda
