// Paths whose pairs (u, v) each reach every output channel w: matrix products of the weights W[n, w], n the
// pairs in their order, with the coupled pairs P[n, k] (tensor_product_rows.inl.h), a tile with lanes = rows.
//
//   out[w, k] += W[n, w] P[n, k],   Q[n, k] = W[n, w] g[w, k],   gW[n, w] = g[w, k] P[n, k]
//
// Weights of each row: 2 (2 l3 + 1) flops for every weight, so that reading W and writing gW is the limit.
// Lanes are output channels, which lie side by side in W: a weight is read once, in place, and P meets it as
// a scalar. To transpose W to lanes = rows costs more than all else, unless output channels are few.
//
// Weights for all rows: lanes are rows; a block of outputs (or pairs) by columns of sums stays in registers,
// and a multiply-add needs less than one load. The sum over rows in gW is the exception: with output channels
// in the lanes no weight needs a sum over lanes.
#pragma once

#include "program.h"
#include "vec.h"

namespace clebsch {
namespace {

// The sums of a block stay in registers, with room for what they are made of.
constexpr int kBlockSums = CLEBSCH_VEC_BYTES == 64 ? 24 : 12;
constexpr int block_height(int columns) {
  int height = 8;
  while (height > 1 && height * columns > kBlockSums) height /= 2;
  return height;
}

constexpr int rest(int height) { return height > 4 ? height / 4 : 1; }  // for what is left

// f<K>(k) for columns [k, k + K) of 2 l + 1: all of them at once up to degree 3, one by one beyond (and where
// weights are vectors, which no block of columns saves from being loaded).
template <bool Together = true, class F>
CLEBSCH_INLINE void each_columns(int columns, F f) {
  if constexpr (Together) {
    switch (columns) {
      case 3:
        return f.template operator()<3>(0);
      case 5:
        return f.template operator()<5>(0);
      case 7:
        return f.template operator()<7>(0);
    }
  }
  for (int k = 0; k < columns; ++k) f.template operator()<1>(k);
}

// Sizes of a block of weights W[n, o], and of the tile P[n, k] that belongs to it.
struct DenseBlock {
  int pairs, outputs, columns;
};

// Where g or a sum lies: channel o, component k in vector o * channel + k * component.
struct Steps {
  std::int64_t channel, component;
};

// Component m of channel u of a block in a tile.
struct TileIndex {
  std::int64_t offset, channel, component;
  TileIndex(const Block& b, bool mul_ir)
      : offset(b.offset), channel(mul_ir ? 2 * b.l + 1 : 1), component(mul_ir ? 1 : b.mul) {}
  std::int64_t operator()(std::int64_t u, int m) const { return offset + u * channel + m * component; }
  Steps steps() const { return {channel, component}; }
};

// Lanes are rows; a weight is a vector (of each row) or a scalar (for all).

// sums[o][k] (+)= sum_n weight[n][o] * value[n][k] for outputs from o on
template <bool Add, class T, int H, int K, class W>
CLEBSCH_INLINE void spread_blocks(const W* weight, std::int64_t next, const Vec<T>* value, Steps from,
                                  int pairs, int outputs, Vec<T>* sums, Steps to, int o) {
  for (; o + H <= outputs; o += H) {
    Vec<T> sum[H][K] = {};
    if constexpr (Add) {
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) {
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) sum[i][k] = sums[(o + i) * to.channel + k * to.component];
      }
    }
    const W* w = weight + o;
    const Vec<T>* v = value;
    for (int n = 0; n < pairs; ++n, w += next, v += from.channel) {
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) {
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) sum[i][k] += v[k * from.component] * w[i];
      }
    }
    CLEBSCH_UNROLL
    for (int i = 0; i < H; ++i) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) sums[(o + i) * to.channel + k * to.component] = sum[i][k];
    }
  }
  if constexpr (H > 1) {
    if (o < outputs)
      spread_blocks<Add, T, rest(H), K>(weight, next, value, from, pairs, outputs, sums, to, o);
  }
}

// The weights of a pair are `next` from those of the pair before.
template <bool Add, class T, class W>
void spread(const W* weight, std::int64_t next, const Vec<T>* value, Steps from, DenseBlock b, Vec<T>* sums,
            Steps to) {
  each_columns<std::is_same_v<W, T>>(b.columns, [&]<int K>(int k) __attribute__((always_inline)) {
    spread_blocks<Add, T, block_height(K), K>(weight, next, value + k * from.component, from, b.pairs,
                                              b.outputs, sums + k * to.component, to, 0);
  });
}

