// Symmetric contraction of the channels of nodes: lanes are channels. The formulas are those of
// cpu/symmetric_contraction.inl.h.
//
// A block of threads is one warp, and has a tile of 32 V channels of one node at a time. A thread keeps what
// belongs to its V channels in a column of shared memory: factors, their derivatives, cotangents of products;
// no thread looks into another's column, so nothing has to wait. All threads walk the same tables, which lie
// in the nearest cache, as w_r of the node's species does. V is as many channels as fill 16 bytes, or fewer
// where columns would leave less than four warps to a multiprocessor or blocks would be few: a number of a
// table then meets one channel in the place of four, and the bits of the results are the same. S is the type
// of operands and results; columns, w_r and d/dw_r are of T = Arithmetic<S>.
//
// w_r is made from the weights of all species once for a call. For the gradient of the weights nodes are
// sorted by species; a warp adds up d/dw_r of a chunk of nodes in its columns and writes them where the
// species changes and at the end. A second kernel sums the chunks of each species. No atomics: the order of
// every sum depends on the call alone.
//
// Bytes of a channel, D components of x, W of out, elements of T: forward D + W, backward 2 D + W (x and g
// read, grad_x written), double backward 3 D + 2 W; that is the least, and what is moved, but for w_r: R / C'
// numbers, C' being the nodes of a species that meet in a cache, and for d/dw_r twice R a chunk.
// Multiply-adds are counted in cpu/symmetric_contraction.inl.h: 978 forward and 1,538 backward for MACE's 16
// + 4 numbers, each with a load from shared memory, which decide.
#include <initializer_list>

#include "cuda/device.h"
#include "cuda/device_contraction.h"

