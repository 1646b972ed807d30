// Products of any connection mode, degree and multiplicity: lanes are rows (or edges of one receiver).
//
// Operands of a vector's worth of rows are transposed into tiles (element, lane); everything else is driven
// by the tables of the program. As in the channelwise kernel the coupling meets y first, M_v = C y_v, for
// each copy v of y; then a pair of channels (u, v) costs one multiply-add a cell:
//
//   P_uv = x_u M_v,   out_w += W_uvw P_uv,   Q_uv = sum_w W_uvw g_w,   gW_uvw = g_w P_uv,   gx_u += M_v Q_uv,
//   gM_v += x_u Q_uv,   gy_v = C gM_v;   with tangents P' = ax M + x N, N = C ay, and Q' = aW g.
//
// Pairs are taken in the order of the weights, u outermost, a block at a time, so that the weights of a block
// are contiguous and the work space is bounded whatever the multiplicities and the batch. A mode says which v
// belong to a u and whether a pair reaches one output channel or all; the products with weights of the latter
// are in tensor_product_dense.inl.h.
#pragma once

#include "panel.inl.h"
#include "tensor_product.h"
#include "tensor_product_dense.inl.h"
#include "tensor_product_uvw.inl.h"
#include "unrolled.inl.h"
#include "vec.h"

namespace clebsch {
namespace {

constexpr int kBlockVectors = 128;   // of P in a block of pairs, if more than one u fits
constexpr int kBlockWeights = 1024;  // of weights in a block of pairs, likewise

// tile[d] = lane r: rows[r][d]. Reads no more than dim elements of a row.
template <class T>
void load_tile(const T* const* rows, std::int64_t dim, Vec<T>* tile) {
  constexpr int W = lanes<T>;
  std::int64_t d = 0;
  for (; d + W <= dim; d += W) {
    Vec<T> v[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) v[r] = load(rows[r] + d);
    transpose<T>(v);
#pragma GCC unroll 16
    for (int q = 0; q < W; ++q) tile[d + q] = v[q];
  }
  if (d < dim) {
    const int left = static_cast<int>(dim - d);
    const Mask<T> mask(left);
    Vec<T> v[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) v[r] = load(rows[r] + d, mask);
    transpose_columns<T>(v, left);
    for (int q = 0; q < left; ++q) tile[d + q] = v[q];
  }
}

template <bool Add, class T>
void store_tile(const Vec<T>* tile, std::int64_t dim, T* const* rows, int count) {
  constexpr int W = lanes<T>;
  for (std::int64_t d = 0; d < dim; d += W) {
    const std::int64_t left = dim - d;
    const Mask<T> mask(left < W ? static_cast<int>(left) : W);
    Vec<T> v[W];
    for (int q = 0; q < W; ++q) v[q] = q < left ? tile[d + q] : Vec<T>{};
    transpose<T>(v);
    for (int r = 0; r < count; ++r) {
      if constexpr (Add) v[r] += load(rows[r] + d, mask);
      store(rows[r] + d, v[r], mask);
    }
  }
}

// row[d] (+)= the sum over the lanes of tile[d].
template <bool Add, class T>
void store_sums(const Vec<T>* tile, std::int64_t dim, T* row) {
  constexpr int W = lanes<T>;
  for (std::int64_t d = 0; d < dim; d += W) {
    const std::int64_t left = dim - d;
    const Mask<T> mask(left < W ? static_cast<int>(left) : W);
    Vec<T> v[W];
    for (int q = 0; q < W; ++q) v[q] = q < left ? tile[d + q] : Vec<T>{};
    Vec<T> sums = sum_lanes<T>(v);
    if constexpr (Add) sums += load(row + d, mask);
    store(row + d, sums, mask);
  }
}

template <class T>
void clear(Vec<T>* v, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) v[i] = Vec<T>{};
}

// The pairs of channels of a path in the order of its weights.
struct Pairs {
  Mode mode;
  int mul1, mul2;
  explicit Pairs(const Path& p) : mode(p.mode), mul1(p.in1.mul), mul2(p.in2.mul) {}
  bool diagonal() const { return mode == Mode::uuw || mode == Mode::uuu; }
  bool rectangle() const { return !diagonal() && !triangle(); }
  bool triangle() const { return mode == Mode::uvu_triangle || mode == Mode::triangle_w; }
  int first(int u) const { return diagonal() ? u : (triangle() ? u + 1 : 0); }  // the v of a u: [first, last)
  int last(int u) const { return diagonal() ? u + 1 : mul2; }
  std::int64_t before(int u) const {  // pairs of smaller u
    const std::int64_t n = u;
    return diagonal() ? n : (triangle() ? n * (2 * mul2 - n - 1) / 2 : n * mul2);
  }
  std::int64_t output(int u, int v) const {  // the channel reached by a pair that reaches one
    switch (mode) {
      case Mode::uvv:
        return v;
      case Mode::uvuv:
        return std::int64_t{u} * mul2 + v;
      case Mode::uvu_triangle:
        return before(u) + v - u - 1;
      default:
        return u;
    }
  }
};

// Sizes of the work space of a path, in vectors.
struct RowSpace {
  std::int64_t matrix, pair_values, weights, panels;
};
// Weights that stay where they are allow blocks of several u for wide y as well.
static inline int block_vectors(const Path& p) { return (p.outputs_in_lanes ? 4 : 1) * kBlockVectors; }
static inline int block_weights(const Path& p) { return (p.outputs_in_lanes ? 4 : 1) * kBlockWeights; }
static inline int block_end(const Path& p, const Pairs& pairs, int u) {
  const std::int64_t columns = 2 * p.out.l + 1, fan = connects_all(p.mode) ? p.out.mul : 1;
  int end = u + 1;
  while (end < p.in1.mul) {
    const std::int64_t count = pairs.before(end + 1) - pairs.before(u);
    if (count * columns > block_vectors(p) || count * fan > block_weights(p)) break;
    ++end;
  }
  return end;
}
static inline RowSpace row_space(const Program& program) {
  RowSpace space{0, 0, 0, 0};
  const auto raise = [](std::int64_t& to, std::int64_t value) { to = to < value ? value : to; };
  for (int n = 0; n < program.path_count; ++n) {
    const Path& p = program.paths[n];
    const Pairs pairs(p);
    const std::int64_t columns = 2 * p.out.l + 1, fan = connects_all(p.mode) ? p.out.mul : 1;
    const std::int64_t one = pairs.diagonal() ? 1 : p.in2.mul;  // at most so many pairs of one u
    raise(space.matrix, (pairs.diagonal() ? block_vectors(p) : p.in2.mul) * std::int64_t{p.cell_count});
    raise(space.pair_values, one * columns);
    raise(space.pair_values, block_vectors(p));
    if (!p.outputs_in_lanes)
      raise(space.weights, p.in2.mul * fan > kBlockWeights ? p.in2.mul * fan : kBlockWeights);
  }
  raise(space.weights, kWholeWeights);
  raise(space.pair_values, kUvwVectors);
  raise(space.matrix, (2 * compiled_l_max + 1) * (2 * compiled_l_max + 1));
  if (program.outputs_in_lanes) space.panels = program.panel_out;
  return space;
}

// Weights of a block of pairs: vectors with a lane for each row, or scalars for all rows.
template <class T, bool PerRow>
using Weight = std::conditional_t<PerRow, Vec<T>, T>;

// The forward pass of a uvu path with one copy of y, degrees known at compile time: M in registers, no
// tables. Narrow channelwise products are run so, where the tables would cost more than the arithmetic.
template <class T, int L1, int L2, int L3>
struct UnrolledRows {
  static constexpr int A = 2 * L1 + 1, B = 2 * L2 + 1, K = 2 * L3 + 1;
  using C = Coupling<L1, L2, L3>;
  static constexpr UnrolledCells<L1, L2, L3> cells{};

