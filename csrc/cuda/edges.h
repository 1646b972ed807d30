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

// A row of a result. add: to what is there, which only sums are.
template <class S>
struct Result {
  S* stored;
  Arithmetic<S>* sums;
  bool add = false;
  __device__ explicit operator bool() const { return kShort<S> ? stored || sums : sums != nullptr; }
  __device__ void put(std::int64_t at, Arithmetic<S> value) const {
    if constexpr (kShort<S>) {
      if (stored) {
        stored[at] = rounded<S>(value);
        return;
      }
    }
    sums[at] = add ? sums[at] + value : value;
  }
};
template <class S>
__device__ inline Result<S> row_if(const Results<S>& results, std::int64_t r) {
  return {row_if(results.stored, r), row_if(results.sums, r)};
}

// C numbers of a row from `first` on, zero from `mul` on. One access where they are aligned.
template <class S, int C, class T = Arithmetic<S>>
__device__ inline Pack<T, C> load(const S* row, std::int64_t first, int mul) {
  if (first + C <= mul && aligned<S, C>(row + first))
    return widened(*reinterpret_cast<const Pack<S, C>*>(row + first));
  Pack<T, C> channels;
  CLEBSCH_DEVICE_UNROLL
  for (int c = 0; c < C; ++c) channels[c] = first + c < mul ? widened(row[first + c]) : T{};
  return channels;
}
template <class S, int C>
__device__ inline void store(const Pack<Arithmetic<S>, C>& channels, S* row, std::int64_t first, int mul) {
  if (first + C <= mul && aligned<S, C>(row + first)) {
    store_packed(reinterpret_cast<Pack<S, C>*>(row + first), rounded<S>(channels));
    return;
  }
  CLEBSCH_DEVICE_UNROLL
  for (int c = 0; c < C; ++c) {
    if (first + c < mul) row[first + c] = rounded<S>(channels[c]);
  }
}
// To a row of a result from `offset` on.
template <class S, int C, class T = Arithmetic<S>>
__device__ inline void store(const Pack<T, C>& channels, const Result<S>& row, std::int64_t offset,
                             std::int64_t first, int mul) {
  if constexpr (kShort<S>) {
    if (row.stored) return store<S, C>(channels, row.stored + offset, first, mul);
  }
  T* sums = row.sums + offset;
  if (!row.add) return store<T, C>(channels, sums, first, mul);
  Pack<T, C> total = load<T, C>(sums, first, mul);
  CLEBSCH_DEVICE_UNROLL
  for (int c = 0; c < C; ++c) total[c] += channels[c];
  store<T, C>(total, sums, first, mul);
}

template <class T, int C>
__device__ inline T dot(const Pack<T, C>& a, const Pack<T, C>& b) {
  T sum{};
  CLEBSCH_DEVICE_UNROLL
  for (int c = 0; c < C; ++c) sum += a[c] * b[c];
  return sum;
}

// Before anything else of an order is read: the CPU's is of the same size, and its numbers are indices too.
__device__ inline void require_device_order(const GraphView& graph) {
  if (graph.edge && (graph.head[0] != -1 || graph.head[1] != -1)) refuse(Refusal::order);
}

// Whether a task is a receiver, whose edges are summed; else it is a row or a position.
template <class S>
__device__ inline bool sums_edges(const DeviceProduct<S>& a) {
  return a.graph.edge && !a.y_of_receivers;
}

// The positions of a task that lie in the window.
struct Positions {
  std::int64_t begin, end;
};
template <class S>
__device__ inline Positions positions_of(const DeviceProduct<S>& a, std::int64_t task) {
  require_device_order(a.graph);
  if (!sums_edges(a)) return {task, task + 1};
  Positions at{a.graph.receiver_begin[task], a.graph.receiver_begin[task + 1]};
  if (at.begin < 0 || at.end < at.begin || at.end > a.graph.edges) refuse(Refusal::order);
  if (a.windowed) {
    if (at.begin < a.window_begin) at.begin = a.window_begin;
    if (at.end > a.window_end) at.end = a.window_end;
  }
  return at;
}
// Whether what a window gives is added to what is there.
template <class S>
__device__ inline bool adds(const DeviceProduct<S>& a) {
  return !kShort<S> && a.windowed;
}
template <class S>
__device__ inline std::int64_t task_at(const DeviceProduct<S>& a, std::int64_t position) {
  require_device_order(a.graph);
  if (!sums_edges(a)) return position;
  const std::int64_t r = a.graph.receiver[position];
  if (r < 0 || r >= a.graph.nodes) refuse(Refusal::order);
  return r;
}

// The tasks of the positions [begin, end), those of receivers without edges between them.
struct Tasks {
  std::int64_t begin, end;
};
template <class S>
__device__ inline Tasks tasks_of(const DeviceProduct<S>& a, std::int64_t begin, std::int64_t end) {
  if (!sums_edges(a) || begin >= end) return {begin, end};
  return {task_at(a, begin), task_at(a, end - 1) + 1};
}
template <class S>
__device__ inline Tasks forward_tasks_of(const DeviceProduct<S>& a) {
  return a.windowed ? tasks_of(a, a.window_begin, a.window_end) : Tasks{0, a.tasks};
}

// Where the weights of a position lie.
template <class S>
__device__ inline std::int64_t weight_row(const DeviceProduct<S>& a, std::int64_t position,
                                          std::int64_t edge) {
  return a.windowed ? position - a.window_begin : edge;
}

// The rows that meet at a position.
struct Edge {
  std::int64_t index, x, y;
};
template <class S>
__device__ inline Edge edge_at(const DeviceProduct<S>& a, std::int64_t position) {
  if (!a.graph.edge) return {position, position, position};
  const std::int64_t index = a.graph.edge[position],
                     node = (a.y_of_receivers ? a.graph.receiver : a.graph.sender)[position];
  if (index < 0 || index >= a.graph.edges || node < 0 || node >= a.graph.nodes) refuse(Refusal::order);
  return a.y_of_receivers ? Edge{index, index, node} : Edge{index, node, index};
}
// Of out and g.
template <class S>
__device__ inline std::int64_t out_row(const DeviceProduct<S>& a, std::int64_t task) {
  return a.y_of_receivers ? edge_at(a, task).index : task;
}

// Rows of the gradients at a position. What is still to be summed has a row for each position,
// or, of gw, for each positions_of_gw of them.
struct GradientRows {
  std::int64_t x, y, w;
};
template <class S>
__device__ inline GradientRows gradient_rows(const DeviceProduct<S>& a, std::int64_t position,
                                             const Edge& edge) {
  const std::int64_t part = position - a.first_position;
  return {sums_edges(a) ? position - a.parts_begin : edge.x, a.y_of_receivers ? part : edge.y,
          a.shared_weights ? part / a.positions_of_gw : weight_row(a, position, edge.index)};
}

}  // namespace clebsch::cuda
