// Gates: a warp for a row, 16 bytes of numbers a lane where they are aligned and many. Forward lanes are
// numbers of out, backward copies, whose components a lane sums.
//
// Bytes of a copy of width d, elements of T: forward 2 d + 1, backward 3 d + 2, read or written once: the
// least. Forward a division (the copy that a number belongs to) for 16 bytes, backward none.
#include "cuda/device.h"
#include "cuda/device_rows.h"

namespace clebsch::cuda {
inline namespace gate_kernels {

constexpr int kThreads = 256;

// f<Count>(first) for [0, count) by the lanes of a warp: as many at a time as 16 bytes hold if that is wanted
// and leaves work for half of the lanes, else one.
template <class T, class F>
__device__ inline void by_lanes(std::int64_t count, bool wide, const F& f) {
  constexpr int n = kPacked<T>, step = n * kWarp;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const std::int64_t packed = wide && count >= step / 2 ? count - count % n : 0;
  CLEBSCH_DEVICE_UNROLL_BY(1)
  for (std::int64_t i = lane * n; i < packed; i += step) f.template operator()<n>(i);
  CLEBSCH_DEVICE_UNROLL_BY(1)
  for (std::int64_t i = packed + lane; i < count; i += kWarp) f.template operator()<1>(i);
}

template <int Count, class T>
__device__ inline Pack<T, Count> get(const T* from) {
  return *reinterpret_cast<const Pack<T, Count>*>(from);
}
template <int Count, class T>
__device__ inline void put(T* to, const Pack<T, Count>& numbers) {
  store_packed(reinterpret_cast<Pack<T, Count>*>(to), numbers);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gate_forward(DeviceGate<T> a) {
  constexpr int n = kPacked<T>;
  const GateArgs<T>& g = a.args;
  each(a.rows * kWarp, [&](std::int64_t thread) {
    const std::int64_t r = thread / kWarp;
    const T *scalars = g.scalars.data + r * g.scalars.stride, *gates = g.gates.data + r * g.gates.stride,
            *gated = g.gated.data + r * g.gated.stride;
    T* out = g.out.data + r * g.out.stride;
    by_lanes<T>(g.scalar_count, aligned<T, n>(scalars, out),
                [&]<int Count>(std::int64_t i) { put(out + i, get<Count>(scalars + i)); });
    out += g.scalar_count;
    for (int b = 0; b < g.block_count; ++b) {
      const std::int64_t mul = g.blocks[b].mul;
      const int width = static_cast<int>(g.blocks[b].width);
      by_lanes<T>(mul * width, aligned<T, n>(gated, out), [&]<int Count>(std::int64_t i) {
        Pack<T, Count> numbers = get<Count>(gated + i);
        const T* gate = gates + i / width;
        int left = width - static_cast<int>(i % width);  // of the components of its copy
        T by = *gate;
        CLEBSCH_DEVICE_UNROLL
        for (int c = 0; c < Count; ++c, --left) {
          if (left == 0) by = *++gate, left = width;
          numbers[c] *= by;
        }
        put(out + i, numbers);
      });
      gates += mul;
      gated += mul * width;
      out += mul * width;
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) gate_backward(DeviceGate<T> a) {
  constexpr int n = kPacked<T>;
  const GateArgs<T>& g = a.args;
  each(a.rows * kWarp, [&](std::int64_t thread) {
    const std::int64_t r = thread / kWarp;
    const T *gates = g.gates.data + r * g.gates.stride, *gated = g.gated.data + r * g.gated.stride,
            *grad = g.grad.data + r * g.grad.stride + g.scalar_count;
    T *grad_gates = g.grad_gates.data + r * g.grad_gates.stride,
      *grad_gated = g.grad_gated.data + r * g.grad_gated.stride;
    for (int b = 0; b < g.block_count; ++b) {
      const std::int64_t mul = g.blocks[b].mul;
      const int width = static_cast<int>(g.blocks[b].width);
      // The components of Count copies side by side are as many packs as a copy has components.
      by_lanes<T>(mul, aligned<T, n>(grad, gated, grad_gated), [&]<int Count>(std::int64_t u) {
        const T* gate = gates + u;
        T by = *gate, sum{};
        int left = width;
        CLEBSCH_DEVICE_UNROLL_BY(1)
        for (std::int64_t i = u * width; i < (u + Count) * width; i += Count) {
          Pack<T, Count> numbers = get<Count>(grad + i);
          const Pack<T, Count> x = get<Count>(gated + i);
          CLEBSCH_DEVICE_UNROLL
          for (int c = 0; c < Count; ++c) {
            if (left == 0) {
              grad_gates[gate - gates] = sum;
              by = *++gate, sum = T{}, left = width;
            }
            sum += numbers[c] * x[c];
            numbers[c] *= by;
            --left;
          }
          put(grad_gated + i, numbers);
        }
        grad_gates[gate - gates] = sum;
      });
      gates += mul;
      gated += mul * width;
      grad += mul * width;
      grad_gates += mul;
      grad_gated += mul * width;
    }
  });
}

}  // namespace gate_kernels

template <class T>
void launch_gate(const DeviceGate<T>& a, bool backward, void* stream) {
  launch(backward ? &gate_backward<T> : &gate_forward<T>, blocks_for(a.rows * kWarp, kThreads),
         dim3(kThreads), 0, stream, a);
}

template void launch_gate(const DeviceGate<float>&, bool, void*);
template void launch_gate(const DeviceGate<double>&, bool, void*);

}  // namespace clebsch::cuda