  template <class W>
  static void forward(const Path& p, bool mul_ir, const Vec<T>* x, const Vec<T>* y, const W* w, Vec<T>* out) {
    const TileIndex at1(p.in1, mul_ir), at2(p.in2, mul_ir), at_out(p.out, mul_ir);
    const T coefficient = static_cast<T>(p.coefficient);
    Vec<T> yc[B], m[A][K];
    CLEBSCH_UNROLL
    for (int j = 0; j < B; ++j) yc[j] = y[at2(0, j)] * coefficient;
    CLEBSCH_UNROLL
    for (int n = 0; n < C::size; ++n) {
      const int i = C::m1[n], k = C::m3[n];
      const Vec<T> term = yc[C::m2[n]] * static_cast<T>(C::value[n]);
      m[i][k] = cells.first[i][k] == n ? term : m[i][k] + term;
    }
    for (int u = 0; u < p.in1.mul; ++u) {
      Vec<T> wx[A];
      CLEBSCH_UNROLL
      for (int i = 0; i < A; ++i) wx[i] = p.weighted ? x[at1(u, i)] * w[u] : x[at1(u, i)];
      CLEBSCH_UNROLL
      for (int k = 0; k < K; ++k) {
        Vec<T>& to = out[at_out(u, k)];
        Vec<T> sum = to;
        CLEBSCH_UNROLL
        for (int i = 0; i < A; ++i) {
          if (cells.first[i][k] >= 0) sum += wx[i] * m[i][k];
        }
        to = sum;
      }
    }
  }
};

template <class T>
struct UnrolledRowsKernels {
  void (*per_row)(const Path&, bool mul_ir, const Vec<T>* x, const Vec<T>* y, const Vec<T>* w, Vec<T>* out);
  void (*shared)(const Path&, bool mul_ir, const Vec<T>* x, const Vec<T>* y, const T* w, Vec<T>* out);
};
template <class T, int L1, int L2, int L3>
constexpr UnrolledRowsKernels<T> unrolled_rows_kernels() {
  using R = UnrolledRows<T, L1, L2, L3>;
  return {&R::template forward<Vec<T>>, &R::template forward<T>};
}
template <class T>
constexpr auto unrolled_rows = unrolled_table<T, UnrolledRowsKernels<T>>(
    []<int L1, int L2, int L3>() { return unrolled_rows_kernels<T, L1, L2, L3>(); });

template <class T, int Derivative>
class RowWalk {
  static constexpr bool Forward = Derivative != 1, Backward = Derivative != 0, Tangent = Derivative == 2;
  static constexpr int W = lanes<T>;

