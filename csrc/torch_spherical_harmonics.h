// The operators of spherical harmonics, for a backend that says how results are made and kernels run:
//
//   struct Backend {
//     using Stored = Numbers<...>;  // types of numbers
//     static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes);
//     template <class T>
//     static void run(const Harmonics<Backend>&, const SphericalHarmonicsArgs<T>&, HarmonicsStep);
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "spherical_harmonics_degrees.h"
#include "torch_operands.h"

namespace clebsch::operators {

enum class HarmonicsStep { forward, backward, double_backward };

// What the harmonics and their derivatives share: degrees, and points with contiguous rows of 3.
template <class Backend>
struct Harmonics {
  static constexpr const char* noun = "spherical_harmonics";
  std::vector<int64_t> ls;
  bool normalize;
  std::string normalization;
  Matrix points;
  int64_t columns;

  Harmonics(const Tensor& points_, std::vector<int64_t> ls_, bool normalize_, std::string normalization_)
      : ls(std::move(ls_)), normalize(normalize_), normalization(std::move(normalization_)) {
    require_float<typename Backend::Stored>(noun, "points", points_);
    points = matrix(noun, "points", points_, {"points", points_}, 3);
    columns = spherical_harmonics_args<float>(ls, normalize, normalization).num_columns;
  }

  Matrix like_points(const char* name, const Tensor& t, int64_t width) const {
    Matrix m = matrix(noun, name, t, {"points", points.tensor}, width);
    require(m.rows == points.rows, noun, name, " must have ", points.rows, " rows, got ", m.rows);
    return m;
  }
  Tensor new_matrix(int64_t width) const { return Backend::fresh(points.tensor, {points.rows, width}); }

  // run(args) in the type of the points, the arrays of the points set.
  template <class F>
  void dispatch(const F& run) const {
    in_type_of(points.tensor, typename Backend::Stored{}, [&]<class T>(T) { run(args<T>()); });
  }

 private:
  template <class T>
  SphericalHarmonicsArgs<T> args() const {
    auto args = spherical_harmonics_args<T>(ls, normalize, normalization);
    args.points = points.template read<T>().data;
    args.points_stride = points.stride;
    return args;
  }
};

template <class Backend>
Tensor spherical_harmonics(const Tensor& points, std::vector<int64_t> ls, bool normalize,
                           std::string normalization) {
  const Harmonics<Backend> h(points, std::move(ls), normalize, std::move(normalization));
  Tensor out = h.new_matrix(h.columns);
  h.dispatch([&]<class T>(SphericalHarmonicsArgs<T> args) {
    args.out = static_cast<T*>(out.mutable_data_ptr());
    Backend::run(h, args, HarmonicsStep::forward);
  });
  return out;
}

template <class Backend>
Tensor spherical_harmonics_backward(const Tensor& grad, const Tensor& points, std::vector<int64_t> ls,
                                    bool normalize, std::string normalization) {
  const Harmonics<Backend> h(points, std::move(ls), normalize, std::move(normalization));
  const Matrix g = h.like_points("grad", grad, h.columns);
  Tensor grad_points = h.new_matrix(3);
  h.dispatch([&]<class T>(SphericalHarmonicsArgs<T> args) {
    args.grad = g.template read<T>().data;
    args.grad_stride = g.stride;
    args.grad_points = static_cast<T*>(grad_points.mutable_data_ptr());
    Backend::run(h, args, HarmonicsStep::backward);
  });
  return grad_points;
}

template <class Backend>
std::tuple<Tensor, Tensor> spherical_harmonics_double_backward(const Tensor& grad_grad_points,
                                                               const Tensor& grad, const Tensor& points,
                                                               std::vector<int64_t> ls, bool normalize,
                                                               std::string normalization) {
  const Harmonics<Backend> h(points, std::move(ls), normalize, std::move(normalization));
  const Matrix a = h.like_points("grad_grad_points", grad_grad_points, 3);
  const Matrix g = h.like_points("grad", grad, h.columns);
  Tensor grad_grad = h.new_matrix(h.columns), grad_points = h.new_matrix(3);
  h.dispatch([&]<class T>(SphericalHarmonicsArgs<T> args) {
    args.grad_grad_points = a.template read<T>().data;
    args.grad_grad_points_stride = a.stride;
    args.grad = g.template read<T>().data;
    args.grad_stride = g.stride;
    args.out = static_cast<T*>(grad_grad.mutable_data_ptr());
    args.grad_points = static_cast<T*>(grad_points.mutable_data_ptr());
    Backend::run(h, args, HarmonicsStep::double_backward);
  });
  return {grad_grad, grad_points};
}

// The operators of the harmonics, for one dispatch key.
template <class Backend>
void register_spherical_harmonics(auto& library) {
  library.impl("spherical_harmonics", TORCH_BOX(&spherical_harmonics<Backend>));
  library.impl("spherical_harmonics_backward", TORCH_BOX(&spherical_harmonics_backward<Backend>));
  library.impl("spherical_harmonics_double_backward",
               TORCH_BOX(&spherical_harmonics_double_backward<Backend>));
}

}  // namespace clebsch::operators
