// Tensors as operators take them: checked, with contiguous rows. Shared by the bindings of all backends.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "storage.h"
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

// The types of numbers that an operator takes.
template <class... Types>
struct Numbers {};
using Floats = Numbers<float, double>;
using FloatsOr16Bits = Numbers<float, double, Half, BFloat16>;

template <class S>
constexpr ScalarType kScalarType = ScalarType::Float;
template <>
constexpr ScalarType kScalarType<double> = ScalarType::Double;
template <>
constexpr ScalarType kScalarType<Half> = ScalarType::Half;
template <>
constexpr ScalarType kScalarType<BFloat16> = ScalarType::BFloat16;

// f(S{}) with the type S of the tensor; whether it is one of them.
template <class... Types, class F>
bool in_type_of(const Tensor& t, Numbers<Types...>, const F& f) {
  const ScalarType type = t.scalar_type();
  return ((type == kScalarType<Types> && (f(Types{}), true)) || ...);
}
template <class F>
bool in_type_of(const Tensor& t, const F& f) {
  return in_type_of(t, Floats{}, f);
}

template <class Types = Floats>
void require_float(const char* noun, const char* name, const Tensor& t) {
  const char* names =
      std::is_same_v<Types, Floats> ? "float32 or float64" : "float32, float64, float16 or bfloat16";
  require(in_type_of(t, Types{}, [](auto) {}), noun, name, " must be ", names);
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