 public:
  RowWalk(const ProductArgs<T>& args, T* scratch) : a(args), program(*args.program) {
    const RowSpace space = row_space(program);
    Vec<T>* next = reinterpret_cast<Vec<T>*>(scratch);
    const auto take = [&next](std::int64_t count) __attribute__((always_inline)) {
      Vec<T>* piece = next;
      next += count;
      return piece;
    };
    x = take(program.dim1);
    y = take(program.dim2);
    m = take(space.matrix);
    value = take(space.pair_values);
    w = take(space.weights);
    if constexpr (Forward) out = take(program.dim_out);
    if constexpr (Tangent) {
      ax = take(program.dim1);
      ay = take(program.dim2);
      am = take(space.matrix);
      avalue = take(space.pair_values);
      aw = take(space.weights);
      aq = take(space.pair_values);
    }
    if constexpr (Backward) {
      g = take(program.dim_out);
      gx = take(program.dim1);
      gy = take(program.dim2);
      gm = take(space.matrix);
      q = take(space.pair_values);
      gw = take(space.weights);
      sink = take(space.pair_values);
    }
    g_panels = reinterpret_cast<T*>(take(space.panels));
    out_panels = reinterpret_cast<T*>(take(space.panels));
    spare = reinterpret_cast<T*>(take(space.panels));
    if constexpr (Derivative == 1) {
      if (args.shared_weights) {
        const auto panels = [&](bool needed, std::int64_t size) {
          return Panels<T>{reinterpret_cast<T*>(take(needed ? size : 0)), size, 0};
        };
        x_panels = panels(program.x_in_lanes, program.panel1);
        y_panels = panels(program.y_in_lanes, program.panel2);
        turned = reinterpret_cast<T*>(take(program.turned_size / W));
        clear<T>(reinterpret_cast<Vec<T>*>(turned), program.turned_size / W);
      }
    }
    apart = args.graph ? 0 : program.panel_out;
    T* constants = reinterpret_cast<T*>(take(2 * (space.weights / W + 1)));
    ones = constants;
    zeros = constants + space.weights;
    for (std::int64_t i = 0; i < space.weights; ++i) {
      constants[i] = T{1};
      constants[space.weights + i] = T{};
    }
  }

  void receivers(std::int64_t begin, std::int64_t end) {
    const Graph& graph = *a.graph;
    for (std::int64_t r = begin; r < end; ++r) {
      if constexpr (Forward) clear_out();
      if constexpr (Backward) {
        if (program.outputs_in_lanes)
          to_panel(program.out, program.out_count, program.mul_ir, a.g[r], g_panels);
        for (std::int64_t d = 0; d < program.dim_out; ++d) g[d] = broadcast(a.g[r][d]);
      }
      for (std::int64_t at = graph.receiver_begin[r]; at < graph.receiver_begin[r + 1]; at += W) {
        const std::int64_t left = graph.receiver_begin[r + 1] - at;
        const int count = left < W ? static_cast<int>(left) : W;
        group(
            count, [&](int e) { return graph.sender[at + e]; }, [&](int e) { return graph.edge[at + e]; },
            [&](int e) { return a.weight_row(at + e); });
        if constexpr (Backward) {
          // Two edges of the group may share a slot: one after the other, never as a tile.
          for (int e = 0; e < count; ++e) {
            const std::int64_t slot = graph.slot[at + e];
            if (slot >= 0) continue;
            T* sum = a.gx[~slot - a.first_slot];
            for (std::int64_t d = 0; d < program.dim1; ++d) sum[d] = T{};
          }
          T* rows[W];
          for (int e = 0; e < count; ++e) {
            const std::int64_t slot = graph.slot[at + e];
            rows[e] = a.gx[(slot < 0 ? ~slot : slot) - a.first_slot];
          }
          store_tile<true, T>(gx, program.dim1, rows, count);
        }
      }
      if constexpr (Forward) {
        store_sums<false, T>(out, program.dim_out, a.out[r]);
        if (sums_panels()) add_panel(out_panels, a.out[r]);
      }
    }
  }

  void rows(std::int64_t begin, std::int64_t end) {
    for (std::int64_t first = begin; first < end; first += W) {
      const int count = end - first < W ? static_cast<int>(end - first) : W;
      const auto row = [first](int e) { return first + e; };
      if constexpr (Backward) {
        read(a.g, count, row, program.dim_out, g);
        for (int e = 0; program.outputs_in_lanes && e < count; ++e)
          to_panel(program.out, program.out_count, program.mul_ir, a.g[first + e], g_panels + e * apart);
      }
      if constexpr (Forward) clear_out();
      following = first + W;
      following_end = first + 2 * W < a.rows ? first + 2 * W : a.rows;
      group(count, row, row, row);
      if constexpr (Forward) {
        write(out, a.out, count, row, program.dim_out);
        for (int e = 0; sums_panels() && e < count; ++e) add_panel(out_panels + e * apart, a.out[first + e]);
      }
      if constexpr (Backward) write(gx, a.gx, count, row, program.dim1);
    }
  }

