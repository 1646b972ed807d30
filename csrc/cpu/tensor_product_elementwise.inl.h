// Elementwise products (uuu): lanes are channels, of every operand.
//
// The coupling cannot meet y once for all channels. But all paths from the same two blocks share the products
// x_i y_j, and what the coupling makes of all their cotangents; these wait in the nearest caches. C is a
// sparse matrix on either side (program.h), one multiply-add for a term:
//
//   forward   t_ij = x_i y_j,  out_k += w C t_ij
//   backward  h_ij = C (w g_k),  gx_i += h_ij y_j,  gy_j += h_ij x_i;   gw += g_k C t_ij
//   tangent   s_ij = ax_i y_j + x_i ay_j,  b_ij = C (aw g_k)
//             out_k += w C s_ij + aw C t_ij,  gw += g_k C s_ij
//             gx_i += h_ij ay_j + b_ij y_j,  gy_j += h_ij ax_i + b_ij x_i
//
// Multiply-adds for a term and vector: forward 1, backward 1, double backward 4, and one more with weights in
// the last two; and 1, 2 and 7 for each (i, j), with weights 3 and 10 in the last two. Least traffic: each
// operand and result once. For a few paths memory decides; up to four vectors share the reading of the
// tables.
//
// Where all degrees of a pair have code of their own, its paths go one after the other, and for a vector of
// channels everything stays in registers:
//
//   forward   out_k += C (w x_i) y_j
//   backward  h_ij = C g_k,  u_i = h_ij y_j,  v_j = h_ij x_i;  gx_i += w u_i,  gy_j += w v_j,  gw += x_i u_i
//   tangent   out_k += C ((w ax_i + aw x_i) y_j + w x_i ay_j),  q_i = h_ij ay_j,  s_j = h_ij ax_i
//             gx_i += w q_i + aw u_i,  gy_j += w s_j + aw v_j,  gw += ax_i u_i + x_i q_i
#pragma once

#include "program.h"
#include "unrolled.inl.h"
#include "vec.h"

namespace clebsch {
namespace {

constexpr int kElementwiseVectors = 4;  // at once

// Of one edge: panels, and the rows of the weights.
template <class T>
struct ElementwiseOperands {
  const T *x, *y, *w, *ax, *ay, *aw;
  const T *ones, *zeros;  // weights of unweighted paths
  const T* weights(const Path& p, int c) const { return p.weighted ? w + p.weight + c : ones; }
  const T* weight_tangents(const Path& p, int c) const { return p.weighted ? aw + p.weight + c : zeros; }
};
template <class T>
struct ElementwiseGradients {
  T *gx, *gy;  // panels, added to
  T* gw;       // the row
  bool accumulate_gw, far_w;
};

// N vectors of channels for each product x_i y_j and each output of a pair.
template <class T>
struct ElementwiseSpace {
  T *products, *product_tangents, *scaled, *scaled_tangents;
  static std::int64_t size(const Program& program) {
    return std::int64_t{kElementwiseVectors} * lanes<T> * (program.most_products + program.most_outputs);
  }
};

template <class T, int N>
struct Channels {  // N vectors of them
  Vec<T> at[N];
};
template <int N, class T>
CLEBSCH_INLINE Channels<T, N> load_channels(const T* from) {
  Channels<T, N> all;
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) all.at[v] = load(from + v * lanes<T>);
  return all;
}
template <int N, class T>
CLEBSCH_INLINE Channels<T, N> load_channels(const T* from, int left) {
  Channels<T, N> all;
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) all.at[v] = load(from + v * lanes<T>, Mask<T>(left - v * lanes<T>));
  return all;
}
template <int N, class T>
CLEBSCH_INLINE void store_channels(T* to, const Channels<T, N>& all) {
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) store(to + v * lanes<T>, all.at[v]);
}

// sum += a b
template <class T, int N>
CLEBSCH_INLINE void add_product(Channels<T, N>& sum, const Channels<T, N>& a, const Channels<T, N>& b) {
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) sum.at[v] += a.at[v] * b.at[v];
}

// Component `result`.
template <int N, class T>
CLEBSCH_INLINE Channels<T, N> contract(const Contraction& by, int result, const T* source) {
  const T* values = path_values<T>(by);
  Channels<T, N> sum{};
  for (int n = by.first[result]; n < by.first[result + 1]; ++n) {
    const T* from = source + std::int64_t{by.source[n]} * (N * lanes<T>);
    CLEBSCH_UNROLL
    for (int v = 0; v < N; ++v) sum.at[v] += load(from + v * lanes<T>) * values[n];
  }
  return sum;
}

