// The order of a graph: what build_order promises in graph.h, and what view_order lets pass.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "graph_order.h"

namespace {

using clebsch::Graph;
using std::int64_t;

void check_order(const std::vector<int64_t>& senders, const std::vector<int64_t>& receivers, int64_t nodes,
                 Place place) {
  const int64_t edges = static_cast<int64_t>(senders.size());
  const Buffer<int64_t> order(clebsch::order_size(edges, nodes), place);
  Buffer<int64_t> s(edges, place), r(edges, place);
  std::copy(senders.begin(), senders.end(), s.data());
  std::copy(receivers.begin(), receivers.end(), r.data());
  clebsch::build_order(s.data(), r.data(), edges, nodes, order.data());
  const Graph g = clebsch::view_order(order.data(), edges, nodes);
  CHECK(g.nodes == nodes && g.edges == edges && g.receiver_begin[nodes] == edges);
  // sorted by receiver, in the order given where receivers are equal
  for (int64_t n = 0; n < nodes; ++n) {
    for (int64_t at = g.receiver_begin[n]; at < g.receiver_begin[n + 1]; ++at) {
      CHECK(receivers[g.edge[at]] == n && senders[g.edge[at]] == g.sender[at]);
      CHECK(at == g.receiver_begin[n] || g.edge[at - 1] < g.edge[at]);
    }
  }
  // chunks cover the nodes; each meets the slots that are its own, for the first time where it says so, and
  // no more than promised before its last receiver
  CHECK(g.chunk_begin[0] == 0 && g.chunk_begin[g.chunks] == nodes && g.chunk_slot[g.chunks] == g.slots);
  int64_t met = 0;
  std::vector<int64_t> owner, latest(nodes, -1);
  for (int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    const int64_t first = met, begin = g.chunk_begin[chunk], end = g.chunk_begin[chunk + 1];
    CHECK(begin < end && g.chunk_slot[chunk] == first);
    for (int64_t r = begin; r < end; ++r) {
      CHECK(met - first < clebsch::kChunkSlots);
      for (int64_t at = g.receiver_begin[r]; at < g.receiver_begin[r + 1]; ++at) {
        if (g.slot[at] >= 0) {
          CHECK(g.slot[at] >= first && g.slot[at] < met && owner[g.slot[at]] == g.sender[at]);
          continue;
        }
        CHECK(~g.slot[at] == met && g.owner[met] == g.sender[at]);
        CHECK(g.previous[met] == latest[g.sender[at]] && g.previous[met] < first);
        if (g.previous[met] >= 0) CHECK(g.next[g.previous[met]] == met);
        latest[g.sender[at]] = met++;
        owner.push_back(g.sender[at]);
      }
    }
  }
  CHECK(met == g.slots);
  for (int64_t n = 0; n < nodes; ++n) CHECK(latest[n] < 0 || g.next[latest[n]] == -1);
}

}  // namespace

TEST(orders_hold_every_edge_once) {
  std::mt19937 generator(1);
  for (const Place place : {Place::heap, Place::page_end}) {
    check_order({}, {}, 0, place);
    check_order({}, {}, 4, place);
    check_order({0}, {0}, 1, place);
    check_order({2, 2, 2, 0}, {1, 1, 1, 2}, 5, place);
    for (const auto& [edges, nodes] :
         {std::pair{7, 3}, {40, 40}, {3000, 10}, {3000, 1}, {50, 2000}, {40000, 700}}) {
      std::vector<int64_t> senders(edges), receivers(edges);
      for (int64_t& s : senders) s = generator() % nodes;
      for (int64_t& r : receivers) r = generator() % nodes;
      check_order(senders, receivers, nodes, place);
    }
  }
}

TEST(indices_out_of_range_leave_nothing_written) {
  for (const int64_t bad :
       {int64_t{3}, int64_t{-1}, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    for (const bool of_sender : {false, true}) {
      int64_t senders[] = {0, 1, 2}, receivers[] = {2, 1, 0};
      (of_sender ? senders : receivers)[1] = bad;
      Buffer<int64_t> order(clebsch::order_size(3, 3), Place::heap);
      std::fill_n(order.data(), order.size(), 77);
      const std::string message =
          check::refusal([&] { clebsch::build_order(senders, receivers, 3, 3, order.data()); });
      CHECK(message == std::string("graph_order: ") + (of_sender ? "senders" : "receivers") +
                           " must lie in [0, num_nodes) = [0, 3), got " + std::to_string(bad) + " at edge 1",
            message);
      CHECK(std::all_of(order.data(), order.data() + order.size(), [](int64_t i) { return i == 77; }));
    }
  }
}

TEST(what_is_no_order_is_refused) {
  std::mt19937_64 generator(2);
  const int64_t edges = 5, nodes = 3;
  Buffer<int64_t> order(clebsch::order_size(edges, nodes), Place::page_end);
  const auto refused = [&] {
    return check::refusal([&] { clebsch::view_order(order.data(), edges, nodes); }) ==
           "convolution: order must come from graph_order of the same graph";
  };
  for (const int64_t fill : {int64_t{0}, int64_t{1}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    std::fill_n(order.data(), order.size(), fill);
    CHECK(refused(), fill);
  }
  for (int round = 0; round < 2000; ++round) {
    const int64_t bound = int64_t{2} << generator() % 60;
    for (int64_t i = 0; i < order.size(); ++i) {
      order[i] = static_cast<int64_t>(generator() % static_cast<std::uint64_t>(2 * bound)) - bound;
    }
    CHECK(refused(), round);
  }
}