  // When all rows have been met: what was summed turned.
  void finish() {
    if constexpr (Derivative == 1) {
      for (int n = 0; a.shared_weights && n < program.path_count; ++n) {
        const Path& p = program.paths[n];
        if ((p.backward == Order::x_first || p.backward == Order::y_first) && is_unrolled<T>(p))
          UvwPath<T>(p, p.backward, program.mul_ir).turn(turned, a.gw[0]);
      }
    }
  }

 private:
  // Sums of outputs in the lanes: a panel for each row, or one for the receiver.
  bool sums_panels() const { return program.outputs_in_lanes && !a.shared_weights; }
  void clear_out() {
    clear<T>(out, program.dim_out);
    if (sums_panels()) clear<T>(reinterpret_cast<Vec<T>*>(out_panels), program.panel_out / (a.graph ? W : 1));
  }
  void add_panel(const T* panel, T* row) {
    from_panel(program.out, program.out_count, program.mul_ir, panel, spare);
    for (std::int64_t d = 0; d < program.dim_out; ++d) row[d] += spare[d];
  }

  template <class Index>
  void read(const Rows<const T>& from, int count, Index index, std::int64_t dim, Vec<T>* tile,
            std::int64_t begin = 0) {
    // Lanes without a row repeat the last one: every load is whole, no branch in the tile.
    const T* rows[W];
    for (int e = 0; e < W; ++e) rows[e] = from[index(e < count ? e : count - 1)] + begin;
    load_tile<T>(rows, dim, tile);
  }
  // All that is summed over lanes is linear in y or ay: zero there silences lanes without a row.
  template <class Index>
  void read_y(const Rows<const T>& from, int count, Index index, Vec<T>* tile) {
    read(from, count, index, program.dim2, tile);
    if (count == W) return;
    alignas(64) T keep[W];
    for (int e = 0; e < W; ++e) keep[e] = e < count ? T{1} : T{};
    const auto present = load(keep) > T{};
    for (std::int64_t d = 0; d < program.dim2; ++d) tile[d] = present ? tile[d] : Vec<T>{};
  }
  template <class Index>
  void write(const Vec<T>* tile, const Rows<T>& to, int count, Index index, std::int64_t dim,
             std::int64_t begin = 0) {
    T* rows[W];
    for (int e = 0; e < count; ++e) rows[e] = to[index(e)] + begin;
    store_tile<false, T>(tile, dim, rows, count);
  }

  // The rows of x, of y and of the weights that its members have.
  template <class Node, class Edge, class WeightRow>
  void group(int count, Node node, Edge edge, WeightRow weight_row) {
    read(a.x, count, node, program.dim1, x);
    read_y(a.y, count, edge, y);
    if constexpr (Tangent) {
      read(a.ax, count, node, program.dim1, ax);
      read_y(a.ay, count, edge, ay);
    }
    if constexpr (Backward) {
      clear<T>(gx, program.dim1);
      clear<T>(gy, program.dim2);
    }
    if constexpr (Derivative == 1) {
      for (int e = 0; a.shared_weights && e < count; ++e) {
        if (program.x_in_lanes)
          to_panel(program.in1, program.in1_count, program.mul_ir, a.x[node(e)], x_panels(e, 0, 0));
        if (program.y_in_lanes)
          to_panel(program.in2, program.in2_count, program.mul_ir, a.y[edge(e)], y_panels(e, 0, 0));
      }
    }
    const bool whole = whole_weights();
    if (whole) {
      read(a.w, count, weight_row, program.weight_numel, w);
      if constexpr (Tangent) read(a.aw, count, weight_row, program.weight_numel, aw);
    }
    for (int n = 0; n < program.path_count; ++n) {
      const Path& p = program.paths[n];
      ask_for_rows(n);
      if (p.weighted && !a.shared_weights) {
        path<true>(p, count, weight_row);
      } else {
        path<false>(p, count, weight_row);
      }
    }
    if constexpr (Backward) {
      if (whole) write(gw, a.gw, count, weight_row, program.weight_numel);
      write(gy, a.gy, count, edge, program.dim2);
    }
  }

  // While a path runs, a part of the next rows is brought near: of sixteen rows read side by side, a few
  // lines each, the processor has not seen enough to guess. (Inline, or the compiler leaves out the call.)
  CLEBSCH_INLINE void ask_for_rows(int n) {
    for (std::int64_t r = following + n; r < following_end; r += program.path_count) {
      ask_for(a.x[r], program.dim1);
      ask_for(a.y[r], program.dim2);
      if constexpr (Backward) ask_for(a.g[r], program.dim_out);
    }
  }
  static CLEBSCH_INLINE void ask_for(const T* row, std::int64_t dim) {
    for (std::int64_t d = 0; d < dim; d += 64 / sizeof(T)) __builtin_prefetch(row + d, 0, 2);
  }

  UvwOperands<T> uvw_operands(int count) {
    return {x,
            y,
            g,
            out,
            gx,
            gy,
            {x_panels.data, x_panels.apart, 0},
            {y_panels.data, y_panels.apart, 0},
            {g_panels, apart, 0},
            a.w[0],
            a.gw.data,
            turned,
            count,
            m,
            value,
            q};
  }

