// The edges of small graphs, for tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

struct Edges {
  std::vector<std::int64_t> senders, receivers;
  std::int64_t nodes;
};

inline Edges random_edges(std::int64_t nodes, std::int64_t count) {
  std::mt19937 generator(static_cast<unsigned>(nodes + 100 * count));
  Edges edges{{}, {}, nodes};
  for (std::int64_t e = 0; e < count; ++e) {
    edges.senders.push_back(generator() % nodes);
    edges.receivers.push_back(generator() % (nodes - 1));  // the last one receives nothing
  }
  return edges;
}
