// Symmetric contraction of the channels of a node, lanes = channels (symmetric_contraction.h says of what).
//
//   forward          out_M = sum_r w_r P_rM
//   backward         F = sum_p Q_p P_p with Q_rM = w_r g_M;   grad_x = dF/dx,   grad_w_r = sum_M g_M P_rM
//   double backward  along ax and aw: the gradient of dF/dx ax + dF/dw aw in g, w and x, which are
//                    sum_r (w_r dP_rM + aw_r P_rM),   sum_M g_M dP_rM,   and of F's tangent in x
//
// dP being P's tangent along ax. F is a sum over terms t = (a, b) of C_t q_a q_b with C_t = sum value Q_p:
// its gradient takes the entries once to make C_t and two multiply-adds a term, where going back through each
// entry would take two and a store. The tangent of F is C_t (dq_a q_b + q_a dq_b) + C'_t q_a q_b, with C' of
// aw_r g_M; lambda = d/dq and mu = d/d(dq) go back through the pairs together.
//
// Least work for a channel with E entries in G groups (product, first factor), T terms, S pairs, N products,
// in multiply-adds: forward E + G + S + N; backward E + 2 T + 3 S + N, and again forward for grad_w; double
// backward 4 E + 3 G + 6 T + 8 S + 4 N. MACE's 0e + 1o from degrees to 3, correlation 3, has E = 486, G =
// 374, T = 410, S = 57, N = 61: 978 forward, 1,538 for grad_x. Least traffic, in numbers for a channel:
// forward x read and out written, 16 and 4; backward x and g read, grad_x written, 36. That is 11 or 12
// multiply-adds for every byte of float32: arithmetic decides, and what is arranged is that it meets operands
// in the nearest two caches, where all of a block of channels waits.
//
// A block is kWide vectors: one look at the tables serves them all, and their sums do not wait for each
// other. What is left over is taken a vector at a time.
#pragma once

#include "panel.inl.h"
#include "symmetric_contraction.h"
#include "vec.h"

namespace clebsch {
namespace {

// Vectors of a block: two took a fifth longer; eight, a tenth less forward and backward, and a quarter more
// in the double backward, whose sums then leave the registers (AVX-512).
constexpr int kWide = 4;

// V vectors of channels.
template <class T, int V>
struct Channels {
  Vec<T> v[V];
};

template <class T, int V>
CLEBSCH_INLINE Channels<T, V> take(const T* panel, int item) {
  Channels<T, V> c;
  CLEBSCH_UNROLL for (int i = 0; i < V; ++i) c.v[i] = load(panel + (item * V + i) * lanes<T>);
  return c;
}

template <class T, int V>
CLEBSCH_INLINE void put(T* panel, int item, const Channels<T, V>& c) {
  CLEBSCH_UNROLL for (int i = 0; i < V; ++i) store(panel + (item * V + i) * lanes<T>, c.v[i]);
}

template <class T, int V>
CLEBSCH_INLINE void add(Channels<T, V>& sum, const Channels<T, V>& a, const Channels<T, V>& b) {
  CLEBSCH_UNROLL for (int i = 0; i < V; ++i) sum.v[i] += a.v[i] * b.v[i];
}

template <class T, int V>
CLEBSCH_INLINE void add(Channels<T, V>& sum, T a, const Channels<T, V>& b) {
  CLEBSCH_UNROLL for (int i = 0; i < V; ++i) sum.v[i] += a * b.v[i];
}

template <class T, int V>
CLEBSCH_INLINE void add_to(T* panel, int item, const Channels<T, V>& a, const Channels<T, V>& b) {
  Channels<T, V> sum = take<T, V>(panel, item);
  add(sum, a, b);
  put(panel, item, sum);
}

template <class T, int V>
CLEBSCH_INLINE void add_to(T* panel, int item, const Channels<T, V>& a) {
  Channels<T, V> sum = take<T, V>(panel, item);
  CLEBSCH_UNROLL for (int i = 0; i < V; ++i) sum.v[i] += a.v[i];
  put(panel, item, sum);
}

template <class T, int V>
void fill(T* panel, int items, T value) {
  for (std::int64_t i = 0; i < std::int64_t{items} * V * lanes<T>; ++i) panel[i] = value;
}

// Columns [0, width) of `channels` rows to a panel of V vectors an item and back: a square of lanes at a
// time.
template <class T, int V>
void columns_to_panel(const T* rows, int channels, int width, T* panel) {
  constexpr int W = lanes<T>;
  for (int i = 0; i < V; ++i) {
    for (int first = 0; first < width; first += W) {
      const Mask<T> mask(width - first);
      Vec<T> square[W];
      for (int u = 0; u < W; ++u) {
        const int c = i * W + u;
        square[u] = c < channels ? load(rows + std::int64_t{c} * width + first, mask) : Vec<T>{};
      }
      transpose<T>(square);
      for (int m = 0; m < W && first + m < width; ++m) store(panel + ((first + m) * V + i) * W, square[m]);
    }
  }
}

template <class T, int V>
void columns_from_panel(const T* panel, int channels, int width, T* rows) {
  constexpr int W = lanes<T>;
  for (int i = 0; i < V; ++i) {
    for (int first = 0; first < width; first += W) {
      Vec<T> square[W];
      for (int m = 0; m < W; ++m)
        square[m] = first + m < width ? load(panel + ((first + m) * V + i) * W) : Vec<T>{};
      transpose<T>(square);
      const Mask<T> mask(width - first);
      for (int u = 0; u < W && i * W + u < channels; ++u)
        store(rows + std::int64_t{i * W + u} * width + first, square[u], mask);
    }
  }
}

// The scratch of a block of channels, and where the block lies.
template <class T, int V>
struct ContractionBlock {
  const ContractionProgram<T>& p;
  const ContractionArgs<T>& args;
  int first, channels;  // of the node's
  T *q, *dq, *lambda, *mu, *product, *tangent, *cotangent, *cotangent_tangent, *g, *out, *end;

