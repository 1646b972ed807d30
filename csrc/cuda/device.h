// What kernels use of CUDA, in one place: the same source compiles with nvcc for a GPU and with a C++
// compiler against the emulator, which runs it thread by thread.
//
// The vocabulary: __global__, __device__, threadIdx, blockIdx, blockDim, gridDim, __syncthreads(),
// __syncwarp(), __shfl_xor_sync() with all lanes, dynamic_shared<T>(), launch(). Shared memory is dynamic
// alone: its size is exact, so that the emulator sees what lies beyond it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define CLEBSCH_DEVICE_UNROLL _Pragma("unroll")
#else
#include "cuda/emulator.h"

#define CLEBSCH_DEVICE_UNROLL _Pragma("GCC unroll 128")
#endif

namespace clebsch::cuda {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;

// What a kernel finds in arrays that the host has not looked at. On a GPU the kernel stops, and the next call
// that waits for it fails, as with torch's own assertions.
enum class Refusal { index, order };

#ifdef __CUDACC__

[[noreturn]] __device__ inline void refuse(Refusal) {
  __trap();
  __builtin_unreachable();
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a failed launch leaves no trace for the next call of someone else
  throw std::runtime_error(std::string("clebsch: ") + what + ": " + cudaGetErrorString(error));
}

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

[[noreturn]] inline void refuse(Refusal refusal) {
  if (refusal == Refusal::index)
    throw std::out_of_range("graph_order: senders and receivers must lie in [0, num_nodes)");
  throw std::invalid_argument("convolution: order must come from graph_order of the same graph");
}

template <class T>
inline T* dynamic_shared() {
  return static_cast<T*>(emulator::shared_memory());
}

template <class Args>
void launch(void (*kernel)(Args), dim3 grid, dim3 block, std::size_t shared, void*, const Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  emulator::run(grid, block, shared, [&] { kernel(args); });
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

// The sum over the lanes of a warp, in every lane. All lanes must call it.
template <class T>
__device__ inline T sum_lanes(T value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

}  // namespace clebsch::cuda
