// silu and its derivatives. With s = 1 / (1 + e), e = exp(-x):
//
//   f = x s,   f' = s (1 + x e s),   f'' = e s^2 (2 + x (e - 1) s)
//
// where e s is 1 - s without its loss of digits. exp(v) = 2^n exp(r) with n the integer next to v / ln 2,
// exp(r) by its series: |r| <= ln(2) / 2 leaves less than half a unit in the last place to the terms that
// follow.
#pragma once

#include "silu.h"
#include "vec.h"

namespace clebsch {
namespace {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  typedef std::uint32_t Bits __attribute__((vector_size(CLEBSCH_VEC_BYTES)));
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23: what is added to it becomes an integer
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;  // n * ln2_high is exact
  static constexpr float most = 88.0f;                                        // 1 + exp of it is finite
  static constexpr int fraction = 23, terms = 7;
};
template <>
struct Exponential<double> {
  typedef std::uint64_t Bits __attribute__((vector_size(CLEBSCH_VEC_BYTES)));
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0x1.62e42fefap-1, ln2_low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double most = 708.0;
  static constexpr int fraction = 52, terms = 13;
};

template <class T>
constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<T>(1 / product);
}

// exp(v) for v of at most `most`; 0 for what is less than -most.
template <class T>
CLEBSCH_INLINE Vec<T> exponential(Vec<T> v) {
  using E = Exponential<T>;
  using Bits = typename E::Bits;
  const Vec<T> shifted = v * broadcast(T(1.4426950408889634)) + broadcast(E::round);
  const Vec<T> n = shifted - broadcast(E::round);
  const Vec<T> r = (v - n * broadcast(E::ln2_high)) - n * broadcast(E::ln2_low);
  Vec<T> sum = broadcast(inverse_factorial<T>(E::terms));
  CLEBSCH_UNROLL
  for (int i = E::terms - 1; i >= 0; --i) sum = sum * r + broadcast(inverse_factorial<T>(i));
  const Bits power =
      (reinterpret_cast<Bits>(shifted) << E::fraction) + reinterpret_cast<Bits>(broadcast(T(1)));
  return sum * reinterpret_cast<Vec<T>>(power);
}

// s, and e s = 1 - s; NaN stays NaN.
template <class T>
struct Sigmoid {
  Vec<T> s, rest;
};
template <class T>
CLEBSCH_INLINE Sigmoid<T> sigmoid(Vec<T> x) {
  const Vec<T> most = broadcast(Exponential<T>::most), zero{};
  // Beyond that s is 0 or 1 to the last digit of x s.
  const Vec<T> v = x < -most ? most : (x > most ? -most : -x);
  const Vec<T> e = exponential<T>(v);
  const Vec<T> s = broadcast(T(1)) / (broadcast(T(1)) + e);
  return {x < -most ? zero : s, x > most ? zero : e * s};
}

template <class T, class F>
void silu_loop(std::int64_t begin, std::int64_t end, F f) {
  constexpr int W = lanes<T>;
  for (std::int64_t i = begin; i < end; i += W) f(i, Mask<T>(end - i < W ? static_cast<int>(end - i) : W));
}

template <class T>
void silu_forward(const SiluArgs<T>& args, std::int64_t begin, std::int64_t end) {
  silu_loop<T>(begin, end, [&](std::int64_t i, Mask<T> mask) {
    const Vec<T> x = load(args.x + i, mask);
    store(args.out + i, x * sigmoid<T>(x).s, mask);
  });
}

template <class T>
void silu_backward(const SiluArgs<T>& args, std::int64_t begin, std::int64_t end) {
  silu_loop<T>(begin, end, [&](std::int64_t i, Mask<T> mask) {
    const Vec<T> x = load(args.x + i, mask);
    const auto [s, rest] = sigmoid<T>(x);
    store(args.grad_x + i, load(args.grad + i, mask) * (s * (broadcast(T(1)) + x * rest)), mask);
  });
}

template <class T>
void silu_double_backward(const SiluArgs<T>& args, std::int64_t begin, std::int64_t end) {
  silu_loop<T>(begin, end, [&](std::int64_t i, Mask<T> mask) {
    const Vec<T> x = load(args.x + i, mask), a = load(args.grad_grad_x + i, mask);
    const auto [s, rest] = sigmoid<T>(x);
    const Vec<T> second = s * rest * (broadcast(T(2)) + x * (rest - s));
    store(args.out + i, a * (s * (broadcast(T(1)) + x * rest)), mask);
    store(args.grad_x + i, a * load(args.grad + i, mask) * second, mask);
  });
}

template <class T>
constexpr SiluKernels<T> silu_kernels = {silu_forward<T>, silu_backward<T>, silu_double_backward<T>};

}  // namespace
}  // namespace clebsch
