// Paths uvw with weights for all rows, degrees known when compiling: lanes are rows.
//
// Of x_ui, y_vj and the output's g_wk one meets the weights alone, in a matrix product, and the coupling
// meets the others; a path takes the order that is the least work (choose_order in plan.cpp), which is often
// that of its lowest degree. With M_v[i, k] = C_ijk y_vj, and multiply-adds of the matrix products in
// brackets,
//
//   pairs    P_uvk = x_u M_v     out_w += W P                                         [U V W (2 l3 + 1)]
//            Q_uvk = W g_w       gx_u += M_v Q, gM_v += x_u Q,   gW += P g            [twice that]
//   x first  Z_vwi = W x_u       out_w += Z M_v                                       [U V W (2 l1 + 1)]
//            S_vwi = M_v g_w     gx_u += W S,   gM_v += Z g_w,   gW += x_u S          [three times that]
//   y first  as x first, x and y having changed places.
//
// The matrix made by the coupling is that of one copy of operand b, while the copies of operand a pass by;
// for each copy of b all that is made waits in L1. Sums over rows (gW) have copies in the lanes: output
// channels in the order of pairs, else copies of a, for which gW is summed with a innermost and turned once a
// chunk.
#pragma once

#include "tensor_product_dense.inl.h"
#include "unrolled.inl.h"
#include "vec.h"

namespace clebsch {
namespace {

constexpr int kUvwVectors = 256;  // of P, Q, Z or S at once: 16 KiB

// What the coupling does to the copies of an operand. `m` holds the (2 LA + 1) x (2 L3 + 1) matrix M of a
// copy of b, of which structural zeros are neither written nor read.
template <class T, int LA, int LB, int L3>
struct CoupledCopies {
  static constexpr int A = 2 * LA + 1, K = 2 * L3 + 1;
  using C = Coupling<LA, LB, L3>;
  static constexpr UnrolledCells<LA, LB, L3> cells{};

  static void matrix(const Vec<T>* b, std::int64_t component, T coefficient, Vec<T>* m) {
    CLEBSCH_UNROLL
    for (int i = 0; i < A; ++i) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) {
        Vec<T> sum{};
        CLEBSCH_UNROLL
        for (int n = 0; n < C::size; ++n) {
          if (C::m1[n] == i && C::m3[n] == k) sum += b[C::m2[n] * component] * static_cast<T>(C::value[n]);
        }
        if (cells.first[i][k] >= 0) m[i * K + k] = sum * coefficient;
      }
    }
  }

  // out_n (+)= in_n M, or in_n M^T if Back
  template <bool Back, bool Add>
  static void multiply(const Vec<T>* m, const Vec<T>* in, Steps from, int count, Vec<T>* out, Steps to) {
    int n = 0;
    for (; n + 2 <= count; n += 2)
      multiply_some<2, Back, Add>(m, in + n * from.channel, from, out + n * to.channel, to);
    if (n < count) multiply_some<1, Back, Add>(m, in + n * from.channel, from, out + n * to.channel, to);
  }
  template <int H, bool Back, bool Add>
  static CLEBSCH_INLINE void multiply_some(const Vec<T>* m, const Vec<T>* in, Steps from, Vec<T>* out,
                                           Steps to) {
    constexpr int inputs = Back ? K : A, outputs = Back ? A : K;
    Vec<T> v[H][inputs];
    CLEBSCH_UNROLL
    for (int h = 0; h < H; ++h) {
      CLEBSCH_UNROLL
      for (int i = 0; i < inputs; ++i) v[h][i] = in[h * from.channel + i * from.component];
    }
    CLEBSCH_UNROLL
    for (int o = 0; o < outputs; ++o) {
      Vec<T> sum[H];
      CLEBSCH_UNROLL
      for (int h = 0; h < H; ++h) sum[h] = Add ? out[h * to.channel + o * to.component] : Vec<T>{};
      CLEBSCH_UNROLL
      for (int i = 0; i < inputs; ++i) {
        if (cells.first[Back ? o : i][Back ? i : o] < 0) continue;
        const Vec<T> cell = m[Back ? o * K + i : i * K + o];
        CLEBSCH_UNROLL
        for (int h = 0; h < H; ++h) sum[h] += v[h][i] * cell;
      }
      CLEBSCH_UNROLL
      for (int h = 0; h < H; ++h) out[h * to.channel + o * to.component] = sum[h];
    }
  }

