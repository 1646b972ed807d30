// What kernels use of CUDA, in one place: the same source compiles with nvcc for a GPU and with a C++
// compiler against the emulator, which runs it thread by thread.
//
// The vocabulary: __global__, __device__, threadIdx, blockIdx, blockDim, gridDim, __syncthreads(),
// __syncwarp(), __shfl_xor_sync() with all lanes, dynamic_shared<T>(), launch(). Shared memory is dynamic
// alone: its size is exact, so that the emulator sees what lies beyond it.
//
// Kernels lie in inline namespaces, one a file. nvcc names what is in anonymous ones after the path of the
// file, and what it makes of a kernel depends on names: machine code would depend on where the sources lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define CLEBSCH_DEVICE_UNROLL _Pragma("unroll")
#define CLEBSCH_DEVICE_UNROLL_BY(count) CLEBSCH_DEVICE_PRAGMA(unroll(count))
#define CLEBSCH_DEVICE_PRAGMA(text) _Pragma(#text)
#else
#include "cuda/emulator.h"

#define CLEBSCH_DEVICE_UNROLL _Pragma("GCC unroll 128")
#define CLEBSCH_DEVICE_UNROLL_BY(count)
#endif

namespace clebsch::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// What a kernel finds in arrays that the host has not looked at. On a GPU the kernel stops, and the next call
// that waits for it fails, as with torch's own assertions.
enum class Refusal { index, order, species, element };

#ifdef __CUDACC__

[[noreturn]] __device__ inline void refuse(Refusal, std::int64_t = 0, std::int64_t = 0, std::int64_t = 0) {
  __trap();
  __builtin_unreachable();
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a failed launch leaves no trace for the next call of someone else
  throw std::runtime_error(std::string("clebsch: ") + what + ": " + cudaGetErrorString(error));
}

// Of the current device.
struct Limits {
  int processors;
  std::size_t shared;  // bytes of a block
};
inline Limits limits() {
  int device = 0, processors = 0, shared = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device");
  return {processors, static_cast<std::size_t>(shared)};
}

inline std::int64_t most_blocks(std::int64_t most) { return most; }

extern __shared__ __align__(16) unsigned char shared_memory[];
template <class T>
__device__ inline T* dynamic_shared() {
  return reinterpret_cast<T*>(shared_memory);
}

// Runs kernel(args) on the stream; nothing waits. No blocks: nothing to do.
template <class Args>
void launch(void (*kernel)(Args), dim3 grid, dim3 block, std::size_t shared, void* stream, const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > 48 << 10) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory");
  }
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(args);
  check(cudaGetLastError(), "launch");
}

#else

// The numbers are those of a species or an element: how many there are, which was given, where.
[[noreturn]] inline void refuse(Refusal refusal, std::int64_t count = 0, std::int64_t given = 0,
                                std::int64_t at = 0) {
  if (refusal == Refusal::species || refusal == Refusal::element) {
    const bool species = refusal == Refusal::species;
    throw std::invalid_argument((species ? "symmetric_contraction" : "linear") +
                                (": index must lie in [0, " + std::to_string(count)) + "), got " +
                                std::to_string(given) + (species ? " for node " : " in row ") +
                                std::to_string(at));
  }
  if (refusal == Refusal::index)
    throw std::out_of_range("graph_order: senders and receivers must lie in [0, num_nodes)");
  throw std::invalid_argument("convolution: order must come from graph_order of the same graph");
}

// A small device, so that small tests meet what large ones are made for.
struct Limits {
  int processors;
  std::size_t shared;
};
inline Limits limits() { return {1, static_cast<std::size_t>(emulator::shared_limit(48 << 10))}; }
inline std::int64_t most_blocks(std::int64_t most) { return emulator::most_blocks(most); }

template <class T>
inline T* dynamic_shared() {
  return static_cast<T*>(emulator::shared_memory());
}

template <class Args>
void launch(void (*kernel)(Args), dim3 grid, dim3 block, std::size_t shared, void*, const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  emulator::run(grid, block, shared, [&] { kernel(args); });
  emulator::note_launch(reinterpret_cast<const void*>(kernel));
}

#endif

// 16 bytes of numbers, which one instruction loads or stores where they are aligned.
template <class T, int Count>
struct alignas(Count * sizeof(T)) Pack {
  T value[Count];
  __device__ T& operator[](int i) { return value[i]; }
  __device__ const T& operator[](int i) const { return value[i]; }
};
template <class T>
constexpr int kPacked = 16 / static_cast<int>(sizeof(T));

