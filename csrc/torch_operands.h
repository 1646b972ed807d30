// Tensors as operators take them: checked, with contiguous rows. Shared by the bindings of all backends.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "tensor_product.h"

namespace clebsch::operators {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A plain sentence, which Python shows as ValueError; STD_TORCH_CHECK would put the place in this file before
// it.
template <class... Parts>
void require(bool ok, const char* noun, const Parts&... parts) {
  if (ok) return;
  std::ostringstream sentence;
  sentence << noun << ": ";
  (sentence << ... << parts);
  throw std::invalid_argument(sentence.str());
}

inline void require_float(const char* noun, const char* name, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::Double, noun, name, " must be float32 or float64");
}

// f(T{}) with the type T of a tensor that `require_float` has let pass.
template <class F>
void in_type_of(const Tensor& t, F f) {
  if (t.scalar_type() == ScalarType::Float) {
    f(float{});
  } else {
    f(double{});
  }
}

// A float matrix (or, for shared weights, vector) with contiguous rows of the given length.
struct Matrix {
  Tensor tensor;
  int64_t rows = 0, stride = 0;

  template <class T>
  Rows<const T> read() const {
    return {static_cast<const T*>(tensor.const_data_ptr()), stride};
  }
};

// The operand whose dtype all others have, as messages name it.
struct First {
  const char* name;
  const Tensor& tensor;
};

inline void require_same_device(const char* noun, const char* name, const Tensor& t, const First& first) {
  require(t.is_cuda() == first.tensor.is_cuda() && t.get_device_index() == first.tensor.get_device_index(),
          noun, name, " must be on the device of ", first.name);
}

inline Matrix matrix(const char* noun, const char* name, const Tensor& t, const First& first, int64_t columns,
                     bool may_be_vector = false) {
  require(t.scalar_type() == first.tensor.scalar_type(), noun, name, " must have the dtype of ", first.name);
  require_same_device(noun, name, t, first);
  require(t.dim() == 2 || (may_be_vector && t.dim() == 1), noun, name, " must have ",
          may_be_vector ? "1 or 2" : "2", " dimensions, got ", t.dim());
  const int64_t last = t.dim() - 1;
  // Rows of no columns take no memory: a bound below which sizes and pieces do not overflow.
  require(t.size(0) < int64_t{1} << 48, noun, name, " must have fewer than 2^48 rows, got ", t.size(0));
  require(t.size(last) == columns, noun, name, " must have ", columns, " columns, got ", t.size(last));
  Matrix m;
  m.tensor = (t.size(last) <= 1 || t.stride(last) == 1) ? t : torch::stable::contiguous(t);
  m.rows = last == 1 ? t.size(0) : 1;
  m.stride = last == 1 ? m.tensor.stride(0) : 0;
  return m;
}

template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
// Of a result; null if it is not wanted.
template <class T>
T* elements(const Tensor& t, bool wanted = true) {
  return wanted ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}
template <class T>
Rows<T> writable(const Tensor& t, bool wanted) {
  if (!wanted) return {nullptr, 0};
  return {static_cast<T*>(t.mutable_data_ptr()), t.dim() == 2 ? t.size(1) : 0};
}

}  // namespace clebsch::operators