  bool whole_weights() const {
    return !a.shared_weights && !program.outputs_in_lanes && program.weight_numel <= kWholeWeights;
  }

  template <bool PerRow, class WeightRow>
  void path(const Path& p, int count, WeightRow weight_row) {
    const Pairs pairs(p);
    const int fan = connects_all(p.mode) ? p.out.mul : 1;
    const bool whole = whole_weights();
    if constexpr (Derivative == 0) {
      if (p.mode == Mode::uvu && p.in2.mul == 1 && is_unrolled<T>(p) && (whole || !PerRow)) {
        const UnrolledRowsKernels<T>& kernels = unrolled_rows<T>[p];
        if constexpr (PerRow) return kernels.per_row(p, program.mul_ir, x, y, w + p.weight, out);
        return kernels.shared(p, program.mul_ir, x, y, a.w[0] + p.weight, out);
      }
    }
    if constexpr (Derivative < 2 && !PerRow) {
      const Order order = Forward ? p.forward : p.backward;
      if (order != Order::unchosen && is_unrolled<T>(p)) {
        const UvwPath<T> uvw(p, order, program.mul_ir);
        return Forward ? uvw.forward(uvw_operands(count)) : uvw.backward(uvw_operands(count));
      }
    }
    if (!pairs.diagonal()) contract(p, 0, p.in2.mul);
    if constexpr (Derivative == 0 && !PerRow) {
      if (weights_meet_input(p)) return meet_input(p);
    }
    for (int u = 0; u < p.in1.mul;) {
      const int end = block_end(p, pairs, u);
      const int v0 = pairs.diagonal() ? u : 0;
      if (pairs.diagonal()) contract(p, u, end);
      const int n = static_cast<int>(pairs.before(end) - pairs.before(u));
      const std::int64_t weight = p.weight + pairs.before(u) * fan, weights = std::int64_t{n} * fan;
      if constexpr (PerRow) {
        if (p.outputs_in_lanes) {
          block_of_outputs(p, pairs, u, end, v0, n, fan, weight, count, weight_row);
          if constexpr (Backward) {
            if (pairs.diagonal()) give_y(p, u, end);
          }
          u = end;
          continue;
        }
      }
      const Weight<T, PerRow>*wb, *awb = nullptr;
      const std::int64_t tile = PerRow && whole ? weight : 0;  // where the tiles of w, aw, gw hold this block
      if constexpr (PerRow) {
        if (!whole) {
          read(a.w, count, weight_row, weights, w, weight);
          if constexpr (Tangent) read(a.aw, count, weight_row, weights, aw, weight);
        }
        wb = w + tile;
        awb = Tangent ? aw + tile : nullptr;
      } else {
        wb = p.weighted ? a.w[0] + weight : ones;
        if constexpr (Tangent) awb = p.weighted ? a.aw[0] + weight : zeros;
      }
      block<PerRow>(p, pairs, u, end, v0, n, fan, wb, awb, p.weighted ? gw + tile : sink, count, weight);
      if constexpr (Backward) {
        if (p.weighted) {
          if constexpr (PerRow) {
            if (!whole) write(gw, a.gw, count, weight_row, weights, weight);
          } else {
            if (!p.outputs_in_lanes) store_sums<true, T>(gw, weights, a.gw[0] + weight);
          }
        }
        if (pairs.diagonal()) give_y(p, u, end);
      }
      u = end;
    }
    if constexpr (Backward) {
      if (!pairs.diagonal()) give_y(p, 0, p.in2.mul);
    }
  }

  // M_v (and N_v) for v in [begin, end), at (v - begin) * cells; gM cleared.
  void contract(const Path& p, int begin, int end) {
    const TileIndex at(p.in2, program.mul_ir);
    const T* values = path_values<T>(p);
    if constexpr (Backward) clear<T>(gm, std::int64_t{end - begin} * p.cell_count);
    for (int v = begin; v < end; ++v) {
      const std::int64_t to = std::int64_t{v - begin} * p.cell_count;
      contract_copy(p, values, y + at(v, 0), at.component, m + to);
      if constexpr (Tangent) contract_copy(p, values, ay + at(v, 0), at.component, am + to);
    }
  }

  // The first terms are one for each cell.
  static CLEBSCH_INLINE void contract_copy(const Path& p, const T* values, const Vec<T>* __restrict from,
                                           std::int64_t component, Vec<T>* __restrict to) {
    const Term* terms = p.terms;
    const int cells = p.cell_count, count = p.term_count;
    for (int n = 0; n < cells; ++n) to[n] = from[terms[n].m2 * component] * values[n];
    for (int n = cells; n < count; ++n) to[terms[n].cell] += from[terms[n].m2 * component] * values[n];
  }

  void give_y(const Path& p, int begin, int end) {
    const TileIndex at(p.in2, program.mul_ir);
    const T* values = path_values<T>(p);
    for (int v = begin; v < end; ++v) {
      const Vec<T>* from = gm + std::int64_t{v - begin} * p.cell_count;
      for (int n = 0; n < p.term_count; ++n) gy[at(v, p.terms[n].m2)] += from[p.terms[n].cell] * values[n];
    }
  }

