// silu and its derivatives, a thread for a number; the formulas are those of cpu/silu.inl.h. Bytes, elements
// of T: forward 2, backward 3, double backward 5, read or written once.
#include "cuda/device.h"
#include "cuda/device_rows.h"

namespace clebsch::cuda {
inline namespace silu_kernels {

constexpr int kThreads = 256;

// s = 1 / (1 + exp(-x)), and 1 - s without its loss of digits.
template <class T>
struct Sigmoid {
  T s, rest;
};
template <class T>
__device__ inline Sigmoid<T> sigmoid(T x) {
  constexpr T most = sizeof(T) == 4 ? T(88) : T(708);  // exp of it is finite; beyond, s is 0 or 1
  if (x < -most) return {T(0), T(1)};
  if (x > most) return {T(1), T(0)};
  const T e = exp(-x), s = T(1) / (T(1) + e);
  return {s, e * s};
}

template <class T>
__global__ void __launch_bounds__(kThreads) silu_numbers(DeviceSilu<T> a) {
  const SiluArgs<T>& args = a.args;
  each(a.count, [&](std::int64_t i) {
    const T x = args.x[i];
    const Sigmoid<T> at = sigmoid(x);
    if (a.derivative == 0) {
      args.out[i] = x * at.s;
      return;
    }
    const T first = at.s * (T(1) + x * at.rest);
    if (a.derivative == 1) {
      args.grad_x[i] = args.grad[i] * first;
      return;
    }
    const T along = args.grad_grad_x[i], second = at.s * at.rest * (T(2) + x * (at.rest - at.s));
    args.out[i] = along * first;
    args.grad_x[i] = along * args.grad[i] * second;
  });
}

}  // namespace silu_kernels

template <class T>
void launch_silu(const DeviceSilu<T>& a, void* stream) {
  launch(&silu_numbers<T>, blocks_for(a.count, kThreads), dim3(kThreads), 0, stream, a);
}

template void launch_silu(const DeviceSilu<float>&, void*);
template void launch_silu(const DeviceSilu<double>&, void*);

}  // namespace clebsch::cuda
