// Channelwise products (every path uvu, one copy of y): lanes are channels. The formulas are those of
// cpu/tensor_product_channels.inl.h: M = C y once for an edge and path, then
//
//   forward   out_k += (w x_i) M_ik
//   backward  t_i = M_ik g_k,  gx_i += w t_i,  gw += x_i t_i,  gM_ik += (w x_i) g_k over channels,  gy = C gM
//
// A thread holds C channels: those that 16 bytes of T belong to (of numbers of 16 bits: 8 bytes of weights);
// where their sums do not fit shared memory two floats, or one. A warp holds a tile of 32 C. S is the type
// that is stored, T = Arithmetic<S> that of all arithmetic and shared memory.
//
// Forward: a block of threads for a receiver and a tile. Its sums lie in shared memory and are written once.
// Each of the 4 warps gathers x of one edge and makes M of it; then the paths are shared by the warps, so
// that each sum has one owner, and four edges are met for every load and store of a sum. Backward: a block of
// threads for a receiver. g of a tile lies in shared memory, each warp takes an edge at a time and owns all
// that belongs to it; sums over channels are butterflies of halves, one shuffle a number.
//
// Bytes for an edge, W weights, elements of T. Least: forward W, backward 2 W (w read, gw written), beside x,
// y, indices and out from caches or once for a receiver. Moved: forward W + dim1 gathered + dim2; backward
// 2 W + dim1 gathered + 2 dim2 + dim1 written for its sender and read again by the sum (gx). At MACE-medium,
// W = 1280, dim1 = 512, dim2 = 16: forward 1.4 times the least if no gather hits a cache, 1.01 if all do;
// backward 1.6 and 1.4. Flops for an edge and channel, S the cells of M: 2 S forward, 4 S
// backward, 10 S double backward, and a shuffle a cell of M in each derivative.
//
// No atomics: the order of every sum depends on the call alone.
#include <type_traits>

#include "cuda/device.h"
#include "cuda/device_product.h"
#include "cuda/edges.h"

namespace clebsch::cuda {
inline namespace tensor_product_channels_kernels {

constexpr int kWarps = kForwardWarps, kThreads = kWarp * kWarps;
// Blocks of threads for whose registers a multiprocessor must have room: about those that its shared memory
// has room for. Left to itself the compiler aims at more of them, and spills.
template <class T, bool Tangent>
constexpr int kForwardBlocks = sizeof(T) == 8 || Tangent ? 4 : 5;
// Before sm_90 the double backward of four channels a thread spilled in the registers of 4 blocks, too.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kNeedsRegisters = true;
#else
constexpr bool kNeedsRegisters = false;
#endif
template <class T, int C, bool Tangent>
constexpr int kBackwardBlocks = sizeof(T) == 8 || (Tangent && C == 4 && kNeedsRegisters) ? 3 : 4;

template <class T, int C>
using Channels = Pack<T, C>;

// Where the channels of this thread lie in the rows of a tile.
struct Tile {
  int lane, warp;
  std::int64_t first;  // channel
};
template <int C>
__device__ inline Tile tile_of(std::int64_t number) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  return {lane, warp, (number * kWarp + lane) * C};
}
// Component m of the channels of this thread is at[m * kWarp].
template <class S, int C, class T = Arithmetic<S>>
__device__ inline void load_block(const S* row, const BlockTable& b, bool mul_ir, std::int64_t first,
                                  Channels<T, C>* at) {
  const int n = 2 * b.l + 1;
  if (!mul_ir) {
    for (int m = 0; m < n; ++m) at[m * kWarp] = load<S, C>(row + b.offset + m * b.mul, first, b.mul);
    return;
  }
  // The components of C channels side by side are n packs.
  const S* from = row + b.offset;
  int c = 0, m = 0;
  for (int p = 0; p < n; ++p) {
    const Channels<T, C> pack = load<S, C>(from, first * n + p * C, b.mul * n);
    CLEBSCH_DEVICE_UNROLL
    for (int i = 0; i < C; ++i) {
      at[m * kWarp][c] = pack[i];
      if (++m == n) m = 0, ++c;
    }
  }
}
template <class S, int C, class T = Arithmetic<S>>
__device__ inline void store_block(const Channels<T, C>* at, const BlockTable& b, bool mul_ir,
                                   std::int64_t first, const Result<S>& row) {
  const int n = 2 * b.l + 1;
  const bool used = b.component >= 0;
  int c = 0, m = 0;
  for (int p = 0; p < n; ++p) {
    Channels<T, C> pack;
    if (mul_ir) {
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < C; ++i) {
        pack[i] = used ? at[m * kWarp][c] : T{};
        if (++m == n) m = 0, ++c;
      }
      store<S, C>(pack, row, b.offset, first * n + p * C, b.mul * n);
    } else {
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < C; ++i) pack[i] = used ? at[p * kWarp][i] : T{};
      store<S, C>(pack, row, b.offset + p * b.mul, first, b.mul);
    }
  }
}

