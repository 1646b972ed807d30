// Sums over edges or rows: each element is summed by one thread, in an order that depends on the call
// alone. Bytes: parts read once, sums written once.
#include "cuda/device.h"
#include "cuda/device_product.h"
#include "cuda/edges.h"

namespace clebsch::cuda {
inline namespace tensor_product_sums_kernels {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) add_to_nodes(NodeSums<T> a) {
  require_device_order(a.graph);
  const std::int64_t* begins = a.of_receivers ? a.graph.receiver_begin : a.graph.sender_begin;
  for (std::int64_t node = blockIdx.x; node < a.graph.nodes; node += gridDim.x) {
    const std::int64_t begin = begins[node], end = begins[node + 1];
    if (begin < 0 || end < begin || end > a.graph.edges) refuse(Refusal::order);
    T* sums = row(a.sums, node);
    for (std::int64_t d = threadIdx.x; d < a.parts.stride; d += kThreads) {
      T sum = a.add ? sums[d] : T{};
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t at = a.of_receivers ? i : a.graph.outgoing[i];
        if (at < 0 || at >= a.graph.edges) refuse(Refusal::order);
        if (at >= a.first && at < a.last) sum += row(a.parts, at - a.first)[d];
      }
      sums[d] = sum;
    }
  }
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
template <class S>
void launch_round(const RoundedSums<S>& sums, void* stream) {
  launch(&round_sums<S>, blocks_for(sums.count, kThreads), dim3(kThreads), 0, stream, sums);
}

template void launch_node_sums(const NodeSums<float>&, void*);
template void launch_node_sums(const NodeSums<double>&, void*);
template void launch_row_sums(const RowSums<float>&, void*);
template void launch_row_sums(const RowSums<double>&, void*);
template void launch_round(const RoundedSums<Half>&, void*);
template void launch_round(const RoundedSums<BFloat16>&, void*);

}  // namespace clebsch::cuda
