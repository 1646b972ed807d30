// The order of the edges of a graph on a device. It is made there and never looked at by the host, so that
// nothing waits: kernels check what it begins with, and each index that they use.
//
// It lies in an array of order_size (graph_order.h) elements, as the order of the CPU's kernels does and with
// the edges in the same place, but is another one: its first two elements are -1, which no other order has.
// Edges are sorted by receiver (stable): positions. The positions of each sender are listed in ascending
// order, so that its gradient is a sum in an order that depends on the graph alone.
#pragma once

#include <cstdint>

namespace clebsch::cuda {

struct GraphView {
  std::int64_t nodes, edges;
  const std::int64_t* head;            // 2: -1, which says that the rest is what follows
  const std::int64_t* receiver_begin;  // nodes + 1: positions
  const std::int64_t* sender_begin;    // nodes + 1: in outgoing
  const std::int64_t* edge;            // by position: index of the edge
  const std::int64_t* sender;          // by position
  const std::int64_t* receiver;        // by position
  const std::int64_t* outgoing;        // positions, by sender
};

inline GraphView view_graph(const std::int64_t* order, std::int64_t edges, std::int64_t nodes) {
  const std::int64_t* at = order + 2;
  const auto take = [&at](std::int64_t count) { return (at += count) - count; };
  GraphView view{};
  view.nodes = nodes;
  view.edges = edges;
  view.head = order;
  view.receiver_begin = take(nodes + 1);
  view.sender_begin = take(nodes + 1);
  take(nodes + 1);
  view.edge = take(edges);
  view.sender = take(edges);
  view.receiver = take(edges);
  view.outgoing = take(edges);
  return view;
}

// Both sort stably by their keys; what torch's sort gives: the sorted keys and where each came from.
//   first: receivers sorted, edges by position -> all of the order but what follows
//   second: senders by position sorted, positions by sender
void launch_order_by_receiver(const std::int64_t* sorted, const std::int64_t* edge,
                              const std::int64_t* senders, std::int64_t edges, std::int64_t nodes,
                              std::int64_t* order, void* stream);
void launch_order_by_sender(const std::int64_t* sorted, const std::int64_t* position, std::int64_t edges,
                            std::int64_t nodes, std::int64_t* order, void* stream);

}  // namespace clebsch::cuda