// value[n][k] (+)= sum_o weight[n][o] * g[o][k] for pairs from n on
template <bool Add, class T, int H, int K, class W>
CLEBSCH_INLINE void collect_blocks(const W* weight, std::int64_t next, const Vec<T>* g, Steps from, int pairs,
                                   int outputs, Vec<T>* value, Steps to, int n) {
  for (; n + H <= pairs; n += H) {
    Vec<T> sum[H][K] = {};
    Vec<T>* v = value + n * to.channel;
    const W* w = weight + n * next;
    const Vec<T>* at = g;
    for (int o = 0; o < outputs; ++o, at += from.channel, ++w) {
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) {
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) sum[i][k] += at[k * from.component] * w[i * next];
      }
    }
    CLEBSCH_UNROLL
    for (int i = 0; i < H; ++i) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) {
        Vec<T>& result = v[i * to.channel + k * to.component];
        result = Add ? result + sum[i][k] : sum[i][k];
      }
    }
  }
  if constexpr (H > 1) {
    if (n < pairs) collect_blocks<Add, T, rest(H), K>(weight, next, g, from, pairs, outputs, value, to, n);
  }
}

// The weights of a pair are `next` from those of the pair before.
template <bool Add, class T, class W>
void collect(const W* weight, std::int64_t next, const Vec<T>* g, Steps from, DenseBlock b, Vec<T>* value,
             Steps to) {
  each_columns<std::is_same_v<W, T>>(b.columns, [&]<int K>(int k) __attribute__((always_inline)) {
    collect_blocks<Add, T, block_height(K), K>(weight, next, g + k * from.component, from, b.pairs, b.outputs,
                                               value + k * to.component, to, 0);
  });
}

// grad_weight[n][o] = sum_k g[o][k] * value[n][k]
template <class T>
void outer(const Vec<T>* g, const Vec<T>* value, DenseBlock b, Vec<T>* grad_weight, Steps step) {
  for (int n = 0; n < b.pairs; ++n, value += b.columns) {
    for (int o = 0; o < b.outputs; ++o) {
      const Vec<T>* from = g + o * step.channel;
      Vec<T> sum{};
      for (int k = 0; k < b.columns; ++k) sum += from[k * step.component] * value[k];
      *grad_weight++ = sum;
    }
  }
}

// Lanes are output channels. Rows of weights are read side by side: memory serves several streams faster than
// one.

// f(o, mask...) for each vector of output channels; the last may be a part of one.
template <class T, class F>
CLEBSCH_INLINE void each_vector(int outputs, F f) {
  int o = 0;
  for (; o + lanes<T> <= outputs; o += lanes<T>) f(o);
  if (o < outputs) f(o, Mask<T>(outputs - o));
}

// The block of an output in the panels of rows: component k, channel o of row e.
template <class T>
struct Panels {
  T* data;
  std::int64_t apart;  // from row to row; 0 if all share one
  std::int64_t stride;
  CLEBSCH_INLINE T* operator()(int e, int k, int o) const { return data + e * apart + k * stride + o; }
};

// out_e[k][o] += sum_n weight_e[n][o] * value_e[n][k] for rows from e on
template <class T, int H, int K, class... Masks>
CLEBSCH_INLINE void spread_rows(const T* const* weight, const T* value, DenseBlock b, Panels<T> out,
                                int first, int o, int e, int count, Masks... mask) {
  for (; e + H <= count; e += H) {
    const T* w[H];
    CLEBSCH_UNROLL
    for (int i = 0; i < H; ++i) w[i] = weight[e + i] + o;
    const T* v = value + first * lanes<T> + e;
    Vec<T> sum[H][K] = {};
    for (int n = 0; n < b.pairs; ++n, v += b.columns * lanes<T>) {
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) {
        const Vec<T> loaded = load(w[i], mask...);
        w[i] += b.outputs;
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) sum[i][k] += loaded * v[k * lanes<T> + i];
      }
    }
    CLEBSCH_UNROLL
    for (int i = 0; i < H; ++i) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) {
        T* to = out(e + i, first + k, o);
        store(to, load(to) + sum[i][k]);
      }
    }
  }
  if constexpr (H > 1) {
    if (e < count) spread_rows<T, rest(H), K>(weight, value, b, out, first, o, e, count, mask...);
  }
}

