// Channelwise products (uvu, one copy of y): lanes are channels.
//
// The coupling is contracted with y first, M[m1, m3] = sum_m2 C[m1, m2, m3] y[m2], once for an edge and path
// and for eight edges at a time (lanes are edges there). A channel then needs at most (2 l1 + 1)(2 l3 + 1)
// multiply-adds with dense operands; where y's degree is small, the structural zeros of M are known at
// compile time. With t_i = M_ik g_k:
//
//   forward   out_k += (w x_i) M_ik
//   backward  gx_i += w t_i,  gw += x_i t_i,  gM_ik += (w x_i) g_k over channels,  gy_j = C_ijk gM_ik
//   tangent   w x_i -> w ax_i + aw x_i next to M, and w x_i next to N = C ay; see ProductArgs.
//
// Least work for an edge and channel, S the cells of M summed over paths: forward S multiply-adds, backward 2
// S, double backward 5 S. Least traffic from memory: w (and gw, aw) once; x, the sums and M stay in cache.
// For 128x0e+128x1o with y to l = 3 (10 paths, S = 76) that is 5 KB of w against 9,728 multiply-adds an edge:
// memory decides.
//
// Channels beyond the multiplicity are zero in panels and masked in w, so they add nothing.
//
// Elementwise paths (tensor_product_elementwise.inl.h) may stand beside them; they read y as panels too.
#pragma once

#include "panel.inl.h"
#include "tensor_product.h"
#include "tensor_product_elementwise.inl.h"
#include "unrolled.inl.h"

namespace clebsch {
namespace {

constexpr int kRowsAhead = 2;  // where an elementwise row begins, the one this far on is asked for
constexpr int kGroup = 8;  // edges whose matrices are made together; in the forward pass they share the sums

template <class T>
struct GroupOf {
  typedef T type __attribute__((vector_size(kGroup * sizeof(T)), aligned(alignof(T)), may_alias));
};

// Asks for the weights of the group after this one, line after line in the order of memory, while this one is
// computed. Left alone the processor waits: eight rows are read in turn, a piece of each for every path, and
// each piece starts a line that it does not expect.
template <class T>
struct Ahead {
  const T *next = nullptr, *end = nullptr, *rows[kGroup];
  int row = 0, row_count = 0;
  std::int64_t length = 0;

  template <int N>
  CLEBSCH_INLINE void prefetch() {
    if (next >= end) {
      if (row == row_count) return;
      next = rows[row++];
      end = next + length;
    }
    // Into the second cache: eight rows are more than the first holds.
    for (int v = 0; v < N; ++v) __builtin_prefetch(next + v * lanes<T>, 0, 2);
    next += N * lanes<T>;
  }
};

// Operands of up to kGroup edges. matrix and tangent_matrix: dense_size x kGroup.
template <class T>
struct Group {
  const T *x[kGroup], *w[kGroup], *ax[kGroup], *aw[kGroup];
  const T *y[kGroup], *ay[kGroup];  // rows
  const T *matrix, *tangent_matrix;
  const T *ones[kGroup], *zeros[kGroup];  // the weights of unweighted paths and their tangents
  Ahead<T>*ahead_w, *ahead_aw;
};

// Where the gradients of one edge go.
template <class T>
struct EdgeGradients {
  T* gx;            // panel, added to
  T* gw;            // row
  const T* next_w;  // rows of the next edge
  T* next_gw;
  Vec<T>* gy;        // dim2 vectors, added to, lanes yet to be summed
  T* gw_unfinished;  // one block of channels
  Vec<T>* gm;        // dense matrix of one path, lanes yet to be summed (Columns)
  T* sink;           // gw of unweighted paths
  bool accumulate_gw;