  // gb_j += C_ijk gM_ik with gM_ik = sum over n of p_ni q_nk, a few rows i of it in registers at a time
  static void give(const Vec<T>* p, Steps p_steps, const Vec<T>* q, Steps q_steps, int count, T coefficient,
                   Vec<T>* gb, std::int64_t component) {
    constexpr int fit = kBlockSums / K < 1 ? 1 : kBlockSums / K, passes = (A + fit - 1) / fit;
    each<passes>([&]<int Pass>() __attribute__((always_inline)) {
      constexpr int begin = A * Pass / passes, rows = A * (Pass + 1) / passes - begin;
      Vec<T> gm[rows][K] = {};
      for (int n = 0; n < count; ++n) {
        const Vec<T>*pn = p + n * p_steps.channel, *qn = q + n * q_steps.channel;
        CLEBSCH_UNROLL
        for (int i = 0; i < rows; ++i) {
          const Vec<T> pi = pn[(begin + i) * p_steps.component];
          CLEBSCH_UNROLL
          for (int k = 0; k < K; ++k) {
            if (cells.first[begin + i][k] >= 0) gm[i][k] += pi * qn[k * q_steps.component];
          }
        }
      }
      CLEBSCH_UNROLL
      for (int n = 0; n < C::size; ++n) {
        const int i = C::m1[n] - begin;
        if (i >= 0 && i < rows)
          gb[C::m2[n] * component] += gm[i][C::m3[n]] * (static_cast<T>(C::value[n]) * coefficient);
      }
    });
  }
};

template <class T>
struct CoupledCopiesKernels {
  void (*matrix)(const Vec<T>* b, std::int64_t component, T coefficient, Vec<T>* m);
  using Multiply = void (*)(const Vec<T>* m, const Vec<T>* in, Steps, int count, Vec<T>* out, Steps);
  Multiply multiply, add, multiply_back, add_back;
  void (*give)(const Vec<T>* p, Steps, const Vec<T>* q, Steps, int count, T coefficient, Vec<T>* gb,
               std::int64_t component);
};
template <class T>
constexpr auto coupled_copies = unrolled_table<T, CoupledCopiesKernels<T>>([]<int LA, int LB, int L3>() {
  using C = CoupledCopies<T, LA, LB, L3>;
  return CoupledCopiesKernels<T>{&C::matrix,
                                 &C::template multiply<false, false>,
                                 &C::template multiply<false, true>,
                                 &C::template multiply<true, false>,
                                 &C::template multiply<true, true>,
                                 &C::give};
});

// Tiles of the operands and results (null where there are none), rows of them as panels, and the work space.
template <class T>
struct UvwOperands {
  const Vec<T>*x, *y, *g;
  Vec<T>*out, *gx, *gy;
  Panels<const T> x_panels, y_panels, g_panels;  // from the first block on; strides are those of blocks
  const T* w;
  T *gw, *turned;  // gradients of all weights; those that are summed with copies of a innermost
  int count;       // of rows that are there
  Vec<T>*m, *value, *product;
};

// A path by the parts that its operands play.
template <class T>
struct UvwPath {
  const Path& p;
  const bool exchanged, pairs;
  const Block &a, &b;
  const std::int64_t next_a, next_b;  // from weights to those of the next copy
  const TileIndex at_a, at_b, at_out;
  const int inputs, outputs;  // components of a and of the output
  const T coefficient;
  const CoupledCopiesKernels<T>& kernels;

  UvwPath(const Path& path, Order order, bool mul_ir)
      : p(path),
        exchanged(order == Order::y_first),
        pairs(order == Order::pairs),
        a(exchanged ? p.in2 : p.in1),
        b(exchanged ? p.in1 : p.in2),
        next_a(exchanged ? p.out.mul : std::int64_t{p.in2.mul} * p.out.mul),
        next_b(exchanged ? std::int64_t{p.in2.mul} * p.out.mul : p.out.mul),
        at_a(a, mul_ir),
        at_b(b, mul_ir),
        at_out(p.out, mul_ir),
        inputs(2 * a.l + 1),
        outputs(2 * p.out.l + 1),
        // The coupling of two operands that change places is the same up to the sign of l1 + l2 + l3.
        coefficient(static_cast<T>(exchanged && (a.l + b.l + p.out.l) % 2 ? -p.coefficient : p.coefficient)),
        kernels(coupled_copies<T>.at(a.l, b.l, p.out.l)) {}

  // f(first, count) for pieces of `copies` with so many components that fit the work space.
  template <class F>
  static CLEBSCH_INLINE void each_piece(int copies, int components, F f) {
    const int most = kUvwVectors / components / 8 * 8;
    for (int first = 0; first < copies; first += most)
      f(first, copies - first < most ? copies - first : most);
  }

  // Asks for the weights of the next copy of b: their lines are too far apart for the processor to guess.
  CLEBSCH_INLINE void fetch(const T* weights, int copy) const {
    if (copy + 1 == b.mul) return;
    const T* next = weights + p.weight + (copy + 1) * next_b;
    for (int u = 0; u < a.mul; ++u, next += next_a) {
      for (int w = 0; w < p.out.mul; w += 64 / sizeof(T)) __builtin_prefetch(next + w);
    }
  }

  CLEBSCH_INLINE void make_matrix(const Vec<T>* b_tile, int copy, Vec<T>* m) const {
    kernels.matrix(b_tile + at_b(copy, 0), at_b.component, coefficient, m);
  }