  ContractionBlock(const ContractionArgs<T>& args_, int first_, T* scratch)
      : p(*args_.program), args(args_), first(first_) {
    const int left = args.channels - first;
    channels = left < V * lanes<T> ? left : V * lanes<T>;
    const auto next = [&](int items) {
      T* here = scratch;
      scratch += std::int64_t{items} * V * lanes<T>;
      return here;
    };
    q = next(p.factors);
    dq = next(p.factors);
    lambda = next(p.factors);
    mu = next(p.factors);
    product = next(p.products);
    tangent = next(p.products);
    cotangent = next(p.products);
    cotangent_tangent = next(p.products);
    g = next(p.out_width);
    out = next(p.out_width);
    end = scratch;
  }

  Channels<T, V> weight(const T* rows, int r) const {
    return take<T, V>(rows + std::int64_t{r} * args.padded + first, 0);
  }

  void read_factors(std::int64_t node) const {
    fill<T, V>(q, 1, T{1});
    columns_to_panel<T, V>(args.x + (node * args.channels + first) * p.components, channels, p.components,
                           q + V * lanes<T>);
    for (int s = 0; s < p.pairs; ++s) {
      const Channels<T, V> a = take<T, V>(q, p.pair[2 * s]), b = take<T, V>(q, p.pair[2 * s + 1]);
      Channels<T, V> product_of_two{};
      add(product_of_two, a, b);
      put(q, 1 + p.components + s, product_of_two);
    }
  }

  void read_tangents(std::int64_t node) const {
    fill<T, V>(dq, 1, T{0});
    columns_to_panel<T, V>(args.ax + (node * args.channels + first) * p.components, channels, p.components,
                           dq + V * lanes<T>);
    for (int s = 0; s < p.pairs; ++s) {
      const int i = p.pair[2 * s], j = p.pair[2 * s + 1];
      Channels<T, V> d{};
      add(d, take<T, V>(dq, i), take<T, V>(q, j));
      add(d, take<T, V>(q, i), take<T, V>(dq, j));
      put(dq, 1 + p.components + s, d);
    }
  }

