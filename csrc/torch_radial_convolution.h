// The operators of convolutions whose weights are hidden @ matrix, for a backend as in torch_product.h that
// also runs them: the call's `radial` holds what its RadialProduct has as tensors.
//
//   struct Backend {
//     template <class T>
//     static void run(const RadialProduct<Backend>&, ProductCall<T>, Derivative);
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "torch_product.h"

namespace clebsch::operators {

// With weights that are hidden @ matrix.
template <class Backend>
struct RadialProduct : Product<Backend, Floats> {
  using Base = Product<Backend, Floats>;
  using Base::noun, Base::plan, Base::x, Base::y, Base::operand, Base::result;
  Matrix hidden, last;  // the matrix of the last layer
  // What a derivative adds to these two: tangents, and gradients that are wanted.
  std::optional<Matrix> ahidden, alast;
  std::optional<Tensor> grad_hidden, grad_last;

  RadialProduct(const Tensor& x_, const Tensor& y_, const Tensor& hidden_, const Tensor& matrix_,
                const Tensor& order_, const std::string& text)
      : Base("radial_convolution", x_, y_, text) {
    require(hidden_.dim() == 2, noun, "hidden must have 2 dimensions, got ", hidden_.dim());
    hidden = operand("hidden", hidden_, hidden_.size(1));
    require(hidden.rows == y.rows, noun, "hidden must have ", y.rows, " rows, got ", hidden.rows);
    // Far above what memory holds, far below where sizes overflow.
    const int64_t size = hidden_.size(1), numel = plan.program.weight_numel, most = int64_t{1} << 30;
    require(
        size < most && numel < most && size * numel < int64_t{1} << 48, noun,
        "hidden and the weights must have fewer than 2^30 columns and matrix fewer than 2^48 elements, got ",
        size, " and ", numel, " columns");
    last = operand("matrix", matrix_, plan.program.weight_numel);
    require(last.rows == hidden_.size(1), noun, "matrix must have ", hidden_.size(1), " rows, got ",
            last.rows);
    this->follow(order_);
  }

  int64_t size() const { return last.rows; }
  Tensor new_grad_hidden(bool wanted) const { return result(wanted, hidden.rows, size()); }
  Tensor new_grad_matrix(bool wanted) const { return result(wanted, size(), plan.program.weight_numel); }

  // f(call, weights) in the type of x; the call has the weights.
  template <class F>
  void dispatch(F f) const {
    Base::dispatch([&]<class T>(ProductCall<T> c) {
      RadialWeights<T> weights{};
      weights.size = size();
      weights.hidden = hidden.template read<T>();
      weights.matrix = last.template read<T>();
      c.radial = &weights;
      f(c, weights);
    });
  }
};

template <class Backend>
Tensor radial_convolution(const Tensor& x, const Tensor& y, const Tensor& hidden, const Tensor& matrix,
                          const Tensor& order, std::string plan) {
  RadialProduct<Backend> p(x, y, hidden, matrix, order, plan);
  Tensor out = p.new_out(true);
  p.dispatch([&]<class T>(ProductCall<T>& call, RadialWeights<T>&) {
    call.out = writable<T>(out, true);
    Backend::run(p, call, Derivative::none);
  });
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> radial_convolution_backward(const Tensor& grad, const Tensor& x,
                                                                       const Tensor& y, const Tensor& hidden,
                                                                       const Tensor& matrix,
                                                                       const Tensor& order, std::string plan,
                                                                       int64_t needs) {
  RadialProduct<Backend> p(x, y, hidden, matrix, order, plan);
  const Matrix g = p.grad_of_out(grad);
  const bool wx = needs & 1, wy = needs & 2, wh = needs & 4, wm = needs & 8;
  Tensor gx = p.new_gx(wx), gy = p.new_gy(wy), gh = p.new_grad_hidden(wh), gm = p.new_grad_matrix(wm);
  if (wh) p.grad_hidden = gh;
  if (wm) p.grad_last = gm;
  p.dispatch([&]<class T>(ProductCall<T>& call, RadialWeights<T>& weights) {
    call.g = g.read<T>();
    call.gx = writable<T>(gx, wx);
    call.gy = writable<T>(gy, wy);
    weights.grad_hidden = writable<T>(gh, wh);
    weights.grad_matrix = writable<T>(gm, wm).data;
    Backend::run(p, call, Derivative::first);
  });
  return {gx, gy, gh, gm};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> radial_convolution_double_backward(
    std::optional<Tensor> ax, std::optional<Tensor> ay, std::optional<Tensor> ahidden,
    std::optional<Tensor> amatrix, const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& hidden,
    const Tensor& matrix, const Tensor& order, std::string plan, int64_t needs) {
  RadialProduct<Backend> p(x, y, hidden, matrix, order, plan);
  const Matrix g = p.grad_of_out(grad);
  const Program& program = p.plan.program;
  std::array<std::optional<Matrix>, 4> tangents;
  if (ax) tangents[0] = p.tangent("ax", *ax, p.x, program.dim1);
  if (ay) tangents[1] = p.tangent("ay", *ay, p.y, program.dim2);
  if (ahidden) tangents[2] = p.tangent("ahidden", *ahidden, p.hidden, p.size());
  if (amatrix) tangents[3] = p.tangent("amatrix", *amatrix, p.last, program.weight_numel);
  const bool wg = needs & 1, wx = needs & 2, wy = needs & 4, wh = needs & 8, wm = needs & 16;
  Tensor gg = p.new_out(wg), gx = p.new_gx(wx), gy = p.new_gy(wy);
  Tensor gh = p.new_grad_hidden(wh), gm = p.new_grad_matrix(wm);
  p.ahidden = tangents[2];
  p.alast = tangents[3];
  if (wh) p.grad_hidden = gh;
  if (wm) p.grad_last = gm;
  p.dispatch([&]<class T>(ProductCall<T>& call, RadialWeights<T>& weights) {
    call.g = g.read<T>();
    if (tangents[0]) call.ax = tangents[0]->read<T>();
    if (tangents[1]) call.ay = tangents[1]->read<T>();
    if (tangents[2]) weights.ahidden = tangents[2]->read<T>();
    if (tangents[3]) weights.amatrix = tangents[3]->read<T>();
    call.out = writable<T>(gg, wg);
    call.gx = writable<T>(gx, wx);
    call.gy = writable<T>(gy, wy);
    weights.grad_hidden = writable<T>(gh, wh);
    weights.grad_matrix = writable<T>(gm, wm).data;
    Backend::run(p, call, Derivative::second);
  });
  return {gg, gx, gy, gh, gm};
}

// The operators of these convolutions, for one dispatch key.
template <class Backend>
void register_radial_convolution(auto& library) {
  library.impl("radial_convolution", TORCH_BOX(&radial_convolution<Backend>));
  library.impl("radial_convolution_backward", TORCH_BOX(&radial_convolution_backward<Backend>));
  library.impl("radial_convolution_double_backward", TORCH_BOX(&radial_convolution_double_backward<Backend>));
}

}  // namespace clebsch::operators
