// Products of any connection mode, degree and multiplicity, driven by the tables of the plan. One block of
// threads for a row, or the edges of one receiver; derivatives: for an edge, or some that share weights.
//
// Of a path the pairs of channels (u, v) are taken in the order of their weights, a chunk at a time:
//
//   P_uv = sum of C x_u y_v,   out_w += W_uvw P_uv,   Q_uv = sum_w W_uvw g_w,   gW_uvw = g_w P_uv,
//   gx_u += sum of C y_v Q_uv,   gy_v += sum of C x_u Q_uv
//
// with tangents P' = P(ax, y) + P(x, ay) and Q' = Q(aW). P and Q of a chunk lie in shared memory. Every sum
// has an owner, one thread or, where there are few sums, some lanes side by side: no atomics, and the order
// of the terms depends on the plan alone. Sums over weights that fan out: tensor_product_fan.h.
//
// Bytes: w once (gw once more), 16 a thread where they fan out; x, y, g from the caches, once for each chunk
// and component that needs them; out and the gradients are added to in the caches once for each chunk. Where
// tensor_product_channels.cu serves a plan it moves less.
#include "cuda/device.h"
#include "cuda/device_product.h"
#include "cuda/edges.h"
#include "cuda/tensor_product_fan.h"

namespace clebsch::cuda {
inline namespace tensor_product_rows_kernels {

constexpr int kThreads = kWarp * kForwardWarps;
// Blocks of threads for whose registers a multiprocessor must have room: the compiler, left to itself, aims
// at more and spills.
constexpr int kForwardBlocks = 4;
constexpr int kBackwardBlocks = 3;
constexpr int kPairValues = 1024;  // components of pairs in a chunk, or those of one pair

struct ComponentIndex {
  std::int64_t offset;
  int channel, component;
  __device__ ComponentIndex(const BlockTable& b, bool mul_ir)
      : offset(b.offset), channel(mul_ir ? 2 * b.l + 1 : 1), component(mul_ir ? 1 : b.mul) {}
  __device__ std::int64_t operator()(std::int64_t u, int m) const {
    return offset + u * channel + std::int64_t{m} * component;
  }
};

// Pairs of channels of a path by their number.
struct Pairs {
  Mode mode;
  std::int64_t mul1, mul2;

  __device__ explicit Pairs(const PathTable& p) : mode(p.mode), mul1(p.in1.mul), mul2(p.in2.mul) {}
  __device__ bool diagonal() const { return mode == Mode::uuw || mode == Mode::uuu; }
  __device__ bool triangle() const { return mode == Mode::uvu_triangle || mode == Mode::triangle_w; }
  // Pairs of smaller u.
  __device__ std::int64_t before(std::int64_t u) const {
    return diagonal() ? u : triangle() ? u * (2 * mul2 - u - 1) / 2 : u * mul2;
  }
  __device__ std::int64_t u_of(std::int64_t n) const {
    if (diagonal() || (!triangle() && mul2 == 1)) return n;
    if (!triangle()) return n / mul2;
    const double b = 2.0 * static_cast<double>(mul2) - 1;
    std::int64_t u = static_cast<std::int64_t>((b - sqrt(b * b - 8.0 * static_cast<double>(n))) / 2);
    while (before(u) > n) --u;  // where the root was rounded
    while (before(u + 1) <= n) ++u;
    return u;
  }
  __device__ std::int64_t v_of(std::int64_t n, std::int64_t u) const {
    return diagonal() ? n : n - before(u) + (triangle() ? u + 1 : 0);
  }
  __device__ std::int64_t number(std::int64_t u, std::int64_t v) const {
    return diagonal() ? u : before(u) + v - (triangle() ? u + 1 : 0);
  }
  // The output channel of a pair that reaches one.
  __device__ std::int64_t output(std::int64_t n) const {
    return mode == Mode::uvu ? n / mul2 : mode == Mode::uvv ? n % mul2 : n;
  }
};

// Numbers first, first + step, ... below end.
struct Series {
  std::int64_t first, step, end;
};

__device__ inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
__device__ inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Of the pairs [n0, n1): those of the channel u of x.
__device__ inline Series pairs_of_u(const Pairs& pairs, std::int64_t u, std::int64_t n0, std::int64_t n1) {
  return {larger(n0, pairs.before(u)), 1, smaller(n1, pairs.before(u + 1))};
}
__device__ inline Series multiples(std::int64_t residue, std::int64_t modulus, std::int64_t n0,
                                   std::int64_t n1) {
  const std::int64_t first = n0 + (residue - n0 % modulus + modulus) % modulus;
  return {first, modulus, n1};
}
// Those that reach output channel o, where a pair reaches one.
__device__ inline Series pairs_of_output(const Pairs& pairs, std::int64_t o, std::int64_t n0,
                                         std::int64_t n1) {
  if (pairs.mode == Mode::uvu) return pairs_of_u(pairs, o, n0, n1);
  if (pairs.mode == Mode::uvv) return multiples(o, pairs.mul2, n0, n1);
  return {o, 1, o + 1};
}

// put(i, sum of terms(i, part, parts)) for i < tasks, each part in a lane of its own where tasks are few:
// terms takes every `parts`th of its terms from number `part` on. All threads must call it.
template <class T, class Terms, class Put>
__device__ inline void sum_parts(std::int64_t tasks, const Terms& terms, const Put& put) {
  int parts = 1;
  while (parts < kWarp && tasks * parts < kThreads) parts *= 2;
  const int part = static_cast<int>(threadIdx.x) % parts;
  for (std::int64_t base = 0; base < tasks; base += kThreads / parts) {
    const std::int64_t i = base + static_cast<int>(threadIdx.x) / parts;
    T sum = i < tasks ? terms(i, part, parts) : T{};
    for (int offset = parts / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (part == 0 && i < tasks) put(i, sum);
  }
}

// f<2 l + 1>() where that degree is known when compiling; else false.
template <int L = 0, class F>
__device__ __forceinline__ bool for_degree(int l, const F& f) {
  if constexpr (L > kUnrolledProducts) {
    return false;
  } else if (l == L) {
    f.template operator()<2 * L + 1>();
    return true;
  } else {
    return for_degree<L + 1>(l, f);
  }
}

template <class S>
struct Operands {
  const S *x, *y, *w, *g, *ax, *ay, *aw;  // rows; null: zero
};
template <class S>
__device__ inline Operands<S> operands_of(const DeviceProduct<S>& a, std::int64_t position, const Edge& e,
                                          std::int64_t task) {
  const std::int64_t weights = weight_row(a, position, e.index);
  return {row(a.x, e.x),     row(a.y, e.y),     row(a.w, weights),    row_if(a.g, out_row(a, task)),
          row_if(a.ax, e.x), row_if(a.ay, e.y), row_if(a.aw, weights)};
}

// One path and a chunk of its pairs.
template <class S, bool Tangent>
struct Chunk {
  using T = Arithmetic<S>;
  const PlanTables<T>& plan;
  const PathTable& p;
  const Operands<S> a;
  Pairs pairs;
  ComponentIndex at1, at2, at_out;
  int inputs, others, outputs;  // components of x, y and the output
  std::int64_t n0, n1, fan;

  __device__ Chunk(const PlanTables<T>& plan_, const PathTable& path, const Operands<S>& operands,
                   std::int64_t begin)
      : plan(plan_),
        p(path),
        a(operands),
        pairs(path),
        at1(path.in1, plan_.mul_ir),
        at2(path.in2, plan_.mul_ir),
        at_out(path.out, plan_.mul_ir),
        inputs(2 * path.in1.l + 1),
        others(2 * path.in2.l + 1),
        outputs(2 * path.out.l + 1),
        n0(begin),
        fan(path.fan) {
    n1 = smaller(path.pairs, n0 + size(path));
  }
  static __device__ std::int64_t size(const PathTable& path) { return kPairValues / (2 * path.out.l + 1); }

  __device__ T weight(std::int64_t i) const { return p.weighted ? widened(a.w[p.weight + i]) : T{1}; }
  __device__ T weight_tangent(std::int64_t i) const {
    return p.weighted && a.aw ? widened(a.aw[p.weight + i]) : T{};
  }

  // sum of C first[a] second[b] over the terms of a component.
  template <class Second>
  __device__ T contract(int row, const S* first, std::int64_t first_step, const Second* second,
                        std::int64_t second_step) const {
    T sum{};
    for (int t = plan.first[row]; t < plan.first[row + 1]; ++t) {
      const TermTable<T>& term = plan.terms[t];
      sum += term.value * widened(first[term.a * first_step]) * widened(second[term.b * second_step]);
    }
    return sum;
  }

  // P, and with tangents P'.
  __device__ void couple(T* value, T* tangent) const {
    for (std::int64_t i = threadIdx.x; i < (n1 - n0) * outputs; i += kThreads) {
      const std::int64_t n = n0 + i / outputs, u = pairs.u_of(n), v = pairs.v_of(n, u);
      const int row = p.by_out + static_cast<int>(i % outputs);
      const std::int64_t of_x = at1(u, 0), of_y = at2(v, 0);
      value[i] = contract(row, a.x + of_x, at1.component, a.y + of_y, at2.component);
      if constexpr (Tangent) {
        T sum{};
        if (a.ax) sum += contract(row, a.ax + of_x, at1.component, a.y + of_y, at2.component);
        if (a.ay) sum += contract(row, a.x + of_x, at1.component, a.ay + of_y, at2.component);
        tangent[i] = sum;
      }
    }
  }

  __device__ Fan<S> spread() const {
    return {p.weighted ? a.w : nullptr, p.weighted ? a.aw : nullptr, p.weight + n0 * fan, p.out.mul,
            static_cast<int>(n1 - n0)};
  }

  // Q, and with tangents Q'.
  __device__ void collect(T* q, T* q_tangent) const {
    for (std::int64_t i = threadIdx.x; i < (n1 - n0) * outputs; i += kThreads) {
      const std::int64_t n = n0 + i / outputs;
      const int k = static_cast<int>(i % outputs);
      T sum{}, sum_tangent{};
      if (fan) {
        for (std::int64_t w = 0; w < fan; ++w) {
          const T g = widened(a.g[at_out(w, k)]);
          sum += weight(n * fan + w) * g;
          if constexpr (Tangent) sum_tangent += weight_tangent(n * fan + w) * g;
        }
      } else {
        const T g = widened(a.g[at_out(pairs.output(n), k)]);
        sum = weight(n) * g;
        if constexpr (Tangent) sum_tangent = weight_tangent(n) * g;
      }
      q[i] = sum;
      if constexpr (Tangent) q_tangent[i] = sum_tangent;
    }
  }

  // out += W P, with tangents W P' + aW P.
  __device__ void add_output(const T* value, const T* tangent, T* scratch, T* out) const {
    if (fan && for_degree(p.out.l, [&]<int K>() {
          add_fan<S, Tangent, K>(spread(), value, tangent, scratch,
                                 [&](int w, int k) -> T& { return out[at_out(w, k)]; });
        }))
      return;
    const std::int64_t first = fan ? 0 : pairs.mode == Mode::uvv ? 0 : pairs.output(n0);
    const std::int64_t last = fan ? fan : pairs.mode == Mode::uvv ? pairs.mul2 : pairs.output(n1 - 1) + 1;
    const auto terms = [&](std::int64_t i, int part, int parts) {
      const std::int64_t o = first + i / outputs;
      const int k = static_cast<int>(i % outputs);
      const Series those = fan ? Series{n0, 1, n1} : pairs_of_output(pairs, o, n0, n1);
      T sum{};
      for (std::int64_t n = those.first + part * those.step; n < those.end; n += parts * those.step) {
        const std::int64_t at = (n - n0) * outputs + k, number = fan ? n * fan + o : n;
        if constexpr (Tangent) {
          sum += weight(number) * tangent[at] + weight_tangent(number) * value[at];
        } else {
          sum += weight(number) * value[at];
        }
      }
      return sum;
    };
    sum_parts<T>((last - first) * outputs, terms, [&](std::int64_t i, T sum) {
      out[at_out(first + i / outputs, static_cast<int>(i % outputs))] += sum;
    });
  }

  // gW = g P, with tangents g P'. Each weight has one pair.
  __device__ void put_weights(const T* value, const Result<S>& gw) const {
    const std::int64_t each = fan ? fan : 1;
    for (std::int64_t i = threadIdx.x; i < (n1 - n0) * each; i += kThreads) {
      const std::int64_t n = n0 + i / each, o = fan ? i % each : pairs.output(n);
      const T* from = value + (n - n0) * outputs;
      T sum{};
      for (int k = 0; k < outputs; ++k) sum += widened(a.g[at_out(o, k)]) * from[k];
      gw.put(p.weight + n * each + (fan ? o : 0), sum);
    }
  }

  // Q and Q' unless q is null; gW of P, with tangents of P', if it is wanted.
  __device__ void use_weights(const T* value, T* q, T* q_tangent, const Result<S>& gw) const {
    if (fan && for_degree(p.out.l, [&]<int K>() {
          differentiate_fan<S, Tangent, K>(
              spread(), [&](int w, int k) { return widened(a.g[at_out(w, k)]); }, value, q, q_tangent, gw);
        }))
      return;
    if (q) collect(q, q_tangent);
    if (gw) put_weights(value, gw);
  }

  // gx_u += C y Q, with tangents C y Q' + C ay Q.
  __device__ void add_x(const T* q, const T* q_tangent, T* gx) const {
    const std::int64_t first = pairs.u_of(n0), last = pairs.u_of(n1 - 1) + 1;
    const auto terms = [&](std::int64_t i, int part, int parts) {
      const std::int64_t u = first + i / inputs;
      const int m = static_cast<int>(i % inputs);
      const Series those = pairs_of_u(pairs, u, n0, n1);
      T sum{};
      for (std::int64_t n = those.first + part; n < those.end; n += parts) {
        const std::int64_t of_y = at2(pairs.v_of(n, u), 0), at = (n - n0) * outputs;
        sum += contract(p.by_in1 + m, a.y + of_y, at2.component, (Tangent ? q_tangent : q) + at, 1);
        if constexpr (Tangent) {
          if (a.ay) sum += contract(p.by_in1 + m, a.ay + of_y, at2.component, q + at, 1);
        }
      }
      return sum;
    };
    sum_parts<T>((last - first) * inputs, terms, [&](std::int64_t i, T sum) {
      gx[at1(first + i / inputs, static_cast<int>(i % inputs))] += sum;
    });
  }

  // gy_v += C x Q, with tangents C x Q' + C ax Q.
  __device__ void add_y(const T* q, const T* q_tangent, T* gy) const {
    const std::int64_t u0 = pairs.u_of(n0), u1 = pairs.u_of(n1 - 1);
    const std::int64_t first = pairs.diagonal() ? n0 : 0, last = pairs.diagonal() ? n1 : pairs.mul2;
    const auto terms = [&](std::int64_t i, int part, int parts) {
      const std::int64_t v = first + i / others;
      const int m = static_cast<int>(i % others);
      T sum{};
      for (std::int64_t u = (pairs.diagonal() ? v : u0) + part; u <= (pairs.diagonal() ? v : u1);
           u += parts) {
        if (pairs.triangle() && u >= v) break;
        const std::int64_t n = pairs.number(u, v);
        if (n < n0 || n >= n1) continue;
        const std::int64_t of_x = at1(u, 0), at = (n - n0) * outputs;
        sum += contract(p.by_in2 + m, a.x + of_x, at1.component, (Tangent ? q_tangent : q) + at, 1);
        if constexpr (Tangent) {
          if (a.ax) sum += contract(p.by_in2 + m, a.ax + of_x, at1.component, q + at, 1);
        }
      }
      return sum;
    };
    sum_parts<T>((last - first) * others, terms, [&](std::int64_t i, T sum) {
      gy[at2(first + i / others, static_cast<int>(i % others))] += sum;
    });
  }
};

template <class T>
__device__ inline void clear(T* row, std::int64_t length) {
  for (std::int64_t d = threadIdx.x; d < length; d += kThreads) row[d] = T{};
}

template <class S, bool Tangent>
__global__ void __launch_bounds__(kThreads, kForwardBlocks) rows_forward(DeviceProduct<S> a) {
  using T = Arithmetic<S>;
  T *value = dynamic_shared<T>(), *tangent = value + kPairValues,
    *scratch = value + (Tangent ? 2 : 1) * kPairValues;
  const Tasks tasks = forward_tasks_of(a);
  for (std::int64_t task = tasks.begin + blockIdx.x; task < tasks.end; task += gridDim.x) {
    // Found again for each chunk: kept meanwhile it would take registers.
    const auto out = [&] { return row(a.out.sums, out_row(a, task)); };
    if (!adds(a)) clear(out(), a.plan.dim_out);
    const Positions positions = positions_of(a, task);
    for (std::int64_t at = positions.begin; at < positions.end; ++at) {
      const Operands<S> operands = operands_of(a, at, edge_at(a, at), task);
      for (int n = 0; n < a.plan.path_count; ++n) {
        const PathTable& p = a.plan.paths[n];
        for (std::int64_t begin = 0; begin < p.pairs; begin += Chunk<S, Tangent>::size(p)) {
          const Chunk<S, Tangent> chunk(a.plan, p, operands, begin);
          __syncthreads();  // the chunk before has been read
          chunk.couple(value, tangent);
          __syncthreads();
          chunk.add_output(value, tangent, scratch, out());
        }
      }
    }
  }
}

// One position; gw is added to what the positions before it gave to the same row. What belongs to it is found
// again after each barrier: kept meanwhile it would take registers.
template <class S, bool Tangent, class T = Arithmetic<S>>
__device__ inline void differentiate(const DeviceProduct<S>& a, std::int64_t at, bool add, T* value, T* q,
                                     T* tangent, T* q_tangent) {
  const auto rows_of = [&] { return gradient_rows(a, at, edge_at(a, at)); };
  const auto gx = [&] { return row_if(a.gx.sums, rows_of().x); };
  const auto gy = [&] { return row_if(a.gy.sums, rows_of().y); };
  const bool wants_x = a.gx.sums.data, wants_y = a.gy.sums.data, wants_w = static_cast<bool>(row_if(a.gw, 0));
  if (wants_x) clear(gx(), a.plan.dim1);
  if (wants_y) clear(gy(), a.plan.dim2);
  for (int n = 0; n < a.plan.path_count; ++n) {
    const PathTable& p = a.plan.paths[n];
    for (std::int64_t begin = 0; begin < p.pairs; begin += Chunk<S, Tangent>::size(p)) {
      const auto chunk = [&] {
        return Chunk<S, Tangent>(a.plan, p, operands_of(a, at, edge_at(a, at), task_at(a, at)), begin);
      };
      __syncthreads();  // the chunk before has been read
      if (wants_w && p.weighted) chunk().couple(value, tangent);
      __syncthreads();
      Result<S> gw{};
      if (p.weighted) gw = row_if(a.gw, rows_of().w);
      gw.add = add;
      chunk().use_weights(Tangent ? tangent : value, wants_x || wants_y ? q : nullptr, q_tangent, gw);
      __syncthreads();
      if (wants_x) chunk().add_x(q, q_tangent, gx());
      if (wants_y) chunk().add_y(q, q_tangent, gy());
    }
  }
}

template <class S, bool Tangent>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks) rows_backward(DeviceProduct<S> a) {
  using T = Arithmetic<S>;
  T *value = dynamic_shared<T>(), *q = value + kPairValues, *tangent = q + kPairValues,
    *q_tangent = tangent + kPairValues;
  const std::int64_t positions = a.last_position - a.first_position, group = a.positions_of_gw;
  for (std::int64_t first = blockIdx.x * group; first < positions; first += gridDim.x * group) {
    const std::int64_t last = smaller(first + group, positions);
    for (std::int64_t at = first; at < last; ++at)
      differentiate<S, Tangent>(a, a.first_position + at, at > first, value, q, tangent, q_tangent);
  }
}

}  // namespace tensor_product_rows_kernels

// As few as leave a device enough blocks. What a block adds up stays in the caches, and is not written for
// each.
std::int64_t rows_positions_of_gw(std::int64_t positions) {
  const std::int64_t each = positions / most_blocks(2048);
  return each < 1 ? 1 : each > 32 ? 32 : each;
}

template <class S>
void launch_rows_forward(const DeviceProduct<S>& product, bool tangent, void* stream) {
  using T = Arithmetic<S>;
  const int scratch = product.plan.fans ? kFanValues<T, kUnrolledProducts> : 0;
  launch(tangent ? &rows_forward<S, true> : &rows_forward<S, false>, dim3(blocks_x(forward_tasks(product))),
         dim3(kThreads), ((tangent ? 2 : 1) * kPairValues + scratch) * sizeof(T), stream, product);
}
template <class S>
void launch_rows_backward(const DeviceProduct<S>& product, bool tangent, void* stream) {
  const std::int64_t positions = product.last_position - product.first_position,
                     groups = (positions + product.positions_of_gw - 1) / product.positions_of_gw;
  launch(tangent ? &rows_backward<S, true> : &rows_backward<S, false>, dim3(blocks_x(groups)), dim3(kThreads),
         (tangent ? 4 : 2) * kPairValues * sizeof(Arithmetic<S>), stream, product);
}

template void launch_rows_forward(const DeviceProduct<float>&, bool, void*);
template void launch_rows_forward(const DeviceProduct<double>&, bool, void*);
template void launch_rows_forward(const DeviceProduct<Half>&, bool, void*);
template void launch_rows_forward(const DeviceProduct<BFloat16>&, bool, void*);
template void launch_rows_backward(const DeviceProduct<float>&, bool, void*);
template void launch_rows_backward(const DeviceProduct<double>&, bool, void*);
template void launch_rows_backward(const DeviceProduct<Half>&, bool, void*);
template void launch_rows_backward(const DeviceProduct<BFloat16>&, bool, void*);

}  // namespace clebsch::cuda