  // Weights and their gradient of the next edge; those of a double backward are there from the forward sums.
  template <bool Tangent>
  CLEBSCH_INLINE void prefetch(std::int64_t at) const {
    if constexpr (!Tangent) __builtin_prefetch(next_w + at);
    __builtin_prefetch(next_gw + at, 1);
  }
};

// The operands of one path and edge.
template <class T, bool Tangent>
struct PathOperands {
  const T *x, *w, *ax = nullptr, *aw = nullptr, *matrix, *tangent = nullptr;
  CLEBSCH_INLINE PathOperands(const Path& p, const Group<T>& group, int e)
      : x(group.x[e] + p.in1.panel),
        w(p.weighted ? group.w[e] + p.weight : group.ones[e]),
        matrix(group.matrix + p.dense * kGroup + e) {
    if constexpr (Tangent) {
      ax = group.ax[e] + p.in1.panel;
      aw = p.weighted ? group.aw[e] + p.weight : group.zeros[e];
      tangent = group.tangent_matrix + p.dense * kGroup + e;
    }
  }
};

// M[m1, m3] of the whole group, lanes are edges; y is dim2 x kGroup. Cells that C leaves zero are not
// touched.
template <class T>
void contract_group(const Program& program, const T* __restrict y, T* __restrict matrix) {
  using Edges = typename GroupOf<T>::type;
  const auto* yg = reinterpret_cast<const Edges*>(y);
  auto* mg = reinterpret_cast<Edges*>(matrix);
  for (int i = 0; i < program.path_count; ++i) {
    const Path& p = program.paths[i];
    if (p.mode == Mode::uuu) continue;
    Edges* m = mg + p.dense;
    const Edges* yp = yg + p.in2.offset;
    const T* values = path_values<T>(p);
    const Term* terms = p.terms;
    // The first terms are one for each cell: they need no zero to add to.
    const int cells = p.cell_count, count = p.term_count;
    for (int n = 0; n < cells; ++n) m[terms[n].dense] = values[n] * yp[terms[n].m2];
    for (int n = cells; n < count; ++n) m[terms[n].dense] += values[n] * yp[terms[n].m2];
  }
}

// One path with the degrees known at compile time.
template <class T, int L1, int L2, int L3>
struct Unrolled {
  static constexpr int A = 2 * L1 + 1, B = 2 * L2 + 1, K = 2 * L3 + 1;
  using C = Coupling<L1, L2, L3>;

  // Which (i, k) the coupling connects: folded away when the loops over them are unrolled.
  struct Cells {
    bool coupled[A][K];
  };
  static constexpr Cells cells = [] {
    Cells c{};
    for (int n = 0; n < C::size; ++n) c.coupled[C::m1[n]][C::m3[n]] = true;
    return c;
  }();

  static constexpr int registers = CLEBSCH_VEC_BYTES == 64 ? 32 : 16;

  // Vectors of channels taken together: enough independent sums to hide the latency of a multiply-add.
  static constexpr int vectors = K == 1 ? 4 : (2 * K + 4 <= registers ? 2 : 1);

  template <bool Tangent>
  static void forward(const Path& p, const Group<T>& group, int begin, int end, T* out) {
    int c = 0;
    if constexpr (vectors > 1) {
      constexpr int step = vectors * lanes<T>;
      for (; c + step <= p.in1.mul; c += step)
        forward_channels<Tangent, vectors>(p, group, begin, end, out, c);
    }
    for (; c < p.in1.mul; c += lanes<T>) forward_channels<Tangent, 1>(p, group, begin, end, out, c);
  }

