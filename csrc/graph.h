// The edges of a graph in the order that kernels want, made once in O(edges + nodes).
//
// Receivers own their sums: edges are sorted by receiver (stable), and consecutive receivers form chunks. A
// chunk keeps one private sum for each sender it meets, a slot; the slots of a sender are added in the order
// of the chunks. A chunk ends when it has enough edges to be worth a task or kChunkSlots slots, so that its
// sums take bounded memory (one receiver more may go beyond), and depends on the graph alone, so results are
// the same bits for any number of threads.
#pragma once

#include <cstdint>

namespace clebsch {

constexpr std::int64_t kChunkSlots = 256;

// A view into the one int64 array that holds all of it (order_size elements).
struct Graph {
  std::int64_t nodes, edges, slots, chunks;
  const std::int64_t* receiver_begin;  // nodes + 1: positions in the sorted order
  const std::int64_t* chunk_begin;     // chunks + 1: receivers
  const std::int64_t* chunk_slot;      // chunks + 1: slots
  const std::int64_t* edge;            // by position: index of the edge
  const std::int64_t* sender;          // by position
  const std::int64_t* slot;            // by position: slot, or ~slot where its chunk meets the sender first
  const std::int64_t* owner;           // by slot: sender
  const std::int64_t* previous;        // by slot: the slot before it of the same sender, or -1
  const std::int64_t* next;            // by slot: the slot after it of the same sender, or -1
};

}  // namespace clebsch
