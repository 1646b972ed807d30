// Which rows meet, for kernels over rows and over the edges of a graph.
#pragma once

#include "cuda/device.h"
#include "cuda/device_product.h"

namespace clebsch::cuda {

template <class T>
__device__ inline T* row(const Rows<T>& rows, std::int64_t r) {
  return rows.data + r * rows.stride;
}
// Null stays null.
template <class T>
__device__ inline T* row_if(const Rows<T>& rows, std::int64_t r) {
  return rows.data ? rows.data + r * rows.stride : nullptr;
}

// A row of a result.
template <class S>
struct Result {
  S* stored;
  Arithmetic<S>* sums;
  __device__ explicit operator bool() const { return kShort<S> ? stored || sums : sums != nullptr; }
  __device__ void put(std::int64_t at, Arithmetic<S> value) const {
    if constexpr (kShort<S>) {
      if (stored) {
        stored[at] = rounded<S>(value);
        return;
      }
    }
    sums[at] = value;
  }
};
template <class S>
__device__ inline Result<S> row_if(const Results<S>& results, std::int64_t r) {
  return {row_if(results.stored, r), row_if(results.sums, r)};
}

// Before anything else of an order is read: the CPU's is of the same size, and its numbers are indices too.
__device__ inline void require_device_order(const GraphView& graph) {
  if (graph.edge && (graph.head[0] != -1 || graph.head[1] != -1)) refuse(Refusal::order);
}

// The positions of a receiver that lie in [first, last); without a graph, the row itself.
struct Positions {
  std::int64_t begin, end;
};
template <class S>
__device__ inline Positions positions_of(const DeviceProduct<S>& a, std::int64_t receiver) {
  require_device_order(a.graph);
  if (!a.graph.edge) return {receiver, receiver + 1};
  Positions at{a.graph.receiver_begin[receiver], a.graph.receiver_begin[receiver + 1]};
  if (at.begin < 0 || at.end < at.begin || at.end > a.graph.edges) refuse(Refusal::order);
  if (a.windowed) {
    if (at.begin < a.window_begin) at.begin = a.window_begin;
    if (at.end > a.window_end) at.end = a.window_end;
  }
  return at;
}
// Whether what a window gives is added to what windows before it gave.
template <class S>
__device__ inline bool adds(const DeviceProduct<S>& a) {
  return !kShort<S> && a.windowed && a.window_begin > 0;
}
// Where the weights of a position lie.
template <class S>
__device__ inline std::int64_t weight_row(const DeviceProduct<S>& a, std::int64_t position,
                                          std::int64_t edge) {
  return a.windowed ? position - a.window_begin : edge;
}

struct Edge {
  std::int64_t index, sender;
};
template <class S>
__device__ inline Edge edge_at(const DeviceProduct<S>& a, std::int64_t position) {
  if (!a.graph.edge) return {position, position};
  const Edge e{a.graph.edge[position], a.graph.sender[position]};
  if (e.index < 0 || e.index >= a.graph.edges || e.sender < 0 || e.sender >= a.graph.nodes)
    refuse(Refusal::order);
  return e;
}
template <class S>
__device__ inline std::int64_t receiver_at(const DeviceProduct<S>& a, std::int64_t position) {
  require_device_order(a.graph);
  if (!a.graph.edge) return position;
  const std::int64_t r = a.graph.receiver[position];
  if (r < 0 || r >= a.graph.nodes) refuse(Refusal::order);
  return r;
}

}  // namespace clebsch::cuda