  template <bool Tangent, int N>
  static CLEBSCH_INLINE void forward_channels(const Path& p, const Group<T>& group, int begin, int end,
                                              T* out, int c) {
    constexpr int W = lanes<T>;
    const std::int64_t stride = p.in1.stride;
    const T* const* ws = p.weighted ? group.w : group.ones;
    const T* const* aws = p.weighted ? group.aw : group.zeros;
    const std::int64_t at_w = (p.weighted ? p.weight : 0) + c, at_x = p.in1.panel + c;
    const T* matrix = group.matrix + p.dense * kGroup;
    const T* tangent = Tangent ? group.tangent_matrix + p.dense * kGroup : nullptr;
    T* sums = out + p.out.panel + c;
    const Mask<T> mask(N > 1 ? W : p.in1.mul - c);
    // One vector of channels alone is too little to hide latency: then every other edge has sums of its own.
    constexpr int U = N == 1 && 2 * K + 4 <= registers ? 2 : 1;
    Vec<T> sum[U][N][K];
    CLEBSCH_UNROLL
    for (int v = 0; v < N; ++v) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) {
        sum[0][v][k] = load(sums + k * stride + v * W);
        if constexpr (U == 2) sum[1][v][k] = Vec<T>{};
      }
    }
    const auto add = [&](Vec<T>(&to)[N][K], int e) __attribute__((always_inline)) {
      const T *w = ws[e] + at_w, *x = group.x[e] + at_x;
      const T *aw = Tangent ? aws[e] + at_w : nullptr, *ax = Tangent ? group.ax[e] + at_x : nullptr;
      Vec<T> we[N], awe[N];
      CLEBSCH_UNROLL
      for (int v = 0; v < N; ++v) {
        we[v] = load(w + v * W, mask);
        if constexpr (Tangent) awe[v] = load(aw + v * W, mask);
      }
      group.ahead_w->template prefetch<N>();
      if constexpr (Tangent) group.ahead_aw->template prefetch<N>();
      CLEBSCH_UNROLL
      for (int i = 0; i < A; ++i) {
        CLEBSCH_UNROLL
        for (int v = 0; v < N; ++v) {
          const Vec<T> xi = load(x + i * stride + v * W);
          const Vec<T> wx = we[v] * xi;
          Vec<T> change = wx;
          if constexpr (Tangent) change = we[v] * load(ax + i * stride + v * W) + awe[v] * xi;
          CLEBSCH_UNROLL
          for (int k = 0; k < K; ++k) {
            if (!cells.coupled[i][k]) continue;
            to[v][k] += change * matrix[(i * K + k) * kGroup + e];
            if constexpr (Tangent) to[v][k] += wx * tangent[(i * K + k) * kGroup + e];
          }
        }
      }
    };
    int e = begin;
    if constexpr (U == 2) {
      for (; e + 2 <= end; e += 2) {
        add(sum[0], e);
        add(sum[1], e + 1);
      }
    }
    for (; e < end; ++e) add(sum[0], e);
    CLEBSCH_UNROLL
    for (int v = 0; v < N; ++v) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) {
        if constexpr (U == 2) sum[0][v][k] += sum[1][v][k];
        store(sums + k * stride + v * W, sum[0][v][k]);
      }
    }
  }

  // Rows of gM that fit the registers beside g and a few operands; several passes over the channels if A is
  // larger.
  static constexpr int rows_per_pass = (registers - 6 - K) / K < 1 ? 1 : (registers - 6 - K) / K;

  template <bool Tangent, int First = 0>
  static void backward(const Path& p, const Group<T>& group, int e, const T* g, const EdgeGradients<T>& to) {
    constexpr int W = lanes<T>;
    constexpr int Rows = A - First < rows_per_pass ? A - First : rows_per_pass;
    constexpr bool last = First + Rows == A;
    const std::int64_t stride = p.in1.stride;
    const PathOperands<T, Tangent> of(p, group, e);
    const T* gp = g + p.out.panel;
    T* gx = to.gx + p.in1.panel;
    T* gw = p.weighted ? to.gw + p.weight : to.sink;

    Vec<T> gm[Rows][K];
    CLEBSCH_UNROLL
    for (int r = 0; r < Rows; ++r) {
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) gm[r][k] = Vec<T>{};
    }
    for (int c = 0; c < p.in1.mul; c += W) {
      const Mask<T> mask(p.in1.mul - c);
      const Vec<T> we = load(of.w + c, mask);
      if constexpr (First == 0) to.template prefetch<Tangent>(p.weight + c);
      Vec<T> awe;
      if constexpr (Tangent) awe = load(of.aw + c, mask);
      Vec<T> gk[K];
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) gk[k] = load(gp + k * stride + c);
      Vec<T> gwe = First == 0 ? Vec<T>{} : load(to.gw_unfinished + c);
      CLEBSCH_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const int i = First + r;
        const Vec<T> xi = load(of.x + i * stride + c);
        Vec<T> t{}, wx = we * xi;
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) {
          if (cells.coupled[i][k]) t += gk[k] * of.matrix[(i * K + k) * kGroup];
        }
        Vec<T> gxi = load(gx + i * stride + c);
        if constexpr (Tangent) {
          const Vec<T> axi = load(of.ax + i * stride + c);
          Vec<T> s{};
          CLEBSCH_UNROLL
          for (int k = 0; k < K; ++k) {
            if (cells.coupled[i][k]) s += gk[k] * of.tangent[(i * K + k) * kGroup];
          }
          gwe += axi * t + xi * s;
          gxi += awe * t + we * s;
          wx = we * axi + awe * xi;
        } else {
          gwe += xi * t;
          gxi += we * t;
        }
        store(gx + i * stride + c, gxi);
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) {
          if (cells.coupled[i][k]) gm[r][k] += gk[k] * wx;
        }
      }
      if constexpr (last) {
        if (to.accumulate_gw) gwe += load(gw + c, mask);
        store(gw + c, gwe, mask);
      } else {
        store(to.gw_unfinished + c, gwe);
      }
    }
    Vec<T> gy[B];
    CLEBSCH_UNROLL
    for (int j = 0; j < B; ++j) gy[j] = Vec<T>{};
    CLEBSCH_UNROLL
    for (int n = 0; n < C::size; ++n) {
      const int r = C::m1[n] - First;
      if (r >= 0 && r < Rows) gy[C::m2[n]] += gm[r][C::m3[n]] * static_cast<T>(C::value[n]);
    }
    const T coefficient = static_cast<T>(p.coefficient);
    CLEBSCH_UNROLL
    for (int j = 0; j < B; ++j) to.gy[p.in2.offset + j] += gy[j] * coefficient;
    if constexpr (!last) backward<Tangent, First + Rows>(p, group, e, g, to);
  }
};