// All of the arrays, for packs of Count numbers; null is.
template <class T, int Count, class... Arrays>
__device__ inline bool aligned(const Arrays*... arrays) {
  return (... && (reinterpret_cast<std::uintptr_t>(arrays) % (Count * sizeof(T)) == 0));
}

// Stores a pack in global memory, where it is aligned, by one instruction. Assignments do not: beside a
// branch that stores number by number the compiler takes them apart. (CUDA's __stwb makes it a strong store.)
template <class T, int Count>
__device__ inline void store_packed(Pack<T, Count>* at, const Pack<T, Count>& pack) {
#ifdef __CUDACC__
  if constexpr (sizeof(pack) == 16) {
    const uint4 bits = __builtin_bit_cast(uint4, pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(bits.x),
                 "r"(bits.y), "r"(bits.z), "r"(bits.w)
                 : "memory");
    return;
  } else if constexpr (sizeof(pack) == 8 && Count > 1) {
    const uint2 bits = __builtin_bit_cast(uint2, pack);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(at)), "r"(bits.x),
                 "r"(bits.y)
                 : "memory");
    return;
  }
#endif
  *at = pack;
}

// A stored number as kernels compute with it, and the nearest one to store, of two the even one.
template <class T>
__device__ inline T widened(T value) {
  return value;
}
template <class S>
__device__ inline S rounded(Arithmetic<S> value) {
  return value;
}
#ifdef __CUDACC__
__device__ inline float widened(Half stored) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored.bits));
  return value;
}
__device__ inline float widened(BFloat16 stored) {
  return __uint_as_float(static_cast<unsigned>(stored.bits) << 16);
}
template <>
__device__ inline Half rounded<Half>(float value) {
  Half stored;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
  return stored;
}
template <>
__device__ inline BFloat16 rounded<BFloat16>(float value) {
  BFloat16 stored;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(stored.bits) : "f"(value));
  return stored;
}
#else
inline float widened(Half stored) { return static_cast<float>(std::bit_cast<_Float16>(stored.bits)); }
inline float widened(BFloat16 stored) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(stored.bits) << 16);
}
template <>
inline Half rounded<Half>(float value) {
  return {std::bit_cast<std::uint16_t>(static_cast<_Float16>(value))};
}
template <>
inline BFloat16 rounded<BFloat16>(float value) {
  if (value != value) return {0x7fff};
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#endif

// Packs by value: what is read through a reference is read number by number.
template <class S, int Count>
__device__ inline Pack<Arithmetic<S>, Count> widened(Pack<S, Count> stored) {
  if constexpr (kShort<S>) {
    Pack<float, Count> pack;
    CLEBSCH_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) pack[i] = widened(stored[i]);
    return pack;
  } else {
    return stored;
  }
}
template <class S, int Count>
__device__ inline Pack<S, Count> rounded(Pack<Arithmetic<S>, Count> pack) {
  if constexpr (kShort<S>) {
    Pack<S, Count> stored;
    CLEBSCH_DEVICE_UNROLL
    for (int i = 0; i < Count; ++i) stored[i] = rounded<S>(pack[i]);
    return stored;
  } else {
    return pack;
  }
}

// The sum over the lanes of a warp, in every lane. All lanes must call it.
template <class T>
__device__ inline T sum_lanes(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Blocks of a grid for so many tasks, along x and along y: kernels go through what is more by themselves.
inline unsigned blocks_x(std::int64_t tasks) {
  const std::int64_t most = most_blocks(1 << 20);
  return static_cast<unsigned>(tasks < most ? tasks : most);
}
inline unsigned blocks_y(std::int64_t tasks) {
  const std::int64_t most = most_blocks(65535);
  return static_cast<unsigned>(tasks < most ? tasks : most);
}

// f(i) for i < count by all threads of all blocks.
template <class F>
__device__ inline void each(std::int64_t count, const F& f) {
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) f(i);
}
// Blocks for it.
inline dim3 blocks_for(std::int64_t count, int threads) {
  return dim3(blocks_x((count + threads - 1) / threads));
}

// Where the first that is not smaller lies.
template <class Key>
__device__ inline std::int64_t lower_bound(const Key* sorted, std::int64_t count, Key key) {
  std::int64_t low = 0;
  while (count > 0) {
    const std::int64_t half = count / 2;
    if (sorted[low + half] < key) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

}  // namespace clebsch::cuda
