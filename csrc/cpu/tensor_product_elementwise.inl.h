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
#pragma once

#include "program.h"
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

template <bool Tangent, class T>
void elementwise_forward(const Program& program, const ElementwiseOperands<T>& of,
                         const ElementwiseSpace<T>& space, T* out) {
  for (int i = 0; i < program.pair_count; ++i) {
    const ElementwisePair& pair = program.pairs[i];
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
