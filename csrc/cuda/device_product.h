// Products on a device: what kernels are given, and how they are started. No torch, no CUDA: for both sides.
#pragma once

#include <cstdint>

#include "cuda/graph_view.h"
#include "cuda/tables.h"
#include "tensor_product.h"

namespace clebsch::cuda {

// F(g, x, y, w) = <g, product(x, y, w)>, as in tensor_product.h; a null operand counts as zero, a null result
// is not wanted. Without a graph (null order) everything is indexed by row. With one, y, w, ay, aw, gy and gw
// have a row for every edge, g and out one for every node, x and ax too; gx one for each position from
// first_position on.
template <class T>
struct DeviceProduct {
  PlanTables<T> plan;
  GraphView graph;  // edge is null: rows
  std::int64_t rows;
  Rows<const T> x, y, w, g, ax, ay, aw;
  Rows<T> out, gx, gy, gw;
  // Derivatives work on positions (or rows) [first_position, last_position). Shared weights: a row of gw for
  // each of them, to be summed.
  std::int64_t first_position, last_position;
  bool shared_weights;
  // Of a graph, positions [window_begin, window_end) alone: w, aw and gw have a row for each of them, and
  // what they give is added to out unless window_begin is 0.
  bool windowed;
  std::int64_t window_begin, window_end;

  std::int64_t receivers() const { return graph.edge ? graph.nodes : rows; }
};

// Any mode, degree and multiplicity (tensor_product_rows.cu). tangent: out and gradients of
// F_x ax + F_y ay + F_w aw, as the double backward needs them.
template <class T>
void launch_rows_forward(const DeviceProduct<T>& product, bool tangent, void* stream);
template <class T>
void launch_rows_backward(const DeviceProduct<T>& product, bool tangent, void* stream);

// Channelwise plans whose sums fit a block's shared memory (tensor_product_channels.cu); false, and nothing
// done, for others.
template <class T>
bool launch_channels_forward(const DeviceProduct<T>& product, bool tangent, void* stream);
template <class T>
bool launch_channels_backward(const DeviceProduct<T>& product, bool tangent, void* stream);

// What follows (tensor_product_sums.cu): gx of every sender from the rows of positions [first, last), written
// or, if add, added to; and the sums of groups of rows.
template <class T>
struct SenderSums {
  GraphView graph;
  const T* parts;  // a row for each position from first on
  Rows<T> gx;
  std::int64_t length, first, last;
  bool add;
};
template <class T>
void launch_sender_sums(const SenderSums<T>& sums, void* stream);

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

}  // namespace clebsch::cuda
