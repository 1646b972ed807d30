// silu and its derivatives, 16 bytes of numbers a thread where all arrays are aligned; the formulas are those
// of cpu/silu.inl.h. Bytes, elements of T: forward 2, backward 3, double backward 5, read or written once.
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

// Count numbers from i on.
template <int Derivative, int Count, class T>
__device__ inline void put_silu(const SiluArgs<T>& args, std::int64_t i) {
  using Numbers = Pack<T, Count>;
  const auto read = [i](const T* from) { return *reinterpret_cast<const Numbers*>(from + i); };
  const auto write = [i](T* to, const Numbers& numbers) {
    store_packed(reinterpret_cast<Numbers*>(to + i), numbers);
  };
  Numbers x = read(args.x), grad, along, out, grad_x;
  if constexpr (Derivative >= 1) grad = read(args.grad);
  if constexpr (Derivative == 2) along = read(args.grad_grad_x);
  CLEBSCH_DEVICE_UNROLL
  for (int n = 0; n < Count; ++n) {
    const Sigmoid<T> at = sigmoid(x[n]);
    if constexpr (Derivative == 0) {
      out[n] = x[n] * at.s;
    } else {
      const T first = at.s * (T(1) + x[n] * at.rest);
      if constexpr (Derivative == 1) {
        grad_x[n] = grad[n] * first;
      } else {
        const T second = at.s * at.rest * (T(2) + x[n] * (at.rest - at.s));
        out[n] = along[n] * first;
        grad_x[n] = along[n] * grad[n] * second;
      }
    }
  }
  if constexpr (Derivative != 1) write(args.out, out);
  if constexpr (Derivative >= 1) write(args.grad_x, grad_x);
}

template <class T, int Derivative>
__global__ void __launch_bounds__(kThreads) silu_numbers(DeviceSilu<T> a) {
  constexpr int n = kPacked<T>;
  const SiluArgs<T>& args = a.args;
  const bool wide = aligned<T, n>(args.x, args.grad, args.grad_grad_x, args.out, args.grad_x);
  const std::int64_t packs = wide ? a.count / n : 0;
  each(packs, [&](std::int64_t i) { put_silu<Derivative, n>(args, i * n); });
  each(a.count - packs * n, [&](std::int64_t i) { put_silu<Derivative, 1>(args, packs * n + i); });
}

}  // namespace silu_kernels

template <class T>
void launch_silu(const DeviceSilu<T>& a, void* stream) {
  constexpr int n = kPacked<T>;
  launch(a.derivative == 0   ? &silu_numbers<T, 0>
         : a.derivative == 1 ? &silu_numbers<T, 1>
                             : &silu_numbers<T, 2>,
         blocks_for((a.count + n - 1) / n, kThreads), dim3(kThreads), 0, stream, a);
}

template void launch_silu(const DeviceSilu<float>&, void*);
template void launch_silu(const DeviceSilu<double>&, void*);

}  // namespace clebsch::cuda
