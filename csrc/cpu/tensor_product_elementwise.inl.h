// Elementwise products (uuu): lanes are channels, of every operand.
//
// The coupling cannot meet y once for all channels. Instead its terms are sorted by the component that they
// are summed to, once for each of out, gx and gy (program.h), and all sums are one loop that keeps them in
// registers: two instructions for a term and vector, sum += (C a) b, with a and b from L1. With t_i and s_i
// sums along x:
//
//   forward   out_k += w C x_i y_j
//   backward  t_i = C g_k y_j,  gx_i += w t_i,  gw += x_i t_i;   gy_j += w C g_k x_i
//   tangent   out_k += w C (ax_i y_j + x_i ay_j) + aw C x_i y_j;   with s_i = C g_k ay_j
//             gx_i += w s_i + aw t_i,  gw += ax_i t_i + x_i s_i;   gy_j += w C g_k ax_i + aw C g_k x_i
//
// Forward 2, backward 4, double backward 11 instructions for a term and vector. Least traffic: each operand
// and result once. For a few paths memory decides; up to four vectors share the reading of the table.
#pragma once

#include "program.h"
#include "vec.h"

namespace clebsch {
namespace {

// Of one edge. Panels, and rows of weights; a path sees their parts at its blocks and a channel.
template <class T>
struct ElementwiseOperands {
  const T *x, *y, *w, *ax, *ay, *aw;
  template <bool Tangent>
  ElementwiseOperands at(const Path& p, int c) const {
    const std::int64_t at_x = p.in1.panel + c, at_y = p.in2.panel + c;
    if constexpr (Tangent) return {x + at_x, y + at_y, w + c, ax + at_x, ay + at_y, aw + c};
    return {x + at_x, y + at_y, w + c, nullptr, nullptr, nullptr};
  }
};
template <class T>
struct ElementwiseGradients {
  T *gx, *gy;  // panels, added to
  T* gw;
  bool accumulate_gw;
  ElementwiseGradients at(const Path& p, int c) const {
    return {gx + p.in1.panel + c, gy + p.in2.panel + c, gw + c, accumulate_gw};
  }
};

template <class T, int N>
struct Sums {  // N vectors of channels
  Vec<T> at[N];
};

// sum += C a b and, if Both, change += C a other, at one component of the result.
template <bool Both, class T, int N>
CLEBSCH_INLINE void contract(const Contraction& by, int component, const T* a, const T* b, const T* other,
                             Sums<T, N>& sum, Sums<T, N>& change) {
  constexpr int W = lanes<T>;
  const T* values = path_values<T>(by);
  for (int n = by.first[component]; n < by.first[component + 1]; ++n) {
    const auto [at_a, at_b] = by.pairs[n];
    CLEBSCH_UNROLL
    for (int v = 0; v < N; ++v) {
      const Vec<T> scaled = load(a + at_a + v * W) * values[n];
      sum.at[v] += scaled * load(b + at_b + v * W);
      if constexpr (Both) change.at[v] += scaled * load(other + at_b + v * W);
    }
  }
}

// to += w sum + its tangent
template <bool Tangent, class T, int N>
CLEBSCH_INLINE void add_weighted(const Sums<T, N>& w, const Sums<T, N>& aw, const Sums<T, N>& sum,
                                 const Sums<T, N>& change, T* to) {
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) {
    Vec<T> all = load(to + v * lanes<T>) + w.at[v] * (Tangent ? change.at[v] : sum.at[v]);
    if constexpr (Tangent) all += aw.at[v] * sum.at[v];
    store(to + v * lanes<T>, all);
  }
}

// N vectors, of which `left` channels exist.
template <class T, int N>
CLEBSCH_INLINE Sums<T, N> load_channels(const T* from, int left) {
  Sums<T, N> all;
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) all.at[v] = load(from + v * lanes<T>, Mask<T>(left - v * lanes<T>));
  return all;
}

