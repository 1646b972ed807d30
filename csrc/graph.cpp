#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph_order.h"

namespace clebsch {
namespace {

// How many even chunks, by work in edges and receivers: enough to feed many threads, each with enough edges
// that private sums of senders stay cheap; from three on a multiple of 4, which 2 and 4 threads share evenly.
std::int64_t chunk_count(std::int64_t work) {
  const std::int64_t count = work / std::clamp<std::int64_t>(work / 64, 512, 4096);
  return count < 3 ? std::max<std::int64_t>(count, 1) : (count + 3) / 4 * 4;
}

Graph layout(const std::int64_t* order, std::int64_t edges, std::int64_t nodes) {
  Graph g{};
  g.nodes = nodes;
  g.edges = edges;
  const auto take = [&order](std::int64_t count) { return (order += count) - count; };
  g.chunks = *take(1);
  g.slots = *take(1);
  g.receiver_begin = take(nodes + 1);
  g.chunk_begin = take(nodes + 1);
  g.chunk_slot = take(nodes + 1);
  for (const std::int64_t** by_edge : {&g.edge, &g.sender, &g.slot, &g.owner, &g.previous, &g.next}) {
    *by_edge = take(edges);
  }
  return g;
}

void check_range(const char* name, const std::int64_t* index, std::int64_t edges, std::int64_t nodes) {
  for (std::int64_t e = 0; e < edges; ++e) {
    if (index[e] < 0 || index[e] >= nodes) {
      throw std::out_of_range("graph_order: " + std::string(name) + " must lie in [0, num_nodes) = [0, " +
                              std::to_string(nodes) + "), got " + std::to_string(index[e]) + " at edge " +
                              std::to_string(e));
    }
  }
}

bool within(const std::int64_t* index, std::int64_t count, std::int64_t bound) {
  bool ok = true;
  for (std::int64_t i = 0; i < count; ++i)
    ok &= static_cast<std::uint64_t>(index[i]) < static_cast<std::uint64_t>(bound);
  return ok;
}

// begin[0] = 0 <= begin[1] <= ... <= begin[count] = total
bool partitions(const std::int64_t* begin, std::int64_t count, std::int64_t total) {
  bool ok = begin[0] == 0 && begin[count] == total;
  for (std::int64_t i = 0; i < count; ++i) ok &= begin[i] <= begin[i + 1];
  return ok;
}

}  // namespace

void build_order(const std::int64_t* senders, const std::int64_t* receivers, std::int64_t edges,
                 std::int64_t nodes, std::int64_t* order) {
  check_range("senders", senders, edges, nodes);
  check_range("receivers", receivers, edges, nodes);
  std::fill_n(order, order_size(edges, nodes), 0);
  const Graph g = layout(order, edges, nodes);
  const auto writable = [](const std::int64_t* p) { return const_cast<std::int64_t*>(p); };
  std::int64_t *receiver_begin = writable(g.receiver_begin), *edge = writable(g.edge),
               *sender = writable(g.sender);
  for (std::int64_t e = 0; e < edges; ++e) ++receiver_begin[receivers[e] + 1];
  for (std::int64_t n = 0; n < nodes; ++n) receiver_begin[n + 1] += receiver_begin[n];
  std::vector<std::int64_t> place(receiver_begin, receiver_begin + nodes);
  for (std::int64_t e = 0; e < edges; ++e) {
    const std::int64_t at = place[receivers[e]]++;
    edge[at] = e;
    sender[at] = senders[e];
  }

  std::int64_t *chunk_begin = writable(g.chunk_begin), *chunk_slot = writable(g.chunk_slot),
               *slot = writable(g.slot), *owner = writable(g.owner), *previous = writable(g.previous),
               *next = writable(g.next);
  const std::int64_t all = edges + nodes, shares = chunk_count(all);
  std::int64_t slots = 0, chunks = 0, share = 1;
  std::vector<std::int64_t> latest(nodes, -1);  // slot of each sender in the newest chunk that met it
  for (std::int64_t r = 0; r < nodes; ++r) {
    for (std::int64_t at = receiver_begin[r]; at < receiver_begin[r + 1]; ++at) {
      std::int64_t& known = latest[sender[at]];
      if (known >= chunk_slot[chunks]) {
        slot[at] = known;
        continue;
      }
      owner[slots] = sender[at];
      previous[slots] = known;
      next[slots] = -1;
      if (known >= 0) next[known] = slots;
      known = slots++;
      slot[at] = ~known;
    }
    const std::int64_t work = receiver_begin[r + 1] + r + 1;
    const bool even = work >= all * share / shares;
    if (even || slots - chunk_slot[chunks] >= kChunkSlots || r + 1 == nodes) {
      ++chunks;
      chunk_begin[chunks] = r + 1;
      chunk_slot[chunks] = slots;
    }
    if (even) share = work * shares / all + 1;
  }
  order[0] = chunks;
  order[1] = slots;
}

Graph view_order(const std::int64_t* order, std::int64_t edges, std::int64_t nodes) {
  const Graph g = layout(order, edges, nodes);
  bool ok = g.slots >= 0 && g.slots <= edges && g.chunks >= 0 && g.chunks <= nodes &&
            partitions(g.receiver_begin, nodes, edges) && partitions(g.chunk_begin, g.chunks, nodes) &&
            partitions(g.chunk_slot, g.chunks, g.slots) && within(g.edge, edges, edges) &&
            within(g.sender, edges, nodes) && within(g.owner, g.slots, nodes);
  for (std::int64_t chunk = 0; ok && chunk < g.chunks; ++chunk) {
    const std::int64_t first = g.chunk_slot[chunk], last = g.chunk_slot[chunk + 1];
    const std::int64_t begin = g.receiver_begin[g.chunk_begin[chunk]],
                       end = g.receiver_begin[g.chunk_begin[chunk + 1]];
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t s = g.slot[at] < 0 ? ~g.slot[at] : g.slot[at];
      ok &= s >= first && s < last;
    }
  }
  for (std::int64_t s = 0; ok && s < g.slots; ++s) {
    ok &= g.previous[s] >= -1 && g.previous[s] < s;
    ok &= g.next[s] == -1 || (g.next[s] > s && g.next[s] < g.slots);
  }
  if (!ok) throw std::invalid_argument("convolution: order must come from graph_order of the same graph");
  return g;
}

}  // namespace clebsch