template <class T>
void spread_rows(const T* const* weight, const Vec<T>* value, DenseBlock b, Panels<T> out, int count) {
  each_columns(b.columns, [&]<int K>(int first) __attribute__((always_inline)) {
    each_vector<T>(b.outputs, [&](int o, auto... mask) __attribute__((always_inline)) {
      spread_rows<T, block_height(K), K>(weight, reinterpret_cast<const T*>(value), b, out, first, o, 0,
                                         count, mask...);
    });
  });
}

// value_e[n][k] = sum_o weight_e[n][o] * g_e[k][o]: summing the lanes of all rows at once puts them in place.
template <class T>
void collect_rows(const T* const* weight, Panels<const T> g, DenseBlock b, Vec<T>* value) {
  constexpr int W = lanes<T>;
  for (int n = 0; n < b.pairs; ++n) {
    const std::int64_t at = std::int64_t{n} * b.outputs;
    for (int k = 0; k < b.columns; ++k) {
      Vec<T> sum[W] = {};
      each_vector<T>(b.outputs, [&](int o, auto... mask) __attribute__((always_inline)) {
        CLEBSCH_UNROLL
        for (int e = 0; e < W; ++e) sum[e] += load(weight[e] + at + o, mask...) * load(g(e, k, o));
      });
      value[std::int64_t{n} * b.columns + k] = sum_lanes<T>(sum);
    }
  }
}

// grad_weight_e[n][o] = sum_k g_e[k][o] * value_e[n][k]
template <class T>
void outer_rows(Panels<const T> g, const Vec<T>* value, DenseBlock b, T* const* grad_weight, int count) {
  each_columns(b.columns, [&]<int K>(int first) __attribute__((always_inline)) {
    for (int n = 0; n < b.pairs; ++n) {
      const T* v = reinterpret_cast<const T*>(value + std::int64_t{n} * b.columns + first);
      for (int e = 0; e < count; ++e) {
        T* row = grad_weight[e] + std::int64_t{n} * b.outputs;
        each_vector<T>(b.outputs, [&](int o, auto... mask) __attribute__((always_inline)) {
          Vec<T> sum = first > 0 ? load(row + o, mask...) : Vec<T>{};
          CLEBSCH_UNROLL
          for (int k = 0; k < K; ++k) sum += load(g(e, first + k, o)) * v[k * lanes<T> + e];
          store(row + o, sum, mask...);
        });
      }
    }
  });
}

// grad_weight[n][o] += sum over the rows e < count and k of g_e[k][o] * value_e[n][k], for pairs from n on,
// `next` apart in grad_weight
template <class T, int H, class... Masks>
CLEBSCH_INLINE void add_outer(Panels<const T> g, const T* value, DenseBlock b, T* grad_weight,
                              std::int64_t next, int count, int o, int n, Masks... mask) {
  const std::int64_t step = std::int64_t{b.columns} * lanes<T>;
  for (; n + H <= b.pairs; n += H) {
    Vec<T> sum[H];
    T* to = grad_weight + n * next + o;
    CLEBSCH_UNROLL
    for (int i = 0; i < H; ++i) sum[i] = load(to + i * next, mask...);
    for (int k = 0; k < b.columns; ++k) {
      const T* from = g(0, k, o);
      const T* v = value + n * step + k * lanes<T>;
      for (int e = 0; e < count; ++e, from += g.apart) {
        const Vec<T> loaded = load(from);
        CLEBSCH_UNROLL
        for (int i = 0; i < H; ++i) sum[i] += loaded * v[i * step + e];
      }
    }
    CLEBSCH_UNROLL
    for (int i = 0; i < H; ++i) store(to + i * next, sum[i], mask...);
  }
  if constexpr (H > 1) {
    if (n < b.pairs) add_outer<T, rest(H)>(g, value, b, grad_weight, next, count, o, n, mask...);
  }
}

template <class T>
void add_outer(Panels<const T> g, const Vec<T>* value, DenseBlock b, T* grad_weight, std::int64_t next,
               int count) {
  each_vector<T>(b.outputs, [&](int o, auto... mask) __attribute__((always_inline)) {
    add_outer<T, 8>(g, reinterpret_cast<const T*>(value), b, grad_weight, next, count, o, 0, mask...);
  });
}

}  // namespace
}  // namespace clebsch