  // f(target's first component, width, where it lies in a row of out)
  template <class F>
  void for_each_target(F f) const {
    int component = 0;
    for (int t = 0; t < p.targets; ++t) {
      const int width = p.width[t];
      f(component, width, std::int64_t{args.channels} * component + std::int64_t{first} * width);
      component += width;
    }
  }

  void read_grad(std::int64_t node) const {
    const T* row = args.grad + node * args.channels * p.out_width;
    for_each_target([&](int component, int width, std::int64_t at) {
      columns_to_panel<T, V>(row + at, channels, width, g + component * V * lanes<T>);
    });
  }

  void write_out(std::int64_t node) const {
    T* row = args.out + node * args.channels * p.out_width;
    for_each_target([&](int component, int width, std::int64_t at) {
      columns_from_panel<T, V>(out + component * V * lanes<T>, channels, width, row + at);
    });
  }

  // f(r, its first product, first component of its target, width)
  template <class F>
  CLEBSCH_INLINE void for_each_row(F f) const {
    int r = 0, first_product = 0, component = 0;
    for (int t = 0; t < p.targets; ++t) {
      const int width = p.width[t];
      for (int i = 0; i < p.count[t]; ++i, ++r, first_product += width) f(r, first_product, component, width);
      component += width;
    }
  }

  void multiply() const {
    int group = 0, entry = 0;
    for (int i = 0; i < p.products; ++i) {
      Channels<T, V> sum{};
      for (; group < p.product_end[i]; ++group) {
        Channels<T, V> part{};
        for (; entry < p.group_end[group]; ++entry)
          add(part, p.entry_value[entry], take<T, V>(q, p.entry_factor[entry]));
        add(sum, take<T, V>(q, p.group_factor[group]), part);
      }
      put(product, i, sum);
    }
  }

  void multiply_tangents() const {
    int group = 0, entry = 0;
    for (int i = 0; i < p.products; ++i) {
      Channels<T, V> sum{}, d_sum{};
      for (; group < p.product_end[i]; ++group) {
        Channels<T, V> part{}, d_part{};
        for (; entry < p.group_end[group]; ++entry) {
          const T value = p.entry_value[entry];
          add(part, value, take<T, V>(q, p.entry_factor[entry]));
          add(d_part, value, take<T, V>(dq, p.entry_factor[entry]));
        }
        const Channels<T, V> a = take<T, V>(q, p.group_factor[group]);
        add(sum, a, part);
        add(d_sum, take<T, V>(dq, p.group_factor[group]), part);
        add(d_sum, a, d_part);
      }
      put(product, i, sum);
      put(tangent, i, d_sum);
    }
  }

  // out += sum_r w_r products_r
  void add_to_out(const T* weights, const T* products) const {
    for_each_row([&](int r, int at, int component, int width) {
      const Channels<T, V> w = weight(weights, r);
      for (int m = 0; m < width; ++m) add_to(out, component + m, w, take<T, V>(products, at + m));
    });
  }

  // grad_w_r += sum_M g_M products_rM
  void add_to_grad_weight(const T* products) const {
    for_each_row([&](int r, int at, int component, int width) {
      T* row = args.grad_weight + std::int64_t{r} * args.padded + first;
      Channels<T, V> sum = take<T, V>(row, 0);
      for (int m = 0; m < width; ++m) add(sum, take<T, V>(g, component + m), take<T, V>(products, at + m));
      put(row, 0, sum);
    });
  }

  // Q_rM = w_r g_M
  void weigh(const T* weights, T* weighted) const {
    for_each_row([&](int r, int at, int component, int width) {
      const Channels<T, V> w = weight(weights, r);
      for (int m = 0; m < width; ++m) {
        Channels<T, V> value{};
        add(value, w, take<T, V>(g, component + m));
        put(weighted, at + m, value);
      }
    });
  }

  CLEBSCH_INLINE Channels<T, V> term(const T* weighted, int begin, int end) const {
    Channels<T, V> c{};
    for (int i = begin; i < end; ++i) add(c, p.term_value[i], take<T, V>(weighted, p.term_product[i]));
    return c;
  }

