// Real spherical harmonics and their first and second derivatives, lanes = points.
//
// With the pole y, t = x^2 + z^2 and c_m + i s_m = (z + i x)^m,
//     Y_{l,m} = q_l^m c_m,   Y_{l,-m} = q_l^m s_m,
// where q_l^m(y, t) is the normalised m-th derivative of the Legendre polynomial, of degree l - m. Its
// recurrence over l, q_l = a y q_{l-1} - b (y^2 + t) q_{l-2}, is split into what goes straight on and how it
// bends,
//     d_l = bend_{lm} (y d_{l-1} - t q_{l-2}),   q_l = up_{lm} (y q_{l-1} + d_l),
// five operations instead of four, and errors that grow like l and not like l^2: near the poles the plain one
// takes small differences of numbers near 1. Derivatives stay in the family,
//     d q_l^m / dy = dy_{lm} q_{l-1}^m,   d q_l^m / dx = x dr_{lm} q_{l-1}^{m+1},   the same with z,
// so that x and z leave the sums over l and m, and a gradient is three running sums. The coefficients are
// square roots of rationals for any l and are computed at every call, half a microsecond for l = 10.
//
// What a call on n = (l_max + 1)^2 columns must do for one point, and does: between points and rows only the
// n vectors of lanes<T> points live, in the nearest cache. Elements of T are read or written once; operations
// are arithmetic instructions per column and vector of points, beside the 4 to 5 per column of transposing, 3
// of which need the one port that shuffles.
//                      elements    operations
//     forward           3 + n      3.5
//     backward          6 + n      6.5
//     double backward   9 + 2 n    14.5
// On an Intel Xeon with AVX-512, 100,000 points and float, forward takes 1.05 (l_max 1, 2) to 1.3 (10) times
// as long as loading and storing these bytes in order and nothing else. At l_max 1 that is itself 2.3 times
// the time of storing the output alone, since the output fits into the second cache (2 MiB) and output and
// points together do not. AMD's Zen 4 fills 16 points of a column in 2 cycles and takes 3.5 for their
// arithmetic alone: there what is executed decides, not memory.
//
// Rounding, u = 2^-24 or 2^-53. A direction is off by 3 u at most (square, root, product), and the slope of
// Y^l is l. A step of the recurrence rounds q_l three times; such an error goes straight on, and what it
// bends is less than that. c_m and s_m are off by 2 m u, and the last product rounds once more:
//     |error of Y_{l,m}| <= (8 l + 4) u |Y^l|,   |Y^l| the norm over m.
// The largest seen in random directions and about the poles, l <= 20, is 2.7 l u |Y^l|.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "../spherical_harmonics.h"
#include "../spherical_harmonics_steps.h"
#include "vec.h"
#include "vec_rows.h"

namespace clebsch {
namespace {

template <class T>
CLEBSCH_INLINE Vec<T> dot(const Triple<T>& a, const Triple<T>& b) {
  return a.x * b.x + (a.y * b.y + a.z * b.z);
}
template <class T>
CLEBSCH_INLINE Triple<T> scaled(const Triple<T>& a, Vec<T> s) {
  return {a.x * s, a.y * s, a.z * s};
}
// a + s b
template <class T>
CLEBSCH_INLINE Triple<T> added(const Triple<T>& a, Vec<T> s, const Triple<T>& b) {
  return {a.x + s * b.x, a.y + s * b.y, a.z + s * b.z};
}

// broadcast() adds to zero, which the compiler may not leave out (it changes -0); subtracting zero it may.
template <class T>
CLEBSCH_INLINE Vec<T> constant(T value) {
  return value - Vec<T>{};
}

// Everything a call needs besides its rows, for any degrees; cut from one piece of memory.
template <class T>
struct Workspace {
  static constexpr bool fixed = false;
  int l_max;
  bool repeated;  // a degree occurs twice
  bool in_order;  // degrees are 0, 1, ..., l_max
  Step<T>* step;
  T* sectoral;             // (l_max + 1,): q_m^m
  Vec<T>*c, *s;            // (l_max + 1,)
  Vec<T>*c_dot, *s_dot;    // (l_max + 1,): derivatives along grad_grad_points
  Vec<T>*q[2], *q_dot[2];  // (l_max + 1,): q_l^m by l, for odd and even m
  Vec<T>*value, *grad;     // ((l_max + 1)^2,): harmonics or grad_grad, and grad, by component l^2 + l + m
  std::int64_t num_columns;
  T** value_columns;  // (num_columns,): the component that a column shows
  T** grad_columns;

