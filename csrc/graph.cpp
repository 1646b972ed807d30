#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "graph_order.h"

namespace clebsch {
namespace {

// Enough chunks to feed many threads, each with enough edges that private sums of senders stay cheap.
std::int64_t chunk_count(std::int64_t edges, std::int64_t nodes) {
  return std::clamp<std::int64_t>((edges + nodes) / 512, 1, 64);
}

Graph layout(const std::int64_t* order, std::int64_t edges, std::int64_t nodes) {
  Graph g{};
  g.nodes = nodes;
  g.edges = edges;
  g.chunks = chunk_count(edges, nodes);
  g.receiver_begin = order;
  g.edge = g.receiver_begin + nodes + 1;
  g.sender = g.edge + edges;
  g.slot = g.sender + edges;
  g.sender_begin = g.slot + edges;
  g.slot_of_sender = g.sender_begin + nodes + 1;
  g.slots = order[order_size(edges, nodes) - 1];
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

std::int64_t chunk_begin(const Graph& g, std::int64_t chunk) {
  // Work before receiver r is its edges and receivers: receiver_begin[r] + r, increasing in r.
  const std::int64_t target = (g.edges + g.nodes) * chunk / g.chunks;
  std::int64_t low = 0, high = g.nodes;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (g.receiver_begin[middle] + middle < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void build_order(const std::int64_t* senders, const std::int64_t* receivers, std::int64_t edges,
                 std::int64_t nodes, std::int64_t* order) {
  check_range("senders", senders, edges, nodes);
  check_range("receivers", receivers, edges, nodes);
  std::fill_n(order, order_size(edges, nodes), 0);
  const Graph g = layout(order, edges, nodes);
  const auto writable = [](const std::int64_t* p) { return const_cast<std::int64_t*>(p); };
  std::int64_t *receiver_begin = writable(g.receiver_begin), *edge = writable(g.edge),
               *sender = writable(g.sender), *slot = writable(g.slot),
               *sender_begin = writable(g.sender_begin), *slot_of_sender = writable(g.slot_of_sender);

  for (std::int64_t e = 0; e < edges; ++e) ++receiver_begin[receivers[e] + 1];
  for (std::int64_t n = 0; n < nodes; ++n) receiver_begin[n + 1] += receiver_begin[n];
  std::vector<std::int64_t> next(receiver_begin, receiver_begin + nodes);
  for (std::int64_t e = 0; e < edges; ++e) {
    const std::int64_t at = next[receivers[e]]++;
    edge[at] = e;
    sender[at] = senders[e];
  }

  std::int64_t slots = 0;
  std::vector<std::int64_t> latest(nodes, -1);  // slot of each sender in the newest chunk that met it
  std::vector<std::int64_t> owner;              // sender of each slot
  owner.reserve(edges);
  for (std::int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    const std::int64_t first_slot = slots;
    const std::int64_t begin = receiver_begin[chunk_begin(g, chunk)],
                       end = receiver_begin[chunk_begin(g, chunk + 1)];
    for (std::int64_t at = begin; at < end; ++at) {
      std::int64_t& known = latest[sender[at]];
      if (known >= first_slot) {
        slot[at] = known;
      } else {
        known = slots++;
        owner.push_back(sender[at]);
        slot[at] = ~known;
      }
    }
  }
  for (const std::int64_t s : owner) ++sender_begin[s + 1];
  for (std::int64_t n = 0; n < nodes; ++n) sender_begin[n + 1] += sender_begin[n];
  std::copy_n(sender_begin, nodes, next.begin());
  for (std::int64_t s = 0; s < slots; ++s) slot_of_sender[next[owner[s]]++] = s;
  order[order_size(edges, nodes) - 1] = slots;
}

Graph view_order(const std::int64_t* order, std::int64_t edges, std::int64_t nodes) {
  const Graph g = layout(order, edges, nodes);
  bool ok = g.slots >= 0 && g.slots <= edges && partitions(g.receiver_begin, nodes, edges) &&
            within(g.edge, edges, edges) && within(g.sender, edges, nodes) &&
            partitions(g.sender_begin, nodes, g.slots) && within(g.slot_of_sender, g.slots, g.slots);
  for (std::int64_t e = 0; e < edges; ++e) {
    const std::int64_t s = g.slot[e] < 0 ? ~g.slot[e] : g.slot[e];
    ok &= s < g.slots;
  }
  if (!ok) throw std::invalid_argument("convolution: order must come from graph_order of the same graph");
  return g;
}

}  // namespace clebsch