// All blocks that paths use; no row: zero.
template <class S, int C, class T = Arithmetic<S>>
__device__ inline void load_tile(const S* row, const BlockTable* blocks, int count, bool mul_ir,
                                 std::int64_t first, int lane, Channels<T, C>* tile) {
  for (int n = 0; n < count; ++n) {
    if (blocks[n].component < 0) continue;
    Channels<T, C>* at = tile + blocks[n].component * kWarp + lane;
    if (row) {
      load_block<S, C>(row, blocks[n], mul_ir, first, at);
    } else {
      for (int m = 0; m < 2 * blocks[n].l + 1; ++m) at[m * kWarp] = Channels<T, C>{};
    }
  }
}

// M of one edge by a warp; no row: zero.
template <class S, class T = Arithmetic<S>>
__device__ inline void contract(const PlanTables<T>& plan, const S* y, int lane, T* matrix) {
  for (int n = 0; n < plan.path_count; ++n) {
    const PathTable& p = plan.paths[n];
    const int cells = (2 * p.in1.l + 1) * (2 * p.out.l + 1), row = p.by_cell;
    for (int cell = lane; cell < cells; cell += kWarp) {
      T sum{};
      if (y) {
        for (int t = plan.first[row + cell]; t < plan.first[row + cell + 1]; ++t)
          sum += plan.terms[t].value * widened(y[p.in2.offset + plan.terms[t].a]);
      }
      matrix[p.dense + cell] = sum;
    }
  }
}

template <class S, int C, class T = Arithmetic<S>>
__device__ inline Channels<T, C> weights(const S* row, const PathTable& p, std::int64_t first, T otherwise) {
  if (p.weighted && row) return load<S, C>(row + p.weight, first, p.in1.mul);
  Channels<T, C> channels;
  CLEBSCH_DEVICE_UNROLL
  for (int c = 0; c < C; ++c) channels[c] = p.weighted ? T{} : otherwise;
  return channels;
}

// f<l1, l3>() with the degrees of a path, where both are up to Highest; else f<-1, -1>().
template <int Highest, int Number = 0, class F>
__device__ __forceinline__ void for_path_degrees(const PathTable& p, const F& f) {
  constexpr int n = Highest + 1;
  if constexpr (Number == n * n) {
    f.template operator()<-1, -1>();
  } else if (p.in1.l == Number / n && p.out.l == Number % n) {
    f.template operator()<Number / n, Number % n>();
  } else {
    for_path_degrees<Highest, Number + 1>(p, f);
  }
}

// Of M of known degrees: the columns whose sums the forward kernel has in registers at a time, and whether
// derivatives unroll all of its rows, or one at a time. Pairs with a degree of 4 took registers that the
// kernels do not have.
template <int L3>
constexpr int kColumns = L3 <= 3 ? 2 * L3 + 1 : 3;
template <int L1, int L3>
constexpr bool kAllRows = (2 * L1 + 1) * (2 * L3 + 1) <= 49;

