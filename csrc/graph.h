// The edges of a graph in the two orders that kernels want, made once in O(edges + nodes).
//
// Receivers own their sums: edges are sorted by receiver (stable), and consecutive receivers form chunks of
// about equal work. A chunk keeps one private sum for each sender it meets, a slot; the slots of a sender are
// added in the order of the chunks. Chunks depend on the graph alone, so results are the same bits for any
// number of threads.
#pragma once

#include <cstdint>

namespace clebsch {

// A view into the one int64 array that holds all of it (order_size elements).
struct Graph {
  std::int64_t nodes, edges, slots, chunks;
  const std::int64_t* receiver_begin;  // nodes + 1: positions in the sorted order
  const std::int64_t* edge;            // by position: index of the edge
  const std::int64_t* sender;          // by position
  const std::int64_t* slot;            // by position: slot, or ~slot where its chunk meets the sender first
  const std::int64_t* sender_begin;    // nodes + 1: positions in slot_of_sender
  const std::int64_t* slot_of_sender;  // slots, ascending within a sender
};

}  // namespace clebsch
