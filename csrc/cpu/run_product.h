// Runs a product over rows or a graph: chooses the kernel, cuts the work into chunks that do not depend on
// the number of threads, and owns the temporary panels and private sums. No torch, no Python.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "product_call.h"

namespace clebsch {

// For tests: what the private sums of a wave of chunks may take; 0 for the rule. Results do not depend on it.
CLEBSCH_API void set_private_bytes(std::int64_t bytes);

// Throws std::bad_alloc if there is no memory for the work space; then results are unspecified.
template <class T>
CLEBSCH_API void run_product(const ProductCall<T>& call, Derivative derivative, Parallel parallel);

}  // namespace clebsch
