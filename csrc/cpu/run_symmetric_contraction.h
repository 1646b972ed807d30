// Runs a symmetric contraction over nodes: reads its table, sorts the nodes by species, cuts them into
// chunks, and owns the reduced weights and private sums. No torch, no Python.
#pragma once

#include "api.h"
#include "cpu/parallel.h"
#include "symmetric_contraction_call.h"

namespace clebsch {

// Throws std::invalid_argument, before anything is written, if a species is not in [0, species); and
// std::bad_alloc if there is no memory for the work space; then results are unspecified.
template <class T>
CLEBSCH_API void run_symmetric_contraction(const ContractionCall<T>& call, ContractionStep step,
                                           Parallel parallel);

}  // namespace clebsch