// One path of any l1 and l2, and l3 to kChannelwiseMaxDegree: sums in registers, rows of M one after another,
// zeros included.
template <class T, int L3>
struct Columns {
  static constexpr int K = 2 * L3 + 1;

  template <bool Tangent>
  static void forward(const Path& p, const Group<T>& group, int begin, int end, T* out) {
    constexpr int W = lanes<T>;
    const std::int64_t stride = p.in1.stride;
    const int rows = 2 * p.in1.l + 1;
    T* sums = out + p.out.panel;
    for (int c = 0; c < p.in1.mul; c += W) {
      const Mask<T> mask(p.in1.mul - c);
      Vec<T> sum[K];
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) sum[k] = load(sums + k * stride + c);
      for (int e = begin; e < end; ++e) {
        const PathOperands<T, Tangent> of(p, group, e);
        const Vec<T> we = load(of.w + c, mask);
        Vec<T> awe{};
        if constexpr (Tangent) awe = load(of.aw + c, mask);
        group.ahead_w->template prefetch<1>();
        if constexpr (Tangent) group.ahead_aw->template prefetch<1>();
        for (int i = 0; i < rows; ++i) {
          const Vec<T> xi = load(of.x + i * stride + c), wx = we * xi;
          Vec<T> change = wx;
          if constexpr (Tangent) change = we * load(of.ax + i * stride + c) + awe * xi;
          CLEBSCH_UNROLL
          for (int k = 0; k < K; ++k) {
            sum[k] += change * of.matrix[(i * K + k) * kGroup];
            if constexpr (Tangent) sum[k] += wx * of.tangent[(i * K + k) * kGroup];
          }
        }
      }
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) store(sums + k * stride + c, sum[k]);
    }
  }

  template <bool Tangent>
  static void backward(const Path& p, const Group<T>& group, int e, const T* g, const EdgeGradients<T>& to) {
    constexpr int W = lanes<T>;
    const std::int64_t stride = p.in1.stride;
    const int rows = 2 * p.in1.l + 1;
    const PathOperands<T, Tangent> of(p, group, e);
    const T* gp = g + p.out.panel;
    T* gw = p.weighted ? to.gw + p.weight : to.sink;
    for (int i = 0; i < rows; ++i) {
      Vec<T> gm[K];
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) gm[k] = Vec<T>{};
      T* gx = to.gx + p.in1.panel + i * stride;
      for (int c = 0; c < p.in1.mul; c += W) {
        const Mask<T> mask(p.in1.mul - c);
        const Vec<T> we = load(of.w + c, mask), xi = load(of.x + i * stride + c);
        if (i == 0) to.template prefetch<Tangent>(p.weight + c);
        Vec<T> gwe = i == 0 ? Vec<T>{} : load(to.gw_unfinished + c);
        Vec<T> gk[K], t{}, wx = we * xi;
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) {
          gk[k] = load(gp + k * stride + c);
          t += gk[k] * of.matrix[(i * K + k) * kGroup];
        }
        Vec<T> gxi = load(gx + c);
        if constexpr (Tangent) {
          const Vec<T> awe = load(of.aw + c, mask), axi = load(of.ax + i * stride + c);
          Vec<T> s{};
          CLEBSCH_UNROLL
          for (int k = 0; k < K; ++k) s += gk[k] * of.tangent[(i * K + k) * kGroup];
          gwe += axi * t + xi * s;
          gxi += awe * t + we * s;
          wx = we * axi + awe * xi;
        } else {
          gwe += xi * t;
          gxi += we * t;
        }
        store(gx + c, gxi);
        CLEBSCH_UNROLL
        for (int k = 0; k < K; ++k) gm[k] += gk[k] * wx;
        if (i + 1 < rows) {
          store(to.gw_unfinished + c, gwe);
        } else {
          if (to.accumulate_gw) gwe += load(gw + c, mask);
          store(gw + c, gwe, mask);
        }
      }
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) to.gm[i * K + k] = gm[k];
    }
    for (int n = 0; n < p.term_count; ++n) {
      const Term& t = p.terms[n];
      to.gy[p.in2.offset + t.m2] += to.gm[t.dense] * path_values<T>(p)[n];
    }
  }
};

