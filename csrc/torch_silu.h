// The operators of silu, for a backend that says how results are made and kernels run:
//
//   struct Backend {
//     static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes);
//     template <class T>
//     static void run(const Silu<Backend>&, const SiluArgs<T>&, SiluStep);
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "silu.h"
#include "torch_operands.h"

namespace clebsch::operators {

// Arrays of one shape and type, met number by number.
enum class SiluStep { forward, backward, double_backward };

template <class Backend>
struct Silu {
  static constexpr const char* noun = "silu";
  Tensor x;
  std::vector<int64_t> sizes;

  explicit Silu(const Tensor& x_) : x(torch::stable::contiguous(x_)) {
    require_float(noun, "x", x_);
    for (int64_t d = 0; d < x.dim(); ++d) sizes.push_back(x.size(d));
  }
  Tensor operand(const char* name, const Tensor& t) const {
    bool fits = t.scalar_type() == x.scalar_type() && t.dim() == x.dim();
    for (int64_t d = 0; fits && d < x.dim(); ++d) fits = t.size(d) == x.size(d);
    require(fits, noun, name, " must have the shape and dtype of x");
    require_same_device(noun, name, t, {"x", x});
    return torch::stable::contiguous(t);
  }
  Tensor result() const {
    return sizes.empty() ? torch::stable::new_empty(x, sizes) : Backend::fresh(x, sizes);
  }

  // f(args, kernels) fills in the arguments and names the kernel.
  template <class F>
  void dispatch(F f) const {
    in_type_of(x, [&]<class T>(T) { run<T>(f); });
  }

 private:
  template <class T, class F>
  void run(F f) const {
    SiluArgs<T> args{};
    args.x = read<T>(x);
    const SiluStep step = f(args);
    Backend::run(*this, args, step);
  }
};

template <class Backend>
Tensor silu(const Tensor& x) {
  const Silu<Backend> s(x);
  Tensor out = s.result();
  s.dispatch([&]<class T>(SiluArgs<T>& args) {
    args.out = elements<T>(out);
    return SiluStep::forward;
  });
  return out;
}

template <class Backend>
Tensor silu_backward(const Tensor& grad, const Tensor& x) {
  const Silu<Backend> s(x);
  const Tensor g = s.operand("grad", grad);
  Tensor grad_x = s.result();
  s.dispatch([&]<class T>(SiluArgs<T>& args) {
    args.grad = read<T>(g);
    args.grad_x = elements<T>(grad_x);
    return SiluStep::backward;
  });
  return grad_x;
}

template <class Backend>
std::tuple<Tensor, Tensor> silu_double_backward(const Tensor& grad_grad_x, const Tensor& grad,
                                                const Tensor& x) {
  const Silu<Backend> s(x);
  const Tensor a = s.operand("grad_grad_x", grad_grad_x), g = s.operand("grad", grad);
  Tensor grad_grad = s.result(), grad_x = s.result();
  s.dispatch([&]<class T>(SiluArgs<T>& args) {
    args.grad_grad_x = read<T>(a);
    args.grad = read<T>(g);
    args.out = elements<T>(grad_grad);
    args.grad_x = elements<T>(grad_x);
    return SiluStep::double_backward;
  });
  return {grad_grad, grad_x};
}

// The operators of silu, for one dispatch key.
template <class Backend>
void register_silu(auto& library) {
  library.impl("silu", TORCH_BOX(&silu<Backend>));
  library.impl("silu_backward", TORCH_BOX(&silu_backward<Backend>));
  library.impl("silu_double_backward", TORCH_BOX(&silu_double_backward<Backend>));
}

}  // namespace clebsch::operators
