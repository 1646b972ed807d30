// How a caller lends its threads.
#pragma once

#include <cstdint>

namespace clebsch {

// Calls body(context, begin, end) over disjoint pieces of [0, tasks), in any number of threads.
using Body = void (*)(void* context, std::int64_t begin, std::int64_t end);
using Parallel = void (*)(std::int64_t tasks, Body body, void* context);

// Serial execution.
inline void run_here(std::int64_t tasks, Body body, void* context) { body(context, 0, tasks); }

}  // namespace clebsch