template <class T>
struct PathKernels {
  using Forward = void (*)(const Path&, const Group<T>&, int begin, int end, T* out);
  using Backward = void (*)(const Path&, const Group<T>&, int e, const T* g, const EdgeGradients<T>&);
  Forward forward, forward_tangent;
  Backward backward, backward_tangent;
};

template <class T, int L1, int L2, int L3>
constexpr PathKernels<T> unrolled_channel_kernels() {
  using P = Unrolled<T, L1, L2, L3>;
  return {&P::template forward<false>, &P::template forward<true>, &P::template backward<false>,
          &P::template backward<true>};
}
template <class T>
constexpr auto unrolled_channels = unrolled_table<T, PathKernels<T>>(
    []<int L1, int L2, int L3>() { return unrolled_channel_kernels<T, L1, L2, L3>(); });

template <class T>
struct ColumnKernelTable {
  PathKernels<T> at[kChannelwiseMaxDegree + 1];
};
template <class T, std::size_t... L3>
constexpr ColumnKernelTable<T> column_kernel_table(std::index_sequence<L3...>) {
  return {{PathKernels<T>{&Columns<T, L3>::template forward<false>, &Columns<T, L3>::template forward<true>,
                          &Columns<T, L3>::template backward<false>,
                          &Columns<T, L3>::template backward<true>}...}};
}
template <class T>
constexpr ColumnKernelTable<T> columns =
    column_kernel_table<T>(std::make_index_sequence<kChannelwiseMaxDegree + 1>{});

template <class T>
CLEBSCH_INLINE const PathKernels<T>& path_kernels(const Path& p) {
  return is_unrolled<T>(p) ? unrolled_channels<T>[p] : columns<T>.at[p.out.l];
}

// Consecutive pieces of the scratch space, each on a cache line.
template <class T>
struct Scratch {
  T* next;
  T* take(std::int64_t count) {
    T* piece = next;
    next += (count + 15) / 16 * 16;
    return piece;
  }
};

template <class T>
void zero(T* p, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) p[i] = T{};
}

// Walks receivers (or rows) a group at a time. Derivative: 0 forward, 1 backward, 2 double backward.
template <class T, int Derivative>
class ChannelWalk {
  static constexpr bool Forward = Derivative != 1, Backward = Derivative != 0, Tangent = Derivative == 2;

 public:
  ChannelWalk(const ProductArgs<T>& args, T* scratch)
      : a(args), program(*args.program), channelwise(program.dense_size > 0), step(channelwise ? kGroup : 1) {
    Scratch<T> s{scratch};
    y = s.take(program.dim2 * kGroup);
    matrix = s.take(program.dense_size * kGroup);
    zero(matrix, program.dense_size * kGroup);
    group.matrix = matrix;
    group.ahead_w = &ahead_w;
    group.ahead_aw = &ahead_aw;
    ahead_w.length = ahead_aw.length = program.weight_numel;
    T* constants = s.take(2 * program.widest);
    for (int c = 0; c < program.widest; ++c) constants[c] = T{1};
    zero(constants + program.widest, program.widest);
    for (int e = 0; e < kGroup; ++e) {
      group.ones[e] = constants;
      group.zeros[e] = constants + program.widest;
    }
    if (!a.graph) x_panels = s.take(program.panel1 * kGroup);
    if (program.elementwise) {
      y_panel = s.take(program.panel2);
      operands.ones = constants;
      operands.zeros = constants + program.widest;
      const auto vectors = [&](int count) { return std::int64_t{kElementwiseVectors} * lanes<T> * count; };
      space.products = s.take(vectors(program.most_products));
      space.scaled = s.take(vectors(program.most_outputs));
      if constexpr (Tangent) {
        space.product_tangents = s.take(vectors(program.most_products));
        space.scaled_tangents = s.take(vectors(program.most_outputs));
      }
    }
    if constexpr (Tangent) {
      tangent_matrix = s.take(program.dense_size * kGroup);
      zero(tangent_matrix, program.dense_size * kGroup);
      group.tangent_matrix = tangent_matrix;
      if (!a.graph) ax_panels = s.take(program.panel1 * kGroup);
      if (program.elementwise) ay_panel = s.take(program.panel2);
    }
    if constexpr (Forward) out_panel = s.take(program.panel_out);
    if constexpr (Backward) {
      g_panel = s.take(program.panel_out);
      if (!a.graph) gx_panel = s.take(program.panel1);
      gy = reinterpret_cast<Vec<T>*>(s.take((program.dim2 + lanes<T>)*lanes<T>));
      to.gy = gy;
      to.gw_unfinished = s.take(program.widest);
      to.gm = reinterpret_cast<Vec<T>*>(s.take(program.dense_size * lanes<T>));
      to.sink = s.take(program.widest);
      to.accumulate_gw = a.shared_weights;
      if (program.elementwise) gy_panel = s.take(program.panel2);
    }
  }