  // All that a block of n pairs, u in [u0, u1), adds.
  template <bool PerRow>
  void block(const Path& p, const Pairs& pairs, int u0, int u1, int v0, int n, int fan,
             const Weight<T, PerRow>* wb, const Weight<T, PerRow>* awb, Vec<T>* gwb, int count,
             std::int64_t weight) {
    const TileIndex at1(p.in1, program.mul_ir), at_out(p.out, program.mul_ir);
    const int columns = 2 * p.out.l + 1;
    if constexpr (Derivative == 0) {
      if (!connects_all(p.mode)) {
        return each_pair(pairs, u0, u1, [&](int i, int u, int v) {
          couple_and_add(p, at1, at_out, u, v - v0, pairs.output(u, v), wb[i]);
        });
      }
    }
    couple_pairs(p, pairs, u0, u1, v0);

    const Vec<T>* final_value = Tangent ? avalue : value;
    if (connects_all(p.mode)) {
      const DenseBlock b{n, fan, columns};
      const Steps step{at_out.channel, at_out.component}, packed{columns, 1};
      if constexpr (Forward) {
        spread<true, T>(wb, fan, final_value, packed, b, out + at_out.offset, step);
        if constexpr (Tangent) spread<true, T>(awb, fan, value, packed, b, out + at_out.offset, step);
      }
      if constexpr (Backward) {
        collect<false, T>(wb, fan, g + at_out.offset, step, b, q, packed);
        if constexpr (Tangent) collect<false, T>(awb, fan, g + at_out.offset, step, b, aq, packed);
        if (!PerRow && p.outputs_in_lanes) {
          add_outer<T>(g_of(p), final_value, b, a.gw[0] + weight, fan, count);
        } else {
          outer<T>(g + at_out.offset, final_value, b, gwb, step);
        }
      }
    } else {
      each_pair(pairs, u0, u1, [&](int i, int u, int v) {
        const std::int64_t o = pairs.output(u, v);
        Vec<T> sum{};
        for (int k = 0; k < columns; ++k) {
          const int at = i * columns + k;
          if constexpr (Forward) {
            out[at_out(o, k)] += final_value[at] * wb[i];
            if constexpr (Tangent) out[at_out(o, k)] += value[at] * awb[i];
          }
          if constexpr (Backward) {
            const Vec<T> gk = g[at_out(o, k)];
            sum += gk * final_value[at];
            q[at] = gk * wb[i];
            if constexpr (Tangent) aq[at] = gk * awb[i];
          }
        }
        if constexpr (Backward) gwb[i] = sum;
      });
    }
    if constexpr (Backward) uncouple_pairs(p, pairs, u0, u1, v0);
  }

  // Weights for all rows: products with them are most of the work, and may be taken with the 2 l1 + 1
  // components of x in place of the 2 l3 + 1 of P, if one column of them fits a block. Then the coupling
  // follows, for each v and w.
  static bool weights_meet_input(const Path& p) {
    if (p.mode != Mode::uvw || 2 * p.in1.l + 1 > block_vectors(p)) return false;
    const double inputs = 2 * p.in1.l + 1, outputs = 2 * p.out.l + 1, u = p.in1.mul, w = p.out.mul;
    return u * w * inputs + w * (p.cell_count + 2 * outputs) < u * w * outputs + u * p.cell_count;
  }

  // Z_vw = sum_u W_uvw x_u, out_w += Z_vw M_v; pairs (v, w) in the order of the weights of one u.
  void meet_input(const Path& p) {
    const TileIndex at1(p.in1, program.mul_ir);
    const int columns = 2 * p.in1.l + 1, most = block_vectors(p) / columns;
    const std::int64_t next = std::int64_t{p.in2.mul} * p.out.mul;
    const T* weight = a.w[0] + p.weight;
    for (std::int64_t first = 0; first < next; first += most) {
      const int size = next - first < most ? static_cast<int>(next - first) : most;
      spread<false, T>(weight + first, next, x + at1.offset, {at1.channel, at1.component},
                       {p.in1.mul, size, columns}, value, {columns, 1});
      for (int j = 0; j < size;) {
        const int w = static_cast<int>((first + j) % p.out.mul);
        const bool several = j + Together <= size && w + Together <= p.out.mul;
        const Vec<T>*z = value + j * columns, *mv = m + (first + j) / p.out.mul * p.cell_count;
        several ? couple_outputs<Together>(p, z, mv, w) : couple_outputs<1>(p, z, mv, w);
        j += several ? Together : 1;
      }
    }
  }

  // out_w += Z M for H channels from w on
  template <int H>
  CLEBSCH_INLINE void couple_outputs(const Path& p, const Vec<T>* z, const Vec<T>* mv, int w) {
    const TileIndex at_out(p.out, program.mul_ir);
    const int columns = 2 * p.in1.l + 1, count = p.cell_count;
    const Cell* cells = p.cells;
    for (int n = 0; n < count;) {
      const int k = cells[n].m3;
      Vec<T> sum[H] = {};
      do {
        CLEBSCH_UNROLL
        for (int i = 0; i < H; ++i) sum[i] += z[i * columns + cells[n].m1] * mv[n];
      } while (++n < count && cells[n].m3 == k);
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) out[at_out(w + i, k)] += sum[i];
    }
  }

