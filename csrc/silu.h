// silu(x) = x / (1 + exp(-x)), number by number: what a kernel is given, and the kernels of one instruction
// set.
#pragma once

#include <cstdint>

namespace clebsch {

// Arrays of the same length; what an operation does not have is null.
template <class T>
struct SiluArgs {
  const T *x, *grad;     // grad: of silu(x)
  const T* grad_grad_x;  // of what backward gives
  T *out, *grad_x;       // out: silu(x), or the gradient of grad
};

// Elements [begin, end).
template <class T>
struct SiluKernels {
  void (*forward)(const SiluArgs<T>&, std::int64_t begin, std::int64_t end);
  void (*backward)(const SiluArgs<T>&, std::int64_t begin, std::int64_t end);
  void (*double_backward)(const SiluArgs<T>&, std::int64_t begin, std::int64_t end);
};

}  // namespace clebsch
