// Runs a symmetric contraction on a device. Nothing waits.
#pragma once

#include <cstdint>

#include "cuda/device_contraction.h"
#include "cuda/workspace.h"

namespace clebsch::cuda {

// Sorted species, and the node that each came from; needed where the gradient of the weights is wanted.
struct SortedSpecies {
  const std::int64_t *species, *node;
};

// The call's arrays are the device's, its table the host's. Throws std::bad_alloc if the weights of all
// species, reduced to rows of the basis, are more than memory can hold.
template <class S>
void run_symmetric_contraction(const ContractionCall<S>& call, const ContractionTables<Arithmetic<S>>& plan,
                               ContractionStep step, const SortedSpecies& sorted, const Workspace& workspace,
                               void* stream);

}  // namespace clebsch::cuda