  Panels<const T> g_of(const Path& p) const { return {g_panels + p.out.panel, apart, p.out.stride}; }

  // The same with weights of each row, outputs in the lanes.
  template <class WeightRow>
  void block_of_outputs(const Path& p, const Pairs& pairs, int u0, int u1, int v0, int n, int fan,
                        std::int64_t weight, int count, WeightRow weight_row) {
    const DenseBlock b{n, fan, 2 * p.out.l + 1};
    const T *w_rows[W], *aw_rows[W];
    T* gw_rows[W];
    for (int e = 0; e < W; ++e) {
      const std::int64_t row = weight_row(e < count ? e : count - 1);
      w_rows[e] = a.w[row] + weight;
      if constexpr (Tangent) aw_rows[e] = a.aw[row] + weight;
      if constexpr (Backward) gw_rows[e] = a.gw[row] + weight;
    }
    couple_pairs(p, pairs, u0, u1, v0);
    const Vec<T>* final_value = Tangent ? avalue : value;
    if constexpr (Forward) {
      const Panels<T> to{out_panels + p.out.panel, apart, p.out.stride};
      spread_rows<T>(w_rows, final_value, b, to, count);
      if constexpr (Tangent) spread_rows<T>(aw_rows, value, b, to, count);
    }
    if constexpr (Backward) {
      collect_rows<T>(w_rows, g_of(p), b, q);
      if constexpr (Tangent) collect_rows<T>(aw_rows, g_of(p), b, aq);
      outer_rows<T>(g_of(p), final_value, b, gw_rows, count);
      uncouple_pairs(p, pairs, u0, u1, v0);
    }
  }

  template <class F>
  CLEBSCH_INLINE static void each_pair(const Pairs& pairs, int u0, int u1, F f) {
    int i = 0;
    for (int u = u0; u < u1; ++u) {
      for (int v = pairs.first(u); v < pairs.last(u); ++v) f(i++, u, v);
    }
  }

  // out_o += weight x_u M_v
  template <class Scale>
  CLEBSCH_INLINE void couple_and_add(const Path& p, const TileIndex& at1, const TileIndex& at_out, int u,
                                     int v, std::int64_t o, Scale weight) {
    const std::int64_t step = at1.component;
    const Vec<T>*xu = x + at1(u, 0), *mv = m + std::int64_t{v} * p.cell_count;
    Vec<T>* to = out + at_out(o, 0);
    const Cell* cells = p.cells;
    const int count = p.cell_count;
    for (int n = 0; n < count;) {
      const int k = cells[n].m3;
      Vec<T> sum{};
      do {
        sum += xu[cells[n].m1 * step] * mv[n];
      } while (++n < count && cells[n].m3 == k);
      to[k * at_out.component] += sum * weight;
    }
  }

  // The tables are read once for so many pairs: they share u, and so x, or where there are few v they share
  // v.
  static constexpr int Together = 4;

  // f<H, SameU>(pair, u, v, distance) for H pairs, `distance` apart in the order of pairs.
  template <class F>
  CLEBSCH_INLINE static void each_pairs(const Pairs& pairs, int u0, int u1, F f) {
    int u = u0, i = 0;
    if (pairs.rectangle()) {
      for (; u + Together <= u1; u += Together, i += Together * pairs.mul2) {
        for (int v = 0; v < pairs.mul2; ++v) f.template operator()<Together, false>(i + v, u, v, pairs.mul2);
      }
    }
    for (; u < u1; ++u) {
      int v = pairs.first(u);
      for (; v + Together <= pairs.last(u); v += Together, i += Together)
        f.template operator()<Together, true>(i, u, v, 1);
      for (; v < pairs.last(u); ++v, ++i) f.template operator()<1, true>(i, u, v, 1);
    }
  }

  void couple_pairs(const Path& p, const Pairs& pairs, int u0, int u1, int v0) {
    const TileIndex at1(p.in1, program.mul_ir);
    const int columns = 2 * p.out.l + 1;
    each_pairs(pairs, u0, u1,
               [&]<int H, bool SameU>(int i, int u, int v, int distance) __attribute__((always_inline)) {
                 couple<H, SameU>(p, at1, u, v - v0, i * columns, distance * columns);
               });
  }
  void uncouple_pairs(const Path& p, const Pairs& pairs, int u0, int u1, int v0) {
    const TileIndex at1(p.in1, program.mul_ir);
    const int columns = 2 * p.out.l + 1;
    each_pairs(pairs, u0, u1,
               [&]<int H, bool SameU>(int i, int u, int v, int distance) __attribute__((always_inline)) {
                 uncouple<H, SameU>(p, at1, u, v - v0, i * columns, distance * columns);
               });
  }