  T* value_column(std::int64_t i) { return value_columns[i]; }
  T* grad_column(std::int64_t i) { return grad_columns[i]; }
};

// The same for degrees 0..L in order, as local variables: with every loop unrolled most become registers.
template <class T, int L>
struct FixedWorkspace {
  static constexpr bool fixed = true, repeated = false;
  static constexpr int l_max = L, num_columns = (L + 1) * (L + 1);
  const Step<T>* step;
  const T* sectoral;
  Vec<T> c[L + 1], s[L + 1], c_dot[L + 1], s_dot[L + 1];
  Vec<T> q[2][L + 1], q_dot[2][L + 1];
  Vec<T> value[num_columns], grad[num_columns];

  explicit FixedWorkspace(const Workspace<T>& w) : step(w.step), sectoral(w.sectoral) {}
  CLEBSCH_INLINE T* value_column(std::int64_t i) { return reinterpret_cast<T*>(value + i); }
  CLEBSCH_INLINE T* grad_column(std::int64_t i) { return reinterpret_cast<T*>(grad + i); }
};
// Calls visit(m) for every order, from l_max down or up to it.
template <class W, class F>
CLEBSCH_INLINE void for_orders(const W& w, const F& visit) {
  if constexpr (W::fixed) {
    CLEBSCH_UNROLL
    for (int m = 0; m <= W::l_max; ++m) visit(m);
  } else {
    for (int m = 0; m <= w.l_max; ++m) visit(m);
  }
}
template <class W, class F>
CLEBSCH_INLINE void for_orders_down(const W& w, const F& visit) {
  for_orders(w, [&](int m) CLEBSCH_BODY { visit(w.l_max - m); });
}

// Calls visit(l, q_l^m, q_{l-1}^m, coefficients) for l = m..l_max; at l = m the third argument is zero.
template <class W, class V, class F>
CLEBSCH_INLINE void for_degrees(int m, const W& w, V y, V t, const F& visit) {
  V q{}, before{}, d{};
  const auto advance = [&](int l) CLEBSCH_BODY {
    const auto& k = w.step[l * (l + 1) / 2 + m];
    using T = std::decay_t<decltype(k.up)>;
    if (l == m) {
      q = constant(w.sectoral[m]);
    } else {
      d = l == m + 1 ? T(2 * m) * (y * q) : k.bend * (y * d - t * before);
      before = q;
      q = l == m + 1 ? (T(2 * m + 1) * k.up) * (y * q) : k.up * (y * q + d);
    }
    visit(l, q, before, k);
  };
  if constexpr (W::fixed) {
    CLEBSCH_UNROLL
    for (int l = 0; l <= W::l_max; ++l) {
      if (l >= m) advance(l);
    }
  } else {
    advance(m);
    if (m < w.l_max) advance(m + 1);
    for (int l = m + 2; l <= w.l_max; ++l) advance(l);
  }
}

template <class W, class T>
CLEBSCH_INLINE void fill_azimuth(W& w, const Triple<T>& u) {
  for_orders(w, [&](int m) CLEBSCH_BODY {
    w.c[m] = m == 0 ? constant<T>(1) : m == 1 ? u.z : u.z * w.c[m - 1] - u.x * w.s[m - 1];
    w.s[m] = m == 0 ? Vec<T>{} : m == 1 ? u.x : u.z * w.s[m - 1] + u.x * w.c[m - 1];
  });
}

template <class W, class T>
CLEBSCH_INLINE void harmonics(W& w, const Triple<T>& u) {
  const Vec<T> t = u.x * u.x + u.z * u.z;
  fill_azimuth(w, u);
  for_orders(w, [&](int m) CLEBSCH_BODY {
    const Vec<T> c = w.c[m], s = w.s[m];
    for_degrees(m, w, u.y, t, [&](int l, Vec<T> q, Vec<T>, const Step<T>&) CLEBSCH_BODY {
      w.value[l * l + l + m] = m == 0 ? q : q * c;
      if (m > 0) w.value[l * l + l - m] = q * s;
    });
  });
}

// J(u)^T grad, the gradient of <grad, Y(u)>.
template <class W, class T>
CLEBSCH_INLINE Triple<T> gradient(W& w, const Triple<T>& u) {
  const Vec<T> t = u.x * u.x + u.z * u.z;
  fill_azimuth(w, u);
  Triple<T> sum{};
  Vec<T> radial{};
  for_orders_down(w, [&](int m) CLEBSCH_BODY {
    const Vec<T> c = w.c[m], s = w.s[m];
    const auto q_now = w.q[m & 1], q_above = w.q[~m & 1];
    Vec<T> along_c{}, along_s{};
    for_degrees(m, w, u.y, t, [&](int l, Vec<T> q, Vec<T> before, const Step<T>& k) CLEBSCH_BODY {
      const Vec<T> grad_c = w.grad[l * l + l + m], grad_s = w.grad[l * l + l - m];
      q_now[l] = q;
      if (m > 0) {
        along_c += q * grad_c;
        along_s += q * grad_s;
      }
      if (l == m) return;
      const Vec<T> both = m == 0 ? grad_c : grad_c * c + grad_s * s;
      sum.y += (k.dy * both) * before;
      if (l > m + 1) radial += (k.dr * both) * q_above[l - 1];
    });
    if (m > 0) {
      const Vec<T> c_below = w.c[m - 1], s_below = w.s[m - 1];
      sum.z += T(m) * (along_c * c_below + along_s * s_below);
      sum.x += T(m) * (along_s * c_below - along_c * s_below);
    }
  });
  return {sum.x + radial * u.x, sum.y, sum.z + radial * u.z};
}

template <class T>
struct SecondGradient {
  Triple<T> first, second;
};

// Directional derivatives along h: of Y, J(u) h, into w.value; of J(u)^T grad, second. J(u)^T grad itself is
// first.
template <class W, class T>
CLEBSCH_INLINE SecondGradient<T> second_gradient(W& w, const Triple<T>& u, const Triple<T>& h) {
  const Vec<T> t = u.x * u.x + u.z * u.z, across = u.x * h.x + u.z * h.z;
  fill_azimuth(w, u);
  for_orders(w, [&](int m) CLEBSCH_BODY {
    w.c_dot[m] = m == 0 ? Vec<T>{} : T(m) * (w.c[m - 1] * h.z - w.s[m - 1] * h.x);
    w.s_dot[m] = m == 0 ? Vec<T>{} : T(m) * (w.s[m - 1] * h.z + w.c[m - 1] * h.x);
  });
  Triple<T> sum{}, sum_dot{};
  Vec<T> radial{}, radial_dot{};
  for_orders_down(w, [&](int m) CLEBSCH_BODY {
    const Vec<T> c = w.c[m], s = w.s[m], c_dot = w.c_dot[m], s_dot = w.s_dot[m];
    const auto q_now = w.q[m & 1], q_above = w.q[~m & 1];
    const auto q_dot_now = w.q_dot[m & 1], q_dot_above = w.q_dot[~m & 1];
    Vec<T> along_c{}, along_s{}, along_c_dot{}, along_s_dot{}, q_dot{};
    for_degrees(m, w, u.y, t, [&](int l, Vec<T> q, Vec<T> before, const Step<T>& k) CLEBSCH_BODY {
      const Vec<T> grad_c = w.grad[l * l + l + m], grad_s = w.grad[l * l + l - m];
      const Vec<T> both = m == 0 ? grad_c : grad_c * c + grad_s * s;
      const Vec<T> both_dot = m == 0 ? Vec<T>{} : grad_c * c_dot + grad_s * s_dot;
      if (l > m) {
        const Vec<T> dy = k.dy * before, dy_dot = k.dy * q_dot;
        q_dot = dy * h.y;
        sum.y += both * dy;
        sum_dot.y += both * dy_dot;
        if (m > 0) sum_dot.y += both_dot * dy;
      }
      if (l > m + 1) {
        const Vec<T> dr = k.dr * q_above[l - 1], dr_dot = k.dr * q_dot_above[l - 1];
        q_dot += dr * across;
        radial += both * dr;
        radial_dot += both * dr_dot;
        if (m > 0) radial_dot += both_dot * dr;
      }
      q_now[l] = q;
      q_dot_now[l] = q_dot;
      w.value[l * l + l + m] = m == 0 ? q_dot : q_dot * c + q * c_dot;
      if (m > 0) {
        w.value[l * l + l - m] = q_dot * s + q * s_dot;
        along_c += q * grad_c;
        along_s += q * grad_s;
        along_c_dot += q_dot * grad_c;
        along_s_dot += q_dot * grad_s;
      }
    });
    if (m > 0) {
      const Vec<T> c_below = w.c[m - 1], s_below = w.s[m - 1];
      const Vec<T> c_dot_below = w.c_dot[m - 1], s_dot_below = w.s_dot[m - 1];
      sum.z += T(m) * (along_c * c_below + along_s * s_below);
      sum.x += T(m) * (along_s * c_below - along_c * s_below);
      sum_dot.z += T(m) * (along_c_dot * c_below + along_s_dot * s_below + along_c * c_dot_below +
                           along_s * s_dot_below);
      sum_dot.x += T(m) * (along_s_dot * c_below - along_c_dot * s_below + along_s * c_dot_below -
                           along_c * s_dot_below);
    }
  });
  return {{sum.x + radial * u.x, sum.y, sum.z + radial * u.z},
          {sum_dot.x + (radial_dot * u.x + radial * h.x), sum_dot.y,
           sum_dot.z + (radial_dot * u.z + radial * h.z)}};
}

// The point to evaluate at: v itself, or u = v / max(|v|, 1e-12).
template <class T>
struct Place {
  Triple<T> u;
  Vec<T> inverse;       // 1 / max(|v|, 1e-12)
  Triple<T> projected;  // u, or zero where |v| < 1e-12: the derivative of u along h is inverse (h - projected
                        // (u h))
};

template <class T>
CLEBSCH_INLINE Vec<T> inverse_root(Vec<T> v) {
#if defined(__AVX512F__)
  // 14 bits from the instruction, 28 and 56 after one and two steps of Newton: within 1 ulp of the quotient.
  Vec<T> r;
  if constexpr (sizeof(T) == 4) {
    r = reinterpret_cast<Vec<T>>(_mm512_maskz_rsqrt14_ps(0xffff, reinterpret_cast<__m512>(v)));
  } else {
    r = reinterpret_cast<Vec<T>>(_mm512_maskz_rsqrt14_pd(0xff, reinterpret_cast<__m512d>(v)));
    r += (r * T(0.5)) * (T(1) - (v * r) * r);
  }
  return r + (r * T(0.5)) * (T(1) - (v * r) * r);
#else
  Vec<T> r;
  for (int i = 0; i < lanes<T>; ++i)
    r[i] = static_cast<T>(sizeof(T) == 4 ? __builtin_sqrtf(v[i]) : __builtin_sqrt(v[i]));
  return T(1) / r;
#endif
}

template <class T>
struct Points {
  Triple<T> v;
  Vec<T> square;
};
template <class T>
CLEBSCH_INLINE Points<T> read_points(const SphericalHarmonicsArgs<T>& args, std::int64_t first) {
  const Triple<T> v = load_triples(args.points + first * args.points_stride, args.points_stride);
  return {v, dot(v, v)};
}

template <class T>
CLEBSCH_INLINE Place<T> place(const SphericalHarmonicsArgs<T>& args, const Points<T>& given) {
  if (__builtin_expect(!args.normalize, false)) return {given.v, Vec<T>{}, Triple<T>{}};
  constexpr T shortest = T(1e-24), longest = T(sizeof(T) == 4 ? 0x1p120 : 0x1p1000);
  if (__builtin_expect(any_outside<T>(given.square, shortest, longest), false)) {
    // Points whose square would overflow are made smaller first: they have a direction all the same.
    const auto huge = given.square > longest, tiny = given.square < shortest;
    const Vec<T> scale = huge ? constant(T(sizeof(T) == 4 ? 0x1p-66 : 0x1p-520)) : constant<T>(1);
    const Triple<T> v = scaled(given.v, scale);
    const Vec<T> inverse = inverse_root<T>(tiny ? constant(shortest) : dot(v, v));
    const Triple<T> u = scaled(v, inverse);
    return {u, inverse * scale, {tiny ? Vec<T>{} : u.x, tiny ? Vec<T>{} : u.y, tiny ? Vec<T>{} : u.z}};
  }
  const Vec<T> inverse = inverse_root<T>(given.square);
  const Triple<T> u = scaled(given.v, inverse);
  return {u, inverse, u};
}

// The derivative of u along h, which is also its transpose.
template <class T>
CLEBSCH_INLINE Triple<T> pushed(const Place<T>& at, const Triple<T>& h) {
  return scaled(added(h, -dot(at.u, h), at.projected), at.inverse);
}

// Rows [begin, end) in full vectors; the last ones end at end and repeat some points, with the same results.
// Finding directions is a chain of 60 cycles of latency, longer than all else for small degrees: points are
// read two chunks ahead and their place is found one ahead. visit(place, chunk, the next chunk).
template <class T, class F>
CLEBSCH_INLINE void for_chunks(const SphericalHarmonicsArgs<T>& args, std::int64_t begin, std::int64_t end,
                               const F& visit) {
  constexpr int W = lanes<T>;
  const auto chunk = [&](std::int64_t i) CLEBSCH_BODY { return i < end - W ? i : end - W; };
  Place<T> at = place(args, read_points(args, begin));
  Points<T> points = read_points(args, chunk(begin + W));
  for (std::int64_t i = begin; i < end; i += W) {
    const Place<T> here = at;
    at = place(args, points);
    points = read_points(args, chunk(i + 2 * W));
    visit(here, chunk(i), chunk(i + W));
  }
}

template <class T, class W>
CLEBSCH_INLINE void store_values(const SphericalHarmonicsArgs<T>& args, W& w, std::int64_t first,
                                 std::int64_t next) {
  const std::int64_t columns = w.num_columns;
  store_rows([&](std::int64_t i) CLEBSCH_BODY { return w.value_column(i); }, columns,
             args.out + first * columns, args.out + next * columns);
}

// Components that no column shows have no gradient.
template <class W>
CLEBSCH_INLINE void clear_grad(W& w) {
  if constexpr (!W::fixed) {
    std::memset(static_cast<void*>(w.grad), 0, sizeof(*w.grad) * (w.l_max + 1) * (w.l_max + 1));
  }
}

template <class T, class W>
CLEBSCH_INLINE void load_grad(const SphericalHarmonicsArgs<T>& args, W& w, std::int64_t first) {
  const std::int64_t stride = args.grad_stride, columns = w.num_columns;
  const T *rows = args.grad + first * stride, *next = rows + lanes<T> * stride;
  const auto column = [&](std::int64_t i) CLEBSCH_BODY { return w.grad_column(i); };
  if (!w.repeated) return load_rows<T, false>(rows, stride, columns, column, next);
  clear_grad(w);
  load_rows<T, true>(rows, stride, columns, column, next);
}

template <class T, class W>
__attribute__((noinline)) void forward_rows(const SphericalHarmonicsArgs<T>& args,
                                            const Workspace<T>& workspace, std::int64_t begin,
                                            std::int64_t end) {
  W w(workspace);
  for_chunks(args, begin, end, [&](const Place<T>& at, std::int64_t first, std::int64_t next) CLEBSCH_BODY {
    harmonics(w, at.u);
    store_values(args, w, first, next);
  });
}

template <class T, class W>
__attribute__((noinline)) void backward_rows(const SphericalHarmonicsArgs<T>& args,
                                             const Workspace<T>& workspace, std::int64_t begin,
                                             std::int64_t end) {
  W w(workspace);
  clear_grad(w);
  load_grad(args, w, begin);
  for_chunks(args, begin, end, [&](const Place<T>& at, std::int64_t first, std::int64_t next) CLEBSCH_BODY {
    const Triple<T> sum = gradient(w, at.u);
    store_triples(args.grad_points + 3 * first, args.normalize ? pushed(at, sum) : sum);
    load_grad(args, w, next);
  });
}

template <class T, class W>
__attribute__((noinline)) void double_backward_rows(const SphericalHarmonicsArgs<T>& args,
                                                    const Workspace<T>& workspace, std::int64_t begin,
                                                    std::int64_t end) {
  W w(workspace);
  const std::int64_t stride = args.grad_grad_points_stride;
  clear_grad(w);
  load_grad(args, w, begin);
  for_chunks(args, begin, end, [&](const Place<T>& at, std::int64_t first, std::int64_t next) CLEBSCH_BODY {
    const Triple<T> h = load_triples(args.grad_grad_points + first * stride, stride);
    const Triple<T> p = args.normalize ? pushed(at, h) : h;
    const SecondGradient<T> g = second_gradient(w, at.u, p);
    Triple<T> sum = g.second;
    if (args.normalize) {
      // h-derivative of J^T g = inverse (j - u (u j)), j = g.first, with du = p, d inverse = -inverse^2 (u
      // h).
      const Triple<T> j = g.first, pushed_j = pushed(at, j);
      Triple<T> bend = scaled(at.projected, dot(p, j));
      bend = added(bend, dot(at.projected, j), p);
      bend = added(bend, dot(at.projected, h), pushed_j);
      sum = added(pushed(at, sum), -at.inverse, bend);
    }
    store_triples(args.grad_points + 3 * first, sum);
    load_grad(args, w, next);
    store_values(args, w, first, next);
  });
}

// The kernels over rows for one kind of workspace.
template <class T>
struct RowKernels {
  using Kernel = void(const SphericalHarmonicsArgs<T>&, const Workspace<T>&, std::int64_t, std::int64_t);
  Kernel *forward, *backward, *double_backward;
};
template <class T, class W>
constexpr RowKernels<T> row_kernels = {&forward_rows<T, W>, &backward_rows<T, W>,
                                       &double_backward_rows<T, W>};

template <class T>
constexpr RowKernels<T> unrolled_row_kernels[] = {
    row_kernels<T, FixedWorkspace<T, 0>>, row_kernels<T, FixedWorkspace<T, 1>>,
    row_kernels<T, FixedWorkspace<T, 2>>, row_kernels<T, FixedWorkspace<T, 3>>,
    row_kernels<T, FixedWorkspace<T, 4>>, row_kernels<T, FixedWorkspace<T, 5>>,
    row_kernels<T, FixedWorkspace<T, 6>>};
template <class T>
constexpr int unrolled_harmonic_degree = sizeof(unrolled_row_kernels<T>) / sizeof(RowKernels<T>) - 1;

template <class T>
const RowKernels<T>& row_kernels_for(const Workspace<T>& w) {
  const bool is_unrolled = w.in_order && w.l_max <= unrolled_harmonic_degree<T>;
  return is_unrolled ? unrolled_row_kernels<T>[w.l_max] : row_kernels<T, Workspace<T>>;
}

// Cuts memory into aligned pieces; with no memory it counts.
class Pieces {
 public:
  explicit Pieces(char* memory) : memory_(memory) {}
  template <class P>
  void take(P*& piece, std::int64_t count) {
    piece = memory_ ? reinterpret_cast<P*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<std::int64_t>(sizeof(P)) + 63) / 64 * 64;
  }
  std::int64_t used() const { return used_; }