  void receivers(std::int64_t begin, std::int64_t end) {
    const Graph& graph = *a.graph;
    for (std::int64_t r = begin; r < end; ++r) {
      if constexpr (Forward) zero(out_panel, program.panel_out);
      const T* g = Backward ? read_panel(a.g[r]) : nullptr;
      for (std::int64_t at = graph.receiver_begin[r]; at < graph.receiver_begin[r + 1]; at += step) {
        const std::int64_t left = graph.receiver_begin[r + 1] - at;
        const int count = left < step ? static_cast<int>(left) : step;
        for (int e = 0; e < count; ++e) {
          const std::int64_t from = a.x_by_slot ? slot(at + e) : graph.sender[at + e];
          group.x[e] = a.x[from];
          if constexpr (Tangent) group.ax[e] = a.ax[from];
        }
        const std::int64_t after = graph.receiver_begin[end] - at - count;
        gather(
            count, after, [&](int e) { return graph.edge[at + e]; },
            [&](int e) { return a.weight_row(at + e); });
        if constexpr (Forward) sum(0, count);
        for (int e = 0; e < count; ++e) {
          if (program.elementwise) meet(e);
          if constexpr (Forward) elementwise_forward<Tangent>(program, operands, space, out_panel);
          if constexpr (Backward) {
            to.gx = a.gx[slot(at + e)];
            if (graph.slot[at + e] < 0) zero(to.gx, program.panel1);
            differentiate(e, graph.edge[at + e], a.weight_row(at + e), g);
          }
        }
      }
      if constexpr (Forward) write_out(r);
    }
  }

  void rows(std::int64_t begin, std::int64_t end) {
    const bool sum_y = Backward && a.shared_y && program.elementwise;
    if (sum_y) {
      T* row = a.gy[begin];
      for_copies(
          [&](const Block& b) { block_to_panel(b, program.mul_ir, row + b.offset, gy_panel + b.panel); });
    }
    for (std::int64_t first = begin; first < end; first += step) {
      const int count = end - first < step ? static_cast<int>(end - first) : step;
      for (int e = 0; e < count; ++e) {
        group.x[e] = read_x(a.x[first + e], x_panels + e * program.panel1);
        if constexpr (Tangent) group.ax[e] = read_x(a.ax[first + e], ax_panels + e * program.panel1);
      }
      const auto row = [&](int e) { return first + e; };
      gather(count, end - first - count, row, row);
      if (program.elementwise && first + kRowsAhead < a.rows) ask_for_row(first + kRowsAhead);
      for (int e = 0; e < count; ++e) {
        if (program.elementwise) meet(e);
        if constexpr (Forward) {
          zero(out_panel, program.panel_out);
          sum(e, e + 1);
          elementwise_forward<Tangent>(program, operands, space, out_panel);
          write_out(row(e));
        }
        if constexpr (Backward) {
          zero(gx_panel, program.panel1);
          to.gx = gx_panel;
          differentiate(e, row(e), row(e), read_panel(a.g[row(e)]));
          from_panel(program.in1, program.in1_count, program.mul_ir, gx_panel, a.gx[row(e)], a.far_x);
        }
      }
    }
    if (sum_y) write_copies_of_y(a.gy[begin]);
  }

