// Large blocks of memory, kept for reuse when freed.
//
// Fresh pages cost more than the arithmetic: the kernel zeroes them (2 to 6 GB/s where this was measured,
// against 9 to 20 GB/s for writing memory that is there), and glibc returns every block above 32 MiB at once.
// Results and work space of a training step have the same sizes at the next, so blocks wait in a pool, at
// most `limit` bytes of them: a quarter of the machine's memory, or CLEBSCH_KEEP_MEMORY (MiB; 0 keeps none).
#pragma once

#include <cstddef>

#include "api.h"

namespace clebsch {

// Below this size malloc itself keeps freed memory; above, it returns it and asks for it again until it has
// seen a few blocks of the size, and again whenever blocks at the end of its heap are free.
constexpr std::size_t kSmallestPooled = std::size_t{128} << 10;

// At least `bytes` bytes on a cache line (on huge pages from 1.75 MiB on), not initialised. Throws
// std::bad_alloc.
CLEBSCH_API void* acquire_memory(std::size_t bytes);
CLEBSCH_API void release_memory(void* block) noexcept;

// Bytes waiting in the pool; and giving them back to the system.
CLEBSCH_API std::size_t kept_memory();
CLEBSCH_API void drop_kept_memory();

// For tests: every new result and every work space is filled with NaN before a kernel sees it, so that an
// element that is never written shows.
CLEBSCH_API void poison_new_memory(bool on);
CLEBSCH_API bool poisons_new_memory();

}  // namespace clebsch