  // lambda = dF/dq
  void differentiate() const {
    fill<T, V>(lambda, p.factors, T{0});
    int t = 0, begin = 0;
    for (int a = 0; a < p.factors; ++a) {
      const Channels<T, V> qa = take<T, V>(q, a);
      Channels<T, V> sum{};
      for (; t < p.factor_end[a]; ++t) {
        const int b = p.term_factor[t];
        const Channels<T, V> c = term(cotangent, begin, p.term_end[t]);
        begin = p.term_end[t];
        add(sum, c, take<T, V>(q, b));
        add_to(lambda, b, c, qa);
      }
      add_to(lambda, a, sum);
    }
    for (int s = p.pairs; s-- > 0;) {
      const int i = p.pair[2 * s], j = p.pair[2 * s + 1];
      const Channels<T, V> l = take<T, V>(lambda, 1 + p.components + s);
      add_to(lambda, i, l, take<T, V>(q, j));
      add_to(lambda, j, l, take<T, V>(q, i));
    }
  }

  // lambda = the gradient of F's tangent in q
  template <bool X, bool Weight>
  void differentiate_tangent() const {
    fill<T, V>(lambda, p.factors, T{0});
    if (X) fill<T, V>(mu, p.factors, T{0});
    int t = 0, begin = 0;
    for (int a = 0; a < p.factors; ++a) {
      const Channels<T, V> qa = take<T, V>(q, a);
      Channels<T, V> l{}, m{}, da{};
      if (X) da = take<T, V>(dq, a);
      for (; t < p.factor_end[a]; ++t) {
        const int b = p.term_factor[t];
        const Channels<T, V> qb = take<T, V>(q, b);
        Channels<T, V> to_b = take<T, V>(lambda, b);
        if (X) {
          const Channels<T, V> c = term(cotangent, begin, p.term_end[t]);
          add(l, c, take<T, V>(dq, b));
          add(m, c, qb);
          add(to_b, c, da);
          add_to(mu, b, c, qa);
        }
        if (Weight) {
          const Channels<T, V> c = term(cotangent_tangent, begin, p.term_end[t]);
          add(l, c, qb);
          add(to_b, c, qa);
        }
        begin = p.term_end[t];
        put(lambda, b, to_b);
      }
      add_to(lambda, a, l);
      if (X) add_to(mu, a, m);
    }
    for (int s = p.pairs; s-- > 0;) {
      const int i = p.pair[2 * s], j = p.pair[2 * s + 1], pair = 1 + p.components + s;
      const Channels<T, V> l = take<T, V>(lambda, pair);
      add_to(lambda, i, l, take<T, V>(q, j));
      add_to(lambda, j, l, take<T, V>(q, i));
      if (X) {
        const Channels<T, V> m = take<T, V>(mu, pair);
        add_to(lambda, i, m, take<T, V>(dq, j));
        add_to(lambda, j, m, take<T, V>(dq, i));
      }
    }
  }

  void write_grad_x(std::int64_t node) const {
    columns_from_panel<T, V>(lambda + V * lanes<T>, channels, p.components,
                             args.grad_x + (node * args.channels + first) * p.components);
  }

  void forward(std::int64_t node) const {
    read_factors(node);
    multiply();
    fill<T, V>(out, p.out_width, T{0});
    add_to_out(args.weight, product);
    write_out(node);
  }

  void backward(std::int64_t node) const {
    read_factors(node);
    read_grad(node);
    if (args.grad_weight) {
      multiply();
      add_to_grad_weight(product);
    }
    if (args.grad_x) {
      weigh(args.weight, cotangent);
      differentiate();
      write_grad_x(node);
    }
  }

