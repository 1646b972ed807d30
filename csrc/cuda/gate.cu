// Gates: forward a thread for a number of out, backward one for a gate, whose components it sums.
//
// Bytes of a copy of width d, elements of T: forward 2 d + 1, backward 3 d + 2, read or written once: the
// least.
#include "cuda/device.h"
#include "cuda/device_rows.h"

namespace clebsch::cuda {
inline namespace gate_kernels {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) gate_forward(DeviceGate<T> a) {
  const GateArgs<T>& g = a.args;
  const std::int64_t columns = g.scalar_count + a.gated;
  each(a.rows * columns, [&](std::int64_t i) {
    const std::int64_t r = i / columns;
    std::int64_t c = i % columns;
    T* out = g.out.data + r * g.out.stride + c;
    if (c < g.scalar_count) {
      *out = g.scalars.data[r * g.scalars.stride + c];
      return;
    }
    c -= g.scalar_count;
    std::int64_t gate = 0, left = c;
    const GatedBlock* block = g.blocks;
    for (; left >= block->mul * block->width; ++block) {
      left -= block->mul * block->width;
      gate += block->mul;
    }
    gate += left / block->width;
    *out = g.gates.data[r * g.gates.stride + gate] * g.gated.data[r * g.gated.stride + c];
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) gate_backward(DeviceGate<T> a) {
  const GateArgs<T>& g = a.args;
  each(a.rows * a.gates, [&](std::int64_t i) {
    const std::int64_t r = i / a.gates, gate = i % a.gates;
    std::int64_t left = gate, column = 0;
    const GatedBlock* block = g.blocks;
    for (; left >= block->mul; ++block) {
      left -= block->mul;
      column += block->mul * block->width;
    }
    column += left * block->width;
    const T* grad = g.grad.data + r * g.grad.stride + g.scalar_count + column;
    const T* gated = g.gated.data + r * g.gated.stride + column;
    T* grad_gated = g.grad_gated.data + r * g.grad_gated.stride + column;
    const T by = g.gates.data[r * g.gates.stride + gate];
    T sum{};
    for (std::int64_t m = 0; m < block->width; ++m) {
      sum += grad[m] * gated[m];
      grad_gated[m] = by * grad[m];
    }
    g.grad_gates.data[r * g.grad_gates.stride + gate] = sum;
  });
}

}  // namespace gate_kernels

template <class T>
void launch_gate(const DeviceGate<T>& a, bool backward, void* stream) {
  const std::int64_t count = a.rows * (backward ? a.gates : a.args.scalar_count + a.gated);
  launch(backward ? &gate_backward<T> : &gate_forward<T>, blocks_for(count, kThreads), dim3(kThreads), 0,
         stream, a);
}

template void launch_gate(const DeviceGate<float>&, bool, void*);
template void launch_gate(const DeviceGate<double>&, bool, void*);

}  // namespace clebsch::cuda