 private:
  // Brings near what a row to come is read of: a row takes longer than the processor looks ahead, so that
  // each would begin by waiting for memory. Inline, here and below: a function that asks and does nothing
  // else is without effect to the compiler, which leaves out its calls.
  CLEBSCH_INLINE void ask_for_row(std::int64_t r) const {
    ask_for_blocks(program.in1, program.in1_count, a.x[r]);
    ask_for_blocks(program.in2, program.in2_count, a.y[r]);
    ask_for(a.w[r], program.weight_numel);
    if constexpr (Tangent) {
      ask_for_blocks(program.in1, program.in1_count, a.ax[r]);
      ask_for_blocks(program.in2, program.in2_count, a.ay[r]);
      ask_for(a.aw[r], program.weight_numel);
    }
    if constexpr (Backward) ask_for_blocks(program.out, program.out_count, a.g[r]);
  }
  static CLEBSCH_INLINE void ask_for_blocks(const Block* blocks, int count, const T* row) {
    for (int i = 0; i < count; ++i) {
      if (blocks[i].used) ask_for(row + blocks[i].offset, std::int64_t{2 * blocks[i].l + 1} * blocks[i].mul);
    }
  }
  static CLEBSCH_INLINE void ask_for(const T* from, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i, 0, 2);
  }

  // Of the edge at this position, within the chunk.
  std::int64_t slot(std::int64_t at) const {
    const std::int64_t s = a.graph->slot[at];
    return (s < 0 ? ~s : s) - a.first_slot;
  }

  const T* read_x(const T* row, T* panel) const {
    if (program.whole_lines1) return row;
    to_panel(program.in1, program.in1_count, program.mul_ir, row, panel);
    return panel;
  }
  const T* read_panel(const T* row) const {
    if (program.whole_lines_out) return row;
    to_panel(program.out, program.out_count, program.mul_ir, row, g_panel);
    return g_panel;
  }
  void write_out(std::int64_t row) const {
    from_panel(program.out, program.out_count, program.mul_ir, out_panel, a.out[row], a.far_out);
  }

  // Weights, y and the matrices of the group; edge(e) and weight(e) are the rows of its e-th member, and of
  // `after` more that follow.
  template <class Edge, class Weight>
  CLEBSCH_INLINE void gather(int count, std::int64_t after, Edge edge, Weight weight) {
    for (int e = 0; e < count; ++e) {
      group.w[e] = a.w[weight(e)];
      group.y[e] = a.y[edge(e)];
      if constexpr (Tangent) {
        group.aw[e] = a.aw[weight(e)];
        group.ay[e] = a.ay[edge(e)];
      }
      if constexpr (Backward) next_weight[e] = weight(e + 1 < count + after ? e + 1 : e);
    }
    if (!channelwise) return;
    // Weights by position were made a moment ago and are in the cache.
    const int following = a.weights_by_position ? 0 : after < kGroup ? static_cast<int>(after) : kGroup;
    look_ahead(ahead_w, a.w, count, following, weight);
    if constexpr (Tangent) look_ahead(ahead_aw, a.aw, count, following, weight);
    make_matrices(count, group.y, matrix);
    if constexpr (Tangent) make_matrices(count, group.ay, tangent_matrix);
  }
  template <class Weight>
  CLEBSCH_INLINE void look_ahead(Ahead<T>& ahead, const Rows<const T>& from, int count, int following,
                                 Weight weight) {
    ahead.next = ahead.end = nullptr;
    ahead.row = 0;
    ahead.row_count = from.stride == 0 ? 0 : following;
    for (int e = 0; e < ahead.row_count; ++e) ahead.rows[e] = from[weight(count + e)];
  }
  CLEBSCH_INLINE void make_matrices(int count, const T* const* from, T* to_matrix) {
    using Edges = typename GroupOf<T>::type;
    const T* rows[kGroup];
    for (int e = 0; e < kGroup; ++e) rows[e] = from[e < count ? e : 0];
    std::int64_t j = program.single_begin;
    for (; j + kGroup <= program.single_end; j += kGroup) {
      Edges v[kGroup];
#pragma GCC unroll 8
      for (int e = 0; e < kGroup; ++e) v[e] = *reinterpret_cast<const Edges*>(rows[e] + j);
      transpose_square(v);
#pragma GCC unroll 8
      for (int e = 0; e < kGroup; ++e) *reinterpret_cast<Edges*>(y + (j + e) * kGroup) = v[e];
    }
    for (; j < program.single_end; ++j) {
      for (int e = 0; e < kGroup; ++e) y[j * kGroup + e] = rows[e][j];
    }
    contract_group(program, y, to_matrix);
  }

  void sum(int begin, int end) const {
    if (!channelwise) return;
    for (int i = 0; i < program.path_count; ++i) {
      const Path& p = program.paths[i];
      if (p.mode == Mode::uuu) continue;
      const PathKernels<T>& k = path_kernels<T>(p);
      (Tangent ? k.forward_tangent : k.forward)(p, group, begin, end, out_panel);
    }
  }

  // The edge that elementwise paths meet next.
  void meet(int e) {
    operands.x = group.x[e];
    operands.w = group.w[e];
    operands.y = read_y(group.y[e], y_panel);
    if constexpr (Tangent) {
      operands.ax = group.ax[e];
      operands.aw = group.aw[e];
      operands.ay = read_y(group.ay[e], ay_panel);
    }
  }
  const T* read_y(const T* row, T* panel) const {
    if (program.whole_lines2) return row;
    for_copies([&](const Block& b) {
      if (b.used) block_to_panel(b, program.mul_ir, row + b.offset, panel + b.panel);
    });
    return panel;
  }
  template <class F>
  CLEBSCH_INLINE void for_copies(F f) const {
    for (int i = 0; i < program.in2_count; ++i) {
      if (program.in2[i].mul > 1) f(program.in2[i]);
    }
  }

  void differentiate(int e, std::int64_t edge, std::int64_t weight, const T* g) {
    to.gw = a.gw[weight];
    to.next_w = a.w[next_weight[e]];
    to.next_gw = a.gw[next_weight[e]];
    for (std::int64_t j = program.single_begin; j < program.single_end; ++j) gy[j] = Vec<T>{};
    if (program.elementwise && !a.shared_y) zero(gy_panel, program.panel2);
    for (int i = 0; i < program.path_count; ++i) {
      const Path& p = program.paths[i];
      if (p.mode == Mode::uuu) continue;
      const PathKernels<T>& k = path_kernels<T>(p);
      (Tangent ? k.backward_tangent : k.backward)(p, group, e, g, to);
    }
    const ElementwiseGradients<T> gradients{to.gx, gy_panel, to.gw, to.accumulate_gw, a.far_w};
    elementwise_backward<Tangent>(program, operands, g, space, gradients);
    T* gy_row = a.gy[edge];
    write_single_y(gy_row);
    if (program.elementwise && !a.shared_y) write_copies_of_y(gy_row);
  }
  void write_copies_of_y(T* gy_row) const {
    for_copies([&](const Block& b) {
      block_from_panel(b, program.mul_ir, gy_panel + b.panel, gy_row + b.offset, a.far_y);
    });
  }
  void write_single_y(T* gy_row) {
    for (std::int64_t j = program.single_begin; j < program.single_end; j += lanes<T>) {
      const int left = static_cast<int>(program.single_end - j);
      for (int n = left; n < lanes<T>; ++n) gy[j + n] = Vec<T>{};
      const Mask<T> mask(left);
      Vec<T> sum = sum_lanes<T>(gy + j);
      if (a.shared_y) sum += load(gy_row + j, mask);
      store(gy_row + j, sum, mask);
    }
  }

  const ProductArgs<T>& a;
  const Program& program;
  const bool channelwise;  // there are such paths: groups are worth while
  const int step;          // edges of a group
  ElementwiseOperands<T> operands{};
  ElementwiseSpace<T> space{};
  Group<T> group{};
  EdgeGradients<T> to{};
  Ahead<T> ahead_w, ahead_aw;
  std::int64_t next_weight[kGroup];
  T *y, *matrix, *tangent_matrix = nullptr, *x_panels = nullptr, *ax_panels = nullptr;
  T *out_panel = nullptr, *g_panel = nullptr, *gx_panel = nullptr;
  T *y_panel = nullptr, *ay_panel = nullptr, *gy_panel = nullptr;
  Vec<T>* gy = nullptr;
};

template <class T, int Derivative>
void channels(const ProductArgs<T>& args, std::int64_t begin, std::int64_t end, T* scratch) {
  ChannelWalk<T, Derivative> walk(args, scratch);
  if (args.graph) {
    walk.receivers(begin, end);
  } else {
    walk.rows(begin, end);
  }
  if (args.far_out || args.far_x || args.far_y || args.far_w) end_stream();
}

template <class T>
std::int64_t channels_scratch(const Program& p, bool) {
  const std::int64_t pieces = 20;  // each rounded up to 16 elements
  return kGroup * (p.dim2 + 2 * p.dense_size + 2 * p.panel1) + 4 * p.widest + 2 * p.panel_out + p.panel1 +
         3 * p.panel2 + (p.dim2 + p.dense_size + lanes<T>)*lanes<T> + 2 * ElementwiseSpace<T>::size(p) +
         16 * pieces;
}

template <class T>
constexpr ProductKernels<T> channel_kernels = {&channels<T, 0>, &channels<T, 1>, &channels<T, 2>,
                                               &channels_scratch<T>};

}  // namespace
}  // namespace clebsch