// What the warps of a forward block gather of their edges.
template <class S, int C, bool Tangent>
struct Gathered {
  using T = Arithmetic<S>;
  const Channels<T, C>*x, *ax;  // tiles of kWarps edges
  const T *matrix, *tangent;
  const std::int64_t* index;  // of the edges
  Rows<const S> w, aw;
  int count;
};

// The scaled operands of component i: (w x), and with tangents (w ax + aw x).
template <class T, int C, bool Tangent>
struct Scaled {
  Channels<T, C> value, tangent;
};
template <class T, int C, bool Tangent>
__device__ inline Scaled<T, C, Tangent> scale(const Channels<T, C>& w, const Channels<T, C>& aw,
                                              const Channels<T, C>& x, const Channels<T, C>& ax) {
  Scaled<T, C, Tangent> s;
  CLEBSCH_DEVICE_UNROLL
  for (int c = 0; c < C; ++c) {
    s.value[c] = w[c] * x[c];
    if constexpr (Tangent) s.tangent[c] = w[c] * ax[c] + aw[c] * x[c];
  }
  return s;
}

// One path and the gathered edges; sums: of this thread.
template <class S, int C, bool Tangent, int L1, int L3, class T = Arithmetic<S>>
__device__ __forceinline__ void add_path(const PlanTables<T>& plan, const PathTable& p,
                                         const Gathered<S, C, Tangent>& edges, const Tile& tile,
                                         Channels<T, C>* sums) {
  constexpr bool known = L1 >= 0;
  constexpr int most = known ? kColumns<L3> : 1;
  const int inputs = known ? 2 * L1 + 1 : 2 * p.in1.l + 1, outputs = known ? 2 * L3 + 1 : 2 * p.out.l + 1;
  for (int k0 = 0; k0 < outputs; k0 += most) {
    Channels<T, C> sum[most];
    CLEBSCH_DEVICE_UNROLL
    for (int k = 0; k < most; ++k) sum[k] = sums[(k0 + k) * kWarp];
    for (int e = 0; e < edges.count; ++e) {
      const std::int64_t at = static_cast<std::int64_t>(e) * plan.components1 + p.in1.component;
      const Channels<T, C>* x = edges.x + at * kWarp + tile.lane;
      const Channels<T, C>* ax = Tangent ? edges.ax + at * kWarp + tile.lane : x;
      const T* m = edges.matrix + static_cast<std::int64_t>(e) * plan.dense + p.dense + k0;
      const T* n = Tangent ? edges.tangent + static_cast<std::int64_t>(e) * plan.dense + p.dense + k0 : m;
      const Channels<T, C> w = weights<S, C>(row(edges.w, edges.index[e]), p, tile.first, T{1});
      const Channels<T, C> aw =
          Tangent ? weights<S, C>(row_if(edges.aw, edges.index[e]), p, tile.first, T{}) : w;
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < inputs; ++i) {
        const Scaled<T, C, Tangent> s = scale<T, C, Tangent>(w, aw, x[i * kWarp], ax[i * kWarp]);
        CLEBSCH_DEVICE_UNROLL
        for (int k = 0; k < most; ++k) {
          const T mik = m[i * outputs + k];
          CLEBSCH_DEVICE_UNROLL
          for (int c = 0; c < C; ++c) {
            // One product at a time: a multiply-add for each.
            sum[k][c] += (Tangent ? s.tangent : s.value)[c] * mik;
            if constexpr (Tangent) sum[k][c] += s.value[c] * n[i * outputs + k];
          }
        }
      }
    }
    CLEBSCH_DEVICE_UNROLL
    for (int k = 0; k < most; ++k) sums[(k0 + k) * kWarp] = sum[k];
  }
}