// (Functions of their own, so that the compiler takes the pointers as they are: inlined, it makes an index
// for every vector of every operand and runs out of registers.)
template <bool Tangent, int N, class T>
__attribute__((noinline)) void multiply_components(const ElementwisePair& pair, int c,
                                                   const ElementwiseOperands<T>& of,
                                                   const ElementwiseSpace<T>& space) {
  constexpr int width = N * lanes<T>;
  T *product = space.products, *tangent = space.product_tangents;
  for (int i = 0; i <= 2 * pair.in1.l; ++i) {
    const std::int64_t at_x = pair.in1.panel + i * pair.in1.stride + c;
    const auto x = load_channels<N>(of.x + at_x);
    const auto ax = Tangent ? load_channels<N>(of.ax + at_x) : x;
    for (int j = 0; j <= 2 * pair.in2.l; ++j, product += width, tangent += Tangent ? width : 0) {
      const std::int64_t at_y = pair.in2.panel + j * pair.in2.stride + c;
      const auto y = load_channels<N>(of.y + at_y);
      Channels<T, N> t{}, s{};
      add_product(t, x, y);
      store_channels(product, t);
      if constexpr (Tangent) {
        add_product(s, ax, y);
        add_product(s, x, load_channels<N>(of.ay + at_y));
        store_channels(tangent, s);
      }
    }
  }
}

template <bool Tangent, int N, class T>
__attribute__((noinline)) void elementwise_forward(const Path& p, int c, const ElementwiseOperands<T>& of,
                                                   const ElementwiseSpace<T>& space, T* out) {
  const int left = p.in1.mul - c;
  const auto w = load_channels<N>(of.weights(p, c), left);
  const auto aw = Tangent ? load_channels<N>(of.weight_tangents(p, c), left) : w;
  for (int k = 0; k <= 2 * p.out.l; ++k) {
    T* to = out + p.out.panel + k * p.out.stride + c;
    auto sum = load_channels<N>(to);
    add_product(sum, w, contract<N>(p.to_out, k, Tangent ? space.product_tangents : space.products));
    if constexpr (Tangent) add_product(sum, aw, contract<N>(p.to_out, k, space.products));
    store_channels(to, sum);
  }
}

// The cotangents of a path times its weights, and the gradient of these.
template <bool Tangent, int N, class T>
__attribute__((noinline)) void scale_cotangents(const Path& p, int c, const ElementwiseOperands<T>& of,
                                                const T* g, const ElementwiseSpace<T>& space,
                                                const ElementwiseGradients<T>& to) {
  constexpr int width = N * lanes<T>;
  const int left = p.in1.mul - c;
  const auto w = load_channels<N>(of.weights(p, c), left);
  const auto aw = Tangent ? load_channels<N>(of.weight_tangents(p, c), left) : w;
  Channels<T, N> gw{};
  for (int k = 0; k <= 2 * p.out.l; ++k) {
    const auto gk = load_channels<N>(g + p.out.panel + k * p.out.stride + c);
    Channels<T, N> scaled{}, scaled_tangent{};
    add_product(scaled, w, gk);
    store_channels(space.scaled + (p.at_pair + k) * width, scaled);
    if constexpr (Tangent) {
      add_product(scaled_tangent, aw, gk);
      store_channels(space.scaled_tangents + (p.at_pair + k) * width, scaled_tangent);
    }
    if (p.weighted)
      add_product(gw, gk, contract<N>(p.to_out, k, Tangent ? space.product_tangents : space.products));
  }
  if (!p.weighted) return;
  T* row = to.gw + p.weight + c;
  if (to.far_w && left >= width && fills_lines(row, width)) {
    CLEBSCH_UNROLL
    for (int v = 0; v < N; ++v) stream(row + v * lanes<T>, gw.at[v]);
    return;
  }
  CLEBSCH_UNROLL
  for (int v = 0; v < N; ++v) {
    const Mask<T> mask(left - v * lanes<T>);
    if (to.accumulate_gw) gw.at[v] += load(row + v * lanes<T>, mask);
    store(row + v * lanes<T>, gw.at[v], mask);
  }
}