  // value = x_u M_v, avalue = ax_u M_v + x_u N_v, the values of the H pairs `apart` from each other
  template <int H, bool SameU>
  CLEBSCH_INLINE void couple(const Path& p, const TileIndex& at1, int u, int v, int to, int apart) {
    const std::int64_t base = std::int64_t{v} * p.cell_count, step = at1.component;
    const std::int64_t next_x = SameU ? 0 : at1.channel, next_m = SameU ? p.cell_count : 0;
    const Vec<T>*xu = x + at1(u, 0), *mv = m + base;
    const Vec<T>*axu = Tangent ? ax + at1(u, 0) : nullptr, *nv = Tangent ? am + base : nullptr;
    const Cell* cells = p.cells;
    const int count = p.cell_count;
    for (int n = 0; n < count;) {
      const int k = cells[n].m3;
      Vec<T> sum[H] = {}, asum[H] = {};
      do {
        const std::int64_t at = cells[n].m1 * step;
        CLEBSCH_UNROLL
        for (int i = 0; i < H; ++i) {
          const Vec<T> xi = xu[i * next_x + at], mi = mv[i * next_m + n];
          sum[i] += xi * mi;
          if constexpr (Tangent) asum[i] += axu[i * next_x + at] * mi + xi * nv[i * next_m + n];
        }
      } while (++n < count && cells[n].m3 == k);
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) {
        value[to + i * apart + k] = sum[i];
        if constexpr (Tangent) avalue[to + i * apart + k] = asum[i];
      }
    }
  }

  // gx_u += M_v Q, gM_v += x_u Q; with tangents gx_u += M_v Q' + N_v Q, gM_v += x_u Q' + ax_u Q
  template <int H, bool SameU>
  CLEBSCH_INLINE void uncouple(const Path& p, const TileIndex& at1, int u, int v, int from, int apart) {
    const std::int64_t base = std::int64_t{v} * p.cell_count, step = at1.component;
    const std::int64_t next_x = SameU ? 0 : at1.channel, next_m = SameU ? p.cell_count : 0;
    const Cell* cells = p.cells;
    const int count = p.cell_count;
    for (int n = 0; n < count;) {
      const int k = cells[n].m3;
      Vec<T> qk[H], aqk[H];
      CLEBSCH_UNROLL
      for (int i = 0; i < H; ++i) {
        qk[i] = q[from + i * apart + k];
        if constexpr (Tangent) aqk[i] = aq[from + i * apart + k];
      }
      do {
        const std::int64_t at = at1(u, 0) + cells[n].m1 * step, cell = base + n;
        // What the pairs share is added to in a register.
        Vec<T> shared = SameU ? gx[at] : gm[cell];
        CLEBSCH_UNROLL
        for (int i = 0; i < H; ++i) {
          const std::int64_t xi = at + i * next_x, mi = cell + i * next_m;
          Vec<T> to_x, to_m;
          if constexpr (Tangent) {
            to_x = m[mi] * aqk[i] + am[mi] * qk[i];
            to_m = x[xi] * aqk[i] + ax[xi] * qk[i];
          } else {
            to_x = m[mi] * qk[i];
            to_m = x[xi] * qk[i];
          }
          shared += SameU ? to_x : to_m;
          (SameU ? gm[mi] : gx[xi]) += SameU ? to_m : to_x;
        }
        (SameU ? gx[at] : gm[cell]) = shared;
      } while (++n < count && cells[n].m3 == k);
    }
  }

  const ProductArgs<T>& a;
  const Program& program;
  Vec<T>*x, *y, *m, *value, *w, *out = nullptr;
  Vec<T>*ax = nullptr, *ay = nullptr, *am = nullptr, *avalue = nullptr, *aw = nullptr, *aq = nullptr;
  Vec<T>*g = nullptr, *gx = nullptr, *gy = nullptr, *gm = nullptr, *q = nullptr, *gw = nullptr;
  Vec<T>* sink = nullptr;  // gw of unweighted paths
  T *ones, *zeros;
  // Where outputs lie in the lanes: panels of g and out, `apart` from row to row (0: all rows share one), and
  // a row of out.
  T *g_panels, *out_panels, *spare;
  std::int64_t following = 0, following_end = 0;  // rows of the next group, where they follow each other
  Panels<T> x_panels{}, y_panels{};               // of the rows of a group, if a product uvw wants them
  T* turned = nullptr;
  std::int64_t apart;
};

template <class T, int Derivative>
void rows(const ProductArgs<T>& args, std::int64_t begin, std::int64_t end, T* scratch) {
  RowWalk<T, Derivative> walk(args, scratch);
  if (args.graph) {
    walk.receivers(begin, end);
  } else {
    walk.rows(begin, end);
  }
  walk.finish();
}

template <class T>
std::int64_t rows_scratch(const Program& p, bool shared_weights) {
  const RowSpace s = row_space(p);
  const std::int64_t vectors = 3 * p.dim1 + 3 * p.dim2 + 2 * p.dim_out + 3 * s.matrix + 5 * s.pair_values +
                               3 * s.weights + 3 * s.panels;
  std::int64_t size = (vectors + 2 * (s.weights / lanes<T> + 1)) * lanes<T>;
  if (shared_weights) {
    size += p.turned_size;
    if (p.x_in_lanes) size += p.panel1 * lanes<T>;
    if (p.y_in_lanes) size += p.panel2 * lanes<T>;
  }
  return size;
}

template <class T>
constexpr ProductKernels<T> row_kernels = {&rows<T, 0>, &rows<T, 1>, &rows<T, 2>, &rows_scratch<T>};

}  // namespace
}  // namespace clebsch
