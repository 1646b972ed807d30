// The order of a graph from sorted indices: where each node's edges begin is found by bisection.
#include "cuda/device.h"
#include "cuda/graph_view.h"

namespace clebsch::cuda {
inline namespace graph_order_kernels {

constexpr int kThreads = 256;

struct OrderArgs {
  GraphView view;
  const std::int64_t *sorted, *source, *senders;
  std::int64_t* order;
};

__device__ std::int64_t* writable(const std::int64_t* p) { return const_cast<std::int64_t*>(p); }

__global__ void __launch_bounds__(kThreads) order_by_receiver(OrderArgs a) {
  const GraphView& view = a.view;
  each(view.nodes + 1, [&](std::int64_t n) {
    if (n == 0) a.order[0] = a.order[1] = -1;
    const std::int64_t begin = lower_bound(a.sorted, view.edges, n);
    if ((n == 0 && begin > 0) || (n == view.nodes && begin < view.edges)) refuse(Refusal::index);
    writable(view.receiver_begin)[n] = begin;
  });
  each(view.edges, [&](std::int64_t at) {
    writable(view.edge)[at] = a.source[at];
    writable(view.receiver)[at] = a.sorted[at];
    writable(view.sender)[at] = a.senders[a.source[at]];
  });
}

__global__ void __launch_bounds__(kThreads) order_by_sender(OrderArgs a) {
  const GraphView& view = a.view;
  each(view.nodes + 1, [&](std::int64_t n) {
    const std::int64_t begin = lower_bound(a.sorted, view.edges, n);
    if ((n == 0 && begin > 0) || (n == view.nodes && begin < view.edges)) refuse(Refusal::index);
    writable(view.sender_begin)[n] = begin;
  });
  each(view.edges, [&](std::int64_t i) { writable(view.outgoing)[i] = a.source[i]; });
}

dim3 blocks(std::int64_t edges, std::int64_t nodes) {
  return blocks_for(edges > nodes ? edges : nodes + 1, kThreads);
}

}  // namespace graph_order_kernels

void launch_order_by_receiver(const std::int64_t* sorted, const std::int64_t* edge,
                              const std::int64_t* senders, std::int64_t edges, std::int64_t nodes,
                              std::int64_t* order, void* stream) {
  const OrderArgs args{view_graph(order, edges, nodes), sorted, edge, senders, order};
  launch(&order_by_receiver, blocks(edges, nodes), dim3(kThreads), 0, stream, args);
}

void launch_order_by_sender(const std::int64_t* sorted, const std::int64_t* position, std::int64_t edges,
                            std::int64_t nodes, std::int64_t* order, void* stream) {
  const OrderArgs args{view_graph(order, edges, nodes), sorted, position, nullptr, order};
  launch(&order_by_sender, blocks(edges, nodes), dim3(kThreads), 0, stream, args);
}

}  // namespace clebsch::cuda
