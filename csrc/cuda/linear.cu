// Linear layers: matrix products of the copies of irreps, for rows where they lie, each through the matrices
// of its element.
//
// mix_rows: the rows of a product are pairs (row, component), so components innermost need no copy. A block
// of 256 threads has a tile of 64 pairs and 64 columns of one target, 16 numbers a thread, and adds all terms
// of the target to it. With an index positions are sorted by element; a tile in which several meet takes one
// after the other, the pairs of others as zeros. weight_parts: x^T g, a tile of 64 x 64 weights of one term
// and a chunk of positions, written where the element changes; weight_sums adds the chunks. No atomics: the
// order of every sum depends on the call alone.
//
// Bytes: of rows the tiles of columns (of a target; for weights, of both sides) read them again, from the
// second cache where they fit; weights are read once for 64 pairs. Flops are those of the products. float32
// and float64 arithmetic, no tensor cores; each number in shared memory meets four in registers.
#include "cuda/device.h"
#include "cuda/device_linear.h"
#include "cuda/linear_tiles.h"

namespace clebsch::cuda {
inline namespace linear_kernels {

constexpr int kTile = kLinearTile, kDepth = kLinearDepth, kThreads = 256;
constexpr int kLine = kTile + 4;  // of a tile in shared memory: neighbours in depth meet other banks
constexpr int kOwn = 4;           // numbers of a thread, each way

template <class T>
struct Products {
  T sum[kOwn][kOwn];
  int row, column;  // first of this thread

  __device__ Products()
      : sum{},
        row(static_cast<int>(threadIdx.x) / (kTile / kOwn) * kOwn),
        column(static_cast<int>(threadIdx.x) % (kTile / kOwn) * kOwn) {}

  __device__ static void load(const T* from, T* to) {
    constexpr int n = kPacked<T>;
    CLEBSCH_DEVICE_UNROLL
    for (int i = 0; i < kOwn; i += n) {
      const Pack<T, n> pack = *reinterpret_cast<const Pack<T, n>*>(from + i);
      CLEBSCH_DEVICE_UNROLL
      for (int j = 0; j < n; ++j) to[i + j] = pack[j];
    }
  }
  // sum += a^T b over kDepth lines.
  __device__ void add(const T* a, const T* b) {
    for (int k = 0; k < kDepth; ++k) {
      T own[kOwn], other[kOwn];
      load(a + k * kLine + row, own);
      load(b + k * kLine + column, other);
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        CLEBSCH_DEVICE_UNROLL
        for (int j = 0; j < kOwn; ++j) sum[i][j] += own[i] * other[j];
      }
    }
  }
};

// to[k][i] = value(k, i), threads side by side along k or along i.
template <class T, class F>
__device__ inline void fill(T* to, bool along_depth, const F& value) {
  CLEBSCH_DEVICE_UNROLL
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kDepth; e += kThreads) {
    const int k = along_depth ? e % kDepth : e / kTile, i = along_depth ? e / kDepth : e % kTile;
    to[k * kLine + i] = value(k, i);
  }
}

struct Pair {
  std::int64_t row, element;  // row -1: none
  int component;
};
template <class T>
struct Space {
  T *a, *b;
  Pair* pairs;
  __device__ Space() {
    a = dynamic_shared<T>();
    b = a + kDepth * kLine;
    pairs = reinterpret_cast<Pair*>(b + kDepth * kLine);
  }
};
template <class T>
constexpr std::size_t kSpaceBytes = 2 * kDepth * kLine * sizeof(T) + kTile * sizeof(Pair);

template <class T>
__device__ inline Pair pair_at(const DeviceLinear<T>& a, std::int64_t pair, std::int64_t end,
                               int components) {
  if (pair >= end) return {-1, -1, 0};
  const std::int64_t position = pair / components, row = a.order ? a.order[position] : position;
  const std::int64_t element = a.index ? a.index[row] : 0;
  if (element < 0 || element >= a.elements) refuse(Refusal::element, a.elements, element, row);
  return {row, element, static_cast<int>(pair % components)};
}
// Copy u, component m of a block of `mul` copies.
__device__ inline std::int64_t at(bool mul_ir, int components, int mul, int u, int m) {
  return mul_ir ? std::int64_t{u} * components + m : std::int64_t{m} * mul + u;
}