  void forward(const UvwOperands<T>& of) const {
    const Vec<T>*a_tile = exchanged ? of.y : of.x, *b_tile = exchanged ? of.x : of.y;
    for (int copy = 0; copy < b.mul; ++copy) {
      fetch(of.w, copy);
      make_matrix(b_tile, copy, of.m);
      const T* w = of.w + p.weight + copy * next_b;
      if (pairs) {
        each_piece(a.mul, outputs, [&](int first, int count) {
          kernels.multiply(of.m, a_tile + at_a(first, 0), at_a.steps(), count, of.value, {outputs, 1});
          spread<true, T>(w + first * next_a, next_a, of.value, {outputs, 1}, {count, p.out.mul, outputs},
                          of.out + at_out.offset, at_out.steps());
        });
      } else {
        each_piece(p.out.mul, inputs, [&](int first, int count) {
          meet_input(a_tile, w + first, count, of.value);
          kernels.add(of.m, of.value, {inputs, 1}, count, of.out + at_out(first, 0), at_out.steps());
        });
      }
    }
  }

  // Z = W a for `count` output channels
  void meet_input(const Vec<T>* a_tile, const T* w, int count, Vec<T>* z) const {
    spread<false, T>(w, next_a, a_tile + at_a.offset, at_a.steps(), {a.mul, count, inputs}, z, {inputs, 1});
  }

  void backward(const UvwOperands<T>& of) const {
    const Vec<T>*a_tile = exchanged ? of.y : of.x, *b_tile = exchanged ? of.x : of.y;
    Vec<T>*ga = exchanged ? of.gy : of.gx, *gb = exchanged ? of.gx : of.gy;
    for (int copy = 0; copy < b.mul; ++copy) {
      fetch(of.w, copy);
      make_matrix(b_tile, copy, of.m);
      const std::int64_t weight = p.weight + copy * next_b;
      Vec<T>* gb_copy = gb + at_b(copy, 0);
      if (pairs) {
        each_piece(a.mul, outputs, [&](int first, int count) {
          backward_of_pairs(of, a_tile, ga, gb_copy, weight + first * next_a, first, count);
        });
      } else {
        each_piece(p.out.mul, inputs, [&](int first, int count) {
          backward_of_input(of, a_tile, ga, gb_copy, copy, weight + first, first, count);
        });
      }
    }
  }

  void backward_of_pairs(const UvwOperands<T>& of, const Vec<T>* a_tile, Vec<T>* ga, Vec<T>* gb,
                         std::int64_t weight, int first, int count) const {
    const Steps packed{outputs, 1}, steps = at_a.steps();
    const DenseBlock block{count, p.out.mul, outputs};
    const std::int64_t at = at_a(first, 0);
    kernels.multiply(of.m, a_tile + at, steps, count, of.value, packed);
    const Panels<const T> g{of.g_panels.data + p.out.panel, of.g_panels.apart, p.out.stride};
    add_outer<T>(g, of.value, block, of.gw + weight, next_a, of.count);
    collect<false, T>(of.w + weight, next_a, of.g + at_out.offset, at_out.steps(), block, of.product, packed);
    kernels.add_back(of.m, of.product, packed, count, ga + at, steps);
    kernels.give(a_tile + at, steps, of.product, packed, count, coefficient, gb, at_b.component);
  }

  void backward_of_input(const UvwOperands<T>& of, const Vec<T>* a_tile, Vec<T>* ga, Vec<T>* gb, int copy,
                         std::int64_t weight, int first, int count) const {
    const Steps packed{inputs, 1};
    const Vec<T>* g = of.g + at_out(first, 0);
    kernels.multiply_back(of.m, g, at_out.steps(), count, of.value, packed);
    collect<true, T>(of.w + weight, next_a, of.value, packed, {a.mul, count, inputs}, ga + at_a.offset,
                     at_a.steps());
    const Panels<const T>& all = exchanged ? of.y_panels : of.x_panels;
    const std::int64_t at = p.turned + (std::int64_t{copy} * p.out.mul + first) * a.stride;
    add_outer<T>({all.data + a.panel, all.apart, a.stride}, of.value, {count, a.stride, inputs},
                 of.turned + at, a.stride, of.count);
    meet_input(a_tile, of.w + weight, count, of.product);
    kernels.give(of.product, packed, g, at_out.steps(), count, coefficient, gb, at_b.component);
  }

  // gw += what was summed with the copies of a innermost
  void turn(const T* turned, T* gw) const {
    constexpr int W = lanes<T>;
    for (int copy = 0; copy < b.mul; ++copy) {
      const T* from = turned + p.turned + std::int64_t{copy} * p.out.mul * a.stride;
      T* to = gw + p.weight + copy * next_b;
      for (int first = 0; first < a.mul; first += W) {
        for (int w = 0; w < p.out.mul; w += W) {
          const Mask<T> mask(p.out.mul - w);
          Vec<T> square[W];
          for (int i = 0; i < W; ++i)
            square[i] = w + i < p.out.mul ? load(from + std::int64_t{w + i} * a.stride + first) : Vec<T>{};
          transpose<T>(square);
          for (int i = 0; i < W && first + i < a.mul; ++i) {
            T* row = to + (first + i) * next_a + w;
            store(row, load(row, mask) + square[i], mask);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace clebsch