template <class S, int C, bool Tangent>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<Arithmetic<S>, Tangent>)
    channels_forward(DeviceProduct<S> a) {
  using T = Arithmetic<S>;
  const PlanTables<T>& plan = a.plan;
  std::int64_t* index = dynamic_shared<std::int64_t>();
  Channels<T, C>* sums = reinterpret_cast<Channels<T, C>*>(index + kWarps);
  Channels<T, C>* x = sums + plan.components_out * kWarp;
  Channels<T, C>* ax = x + kWarps * plan.components1 * kWarp;
  T* matrix = reinterpret_cast<T*>(Tangent ? ax + kWarps * plan.components1 * kWarp : ax);
  T* tangent = matrix + kWarps * plan.dense;
  const Tile tile = tile_of<C>(blockIdx.y);
  const Tasks tasks = forward_tasks_of(a);
  for (std::int64_t task = tasks.begin + blockIdx.x; task < tasks.end; task += gridDim.x) {
    const Positions positions = positions_of(a, task);
    if (adds(a) && positions.begin >= positions.end) continue;
    if (adds(a)) {
      for (int n = tile.warp; n < plan.out_count; n += kWarps) {
        if (plan.out[n].component < 0) continue;
        load_block<T, C>(row(a.out.sums, task), plan.out[n], plan.mul_ir, tile.first,
                         sums + plan.out[n].component * kWarp + tile.lane);
      }
    } else {
      for (int d = static_cast<int>(threadIdx.x); d < plan.components_out * kWarp; d += kThreads)
        sums[d] = Channels<T, C>{};
    }
    for (std::int64_t at = positions.begin; at < positions.end; at += kWarps) {
      const std::int64_t left = positions.end - at;
      const Gathered<S, C, Tangent> edges{
          x, ax, matrix, tangent, index, a.w, a.aw, left < kWarps ? static_cast<int>(left) : kWarps};
      __syncthreads();  // the edges before have been added, the sums cleared
      if (tile.warp < edges.count) {
        const Edge e = edge_at(a, at + tile.warp);
        if (tile.lane == 0) index[tile.warp] = weight_row(a, at + tile.warp, e.index);
        const int to = tile.warp * plan.components1 * kWarp;
        load_tile<S, C>(row(a.x, e.x), plan.in1, plan.in1_count, plan.mul_ir, tile.first, tile.lane, x + to);
        contract(plan, row(a.y, e.y), tile.lane, matrix + tile.warp * plan.dense);
        if constexpr (Tangent) {
          load_tile<S, C>(row_if(a.ax, e.x), plan.in1, plan.in1_count, plan.mul_ir, tile.first, tile.lane,
                          ax + to);
          contract(plan, row_if(a.ay, e.y), tile.lane, tangent + tile.warp * plan.dense);
        }
      }
      __syncthreads();
      for (int n = 0; n < plan.path_count; ++n) {
        const PathTable& p = plan.paths[n];
        if (p.warp != tile.warp) continue;
        Channels<T, C>* own = sums + p.out.component * kWarp + tile.lane;
        for_path_degrees<kUnrolledProducts>(
            p, [&]<int L1, int L3>() { add_path<S, C, Tangent, L1, L3>(plan, p, edges, tile, own); });
      }
    }
    __syncthreads();
    for (int n = tile.warp; n < plan.out_count; n += kWarps)
      store_block<S, C>(sums + plan.out[n].component * kWarp + tile.lane, plan.out[n], plan.mul_ir,
                        tile.first, row_if(a.out, sums_edges(a) ? task : index[0]));
    __syncthreads();
  }
}

// Sums over the lanes of Count numbers, a power of 2: at each step a lane keeps half of them and gives the
// other half away. Number lane / (32 / Count) is what a lane ends with. Recursion, not loops: compilers for
// GPUs gave up to unroll them, and the numbers went to local memory.
template <int Count, int Offset = kWarp / 2, class T>
__device__ __forceinline__ T sum_each(T* value, int lane) {
  if constexpr (Offset == 0) {
    return value[0];
  } else if constexpr (Count == 1) {
    value[0] += __shfl_xor_sync(kAllLanes, value[0], Offset);
    return sum_each<1, Offset / 2>(value, lane);
  } else {
    constexpr int half = Count / 2;
    const bool upper = lane & Offset;
    CLEBSCH_DEVICE_UNROLL
    for (int i = 0; i < half; ++i) {
      const T given = upper ? value[i] : value[i + half], kept = upper ? value[i + half] : value[i];
      value[i] = kept + __shfl_xor_sync(kAllLanes, given, Offset);
    }
    return sum_each<half, Offset / 2>(value, lane);
  }
}