  template <bool X, bool Weight>
  void double_backward(std::int64_t node) const {
    read_factors(node);
    read_grad(node);
    if (X) read_tangents(node);
    if (args.out || (X && args.grad_weight)) {
      if (X) {
        multiply_tangents();
      } else {
        multiply();
      }
    }
    if (args.out) {
      fill<T, V>(out, p.out_width, T{0});
      if (X) add_to_out(args.weight, tangent);
      if (Weight) add_to_out(args.a_weight, product);
      write_out(node);
    }
    if (X && args.grad_weight) add_to_grad_weight(tangent);
    if (args.grad_x) {
      if (X) weigh(args.weight, cotangent);
      if (Weight) weigh(args.a_weight, cotangent_tangent);
      differentiate_tangent<X, Weight>();
      write_grad_x(node);
    }
  }
};

// f(block) for all blocks of channels: the nodes of a block one after the other, with its weights at hand.
template <class T, class F>
void for_each_block(const ContractionArgs<T>& args, T* scratch, F f) {
  constexpr int W = lanes<T>;
  int first = 0;
  for (; args.channels - first > (kWide - 1) * W; first += kWide * W)
    f(ContractionBlock<T, kWide>(args, first, scratch));
  for (; first < args.channels; first += W) f(ContractionBlock<T, 1>(args, first, scratch));
}

template <class T>
void contraction_forward(const ContractionArgs<T>& args, const std::int64_t* nodes, std::int64_t count,
                         T* scratch) {
  for_each_block(args, scratch, [&](const auto& block) {
    for (std::int64_t i = 0; i < count; ++i) block.forward(nodes[i]);
  });
}

template <class T>
void contraction_backward(const ContractionArgs<T>& args, const std::int64_t* nodes, std::int64_t count,
                          T* scratch) {
  for_each_block(args, scratch, [&](const auto& block) {
    for (std::int64_t i = 0; i < count; ++i) block.backward(nodes[i]);
  });
}

// With neither tangent all results are zero, and come out so.
template <class T>
void contraction_double_backward(const ContractionArgs<T>& args, const std::int64_t* nodes,
                                 std::int64_t count, T* scratch) {
  for_each_block(args, scratch, [&](const auto& block) {
    for (std::int64_t i = 0; i < count; ++i) {
      if (args.ax && args.a_weight) {
        block.template double_backward<true, true>(nodes[i]);
      } else if (args.ax) {
        block.template double_backward<true, false>(nodes[i]);
      } else if (args.a_weight) {
        block.template double_backward<false, true>(nodes[i]);
      } else {
        block.template double_backward<false, false>(nodes[i]);
      }
    }
  });
}

template <class T>
std::int64_t contraction_scratch_size(const ContractionProgram<T>& p) {
  return (4 * std::int64_t{p.factors} + 4 * std::int64_t{p.products} + 2 * std::int64_t{p.out_width}) *
         kWide * lanes<T>;
}

template <class T>
int contraction_padded(int channels) {
  return (channels + lanes<T> - 1) / lanes<T> * lanes<T>;
}

template <class T>
void contraction_reduce(const ContractionProgram<T>& p, int channels, const T* weight, T* reduced) {
  const int padded = contraction_padded<T>(channels);
  for (int c = 0; c < channels; c += lanes<T>) {
    const Mask<T> mask(channels - c);
    for (int r = 0, i = 0; r < p.rows; ++r) {
      Vec<T> sum{};
      for (; i < p.reduction_end[r]; ++i)
        sum += p.reduction_value[i] * load(weight + std::int64_t{p.reduction_weight[i]} * channels + c, mask);
      store(reduced + std::int64_t{r} * padded + c, sum);
    }
  }
}

template <class T>
void contraction_spread(const ContractionProgram<T>& p, int channels, const T* grad_reduced, T* grad_weight) {
  const int padded = contraction_padded<T>(channels);
  for (int c = 0; c < channels; c += lanes<T>) {
    const Mask<T> mask(channels - c);
    for (int r = 0, i = 0; r < p.rows; ++r) {
      const Vec<T> g = load(grad_reduced + std::int64_t{r} * padded + c);
      for (; i < p.reduction_end[r]; ++i) {
        T* to = grad_weight + std::int64_t{p.reduction_weight[i]} * channels + c;
        store(to, load(to, mask) + p.reduction_value[i] * g, mask);
      }
    }
  }
}

template <class T>
constexpr ContractionKernels<T> symmetric_contraction_kernels = {
    contraction_forward<T>,      contraction_backward<T>, contraction_double_backward<T>,
    contraction_scratch_size<T>, contraction_padded<T>,   contraction_reduce<T>,
    contraction_spread<T>};

}  // namespace
}  // namespace clebsch
