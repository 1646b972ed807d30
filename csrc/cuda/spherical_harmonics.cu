// Real spherical harmonics and their first and second derivatives: a thread for a point.
//
// The formulas are those of cpu/spherical_harmonics.inl.h. Where its derivatives need q^{m+1} and q^{m+2} of
// smaller degrees, which it keeps in arrays, three recurrences run side by side here: three times the
// arithmetic, and no memory. Unrolled degrees (0, 1, ..., l in order, l <= 4) live in registers, and rows go
// to memory through shared memory, so that a warp writes whole lines, 16 bytes a thread where they are
// aligned; other lists of degrees are driven by tables and written as they come.
//
// Bytes for a point, n columns, elements of T, read or written once: forward 3 + n, backward 6 + n, double
// backward 9 + 2 n; that is the least. (The table driven kernels write columns one after the other, a sector
// of 32 bytes each, and rely on the second cache to gather them: up to 32 / sizeof(T) times as much.)
#include "cuda/device.h"
#include "cuda/device_harmonics.h"

namespace clebsch::cuda {
inline namespace spherical_harmonics_kernels {

constexpr int kThreads = 128;
// Blocks of threads for whose registers a multiprocessor must have room, where the compiler, left to itself
// (0), aims at more and spills. L: the highest degree that is unrolled.
template <class T, int L, int Derivative>
constexpr int kUnrolledBlocks = sizeof(T) == 4 || Derivative < 2 ? 0 : 3 + (L <= 2);
template <class T>
struct TabledBlocks {
  static constexpr int of[] = {8, sizeof(T) == 4 ? 8 : 4, sizeof(T) == 4 ? 5 : 3};  // by derivative
};

template <class T>
struct Triple {
  T x, y, z;
};
template <class T>
__device__ inline T dot(const Triple<T>& a, const Triple<T>& b) {
  return a.x * b.x + (a.y * b.y + a.z * b.z);
}
template <class T>
__device__ inline Triple<T> scaled(const Triple<T>& a, T s) {
  return {a.x * s, a.y * s, a.z * s};
}
// a + s b
template <class T>
__device__ inline Triple<T> added(const Triple<T>& a, T s, const Triple<T>& b) {
  return {a.x + s * b.x, a.y + s * b.y, a.z + s * b.z};
}

// Where to evaluate: v itself, or u = v / max(|v|, 1e-12); see the CPU's kernel.
template <class T>
struct Point {
  Triple<T> u, projected;
  T inverse;
};
template <class T>
__device__ inline Point<T> place(const Triple<T>& v, bool normalize) {
  if (!normalize) return {v, {}, T{}};
  constexpr bool single = sizeof(T) == 4;
  constexpr T shortest = T(1e-24), longest = T(single ? 0x1p120 : 0x1p1000);
  const T square = dot(v, v);
  const T scale = square > longest ? T(single ? 0x1p-66 : 0x1p-520) : T(1);
  const Triple<T> smaller = scaled(v, scale);
  const bool tiny = square < shortest;
  const T inverse = T(1) / sqrt(tiny ? shortest : square > longest ? dot(smaller, smaller) : square);
  const Triple<T> u = scaled(smaller, inverse);
  return {u, tiny ? Triple<T>{} : u, inverse * scale};
}
// The derivative of u along h, which is also its transpose.
template <class T>
__device__ inline Triple<T> pushed(const Point<T>& at, const Triple<T>& h) {
  return scaled(added(h, -dot(at.u, h), at.projected), at.inverse);
}

// The recurrence of one order: q_l^m for l = m, m + 1, ...
template <class T>
struct Recurrence {
  T q{}, before{}, bent{};  // q_l, q_{l-1}

  template <class Tables>
  __device__ void advance(const Tables& tables, int l, int m, T y, T t) {
    if (l < m) return;
    const T up = tables.up(l, m);
    if (l == m) {
      q = tables.sectoral(m);
      return;
    }
    bent = l == m + 1 ? T(2 * m) * (y * q) : tables.bend(l, m) * (y * bent - t * before);
    before = q;
    q = l == m + 1 ? (T(2 * m + 1) * up) * (y * q) : up * (y * q + bent);
  }
};

// Coefficients and columns, in the arguments or in tables.
template <class T, int L>
struct Unrolled {
  static constexpr int l_max = L;
  const HarmonicTables<T>& t;
  __device__ int highest() const { return L; }
  __device__ T up(int l, int m) const { return t.step[l * (l + 1) / 2 + m].up; }
  __device__ T bend(int l, int m) const { return t.step[l * (l + 1) / 2 + m].bend; }
  __device__ T dy(int l, int m) const { return t.step[l * (l + 1) / 2 + m].dy; }
  __device__ T dr(int l, int m) const { return t.step[l * (l + 1) / 2 + m].dr; }
  __device__ T sectoral(int m) const { return t.sectoral[m]; }
};
template <class T>
struct Tabled {
  static constexpr int l_max = -1;
  const HarmonicTables<T>& t;
  __device__ int highest() const { return t.l_max; }
  __device__ const Step<T>& step(int l, int m) const {
    return t.more_steps[static_cast<std::int64_t>(l) * (l + 1) / 2 + m];
  }
  __device__ T up(int l, int m) const { return step(l, m).up; }
  __device__ T bend(int l, int m) const { return step(l, m).bend; }
  __device__ T dy(int l, int m) const { return step(l, m).dy; }
  __device__ T dr(int l, int m) const { return step(l, m).dr; }
  __device__ T sectoral(int m) const { return t.more_sectoral[m]; }
};

// visit(l) for l in [first, highest], unrolled where degrees are known.
template <class Tables, class F>
__device__ inline void for_degrees(const Tables& tables, const F& visit) {
  if constexpr (Tables::l_max >= 0) {
    CLEBSCH_DEVICE_UNROLL
    for (int l = 0; l <= Tables::l_max; ++l) visit(l);
  } else {
    for (int l = 0; l <= tables.highest(); ++l) visit(l);
  }
}

// c_m + i s_m = (z + i x)^m, with their derivatives along h.
template <class T>
struct Azimuth {
  T c = T(1), s{}, c_below{}, s_below{}, c_dot{}, s_dot{}, c_dot_below{}, s_dot_below{};
  __device__ void advance(int m, const Triple<T>& u, const Triple<T>& h) {  // to m
    const T c_before = c, s_before = s;
    c_dot_below = c_dot;
    s_dot_below = s_dot;
    c_dot = T(m) * (c_before * h.z - s_before * h.x);
    s_dot = T(m) * (s_before * h.z + c_before * h.x);
    c = m == 1 ? u.z : u.z * c_before - u.x * s_before;
    s = m == 1 ? u.x : u.z * s_before + u.x * c_before;
    c_below = c_before;
    s_below = s_before;
  }
};

// put(l, m, value of +m, value of -m), the last only where m > 0.
template <class T, class Tables, class Put>
__device__ inline void harmonics(const Tables& tables, const Triple<T>& u, const Put& put) {
  const T t = u.x * u.x + u.z * u.z;
  Azimuth<T> azimuth;
  for_degrees(tables, [&](int m) {
    if (m > 0) azimuth.advance(m, u, Triple<T>{});
    Recurrence<T> own;
    for_degrees(tables, [&](int l) {
      if (l < m) return;
      own.advance(tables, l, m, u.y, t);
      put(l, m, m == 0 ? own.q : own.q * azimuth.c, own.q * azimuth.s);
    });
  });
}

// J(u)^T grad; grad(l, m) is that of component m = -l..l, summed over the columns that show it.
template <class T, class Tables, class Grad>
__device__ inline Triple<T> gradient(const Tables& tables, const Triple<T>& u, const Grad& grad) {
  const T t = u.x * u.x + u.z * u.z;
  Triple<T> sum{};
  T radial{};
  Azimuth<T> azimuth;
  for_degrees(tables, [&](int m) {
    if (m > 0) azimuth.advance(m, u, Triple<T>{});
    Recurrence<T> own, above;
    T along_c{}, along_s{};
    for_degrees(tables, [&](int l) {
      if (l < m) return;
      own.advance(tables, l, m, u.y, t);
      if (l > m + 1) above.advance(tables, l - 1, m + 1, u.y, t);
      const T grad_c = grad(l, m), grad_s = m > 0 ? grad(l, -m) : T{};
      if (m > 0) {
        along_c += own.q * grad_c;
        along_s += own.q * grad_s;
      }
      if (l == m) return;
      const T both = m == 0 ? grad_c : grad_c * azimuth.c + grad_s * azimuth.s;
      sum.y += (tables.dy(l, m) * both) * own.before;
      if (l > m + 1) radial += (tables.dr(l, m) * both) * above.q;
    });
    if (m > 0) {
      sum.z += T(m) * (along_c * azimuth.c_below + along_s * azimuth.s_below);
      sum.x += T(m) * (along_s * azimuth.c_below - along_c * azimuth.s_below);
    }
  });
  return {sum.x + radial * u.x, sum.y, sum.z + radial * u.z};
}

template <class T>
struct SecondGradient {
  Triple<T> first, second;
};

// Derivatives along h: J(u) h to put, that of J(u)^T grad is second; first is J(u)^T grad itself.
template <class T, class Tables, class Grad, class Put>
__device__ inline SecondGradient<T> second_gradient(const Tables& tables, const Triple<T>& u,
                                                    const Triple<T>& h, const Grad& grad, const Put& put) {
  const T t = u.x * u.x + u.z * u.z, across = u.x * h.x + u.z * h.z;
  Triple<T> sum{}, sum_dot{};
  T radial{}, radial_dot{};
  Azimuth<T> azimuth;
  for_degrees(tables, [&](int m) {
    if (m > 0) azimuth.advance(m, u, h);
    const T c = azimuth.c, s = azimuth.s, c_dot = azimuth.c_dot, s_dot = azimuth.s_dot;
    Recurrence<T> own, above, top;
    T along_c{}, along_s{}, along_c_dot{}, along_s_dot{}, q_dot{};
    for_degrees(tables, [&](int l) {
      if (l < m) return;
      own.advance(tables, l, m, u.y, t);
      if (l > m + 1) above.advance(tables, l - 1, m + 1, u.y, t);
      if (l > m + 3) top.advance(tables, l - 2, m + 2, u.y, t);
      const T grad_c = grad(l, m), grad_s = m > 0 ? grad(l, -m) : T{};
      const T both = m == 0 ? grad_c : grad_c * c + grad_s * s;
      const T both_dot = m == 0 ? T{} : grad_c * c_dot + grad_s * s_dot;
      if (l > m) {
        const T dy = tables.dy(l, m) * own.before, dy_dot = tables.dy(l, m) * q_dot;
        q_dot = dy * h.y;
        sum.y += both * dy;
        sum_dot.y += both * dy_dot;
        if (m > 0) sum_dot.y += both_dot * dy;
      }
      if (l > m + 1) {
        // The derivative of q_{l-1}^{m+1}, one order above.
        T above_dot{};
        if (l > m + 2) above_dot += tables.dy(l - 1, m + 1) * above.before * h.y;
        if (l > m + 3) above_dot += tables.dr(l - 1, m + 1) * top.q * across;
        const T dr = tables.dr(l, m) * above.q, dr_dot = tables.dr(l, m) * above_dot;
        q_dot += dr * across;
        radial += both * dr;
        radial_dot += both * dr_dot;
        if (m > 0) radial_dot += both_dot * dr;
      }
      put(l, m, m == 0 ? q_dot : q_dot * c + own.q * c_dot, q_dot * s + own.q * s_dot);
      if (m > 0) {
        along_c += own.q * grad_c;
        along_s += own.q * grad_s;
        along_c_dot += q_dot * grad_c;
        along_s_dot += q_dot * grad_s;
      }
    });
    if (m > 0) {
      const T c_below = azimuth.c_below, s_below = azimuth.s_below;
      const T c_dot_below = azimuth.c_dot_below, s_dot_below = azimuth.s_dot_below;
      sum.z += T(m) * (along_c * c_below + along_s * s_below);
      sum.x += T(m) * (along_s * c_below - along_c * s_below);
      sum_dot.z += T(m) * (along_c_dot * c_below + along_s_dot * s_below + along_c * c_dot_below +
                           along_s * s_dot_below);
      sum_dot.x += T(m) * (along_s_dot * c_below - along_c_dot * s_below + along_s * c_dot_below -
                           along_c * s_dot_below);
    }
  });
  return {{sum.x + radial * u.x, sum.y, sum.z + radial * u.z},
          {sum_dot.x + (radial_dot * u.x + radial * h.x), sum_dot.y,
           sum_dot.z + (radial_dot * u.z + radial * h.z)}};
}

template <class S>
__device__ inline Triple<Arithmetic<S>> load_triple(const S* rows, std::int64_t stride, std::int64_t i) {
  const S* at = rows + i * stride;
  return {widened(at[0]), widened(at[1]), widened(at[2])};
}
template <class S>
__device__ inline void store_triple(S* rows, std::int64_t i, const Triple<Arithmetic<S>>& v) {
  S* at = rows + 3 * i;
  at[0] = rounded<S>(v.x);
  at[1] = rounded<S>(v.y);
  at[2] = rounded<S>(v.z);
}

// One point: the step's results, grad and put as above.
template <class S, int Derivative, class Tables, class Grad, class Put>
__device__ inline void evaluate(const DeviceHarmonics<S>& a, const Tables& tables, std::int64_t i,
                                const Grad& grad, const Put& put) {
  using T = Arithmetic<S>;
  const bool normalize = a.args.normalize;
  const Point<T> at = place(load_triple(a.args.points, a.args.points_stride, i), normalize);
  if constexpr (Derivative == 0) {
    harmonics(tables, at.u, put);
  } else if constexpr (Derivative == 1) {
    const Triple<T> sum = gradient(tables, at.u, grad);
    store_triple(a.args.grad_points, i, normalize ? pushed(at, sum) : sum);
  } else {
    const Triple<T> h = load_triple(a.args.grad_grad_points, a.args.grad_grad_points_stride, i);
    const Triple<T> p = normalize ? pushed(at, h) : h;
    const SecondGradient<T> g = second_gradient(tables, at.u, p, grad, put);
    Triple<T> sum = g.second;
    if (normalize) {
      const Triple<T> j = g.first, pushed_j = pushed(at, j);
      Triple<T> bend = scaled(at.projected, dot(p, j));
      bend = added(bend, dot(at.projected, j), p);
      bend = added(bend, dot(at.projected, h), pushed_j);
      sum = added(pushed(at, sum), -at.inverse, bend);
    }
    store_triple(a.args.grad_points, i, sum);
  }
}

// Rows of the points of a block between global and shared memory, where a row takes an odd number of elements
// so that threads meet different banks.
template <int Columns>
constexpr int padded = Columns | 1;

template <class T, int Columns, class F>
__device__ inline void each_element(std::int64_t count, const F& f) {
  for (std::int64_t e = threadIdx.x; e < count * Columns; e += kThreads) {
    f(e, e / Columns * padded<Columns> + e % Columns);
  }
}

template <class S, int L, int Derivative>
__global__ void __launch_bounds__(kThreads, kUnrolledBlocks<Arithmetic<S>, L, Derivative>)
    unrolled_harmonics(DeviceHarmonics<S> a) {
  using T = Arithmetic<S>;
  constexpr int columns = (L + 1) * (L + 1);
  T* tile = dynamic_shared<T>();
  T* own = tile + threadIdx.x * padded<columns>;
  const Unrolled<T, L> tables{a.tables};
  for (std::int64_t first = std::int64_t{blockIdx.x} * kThreads; first < a.points;
       first += std::int64_t{gridDim.x} * kThreads) {
    const std::int64_t count = a.points - first < kThreads ? a.points - first : kThreads;
    if constexpr (Derivative > 0) {
      each_element<T, columns>(count, [&](std::int64_t e, std::int64_t at) {
        tile[at] = widened(a.args.grad[(first + e / columns) * a.args.grad_stride + e % columns]);
      });
      __syncthreads();
    }
    if (threadIdx.x < count) {
      T grad[columns]{}, value[columns];
      if constexpr (Derivative > 0) {
        CLEBSCH_DEVICE_UNROLL
        for (int c = 0; c < columns; ++c) grad[c] = own[c];
      }
      evaluate<S, Derivative>(
          a, tables, first + threadIdx.x, [&](int l, int m) { return grad[l * l + l + m]; },
          [&](int l, int m, T plus, T minus) {
            value[l * l + l + m] = plus;
            if (m > 0) value[l * l + l - m] = minus;
          });
      if constexpr (Derivative != 1) {
        CLEBSCH_DEVICE_UNROLL
        for (int c = 0; c < columns; ++c) own[c] = value[c];
      }
    }
    __syncthreads();
    if constexpr (Derivative != 1) {
      S* out = a.args.out + first * columns;
      constexpr int n = kPacked<S>;
      // A full block of rows is a whole number of packs.
      const bool wide = count == kThreads && aligned<S, n>(out);
      if (wide) {
        CLEBSCH_DEVICE_UNROLL_BY(1)  // several packs at a time would take registers, and with them blocks
        for (int e = threadIdx.x * n; e < kThreads * columns; e += kThreads * n) {
          Pack<T, n> pack;
          CLEBSCH_DEVICE_UNROLL
          for (int i = 0; i < n; ++i) pack[i] = tile[(e + i) / columns * padded<columns> + (e + i) % columns];
          store_packed(reinterpret_cast<Pack<S, n>*>(out + e), rounded<S>(pack));
        }
      } else {
        each_element<T, columns>(count,
                                 [&](std::int64_t e, std::int64_t at) { out[e] = rounded<S>(tile[at]); });
      }
      __syncthreads();
    }
  }
}

template <class S, int Derivative>
__global__ void __launch_bounds__(kThreads, TabledBlocks<Arithmetic<S>>::of[Derivative])
    tabled_harmonics(DeviceHarmonics<S> a) {
  using T = Arithmetic<S>;
  const Tabled<T> tables{a.tables};
  const std::int64_t columns = a.args.num_columns;
  const std::int64_t *first = a.tables.first, *column = a.tables.column;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.points; i += step) {
    evaluate<S, Derivative>(
        a, tables, i,
        [&](int l, int m) {
          const S* row = a.args.grad + i * a.args.grad_stride + l + m;
          T sum{};
          for (std::int64_t n = first[l]; n < first[l + 1]; ++n) sum += widened(row[column[n]]);
          return sum;
        },
        [&](int l, int m, T plus, T minus) {
          S* row = a.args.out + i * columns + l;
          for (std::int64_t n = first[l]; n < first[l + 1]; ++n) {
            row[column[n] + m] = rounded<S>(plus);
            if (m > 0) row[column[n] - m] = rounded<S>(minus);
          }
        });
  }
}

template <class S>
using Kernel = void (*)(DeviceHarmonics<S>);

template <class S, int Derivative>
Kernel<S> kernel_for(const HarmonicTables<Arithmetic<S>>& tables) {
  if (tables.more_steps) return &tabled_harmonics<S, Derivative>;
  static constexpr Kernel<S> unrolled[kUnrolledHarmonics + 1] = {
      &unrolled_harmonics<S, 0, Derivative>, &unrolled_harmonics<S, 1, Derivative>,
      &unrolled_harmonics<S, 2, Derivative>, &unrolled_harmonics<S, 3, Derivative>,
      &unrolled_harmonics<S, 4, Derivative>};
  return unrolled[tables.l_max];
}

}  // namespace spherical_harmonics_kernels

template <class S>
void launch_harmonics(const DeviceHarmonics<S>& harmonics, int derivative, void* stream) {
  using T = Arithmetic<S>;
  const HarmonicTables<T>& tables = harmonics.tables;
  const Kernel<S> kernel = derivative == 0   ? kernel_for<S, 0>(tables)
                           : derivative == 1 ? kernel_for<S, 1>(tables)
                                             : kernel_for<S, 2>(tables);
  const int columns = (tables.l_max + 1) * (tables.l_max + 1);
  const std::size_t shared = tables.more_steps ? 0 : kThreads * (columns | 1) * sizeof(T);
  launch(kernel, blocks_for(harmonics.points, kThreads), dim3(kThreads), shared, stream, harmonics);
}

template void launch_harmonics(const DeviceHarmonics<float>&, int, void*);
template void launch_harmonics(const DeviceHarmonics<double>&, int, void*);
template void launch_harmonics(const DeviceHarmonics<Half>&, int, void*);
template void launch_harmonics(const DeviceHarmonics<BFloat16>&, int, void*);

}  // namespace clebsch::cuda
