// CUDA's programming model for a C++ compiler, for tests: kernels run thread by thread on the processor.
//
// Every thread of a block is a fiber with a stack of its own; a barrier or a shuffle switches to the next
// one. Between two barriers warps run in forward or in reverse order, each as far as it gets, or threads in
// random order; blocks likewise. What it catches:
//   - a missing barrier, if some order of threads makes the result differ: run under several orders;
//     under ThreadSanitizer (make races) also if none does;
//   - barriers that not all threads reach, or that some reach in another line; shuffles with absent lanes;
//   - reading shared memory that nobody wrote: it begins as NaN;
//   - reading or writing out of bounds, shared memory too, under AddressSanitizer.
// What it does not know: weak memory order, coalescing, bank conflicts, registers, streams, timing. A kernel
// that passes may still fail on a GPU.
//
// CLEBSCH_THREAD_ORDER = forward, reverse or random[:seed] sets the order; so does set_order().
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace clebsch::cuda::emulator {

// A kernel did what is not defined on a GPU.
struct Violation : std::runtime_error {
  using runtime_error::runtime_error;
};

enum class Order { forward, reverse, random };
void set_order(Order order, unsigned seed = 1);
// As CLEBSCH_THREAD_ORDER; std::invalid_argument for another word.
void set_order(const std::string& words);

// For tests: the most blocks of a grid along x or y, so that small problems meet what large ones do; 0 for
// none.
void set_most_blocks(std::int64_t count);
std::int64_t most_blocks(std::int64_t of_a_device);
// The same of the shared memory that a block may have, in bytes.
void set_shared_limit(std::int64_t bytes);
std::int64_t shared_limit(std::int64_t of_a_device);
// The most shared memory that a block has been given since the last call, in bytes.
std::int64_t shared_bytes_since();
// Kernels that ran to their end: to be noted, and given back in some order, each once; then nullptr.
void note_launch(const void* kernel);
const void* take_launch();

struct Place {
  dim3 thread, block, threads, blocks;
};
const Place& here();
void* shared_memory();

void block_barrier(const char* file, int line);
void warp_barrier(const char* file, int line);
// Where lane ^ offset put its value of `bytes` bytes; valid until the next collective of the warp.
const void* exchange(const void* value, std::size_t bytes, unsigned mask, int offset, const char* file,
                     int line);

void run_threads(dim3 grid, dim3 block, std::size_t shared, void (*body)(void*), void* context);

// Runs body() in every thread of every block. Throws Violation, or what a thread throws.
template <class Body>
void run(dim3 grid, dim3 block, std::size_t shared, const Body& body) {
  run_threads(
      grid, block, shared, [](void* context) { (*static_cast<const Body*>(context))(); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

template <class T>
T shuffle_xor(unsigned mask, T value, int offset, const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  T other;
  std::memcpy(&other, exchange(&value, sizeof(T), mask, offset, file, line), sizeof(T));
  return other;
}

}  // namespace clebsch::cuda::emulator

#define threadIdx (clebsch::cuda::emulator::here().thread)
#define blockIdx (clebsch::cuda::emulator::here().block)
#define blockDim (clebsch::cuda::emulator::here().threads)
#define gridDim (clebsch::cuda::emulator::here().blocks)
#define __syncthreads() clebsch::cuda::emulator::block_barrier(__FILE__, __LINE__)
#define __syncwarp() clebsch::cuda::emulator::warp_barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, offset) \
  clebsch::cuda::emulator::shuffle_xor(mask, value, offset, __FILE__, __LINE__)