// N vectors of channels of one path. (A function of its own, so that the compiler takes the pointers as they
// are: inlined, it makes an index for every vector of every operand and runs out of registers.)
template <bool Tangent, int N, class T>
__attribute__((noinline)) void elementwise_forward(const Path& p, int left, const ElementwiseOperands<T> of,
                                                   T* out) {
  const Sums<T, N> w = load_channels<T, N>(of.w, left);
  const Sums<T, N> aw = Tangent ? load_channels<T, N>(of.aw, left) : Sums<T, N>{};
  for (int k = 0; k <= 2 * p.out.l; ++k) {
    Sums<T, N> sum{}, change{};
    contract<Tangent>(p.to_out, k, of.x, of.y, of.ay, sum, change);
    if constexpr (Tangent) contract<false>(p.to_out, k, of.ax, of.y, of.y, change, sum);
    add_weighted<Tangent>(w, aw, sum, change, out + k * p.out.stride);
  }
}

template <bool Tangent, int N, class T>
__attribute__((noinline)) void elementwise_backward(const Path& p, int left, const ElementwiseOperands<T> of,
                                                    const T* g, const ElementwiseGradients<T> to) {
  constexpr int W = lanes<T>;
  const Sums<T, N> w = load_channels<T, N>(of.w, left);
  const Sums<T, N> aw = Tangent ? load_channels<T, N>(of.aw, left) : Sums<T, N>{};
  Sums<T, N> gw{};
  for (int i = 0; i <= 2 * p.in1.l; ++i) {
    Sums<T, N> t{}, s{};
    contract<Tangent>(p.to_x, i, g, of.y, of.ay, t, s);
    const int at = i * p.in1.stride;
    CLEBSCH_UNROLL
    for (int v = 0; v < N; ++v) {
      gw.at[v] += load(of.x + at + v * W) * (Tangent ? s.at[v] : t.at[v]);
      if constexpr (Tangent) gw.at[v] += load(of.ax + at + v * W) * t.at[v];
    }
    add_weighted<Tangent>(w, aw, t, s, to.gx + at);
  }
  for (int j = 0; j <= 2 * p.in2.l; ++j) {
    Sums<T, N> sum{}, change{};
    contract<Tangent>(p.to_y, j, g, of.x, of.ax, sum, change);
    add_weighted<Tangent>(w, aw, sum, change, to.gy + j * p.in2.stride);
  }
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) {
    const Mask<T> mask(left - v * W);
    if (to.accumulate_gw) gw.at[v] += load(to.gw + v * W, mask);
    store(to.gw + v * W, gw.at[v], mask);
  }
}

// f<N>(c) for N vectors of channels from c on, four at a time as far as they go.
template <class T, class F>
CLEBSCH_INLINE void for_channels(int mul, F f) {
  constexpr int W = lanes<T>;
  int c = 0;
  for (; c + 3 * W < mul; c += 4 * W) f.template operator()<4>(c);
  for (; c + W < mul; c += 2 * W) f.template operator()<2>(c);
  if (c < mul) f.template operator()<1>(c);
}

template <bool Tangent, class T>
void elementwise_forward(const Path& p, const ElementwiseOperands<T>& of, T* out) {
  for_channels<T>(p.in1.mul, [&]<int N>(int c) {
    elementwise_forward<Tangent, N>(p, p.in1.mul - c, of.template at<Tangent>(p, c), out + p.out.panel + c);
  });
}

template <bool Tangent, class T>
void elementwise_backward(const Path& p, const ElementwiseOperands<T>& of, const T* g,
                          const ElementwiseGradients<T>& to) {
  for_channels<T>(p.in1.mul, [&]<int N>(int c) {
    elementwise_backward<Tangent, N>(p, p.in1.mul - c, of.template at<Tangent>(p, c), g + p.out.panel + c,
                                     to.at(p, c));
  });
}

}  // namespace
}  // namespace clebsch
