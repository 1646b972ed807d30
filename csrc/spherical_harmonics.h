// Real spherical harmonics in e3nn's conventions: what a kernel is given and the kernels of one instruction
// set.
#pragma once

#include <cstdint>

namespace clebsch {

enum class HarmonicNormalization { component, norm, integral };

// One call over (num_points, 3) points. Rows are strided, their elements contiguous; outputs are contiguous.
// Columns are the degrees of ls one after another, 2l+1 each, num_columns in all; any l >= 0, in any order.
template <class T>
struct SphericalHarmonicsArgs {
  const std::int64_t* ls = nullptr;
  int num_ls = 0;
  bool normalize = false;
  HarmonicNormalization normalization = HarmonicNormalization::component;
  std::int64_t num_columns = 0;

  const T* points = nullptr;
  std::int64_t points_stride = 3;
  const T* grad = nullptr;  // (num_points, num_columns); backward and double backward
  std::int64_t grad_stride = 0;
  const T* grad_grad_points = nullptr;  // (num_points, 3); double backward
  std::int64_t grad_grad_points_stride = 3;

  T* out = nullptr;          // (num_points, num_columns); forward: harmonics, double backward: grad_grad
  T* grad_points = nullptr;  // (num_points, 3); backward and double backward
};

// Each works on points [begin, end), so that a caller splits the range over threads; the result of a point
// does not depend on the split.
template <class T>
struct SphericalHarmonicsKernels {
  void (*forward)(const SphericalHarmonicsArgs<T>&, std::int64_t begin, std::int64_t end);
  void (*backward)(const SphericalHarmonicsArgs<T>&, std::int64_t begin, std::int64_t end);
  void (*double_backward)(const SphericalHarmonicsArgs<T>&, std::int64_t begin, std::int64_t end);
  int unrolled_degree;  // degrees 0, 1, ..., l in order have code of their own for l up to this one
};

}  // namespace clebsch