template <bool Tangent, int N, class T>
__attribute__((noinline)) void differentiate_components(const ElementwisePair& pair, int c,
                                                        const ElementwiseOperands<T>& of,
                                                        const ElementwiseSpace<T>& space,
                                                        const ElementwiseGradients<T>& to) {
  int product = 0;
  for (int i = 0; i <= 2 * pair.in1.l; ++i) {
    const std::int64_t at_x = pair.in1.panel + i * pair.in1.stride + c;
    const auto x = load_channels<N>(of.x + at_x);
    const auto ax = Tangent ? load_channels<N>(of.ax + at_x) : x;
    auto gx = load_channels<N>(to.gx + at_x);
    for (int j = 0; j <= 2 * pair.in2.l; ++j, ++product) {
      const std::int64_t at_y = pair.in2.panel + j * pair.in2.stride + c;
      const auto h = contract<N>(pair.to_pair, product, space.scaled);
      const auto y = load_channels<N>(of.y + at_y);
      auto gy = load_channels<N>(to.gy + at_y);
      if constexpr (Tangent) {
        const auto b = contract<N>(pair.to_pair, product, space.scaled_tangents);
        add_product(gx, h, load_channels<N>(of.ay + at_y));
        add_product(gx, b, y);
        add_product(gy, h, ax);
        add_product(gy, b, x);
      } else {
        add_product(gx, h, y);
        add_product(gy, h, x);
      }
      store_channels(to.gy + at_y, gy);
    }
    store_channels(to.gx + at_x, gx);
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

// One path with the degrees known at compile time. x, y and g below are the vectors of one block of channels.
template <class T, int L1, int L2, int L3>
struct UnrolledElementwise {
  static constexpr int A = 2 * L1 + 1, B = 2 * L2 + 1, K = 2 * L3 + 1;
  using C = Coupling<L1, L2, L3>;
  // Terms are sorted by (m1, m2): whether one is the first, or the last, of its product.
  static constexpr bool begins(int n) {
    return n == 0 || C::m1[n] != C::m1[n - 1] || C::m2[n] != C::m2[n - 1];
  }
  static constexpr bool ends(int n) { return n + 1 == C::size || begins(n + 1); }

  template <int N>
  static CLEBSCH_INLINE void read(const Block& block, const T* panel, int c, Vec<T> (&to)[N]) {
    CLEBSCH_UNROLL
    for (int m = 0; m < N; ++m) to[m] = load(panel + block.panel + m * block.stride + c);
  }
  // panel += w u, and + aw v if there are tangents
  template <bool Tangent, int N>
  static CLEBSCH_INLINE void add(const Block& block, T* panel, int c, Vec<T> w, const Vec<T> (&u)[N],
                                 Vec<T> aw, const Vec<T> (&v)[N]) {
    CLEBSCH_UNROLL
    for (int m = 0; m < N; ++m) {
      T* to = panel + block.panel + m * block.stride + c;
      Vec<T> sum = load(to) + w * u[m];
      if constexpr (Tangent) sum += aw * v[m];
      store(to, sum);
    }
  }

  template <bool Tangent>
  static void forward(const Path& p, const ElementwiseOperands<T>& of, T* out) {
    const T coefficient = static_cast<T>(p.coefficient);
    for (int c = 0; c < p.in1.mul; c += lanes<T>) {
      const Mask<T> mask(p.in1.mul - c);
      const Vec<T> w = load(of.weights(p, c), mask) * coefficient;
      Vec<T> x[A], y[B], ax[A], ay[B], sum[K];
      read(p.in1, of.x, c, x);
      read(p.in2, of.y, c, y);
      if constexpr (Tangent) {
        const Vec<T> aw = load(of.weight_tangents(p, c), mask) * coefficient;
        read(p.in1, of.ax, c, ax);
        read(p.in2, of.ay, c, ay);
        CLEBSCH_UNROLL
        for (int i = 0; i < A; ++i) ax[i] = w * ax[i] + aw * x[i];
      }
      CLEBSCH_UNROLL
      for (int i = 0; i < A; ++i) x[i] *= w;
      read(p.out, out, c, sum);
      Vec<T> product{};
      CLEBSCH_UNROLL
      for (int n = 0; n < C::size; ++n) {
        if (begins(n)) {
          product = x[C::m1[n]] * (Tangent ? ay : y)[C::m2[n]];
          if constexpr (Tangent) product += ax[C::m1[n]] * y[C::m2[n]];
        }
        sum[C::m3[n]] += product * static_cast<T>(C::value[n]);
      }
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) store(out + p.out.panel + k * p.out.stride + c, sum[k]);
    }
  }

  template <bool Tangent>
  static void backward(const Path& p, const ElementwiseOperands<T>& of, const T* cotangent,
                       const ElementwiseGradients<T>& to) {
    const T coefficient = static_cast<T>(p.coefficient);
    for (int c = 0; c < p.in1.mul; c += lanes<T>) {
      const Mask<T> mask(p.in1.mul - c);
      Vec<T> x[A], y[B], ax[A], ay[B], g[K], u[A]{}, v[B]{}, q[A]{}, s[B]{};
      read(p.in1, of.x, c, x);
      read(p.in2, of.y, c, y);
      read(p.out, cotangent, c, g);
      if constexpr (Tangent) {
        read(p.in1, of.ax, c, ax);
        read(p.in2, of.ay, c, ay);
      }
      Vec<T> h{};
      CLEBSCH_UNROLL
      for (int n = 0; n < C::size; ++n) {
        const int i = C::m1[n], j = C::m2[n];
        const Vec<T> term = g[C::m3[n]] * static_cast<T>(C::value[n]);
        h = begins(n) ? term : h + term;
        if (!ends(n)) continue;
        u[i] += h * y[j];
        v[j] += h * x[i];
        if constexpr (Tangent) {
          q[i] += h * ay[j];
          s[j] += h * ax[i];
        }
      }
      const Vec<T> w = load(of.weights(p, c), mask) * coefficient;
      if constexpr (Tangent) {
        const Vec<T> aw = load(of.weight_tangents(p, c), mask) * coefficient;
        add<true>(p.in1, to.gx, c, w, q, aw, u);
        add<true>(p.in2, to.gy, c, w, s, aw, v);
      } else {
        add<false>(p.in1, to.gx, c, w, u, w, u);
        add<false>(p.in2, to.gy, c, w, v, w, v);
      }
      if (!p.weighted) continue;
      Vec<T> gw{};
      CLEBSCH_UNROLL
      for (int i = 0; i < A; ++i) {
        gw += (Tangent ? ax : x)[i] * u[i];
        if constexpr (Tangent) gw += x[i] * q[i];
      }
      gw *= coefficient;
      T* row = to.gw + p.weight + c;
      if (to.far_w && p.in1.mul - c >= lanes<T> && fills_lines(row, lanes<T>)) {
        stream(row, gw);
        continue;
      }
      if (to.accumulate_gw) gw += load(row, mask);
      store(row, gw, mask);
    }
  }
};

template <class T>
struct ElementwiseKernels {
  using Forward = void (*)(const Path&, const ElementwiseOperands<T>&, T* out);
  using Backward = void (*)(const Path&, const ElementwiseOperands<T>&, const T* g,
                            const ElementwiseGradients<T>&);
  Forward forward, forward_tangent;
  Backward backward, backward_tangent;
};
template <class T>
constexpr auto unrolled_elementwise =
    unrolled_table<T, ElementwiseKernels<T>>([]<int L1, int L2, int L3>() -> ElementwiseKernels<T> {
      using P = UnrolledElementwise<T, L1, L2, L3>;
      return {&P::template forward<false>, &P::template forward<true>, &P::template backward<false>,
              &P::template backward<true>};
    });

template <bool Tangent, class T>
void elementwise_forward(const Program& program, const ElementwiseOperands<T>& of,
                         const ElementwiseSpace<T>& space, T* out) {
  for (int i = 0; i < program.pair_count; ++i) {
    const ElementwisePair& pair = program.pairs[i];
    if (pair.largest_degree < kUnrolled<T>) {
      for (int n = 0; n < pair.path_count; ++n) {
        const Path& p = program.paths[pair.paths[n]];
        const auto& kernels = unrolled_elementwise<T>[p];
        (Tangent ? kernels.forward_tangent : kernels.forward)(p, of, out);
      }
      continue;
    }
    for_channels<T>(pair.in1.mul, [&]<int N>(int c) {
      multiply_components<Tangent, N>(pair, c, of, space);
      for (int n = 0; n < pair.path_count; ++n)
        elementwise_forward<Tangent, N>(program.paths[pair.paths[n]], c, of, space, out);
    });
  }
}

template <bool Tangent, class T>
void elementwise_backward(const Program& program, const ElementwiseOperands<T>& of, const T* g,
                          const ElementwiseSpace<T>& space, const ElementwiseGradients<T>& to) {
  for (int i = 0; i < program.pair_count; ++i) {
    const ElementwisePair& pair = program.pairs[i];
    if (pair.largest_degree < kUnrolled<T>) {
      for (int n = 0; n < pair.path_count; ++n) {
        const Path& p = program.paths[pair.paths[n]];
        const auto& kernels = unrolled_elementwise<T>[p];
        (Tangent ? kernels.backward_tangent : kernels.backward)(p, of, g, to);
      }
      continue;
    }
    for_channels<T>(pair.in1.mul, [&]<int N>(int c) {
      if (pair.weighted) multiply_components<Tangent, N>(pair, c, of, space);
      for (int n = 0; n < pair.path_count; ++n)
        scale_cotangents<Tangent, N>(program.paths[pair.paths[n]], c, of, g, space, to);
      differentiate_components<Tangent, N>(pair, c, of, space, to);
    });
  }
}

}  // namespace
}  // namespace clebsch