template <class T>
__device__ void mix_tile(const DeviceLinear<T>& a, const LinearTargetTable& target, std::int64_t first_pair,
                         int first_column) {
  const Space<T> space;
  const int components = 2 * target.l + 1;
  const bool mul_ir = a.tables.mul_ir, along_copies = !mul_ir || components == 1;
  const std::int64_t end = a.rows * components;
  __syncthreads();  // the tile before has been read
  if (threadIdx.x < kTile) space.pairs[threadIdx.x] = pair_at(a, first_pair + threadIdx.x, end, components);
  __syncthreads();
  Products<T> products;
  for (int begin = 0; begin < kTile && space.pairs[begin].row >= 0;) {
    const std::int64_t element = space.pairs[begin].element;
    for (int n = target.first; n < target.last; ++n) {
      const LinearTermTable& term = a.tables.terms[n];
      const T scale = static_cast<T>(term.scale);
      for (int u = 0; u < term.mul; u += kDepth) {
        __syncthreads();
        fill(space.a, along_copies, [&](int k, int i) {
          const Pair pair = space.pairs[i];
          if (u + k >= term.mul || pair.row < 0 || pair.element != element) return T{};
          return scale * a.source.data[pair.row * a.source.stride + term.offset +
                                       at(mul_ir, components, term.mul, u + k, pair.component)];
        });
        fill(space.b, term.step_w != 1, [&](int k, int j) {
          if (u + k >= term.mul || first_column + j >= target.mul) return T{};
          return a.weight[term.weight + (u + k) * term.step_u + element * term.step_v +
                          (first_column + j) * term.step_w];
        });
        __syncthreads();
        products.add(space.a, space.b);
      }
    }
    while (begin < kTile && space.pairs[begin].row >= 0 && space.pairs[begin].element == element) ++begin;
  }
  for (int i = 0; i < kOwn; ++i) {
    const Pair pair = space.pairs[products.row + i];
    for (int j = 0; j < kOwn && pair.row >= 0; ++j) {
      const int w = first_column + products.column + j;
      if (w >= target.mul) continue;
      T value = products.sum[i][j];
      if (target.bias >= 0) value += a.bias.data[pair.row * a.bias.stride + target.bias + w];
      a.target.data[pair.row * a.target.stride + target.offset +
                    at(mul_ir, components, target.mul, w, pair.component)] = value;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) mix_rows(DeviceLinear<T> a) {
  for (std::int64_t tile = blockIdx.y; tile < a.tables.tiles; tile += gridDim.y) {
    int t = 0;
    while (t + 1 < a.tables.target_count && a.tables.targets[t + 1].tile <= tile) ++t;
    const LinearTargetTable& target = a.tables.targets[t];
    const std::int64_t pairs = a.rows * (2 * target.l + 1);
    for (std::int64_t p = std::int64_t{blockIdx.x} * kTile; p < pairs; p += std::int64_t{gridDim.x} * kTile)
      mix_tile(a, target, p, static_cast<int>(tile - target.tile) * kTile);
  }
}

// Pairs [begin, end) of one element.
template <class T>
__device__ void weigh_pairs(const LinearWeightSums<T>& sums, const LinearTargetTable& target,
                            const LinearTermTable& term, std::int64_t begin, std::int64_t end, int first_u,
                            int first_w, Products<T>& products) {
  const DeviceLinear<T>& a = sums.linear;
  const Space<T> space;
  const int components = 2 * target.l + 1;
  const bool mul_ir = a.tables.mul_ir;
  for (std::int64_t p = begin; p < end; p += kDepth) {
    // Before the last barrier of the round before, all had read their pairs; before the next, all of a and b.
    if (threadIdx.x < kDepth) space.pairs[threadIdx.x] = pair_at(a, p + threadIdx.x, end, components);
    __syncthreads();
    fill(space.a, false, [&](int k, int i) {
      const Pair pair = space.pairs[k];
      if (pair.row < 0 || first_u + i >= term.mul) return T{};
      return a.source.data[pair.row * a.source.stride + term.offset +
                           at(mul_ir, components, term.mul, first_u + i, pair.component)];
    });
    fill(space.b, false, [&](int k, int j) {
      const Pair pair = space.pairs[k];
      if (pair.row < 0 || first_w + j >= target.mul) return T{};
      return sums.g.data[pair.row * sums.g.stride + target.offset +
                         at(mul_ir, components, target.mul, first_w + j, pair.component)];
    });
    __syncthreads();
    products.add(space.a, space.b);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) weight_parts(LinearWeightSums<T> sums) {
  const DeviceLinear<T>& a = sums.linear;
  for (std::int64_t tile = blockIdx.y; tile < a.tables.weight_tiles; tile += gridDim.y) {
    int t = 0, n = 0;
    while (n + 1 < a.tables.term_count && a.tables.terms[n + 1].tile <= tile) ++n;
    while (a.tables.targets[t].last <= n) ++t;
    const LinearTargetTable& target = a.tables.targets[t];
    const LinearTermTable& term = a.tables.terms[n];
    const int across = (target.mul + kTile - 1) / kTile, own = static_cast<int>(tile - term.tile);
    const int first_u = own / across * kTile, first_w = own % across * kTile, components = 2 * target.l + 1;
    for (std::int64_t chunk = blockIdx.x; chunk * sums.chunk < a.rows; chunk += gridDim.x) {
      const std::int64_t last = (chunk + 1) * sums.chunk < a.rows ? (chunk + 1) * sums.chunk : a.rows;
      for (std::int64_t begin = chunk * sums.chunk; begin < last;) {
        const std::int64_t element = sums.sorted ? sums.sorted[begin] : 0;
        if (element < 0 || element >= a.elements)
          refuse(Refusal::element, a.elements, element, a.order ? a.order[begin] : begin);
        const std::int64_t end =
            sums.sorted ? begin + lower_bound(sums.sorted + begin, last - begin, element + 1) : last;
        Products<T> products;
        weigh_pairs(sums, target, term, begin * components, end * components, first_u, first_w, products);
        T* part = sums.parts + (chunk + element) * sums.numel + term.one;
        for (int i = 0; i < kOwn; ++i) {
          for (int j = 0; j < kOwn; ++j) {
            const int u = first_u + products.row + i, w = first_w + products.column + j;
            if (u < term.mul && w < target.mul)
              part[std::int64_t{u} * target.mul + w] = static_cast<T>(term.scale) * products.sum[i][j];
          }
        }
        begin = end;
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) weight_sums(LinearWeightSums<T> sums) {
  const DeviceLinear<T>& a = sums.linear;
  each(sums.numel * a.elements, [&](std::int64_t i) {
    const std::int64_t element = i / sums.numel, one = i % sums.numel;
    const std::int64_t begin = sums.sorted ? lower_bound(sums.sorted, a.rows, element) : 0;
    const std::int64_t end = sums.sorted ? lower_bound(sums.sorted, a.rows, element + 1) : a.rows;
    T sum{};
    for (std::int64_t chunk = begin / sums.chunk; begin < end && chunk <= (end - 1) / sums.chunk; ++chunk)
      sum += sums.parts[(chunk + element) * sums.numel + one];
    // From (u, w) of one element to (u, element, w).
    for (int n = 0; n < a.tables.term_count; ++n) {
      const LinearTermTable& term = a.tables.terms[n];
      const std::int64_t own = one - term.one;
      if (own >= 0 && own < std::int64_t{term.mul} * term.mul_out) {
        const std::int64_t u = own / term.mul_out, w = own % term.mul_out;
        sums.grad_weight[term.weight + u * term.step_u + element * term.step_v + w] = sum;
        return;
      }
    }
  });
}

}  // namespace linear_kernels

template <class T>
void launch_mix_rows(const DeviceLinear<T>& a, void* stream) {
  const std::int64_t pairs = a.rows * a.tables.widest;
  launch(&mix_rows<T>, dim3(blocks_x((pairs + kTile - 1) / kTile), blocks_y(a.tables.tiles)), dim3(kThreads),
         kSpaceBytes<T>, stream, a);
}
template <class T>
void launch_weight_parts(const LinearWeightSums<T>& sums, void* stream) {
  const std::int64_t chunks = (sums.linear.rows + sums.chunk - 1) / sums.chunk;
  launch(&weight_parts<T>, dim3(blocks_x(chunks), blocks_y(sums.linear.tables.weight_tiles)), dim3(kThreads),
         kSpaceBytes<T>, stream, sums);
}
template <class T>
void launch_weight_sums(const LinearWeightSums<T>& sums, void* stream) {
  launch(&weight_sums<T>, blocks_for(sums.numel * sums.linear.elements, kThreads), dim3(kThreads), 0, stream,
         sums);
}

template void launch_mix_rows(const DeviceLinear<float>&, void*);
template void launch_mix_rows(const DeviceLinear<double>&, void*);
template void launch_weight_parts(const LinearWeightSums<float>&, void*);
template void launch_weight_parts(const LinearWeightSums<double>&, void*);
template void launch_weight_sums(const LinearWeightSums<float>&, void*);
template void launch_weight_sums(const LinearWeightSums<double>&, void*);

}  // namespace clebsch::cuda