// The least power of 2 that is not less, up to the lanes of a warp.
template <int Least, int Power = 1>
constexpr int power_of_2 = Power >= Least || Power >= kWarp ? Power : power_of_2<Least, 2 * Power>;
template <int Least>
constexpr int power_of_2<Least, kWarp> = kWarp;

// What belongs to the edge of a warp.
template <class S, int C, bool Tangent>
struct OwnEdge {
  using T = Arithmetic<S>;
  const Channels<T, C>*x, *ax, *g;  // of this thread
  Channels<T, C>* gx;
  const T *matrix, *tangent;
  const S *w, *aw;
  T* gm;
  Result<S> gw;
  bool wants_x, wants_y;
};

// One path of the edge of a warp. All lanes must call it.
template <class S, int C, bool Tangent, int L1, int L3>
__device__ __forceinline__ void differentiate_path(const PathTable& p, const OwnEdge<S, C, Tangent>& edge,
                                                   const Tile& tile) {
  using T = Arithmetic<S>;
  constexpr bool known = L1 >= 0;
  const int inputs = known ? 2 * L1 + 1 : 2 * p.in1.l + 1, outputs = known ? 2 * L3 + 1 : 2 * p.out.l + 1;
  const Channels<T, C>* x = edge.x + p.in1.component * kWarp;
  const Channels<T, C>* ax = Tangent ? edge.ax + p.in1.component * kWarp : x;
  const Channels<T, C>* g = edge.g + p.out.component * kWarp;
  const T *m = edge.matrix + p.dense, *n = Tangent ? edge.tangent + p.dense : m;
  const Channels<T, C> w = weights<S, C>(edge.w, p, tile.first, T{1});
  const Channels<T, C> aw = Tangent ? weights<S, C>(edge.aw, p, tile.first, T{}) : w;

  Channels<T, C> gw{};
  CLEBSCH_DEVICE_UNROLL_BY((known && kAllRows<L1, L3> ? 2 * L1 + 1 : 1))
  for (int i = 0; i < inputs; ++i) {
    Channels<T, C> t{}, s{};
    CLEBSCH_DEVICE_UNROLL
    for (int k = 0; k < outputs; ++k) {
      const Channels<T, C> gk = g[k * kWarp];
      CLEBSCH_DEVICE_UNROLL
      for (int c = 0; c < C; ++c) {
        t[c] += m[i * outputs + k] * gk[c];
        if constexpr (Tangent) s[c] += n[i * outputs + k] * gk[c];
      }
    }
    const Channels<T, C> xi = x[i * kWarp], axi = ax[i * kWarp];
    CLEBSCH_DEVICE_UNROLL
    for (int c = 0; c < C; ++c) {
      gw[c] += (Tangent ? axi : xi)[c] * t[c];
      if constexpr (Tangent) gw[c] += xi[c] * s[c];
    }
    if (edge.wants_x) {
      Channels<T, C>& to = edge.gx[(p.in1.component + i) * kWarp];
      CLEBSCH_DEVICE_UNROLL
      for (int c = 0; c < C; ++c) {
        to[c] += (Tangent ? aw : w)[c] * t[c];
        if constexpr (Tangent) to[c] += w[c] * s[c];
      }
    }
  }
  if (edge.gw && p.weighted) store<S, C>(gw, edge.gw, p.weight, tile.first, p.in1.mul);
  if (!edge.wants_y) return;

  // gM: the channels of this thread, then of the lanes.
  const auto own = [&](int i, int k) {
    const Scaled<T, C, Tangent> scaled =
        scale<T, C, Tangent>(w, aw, x[i * kWarp], Tangent ? ax[i * kWarp] : x[i * kWarp]);
    return dot<T, C>(Tangent ? scaled.tangent : scaled.value, g[k * kWarp]);
  };
  if constexpr (known && kAllRows<L1, L3>) {
    constexpr int cells = (2 * L1 + 1) * (2 * L3 + 1), count = power_of_2<cells>;
    CLEBSCH_DEVICE_UNROLL
    for (int base = 0; base < cells; base += count) {
      T value[count];
      CLEBSCH_DEVICE_UNROLL
      for (int j = 0; j < count; ++j)
        value[j] = base + j < cells ? own((base + j) / outputs, (base + j) % outputs) : T{};
      const T sum = sum_each<count>(value, tile.lane);
      const int cell = base + tile.lane / (kWarp / count);
      if (tile.lane % (kWarp / count) == 0 && cell < cells) edge.gm[p.dense + cell] = sum;
    }
  } else if constexpr (known) {
    // As many rows as there is a lane for each cell of, by columns: fewer operands are held than by rows.
    constexpr int rows = kWarp / (2 * L3 + 1);
    CLEBSCH_DEVICE_UNROLL_BY(1)
    for (int i = 0; i < inputs; i += rows) {
      T value[kWarp];
      CLEBSCH_DEVICE_UNROLL
      for (int j = 0; j < kWarp; ++j)
        value[j] = j < rows * outputs && i + j % rows < inputs ? own(i + j % rows, j / rows) : T{};
      const T sum = sum_each<kWarp>(value, tile.lane);
      const int m = i + tile.lane % rows, k = tile.lane / rows;
      if (m < inputs && k < outputs) edge.gm[p.dense + m * outputs + k] = sum;
    }
  } else {
    for (int cell = 0; cell < inputs * outputs; ++cell) {
      const T sum = sum_lanes(own(cell / outputs, cell % outputs));
      if (tile.lane == 0) edge.gm[p.dense + cell] = sum;
    }
  }
}