namespace clebsch::cuda {
inline namespace symmetric_contraction_kernels {

constexpr int kThreads = 256;  // of the kernels over weights
// Shared memory of a block that leaves four of them to a multiprocessor, and blocks that are enough for one.
constexpr std::size_t kBytesOfFour = 48 << 10;
constexpr std::int64_t kEnoughBlocks = 8;
constexpr std::int64_t kBlocksWithColumns = 512;  // at most, where shared memory is too small

template <class T, int V>
__device__ inline Pack<T, V> all(T value) {
  Pack<T, V> pack;
  CLEBSCH_DEVICE_UNROLL
  for (int i = 0; i < V; ++i) pack[i] = value;
  return pack;
}
template <class T, int V>
__device__ inline void add(Pack<T, V>& sum, const Pack<T, V>& a, const Pack<T, V>& b) {
  CLEBSCH_DEVICE_UNROLL
  for (int i = 0; i < V; ++i) sum[i] += a[i] * b[i];
}
template <class T, int V>
__device__ inline void add(Pack<T, V>& sum, T a, const Pack<T, V>& b) {
  CLEBSCH_DEVICE_UNROLL
  for (int i = 0; i < V; ++i) sum[i] += a * b[i];
}
template <class T, int V>
__device__ inline Pack<T, V> times(const Pack<T, V>& a, const Pack<T, V>& b) {
  Pack<T, V> product;
  CLEBSCH_DEVICE_UNROLL
  for (int i = 0; i < V; ++i) product[i] = a[i] * b[i];
  return product;
}

// Items of a thread's V channels, one for each factor, product, ...
template <class T, int V>
struct Column {
  Pack<T, V>* at;
  __device__ Pack<T, V>& operator[](int item) const { return at[item * kWarp]; }
  __device__ void fill(int items, T value) const {
    for (int i = 0; i < items; ++i) (*this)[i] = all<T, V>(value);
  }
  __device__ void add_to(int item, const Pack<T, V>& a, const Pack<T, V>& b) const {
    Pack<T, V> sum = (*this)[item];
    add(sum, a, b);
    (*this)[item] = sum;
  }
};

// What a step keeps for a channel. Members of a column that a step does not need take no room.
struct Need {
  int factors, tangents, lambda, mu, cotangent, cotangent_tangent, grad, out, sums;
  __host__ __device__ int items() const {
    return factors + tangents + lambda + mu + cotangent + cotangent_tangent + grad + out + sums;
  }
};
template <class S>
__host__ __device__ inline Need need_of(const DeviceContraction<S>& a, ContractionStep step) {
  const ContractionTables<Arithmetic<S>>& p = a.plan;
  Need need{};
  need.factors = p.factors;
  if (step == ContractionStep::forward) {
    need.out = p.out_width;
    return need;
  }
  const bool second = step == ContractionStep::double_backward, x = second && a.ax, w = second && a.a_weight;
  need.grad = p.out_width;
  if (x) need.tangents = p.factors;
  if (a.out) need.out = p.out_width;
  if (a.parts) need.sums = p.rows;
  if (a.grad_x) {
    need.lambda = p.factors;
    if (x) need.mu = p.factors;
    if (x || !second) need.cotangent = p.products;
    if (w) need.cotangent_tangent = p.products;
  }
  return need;
}

// V channels of a node, by one thread.
template <class S, int V>
struct ThreadChannels {
  using T = Arithmetic<S>;
  using P = Pack<T, V>;
  const DeviceContraction<S>& a;
  const ContractionTables<T>& p;
  const std::int64_t first;  // channel
  Column<T, V> q, dq, lambda, mu, cotangent, cotangent_tangent, g, out, sums;

  __device__ ThreadChannels(const DeviceContraction<S>& a_, const Need& need, std::int64_t first_, P* column)
      : a(a_), p(a_.plan), first(first_) {
    const auto next = [&](int items) {
      P* here = column;
      column += items * kWarp;
      return Column<T, V>{here};
    };
    q = next(need.factors);
    dq = next(need.tangents);
    lambda = next(need.lambda);
    mu = next(need.mu);
    cotangent = next(need.cotangent);
    cotangent_tangent = next(need.cotangent_tangent);
    g = next(need.grad);
    out = next(need.out);
    sums = next(need.sums);
  }

  // Components side by side, V channels of them, are as many packs.
  __device__ static void read(const S* row, int width, const Column<T, V>& to) {
    int c = 0, m = 0;
    for (int i = 0; i < width; ++i) {
      const P pack = widened(reinterpret_cast<const Pack<S, V>*>(row)[i]);
      CLEBSCH_DEVICE_UNROLL
      for (int j = 0; j < V; ++j) {
        to[m][c] = pack[j];
        if (++m == width) m = 0, ++c;
      }
    }
  }
  __device__ static void write(const Column<T, V>& from, int width, S* row) {
    int c = 0, m = 0;
    for (int i = 0; i < width; ++i) {
      P pack;
      CLEBSCH_DEVICE_UNROLL
      for (int j = 0; j < V; ++j) {
        pack[j] = from[m][c];
        if (++m == width) m = 0, ++c;
      }
      reinterpret_cast<Pack<S, V>*>(row)[i] = rounded<S>(pack);
    }
  }
  __device__ static Column<T, V> from(const Column<T, V>& column, int item) {
    return {column.at + item * kWarp};
  }
  __device__ std::int64_t row_of_x(std::int64_t node) const {
    return (node * a.channels + first) * p.components;
  }

  __device__ void read_factors(std::int64_t node) const {
    q[0] = all<T, V>(T(1));
    read(a.x + row_of_x(node), p.components, from(q, 1));
    for (int s = 0; s < p.pairs; ++s) q[1 + p.components + s] = times(q[p.pair[2 * s]], q[p.pair[2 * s + 1]]);
  }
  __device__ void read_tangents(std::int64_t node) const {
    dq[0] = P{};
    read(a.ax + row_of_x(node), p.components, from(dq, 1));
    for (int s = 0; s < p.pairs; ++s) {
      const int i = p.pair[2 * s], j = p.pair[2 * s + 1];
      P d = times(dq[i], q[j]);
      add(d, q[i], dq[j]);
      dq[1 + p.components + s] = d;
    }
  }
  __device__ void write_grad_x(std::int64_t node) const {
    write(from(lambda, 1), p.components, a.grad_x + row_of_x(node));
  }

  // f(its first component, width, where it lies in a row of out)
  template <class F>
  __device__ void each_target(std::int64_t node, const F& f) const {
    std::int64_t component = 0;
    for (int t = 0; t < p.targets; ++t) {
      const int width = p.target[t].width;
      f(static_cast<int>(component), width, (node * p.out_width + component) * a.channels + first * width);
      component += width;
    }
  }
  __device__ void read_grad(std::int64_t node) const {
    each_target(node, [&](int component, int width, std::int64_t at) {
      read(a.grad + at, width, from(g, component));
    });
  }
  __device__ void write_out(std::int64_t node) const {
    each_target(node, [&](int component, int width, std::int64_t at) {
      write(from(out, component), width, a.out + at);
    });
  }

  // f(r, its first product, first component of its target, width)
  template <class F>
  __device__ void each_row(const F& f) const {
    int r = 0, product = 0, component = 0;
    for (int t = 0; t < p.targets; ++t) {
      const ContractionTarget target = p.target[t];
      for (int i = 0; i < target.count; ++i, ++r, product += target.width)
        f(r, product, component, target.width);
      component += target.width;
    }
  }
  __device__ P weight(const T* weights, std::int64_t species, int r) const {
    const T* at = weights + (species * p.rows + r) * a.channels + first;
    return *reinterpret_cast<const P*>(at);
  }

  struct Walk {
    int group = 0, entry = 0;
  };
  // The next product, and its tangent.
  template <bool Tangent>
  __device__ P multiply(Walk& walk, int product, P& tangent) const {
    P sum{};
    for (const int end = p.product_end[product]; walk.group < end; ++walk.group) {
      const FactorRun run = p.group[walk.group];
      P part{}, d_part{};
      for (; walk.entry < run.end; ++walk.entry) {
        const WeighedIndex<T> entry = p.entry[walk.entry];
        add(part, entry.value, q[entry.index]);
        if constexpr (Tangent) add(d_part, entry.value, dq[entry.index]);
      }
      const P own = q[run.factor];
      add(sum, own, part);
      if constexpr (Tangent) {
        add(tangent, dq[run.factor], part);
        add(tangent, own, d_part);
      }
    }
    return sum;
  }

  __device__ void forward(std::int64_t node, std::int64_t species) const {
    read_factors(node);
    out.fill(p.out_width, T(0));
    Walk walk;
    each_row([&](int r, int product, int component, int width) {
      const P w = weight(a.weight, species, r);
      for (int m = 0; m < width; ++m) {
        P tangent{};
        out.add_to(component + m, w, multiply<false>(walk, product + m, tangent));
      }
    });
    write_out(node);
  }

  // Products once, for the gradients of g and of the weights. Tangent: there is ax.
  template <bool Tangent, bool Second>
  __device__ void multiply_all(std::int64_t species) const {
    if (Second && a.out) out.fill(p.out_width, T(0));
    Walk walk;
    each_row([&](int r, int product, int component, int width) {
      P w{}, aw{}, sum{};
      if (Second && a.out && Tangent) w = weight(a.weight, species, r);
      if (Second && a.out && a.a_weight) aw = weight(a.a_weight, species, r);
      for (int m = 0; m < width; ++m) {
        P tangent{};
        const P value = multiply<Tangent>(walk, product + m, tangent);
        if (Second && a.out) {
          P to = out[component + m];
          if constexpr (Tangent) add(to, w, tangent);
          if (a.a_weight) add(to, aw, value);
          out[component + m] = to;
        }
        // Of the second derivative, what varies with the weights has a tangent of x.
        if (a.parts && !Second) add(sum, g[component + m], value);
        if (a.parts && Second && Tangent) add(sum, g[component + m], tangent);
      }
      if (a.parts && (Tangent || !Second)) {
        P to = sums[r];
        CLEBSCH_DEVICE_UNROLL
        for (int i = 0; i < V; ++i) to[i] += sum[i];
        sums[r] = to;
      }
    });
  }

  // Q_rM = w_r g_M
  __device__ void weigh(const T* weights, std::int64_t species, const Column<T, V>& to) const {
    each_row([&](int r, int product, int component, int width) {
      const P w = weight(weights, species, r);
      for (int m = 0; m < width; ++m) to[product + m] = times(w, g[component + m]);
    });
  }
  __device__ P term(const Column<T, V>& weighed, int begin, int end) const {
    P c{};
    for (int i = begin; i < end; ++i) {
      const WeighedIndex<T> entry = p.term_entry[i];
      add(c, entry.value, weighed[entry.index]);
    }
    return c;
  }

  // lambda = dF/dq, or, Second, the gradient of F's tangent in q; mu that in dq.
  template <bool Second>
  __device__ void differentiate() const {
    const bool x = !Second || a.ax, weights = Second && a.a_weight;
    lambda.fill(p.factors, T(0));
    if (Second && x) mu.fill(p.factors, T(0));
    int t = 0, begin = 0;
    for (int i = 0; i < p.factors; ++i) {
      const P qa = q[i];
      P l{}, m{}, da{};
      if (Second && x) da = dq[i];
      for (const int last = p.factor_end[i]; t < last; ++t) {
        const FactorRun run = p.term[t];
        const int b = run.factor;
        const P qb = q[b];
        P to_b = lambda[b];
        if (x) {
          const P c = term(cotangent, begin, run.end);
          if constexpr (Second) {
            add(l, c, dq[b]);
            add(m, c, qb);
            add(to_b, c, da);
            mu.add_to(b, c, qa);
          } else {
            add(l, c, qb);
            add(to_b, c, qa);
          }
        }
        if (weights) {
          const P c = term(cotangent_tangent, begin, run.end);
          add(l, c, qb);
          add(to_b, c, qa);
        }
        begin = run.end;
        lambda[b] = to_b;
      }
      lambda.add_to(i, l, all<T, V>(T(1)));
      if (Second && x) mu.add_to(i, m, all<T, V>(T(1)));
    }
    for (int s = p.pairs; s-- > 0;) {
      const int i = p.pair[2 * s], j = p.pair[2 * s + 1], pair = 1 + p.components + s;
      const P l = lambda[pair];
      lambda.add_to(i, l, q[j]);
      lambda.add_to(j, l, q[i]);
      if (Second && x) {
        const P m = mu[pair];
        lambda.add_to(i, m, dq[j]);
        lambda.add_to(j, m, dq[i]);
      }
    }
  }

  __device__ void backward(std::int64_t node, std::int64_t species) const {
    read_factors(node);
    read_grad(node);
    if (a.parts) multiply_all<false, false>(species);
    if (!a.grad_x) return;
    weigh(a.weight, species, cotangent);
    differentiate<false>();
    write_grad_x(node);
  }

  __device__ void double_backward(std::int64_t node, std::int64_t species) const {
    read_factors(node);
    read_grad(node);
    if (a.ax) read_tangents(node);
    if (a.ax && (a.out || a.parts)) multiply_all<true, true>(species);
    if (!a.ax && a.out) multiply_all<false, true>(species);
    if (a.out) write_out(node);
    if (!a.grad_x) return;
    if (a.ax) weigh(a.weight, species, cotangent);
    if (a.a_weight) weigh(a.a_weight, species, cotangent_tangent);
    differentiate<true>();
    write_grad_x(node);
  }

  template <ContractionStep Step>
  __device__ void run(std::int64_t node, std::int64_t species) const {
    if constexpr (Step == ContractionStep::forward) forward(node, species);
    if constexpr (Step == ContractionStep::backward) backward(node, species);
    if constexpr (Step == ContractionStep::double_backward) double_backward(node, species);
  }

  __device__ void clear_sums() const { sums.fill(p.rows, T(0)); }
  __device__ void write_sums(std::int64_t row) const {
    for (int r = 0; r < p.rows; ++r) {
      T* at = a.parts + (row * p.rows + r) * a.channels + first;
      *reinterpret_cast<P*>(at) = sums[r];
    }
  }
};

// Positions are nodes in their places, or sorted by species.
template <class S, int V, bool Shared, ContractionStep Step>
__global__ void __launch_bounds__(kWarp, 1) contract_channels(DeviceContraction<S> a) {
  using T = Arithmetic<S>;
  const Need need = need_of(a, Step);
  Pack<T, V>* columns = dynamic_shared<Pack<T, V>>();
  if constexpr (!Shared)
    columns = reinterpret_cast<Pack<T, V>*>(a.columns) + std::int64_t{blockIdx.x} * need.items() * kWarp;
  constexpr unsigned width = kWarp * V;  // unsigned, the quotient is a shift
  const std::int64_t tiles = (a.channels + width - 1) / width;
  const std::int64_t tasks = (a.nodes + a.chunk - 1) / a.chunk * tiles;
  for (std::int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const std::int64_t chunk = task / tiles, first = (task % tiles * kWarp + threadIdx.x) * V;
    if (first >= a.channels) continue;
    const ThreadChannels<S, V> channels(a, need, first, columns + threadIdx.x);
    const std::int64_t begin = chunk * a.chunk;
    const std::int64_t end = begin + a.chunk < a.nodes ? begin + a.chunk : a.nodes;
    std::int64_t before = -1;
    for (std::int64_t position = begin; position < end; ++position) {
      const std::int64_t node = a.order ? a.order[position] : position, species = a.index[node];
      if (species < 0 || species >= a.species) refuse(Refusal::species, a.species, species, node);
      if (Step != ContractionStep::forward && a.parts && species != before) {
        if (before >= 0) channels.write_sums(chunk + before);
        channels.clear_sums();
        before = species;
      }
      channels.template run<Step>(node, species);
    }
    if (Step != ContractionStep::forward && a.parts) channels.write_sums(chunk + before);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) reduce_weights(ContractionWeights<S, Arithmetic<S>> a) {
  using T = Arithmetic<S>;
  const ContractionTables<T>& p = a.plan;
  each(a.species * p.rows * a.channels, [&](std::int64_t i) {
    const std::int64_t c = i % a.channels, r = i / a.channels % p.rows, z = i / a.channels / p.rows;
    T sum{};
    for (int n = r ? p.row_end[r - 1] : 0; n < p.row_end[r]; ++n)
      sum += p.of_row[n].value * widened(a.from[(z * p.weights + p.of_row[n].index) * a.channels + c]);
    a.to[i] = sum;
  });
}

template <class S>
__global__ void __launch_bounds__(kThreads) spread_weights(ContractionWeights<Arithmetic<S>, S> a) {
  using T = Arithmetic<S>;
  const ContractionTables<T>& p = a.plan;
  each(a.species * p.weights * a.channels, [&](std::int64_t i) {
    const std::int64_t c = i % a.channels, k = i / a.channels % p.weights, z = i / a.channels / p.weights;
    int low = 0, high = p.reductions;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (p.by_weight[middle].weight < k) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    T sum{};
    for (; low < p.reductions && p.by_weight[low].weight == k; ++low)
      sum += p.by_weight[low].value * a.from[(z * p.rows + p.by_weight[low].row) * a.channels + c];
    a.to[i] = rounded<S>(sum);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) species_sums(SpeciesSums<T> a) {
  each(a.species * a.length, [&](std::int64_t i) {
    const std::int64_t z = i / a.length, d = i % a.length;
    const std::int64_t begin = lower_bound(a.sorted, a.nodes, z), end = lower_bound(a.sorted, a.nodes, z + 1);
    T sum{};
    for (std::int64_t chunk = begin / a.chunk; begin < end && chunk <= (end - 1) / a.chunk; ++chunk)
      sum += a.parts[(chunk + z) * a.length + d];
    a.sums[i] = sum;
  });
}

template <class S>
using Kernel = void (*)(DeviceContraction<S>);

template <class S, int V, bool Shared>
Kernel<S> kernel_for(ContractionStep step) {
  if (step == ContractionStep::forward) return &contract_channels<S, V, Shared, ContractionStep::forward>;
  if (step == ContractionStep::backward) return &contract_channels<S, V, Shared, ContractionStep::backward>;
  return &contract_channels<S, V, Shared, ContractionStep::double_backward>;
}

template <class T>
bool aligned(std::initializer_list<const T*> arrays, int width) {
  for (const T* array : arrays) {
    if (reinterpret_cast<std::uintptr_t>(array) % (width * sizeof(T)) != 0) return false;
  }
  return true;
}
template <class S>
bool aligned(const DeviceContraction<S>& a, int width) {
  return a.channels % width == 0 && aligned<S>({a.x, a.ax, a.grad, a.out, a.grad_x}, width) &&
         aligned<Arithmetic<S>>({a.weight, a.a_weight, a.parts}, width);
}

// Numbers of 16 bits have no kernels of two channels: a third less to compile.
template <class S>
constexpr int kNarrower = kShort<S> ? 4 : 2;

}  // namespace symmetric_contraction_kernels

template <class S>
ContractionShape contraction_shape(const DeviceContraction<S>& a, ContractionStep step) {
  using T = Arithmetic<S>;
  const Limits most = limits();
  const std::int64_t items = need_of(a, step).items(), chunks = (a.nodes + a.chunk - 1) / a.chunk;
  for (int width = kPacked<T>; width > 0; width /= kNarrower<S>) {
    const std::int64_t tile = width * std::int64_t{kWarp}, blocks = chunks * ((a.channels + tile - 1) / tile);
    const std::size_t bytes = static_cast<std::size_t>(items * tile) * sizeof(T);
    const bool fits =
        width > 1 ? bytes <= kBytesOfFour && blocks >= kEnoughBlocks * most.processors && aligned(a, width)
                  : bytes <= most.shared;
    if (fits || width == 1)
      return {width, fits || blocks < kBlocksWithColumns ? blocks : kBlocksWithColumns, items * tile, fits};
  }
  return {};
}

template <class S>
void launch_contraction(const DeviceContraction<S>& a, ContractionStep step, const ContractionShape& shape,
                        void* stream) {
  using T = Arithmetic<S>;
  Kernel<S> kernel = nullptr;
  if (!shape.shared) {
    kernel = kernel_for<S, 1, false>(step);
  } else if (shape.width == 1) {
    kernel = kernel_for<S, 1, true>(step);
  } else if (shape.width == kPacked<T>) {
    kernel = kernel_for<S, kPacked<T>, true>(step);
  } else if constexpr (kPacked<T> / kNarrower<S> > 1) {
    kernel = kernel_for<S, kPacked<T> / kNarrower<S>, true>(step);
  }
  launch(kernel, dim3(blocks_x(shape.blocks)), dim3(kWarp),
         shape.shared ? static_cast<std::size_t>(shape.numbers) * sizeof(T) : 0, stream, a);
}

template <class S>
void launch_reduce_weights(const ContractionWeights<S, Arithmetic<S>>& a, void* stream) {
  launch(&reduce_weights<S>, blocks_for(a.species * a.plan.rows * a.channels, kThreads), dim3(kThreads), 0,
         stream, a);
}
template <class S>
void launch_spread_weights(const ContractionWeights<Arithmetic<S>, S>& a, void* stream) {
  launch(&spread_weights<S>, blocks_for(a.species * a.plan.weights * a.channels, kThreads), dim3(kThreads), 0,
         stream, a);
}
template <class T>
void launch_species_sums(const SpeciesSums<T>& a, void* stream) {
  launch(&species_sums<T>, blocks_for(a.species * a.length, kThreads), dim3(kThreads), 0, stream, a);
}

template ContractionShape contraction_shape(const DeviceContraction<float>&, ContractionStep);
template ContractionShape contraction_shape(const DeviceContraction<double>&, ContractionStep);
template ContractionShape contraction_shape(const DeviceContraction<Half>&, ContractionStep);
template ContractionShape contraction_shape(const DeviceContraction<BFloat16>&, ContractionStep);
template void launch_contraction(const DeviceContraction<float>&, ContractionStep, const ContractionShape&,
                                 void*);
template void launch_contraction(const DeviceContraction<double>&, ContractionStep, const ContractionShape&,
                                 void*);
template void launch_contraction(const DeviceContraction<Half>&, ContractionStep, const ContractionShape&,
                                 void*);
template void launch_contraction(const DeviceContraction<BFloat16>&, ContractionStep, const ContractionShape&,
                                 void*);
template void launch_reduce_weights<float>(const ContractionWeights<float, Arithmetic<float>>&, void*);
template void launch_reduce_weights<double>(const ContractionWeights<double, Arithmetic<double>>&, void*);
template void launch_reduce_weights<Half>(const ContractionWeights<Half, Arithmetic<Half>>&, void*);
template void launch_reduce_weights<BFloat16>(const ContractionWeights<BFloat16, Arithmetic<BFloat16>>&,
                                              void*);
template void launch_spread_weights<float>(const ContractionWeights<Arithmetic<float>, float>&, void*);
template void launch_spread_weights<double>(const ContractionWeights<Arithmetic<double>, double>&, void*);
template void launch_spread_weights<Half>(const ContractionWeights<Arithmetic<Half>, Half>&, void*);
template void launch_spread_weights<BFloat16>(const ContractionWeights<Arithmetic<BFloat16>, BFloat16>&,
                                              void*);
template void launch_species_sums(const SpeciesSums<float>&, void*);
template void launch_species_sums(const SpeciesSums<double>&, void*);

}  // namespace clebsch::cuda