 private:
  char* memory_;
  std::int64_t used_ = 0;
};

template <class T>
void cut(Pieces& pieces, Workspace<T>& w, std::int64_t columns) {
  const std::int64_t degrees = w.l_max + 1;
  pieces.take(w.step, step_count(w.l_max));
  pieces.take(w.sectoral, degrees);
  for (Vec<T>** v : {&w.c, &w.s, &w.c_dot, &w.s_dot, &w.q[0], &w.q[1], &w.q_dot[0], &w.q_dot[1]}) {
    pieces.take(*v, degrees);
  }
  pieces.take(w.value, degrees * degrees);
  pieces.take(w.grad, degrees * degrees);
  pieces.take(w.value_columns, columns);
  pieces.take(w.grad_columns, columns);
}

template <class T>
void fill_columns(const SphericalHarmonicsArgs<T>& args, Workspace<T>& w) {
  w.num_columns = args.num_columns;
  w.repeated = false;
  w.in_order = args.num_ls == w.l_max + 1;
  std::int64_t column = 0;
  for (int i = 0; i < args.num_ls; ++i) {
    const std::int64_t l = args.ls[i];
    w.in_order &= l == i;
    for (int j = 0; j < i; ++j) w.repeated |= args.ls[j] == l;
    for (std::int64_t c = l * l; c < (l + 1) * (l + 1); ++c, ++column) {
      w.value_columns[column] = reinterpret_cast<T*>(w.value + c);
      w.grad_columns[column] = reinterpret_cast<T*>(w.grad + c);
    }
  }
}

// Fewer rows than lanes: copied between zeros, so that kernels know full vectors only.
template <class T>
struct PaddedRows {
  T *points, *grad, *grad_grad_points, *out, *grad_points;