// One function: with what belongs to an edge in another, the double backward of four channels spilled.
template <class S, int C, bool Tangent>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<Arithmetic<S>, C, Tangent>)
    channels_backward(DeviceProduct<S> a) {
  using T = Arithmetic<S>;
  const PlanTables<T>& plan = a.plan;
  const int tile_size = plan.components1 * kWarp, lane = static_cast<int>(threadIdx.x) % kWarp,
            warp = static_cast<int>(threadIdx.x) / kWarp;
  Channels<T, C>* g = dynamic_shared<Channels<T, C>>();
  Channels<T, C>* tiles = g + plan.components_out * kWarp;
  Channels<T, C>* x = tiles + warp * (Tangent ? 3 : 2) * tile_size;
  Channels<T, C>*gx = x + tile_size, *ax = gx + tile_size;
  T* matrices = reinterpret_cast<T*>(tiles + kWarps * (Tangent ? 3 : 2) * tile_size);
  T* matrix = matrices + warp * (Tangent ? 3 : 2) * plan.dense;
  T *gm = matrix + plan.dense, *tangent = gm + plan.dense;
  const Tasks tasks = tasks_of(a, a.first_position, a.last_position);
  for (std::int64_t task = tasks.begin + blockIdx.x; task < tasks.end; task += gridDim.x) {
    Positions positions = positions_of(a, task);
    if (positions.begin < a.first_position) positions.begin = a.first_position;
    if (positions.end > a.last_position) positions.end = a.last_position;
    if (positions.begin >= positions.end) continue;
    for (std::int64_t number = 0; number * kWarp * C < plan.widest; ++number) {
      const Tile tile = tile_of<C>(number);
      __syncthreads();  // the tile before has been read
      if (warp == 0)
        load_tile<S, C>(row(a.g, out_row(a, task)), plan.out, plan.out_count, plan.mul_ir, tile.first, lane,
                        g);
      __syncthreads();
      for (std::int64_t at = positions.begin + warp; at < positions.end; at += kWarps) {
        const Edge e = edge_at(a, at);
        load_tile<S, C>(row(a.x, e.x), plan.in1, plan.in1_count, plan.mul_ir, tile.first, lane, x);
        contract(plan, row(a.y, e.y), lane, matrix);
        if constexpr (Tangent) {
          load_tile<S, C>(row_if(a.ax, e.x), plan.in1, plan.in1_count, plan.mul_ir, tile.first, lane, ax);
          contract(plan, row_if(a.ay, e.y), lane, tangent);
        }
        for (int m = 0; m < plan.components1; ++m) gx[m * kWarp + lane] = Channels<T, C>{};
        __syncwarp();

        OwnEdge<S, C, Tangent> own;
        own.x = x + lane;
        own.ax = ax + lane;
        own.g = g + lane;
        own.gx = gx + lane;
        own.matrix = matrix;
        own.tangent = tangent;
        own.gm = gm;
        const std::int64_t weights = weight_row(a, at, e.index);
        own.w = row(a.w, weights);
        own.aw = row_if(a.aw, weights);
        own.gw = row_if(a.gw, gradient_rows(a, at, e).w);
        own.wants_x = static_cast<bool>(row_if(a.gx, 0));
        own.wants_y = a.gy.sums.data;
        for (int n = 0; n < plan.path_count; ++n) {
          const PathTable& p = plan.paths[n];
          for_path_degrees<kUnrolledProducts>(
              p, [&]<int L1, int L3>() { differentiate_path<S, C, Tangent, L1, L3>(p, own, tile); });
        }

        // Read again: kept meanwhile they would take registers.
        const GradientRows to = gradient_rows(a, at, edge_at(a, at));
        if (own.wants_x) {
          for (int n = 0; n < plan.in1_count; ++n)
            store_block<S, C>(gx + plan.in1[n].component * kWarp + lane, plan.in1[n], plan.mul_ir, tile.first,
                              row_if(a.gx, to.x));
        }
        if (own.wants_y) {
          T* gy = row(a.gy.sums, to.y);
          if (number == 0) {
            for (std::int64_t d = lane; d < plan.dim2; d += kWarp) gy[d] = T{};
          }
          __syncwarp();
          for (int n = 0; n < plan.path_count; ++n) {
            const PathTable& p = plan.paths[n];
            for (int m = lane; m < 2 * p.in2.l + 1; m += kWarp) {
              T sum{};
              for (int t = plan.first[p.by_in2 + m]; t < plan.first[p.by_in2 + m + 1]; ++t) {
                const TermTable<T>& term = plan.terms[t];
                sum += term.value * gm[p.dense + term.a * (2 * p.out.l + 1) + term.b];
              }
              gy[p.in2.offset + m] += sum;
            }
          }
        }
        __syncwarp();  // M and gM have been read
      }
    }
  }
}

