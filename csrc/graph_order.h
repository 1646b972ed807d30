// Building and checking the order of a graph (see graph.h).
#pragma once

#include <cstdint>

#include "api.h"
#include "graph.h"

namespace clebsch {

inline std::int64_t order_size(std::int64_t edges, std::int64_t nodes) { return 6 * edges + 3 * nodes + 5; }

// Fills `order`. Throws std::out_of_range, with nothing written, if an index lies outside [0, nodes).
CLEBSCH_API void build_order(const std::int64_t* senders, const std::int64_t* receivers, std::int64_t edges,
                             std::int64_t nodes, std::int64_t* order);

// The view. That each edge is there once is taken for granted. Throws std::invalid_argument unless every
// index it holds is in range, so that kernels need not look.
CLEBSCH_API Graph view_order(const std::int64_t* order, std::int64_t edges, std::int64_t nodes);

}  // namespace clebsch
