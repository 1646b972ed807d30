// Runs a product on a device: which kernels, and what they leave to be summed. Nothing waits.
#pragma once

#include <cstdint>

#include "cuda/device_product.h"
#include "cuda/workspace.h"
#include "product_call.h"

namespace clebsch::cuda {

// For tests: what the parts of sums, and the windows of a radial convolution, may take at a time; 0 for the
// rules of each. gx of an edge, and gw where weights are shared, wait there until their owners sum them.
void set_workspace_bytes(std::int64_t bytes);

// Positions of a graph, sorted by receiver. Windows follow each other from 0 on, and each adds to the results
// of those before it; weights and their gradients have a row for each position of the window. Rows of gx,
// where it is wanted, lie in `parts` from position parts_begin on; the window that ends at parts_end has them
// summed, which goes over all senders.
struct Window {
  std::int64_t begin, end;
  void* parts;
  std::int64_t parts_begin, parts_end;
};

// graph: null for rows. The call's own graph and radial are not looked at.
template <class S>
void run_product(const ProductCall<S>& call, const PlanTables<Arithmetic<S>>& plan, const GraphView* graph,
                 Derivative derivative, const Workspace& workspace, void* stream,
                 const Window* window = nullptr);

// What may be taken at a time: `bytes`, or what is set for tests.
std::int64_t workspace_bytes(std::int64_t bytes);

}  // namespace clebsch::cuda