template <class T, int C>
std::size_t forward_bytes(const PlanTables<T>& plan, bool tangent) {
  const std::size_t copies = tangent ? 2 : 1;
  return kWarps * sizeof(std::int64_t) +
         (plan.components_out + kWarps * copies * plan.components1) * kWarp * sizeof(Channels<T, C>) +
         kWarps * copies * plan.dense * sizeof(T);
}
template <class T, int C>
std::size_t backward_bytes(const PlanTables<T>& plan, bool tangent) {
  const std::size_t copies = tangent ? 3 : 2;
  return (plan.components_out + kWarps * copies * plan.components1) * kWarp * sizeof(Channels<T, C>) +
         kWarps * copies * plan.dense * sizeof(T);
}

// What a block may take: less than any device since sm_80 has, and two of them fit most.
constexpr std::size_t kSharedBytes = 96 << 10;
// Channels a thread where those of 16 bytes take more than that. With two floats the warps that there is room
// for are fewer than with one, but ask for more bytes at a time, and make M and sum over lanes half as often
// (docs/cuda.md). Other types have one, for shorter builds.
template <class S>
constexpr int kFewer = std::is_same_v<S, float> ? 2 : 1;

template <class T>
bool wide(const PlanTables<T>& plan, std::size_t bytes) {
  return plan.widest >= kWarp * kPacked<T> / 2 && bytes <= kSharedBytes;
}