  void cut(Pieces& pieces, std::int64_t columns) {
    for (T** rows : {&points, &grad_grad_points, &grad_points}) pieces.take(*rows, 3 * lanes<T>);
    for (T** rows : {&grad, &out}) pieces.take(*rows, columns * lanes<T>);
  }

  static void copy(T* to, std::int64_t to_stride, const T* from, std::int64_t from_stride, int rows,
                   std::int64_t width) {
    if (from == nullptr || to == nullptr) return;
    for (int i = 0; i < rows; ++i) {
      std::memcpy(to + i * to_stride, from + i * from_stride, static_cast<std::size_t>(width) * sizeof(T));
    }
  }

  template <class F>
  void run(SphericalHarmonicsArgs<T> args, std::int64_t begin, int rows, const F& kernel) const {
    const std::int64_t columns = args.num_columns;
    const T* const from_grad = args.grad ? args.grad + begin * args.grad_stride : nullptr;
    const T* const from_grad_grad_points =
        args.grad_grad_points ? args.grad_grad_points + begin * args.grad_grad_points_stride : nullptr;
    T* const to_out = args.out ? args.out + begin * columns : nullptr;
    T* const to_grad_points = args.grad_points ? args.grad_points + begin * 3 : nullptr;
    std::memset(points, 0, 3 * sizeof(Vec<T>));
    std::memset(grad_grad_points, 0, 3 * sizeof(Vec<T>));
    std::memset(grad, 0, columns * sizeof(Vec<T>));
    copy(points, 3, args.points + begin * args.points_stride, args.points_stride, rows, 3);
    copy(grad, columns, from_grad, args.grad_stride, rows, columns);
    copy(grad_grad_points, 3, from_grad_grad_points, args.grad_grad_points_stride, rows, 3);
    args.points = points;
    args.grad = grad;
    args.grad_grad_points = grad_grad_points;
    args.points_stride = args.grad_grad_points_stride = 3;
    args.grad_stride = columns;
    args.out = out;
    args.grad_points = grad_points;
    kernel(args, 0, lanes<T>);
    copy(to_out, columns, out, columns, rows, columns);
    copy(to_grad_points, 3, grad_points, 3, rows, 3);
  }
};

// Prepares a call and hands it to one of the kernels for its degrees.
template <class T>
void run(const SphericalHarmonicsArgs<T>& args, std::int64_t begin, std::int64_t end,
         typename RowKernels<T>::Kernel* RowKernels<T>::* which) {
  if (begin >= end) return;
  Workspace<T> w;
  PaddedRows<T> padded;
  w.l_max = 0;
  for (int i = 0; i < args.num_ls; ++i) {
    if (args.ls[i] > w.l_max) w.l_max = static_cast<int>(args.ls[i]);
  }
  const bool few = end - begin < lanes<T>;
  const auto cut_all = [&](char* memory) {
    Pieces pieces(memory);
    cut(pieces, w, args.num_columns);
    if (few) padded.cut(pieces, args.num_columns);
    return pieces.used();
  };
  alignas(64) char stack[48 << 10];
  char* heap = nullptr;
  const std::int64_t bytes = cut_all(nullptr);
  if (bytes > static_cast<std::int64_t>(sizeof(stack))) {
    heap = static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes)));
    if (heap == nullptr) std::abort();
  }
  cut_all(heap ? heap : stack);
  fill_steps(w.l_max, args.normalization, w.step, w.sectoral);
  fill_columns(args, w);

  const auto kernel = row_kernels_for(w).*which;
  const auto with_workspace = [&](const SphericalHarmonicsArgs<T>& a, std::int64_t first, std::int64_t last) {
    kernel(a, w, first, last);
  };
  if (few) {
    padded.run(args, begin, static_cast<int>(end - begin), with_workspace);
  } else {
    with_workspace(args, begin, end);
  }
  std::free(heap);
}

}  // namespace
}  // namespace clebsch
