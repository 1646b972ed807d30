// Sums over edges or rows: each element is summed by one thread, in an order that depends on the call
// alone. Bytes: parts read once, sums written once.
#include "cuda/device.h"
#include "cuda/device_product.h"
#include "cuda/edges.h"

namespace clebsch::cuda {
inline namespace tensor_product_sums_kernels {

constexpr int kThreads = 128;

// The edges of a node whose parts are there: numbers of positions, or of what lists them.
template <class T>
__device__ inline Positions edges_of(const NodeSums<T>& a, std::int64_t node) {
  const std::int64_t* begins = a.of_receivers ? a.graph.receiver_begin : a.graph.sender_begin;
  const Positions all{begins[node], begins[node + 1]};
  if (all.begin < 0 || all.end < all.begin || all.end > a.graph.edges) refuse(Refusal::order);
  if (a.of_receivers) return {all.begin > a.first ? all.begin : a.first, all.end < a.last ? all.end : a.last};
  // The positions of a sender ascend.
  const std::int64_t *listed = a.graph.outgoing + all.begin, count = all.end - all.begin;
  return {all.begin + lower_bound(listed, count, a.first), all.begin + lower_bound(listed, count, a.last)};
}

// A thread has 16 bytes of a row, and the parts of a few edges on their way. Nodes that none of them belong
// to are not touched.
template <class T>
__global__ void __launch_bounds__(kThreads) add_to_nodes(NodeSums<T> a) {
  constexpr int C = kPacked<T>, N = 4;
  require_device_order(a.graph);
  const int length = static_cast<int>(a.parts.stride);
  for (std::int64_t node = blockIdx.x; node < a.graph.nodes; node += gridDim.x) {
    const Positions edges = edges_of(a, node);
    if (a.add && edges.begin >= edges.end) continue;
    T* sums = row(a.sums, node);
    for (int d = static_cast<int>(threadIdx.x) * C; d < length; d += kThreads * C) {
      Pack<T, C> sum{};
      if (a.add) sum = load<T, C>(sums, d, length);
      for (std::int64_t i = edges.begin; i < edges.end; i += N) {
        Pack<T, C> part[N];
        CLEBSCH_DEVICE_UNROLL
        for (int n = 0; n < N; ++n) {
          if (i + n >= edges.end) break;
          const std::int64_t at = a.of_receivers ? i + n : a.graph.outgoing[i + n];
          if (at < a.first || at >= a.last) refuse(Refusal::order);
          part[n] = load<T, C>(row(a.parts, at - a.first), d, length);
        }
        CLEBSCH_DEVICE_UNROLL
        for (int n = 0; n < N; ++n) {
          if (i + n >= edges.end) break;
          CLEBSCH_DEVICE_UNROLL
          for (int c = 0; c < C; ++c) sum[c] += part[n][c];
        }
      }
      store<T, C>(sum, sums, d, length);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) clear_rows(ZeroRows<T> a) {
  each(a.count * a.length, [&](std::int64_t i) { row(a.rows, i / a.length)[i % a.length] = T{}; });
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_rows(RowSums<T> a) {
  for (std::int64_t group = blockIdx.y; group < a.groups; group += gridDim.y) {
    const std::int64_t begin = group * kRowsPerSum;
    const std::int64_t end = begin + kRowsPerSum < a.rows ? begin + kRowsPerSum : a.rows;
    const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
    for (std::int64_t d = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; d < a.length; d += step) {
      T sum = a.add ? a.sums[group * a.length + d] : T{};
      for (std::int64_t r = begin; r < end; ++r) sum += a.parts[r * a.length + d];
      a.sums[group * a.length + d] = sum;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) round_sums(RoundedSums<S> a) {
  each(a.count, [&](std::int64_t i) { a.to[i] = rounded<S>(a.sums[i]); });
}

}  // namespace tensor_product_sums_kernels

template <class T>
void launch_node_sums(const NodeSums<T>& sums, void* stream) {
  launch(&add_to_nodes<T>, dim3(blocks_x(sums.graph.nodes)), dim3(kThreads), 0, stream, sums);
}
template <class T>
void launch_row_sums(const RowSums<T>& sums, void* stream) {
  const dim3 grid(blocks_x((sums.length + kThreads - 1) / kThreads), blocks_y(sums.groups));
  launch(&add_rows<T>, grid, dim3(kThreads), 0, stream, sums);
}
template <class T>
void launch_clear(const ZeroRows<T>& rows, void* stream) {
  launch(&clear_rows<T>, blocks_for(rows.count * rows.length, kThreads), dim3(kThreads), 0, stream, rows);
}
template <class S>
void launch_round(const RoundedSums<S>& sums, void* stream) {
  launch(&round_sums<S>, blocks_for(sums.count, kThreads), dim3(kThreads), 0, stream, sums);
}

template void launch_node_sums(const NodeSums<float>&, void*);
template void launch_node_sums(const NodeSums<double>&, void*);
template void launch_row_sums(const RowSums<float>&, void*);
template void launch_row_sums(const RowSums<double>&, void*);
template void launch_clear(const ZeroRows<float>&, void*);
template void launch_clear(const ZeroRows<double>&, void*);
template void launch_round(const RoundedSums<Half>&, void*);
template void launch_round(const RoundedSums<BFloat16>&, void*);

}  // namespace clebsch::cuda