template <class S, int C>
void start_forward(const DeviceProduct<S>& product, bool tangent, std::size_t bytes, void* stream) {
  const unsigned tiles = static_cast<unsigned>((product.plan.widest + kWarp * C - 1) / (kWarp * C));
  launch(tangent ? &channels_forward<S, C, true> : &channels_forward<S, C, false>,
         dim3(blocks_x(forward_tasks(product)), tiles), dim3(kThreads), bytes, stream, product);
}
template <class S, int C>
void start_backward(const DeviceProduct<S>& product, bool tangent, std::size_t bytes, void* stream) {
  launch(tangent ? &channels_backward<S, C, true> : &channels_backward<S, C, false>,
         dim3(blocks_x(backward_tasks(product))), dim3(kThreads), bytes, stream, product);
}

}  // namespace tensor_product_channels_kernels

template <class T>
bool channels_serve_forward(const PlanTables<T>& plan, bool tangent) {
  return plan.channelwise && forward_bytes<T, 1>(plan, tangent) <= kSharedBytes;
}
template <class T>
bool channels_serve_backward(const PlanTables<T>& plan, bool tangent) {
  return plan.channelwise && backward_bytes<T, 1>(plan, tangent) <= kSharedBytes;
}

template <class S>
void launch_channels_forward(const DeviceProduct<S>& product, bool tangent, void* stream) {
  constexpr int C = kPacked<Arithmetic<S>>;
  const std::size_t packed = forward_bytes<Arithmetic<S>, C>(product.plan, tangent),
                    fewer = forward_bytes<Arithmetic<S>, kFewer<S>>(product.plan, tangent),
                    single = forward_bytes<Arithmetic<S>, 1>(product.plan, tangent);
  if (wide(product.plan, packed)) {
    start_forward<S, C>(product, tangent, packed, stream);
  } else if (kFewer<S> > 1 && wide(product.plan, fewer)) {
    start_forward<S, kFewer<S>>(product, tangent, fewer, stream);
  } else {
    start_forward<S, 1>(product, tangent, single, stream);
  }
}
template <class S>
void launch_channels_backward(const DeviceProduct<S>& product, bool tangent, void* stream) {
  constexpr int C = kPacked<Arithmetic<S>>;
  const std::size_t packed = backward_bytes<Arithmetic<S>, C>(product.plan, tangent),
                    fewer = backward_bytes<Arithmetic<S>, kFewer<S>>(product.plan, tangent),
                    single = backward_bytes<Arithmetic<S>, 1>(product.plan, tangent);
  if (wide(product.plan, packed)) {
    start_backward<S, C>(product, tangent, packed, stream);
  } else if (kFewer<S> > 1 && wide(product.plan, fewer)) {
    start_backward<S, kFewer<S>>(product, tangent, fewer, stream);
  } else {
    start_backward<S, 1>(product, tangent, single, stream);
  }
}

template bool channels_serve_forward(const PlanTables<float>&, bool);
template bool channels_serve_forward(const PlanTables<double>&, bool);
template bool channels_serve_backward(const PlanTables<float>&, bool);
template bool channels_serve_backward(const PlanTables<double>&, bool);
template void launch_channels_forward(const DeviceProduct<float>&, bool, void*);
template void launch_channels_forward(const DeviceProduct<double>&, bool, void*);
template void launch_channels_forward(const DeviceProduct<Half>&, bool, void*);
template void launch_channels_forward(const DeviceProduct<BFloat16>&, bool, void*);
template void launch_channels_backward(const DeviceProduct<float>&, bool, void*);
template void launch_channels_backward(const DeviceProduct<double>&, bool, void*);
template void launch_channels_backward(const DeviceProduct<Half>&, bool, void*);
template void launch_channels_backward(const DeviceProduct<BFloat16>&, bool, void*);

}  // namespace clebsch::cuda
