// Between rows in memory, one per point, and vectors whose lanes are points.
#pragma once

#include <cstdint>
#include <cstring>

#include "vec.h"

// Lambdas below are bodies of unrolled loops.
#define CLEBSCH_BODY __attribute__((always_inline))

namespace clebsch {
namespace {

template <class T>
struct Triple {
  Vec<T> x, y, z;
};

// Rows of three <-> one vector per component, two shuffles per vector.
template <int K>
struct EveryThirdOfTwo {  // component K from the first two of three vectors
  template <int N>
  static constexpr int at(int j) {
    return 3 * j + K < 2 * N ? 3 * j + K : 0;
  }
};
template <int K>
struct EveryThirdOfLast {  // what those gave, completed by the third vector
  template <int N>
  static constexpr int at(int j) {
    return 3 * j + K < 2 * N ? j : N + 3 * j + K - 2 * N;
  }
};
template <int Q>
struct InterleaveTwo {  // components 0 and 1 of vector Q of three
  template <int N>
  static constexpr int at(int j) {
    return (Q * N + j) % 3 == 1 ? N + (Q * N + j) / 3 : (Q * N + j) / 3;
  }
};
template <int Q>
struct InterleaveThird {
  template <int N>
  static constexpr int at(int j) {
    return (Q * N + j) % 3 == 2 ? N + (Q * N + j) / 3 : j;
  }
};

// Rows at a distance, side by side: out of line, the rare case does not take registers from the loops.
template <class T>
__attribute__((noinline)) void pack_triples(const T* p, std::int64_t stride, T* packed) {
  for (int i = 0; i < lanes<T>; ++i) std::memcpy(packed + 3 * i, p + i * stride, 3 * sizeof(T));
}

template <class T>
CLEBSCH_INLINE Triple<T> load_triples(const T* p, std::int64_t stride) {
  constexpr int W = lanes<T>;
  T packed[3 * W];
  if (stride != 3) {
    pack_triples(p, stride, packed);
    p = packed;
  }
  const Vec<T> a = load(p), b = load(p + W), c = load(p + 2 * W);
  return {shuffle<EveryThirdOfLast<0>>(shuffle<EveryThirdOfTwo<0>>(a, b), c),
          shuffle<EveryThirdOfLast<1>>(shuffle<EveryThirdOfTwo<1>>(a, b), c),
          shuffle<EveryThirdOfLast<2>>(shuffle<EveryThirdOfTwo<2>>(a, b), c)};
}

template <class T>
CLEBSCH_INLINE void store_triples(T* p, const Triple<T>& t) {
  constexpr int W = lanes<T>;
  store(p, shuffle<InterleaveThird<0>>(shuffle<InterleaveTwo<0>>(t.x, t.y), t.z));
  store(p + W, shuffle<InterleaveThird<1>>(shuffle<InterleaveTwo<1>>(t.x, t.y), t.z));
  store(p + 2 * W, shuffle<InterleaveThird<2>>(shuffle<InterleaveTwo<2>>(t.x, t.y), t.z));
}

// Two halves from memory: inserting a half from memory takes any vector port, while a shuffle of registers
// takes the only one that shuffles 512 bits; the first of the four steps of a transpose is done so.
template <class T>
CLEBSCH_INLINE Vec<T> load_halves(const T* low, const T* high) {
#if defined(__AVX512F__)
  // Left to itself the compiler loads both halves and shuffles.
  const auto a = _mm512_castps256_ps512(_mm256_loadu_ps(reinterpret_cast<const float*>(low)));
  return reinterpret_cast<Vec<T>>(
      _mm512_insertf32x8(a, _mm256_loadu_ps(reinterpret_cast<const float*>(high)), 1));
#else
  constexpr int half = CLEBSCH_VEC_BYTES / 2;
  typedef T Half __attribute__((vector_size(half)));
  typedef T HalfUnaligned __attribute__((vector_size(half), aligned(alignof(T)), may_alias));
  const Half a = *reinterpret_cast<const HalfUnaligned*>(low);
  const Half b = *reinterpret_cast<const HalfUnaligned*>(high);
  return [&]<std::size_t... I>(std::index_sequence<I...>) CLEBSCH_BODY {
    return __builtin_shufflevector(a, b, static_cast<int>(I)...);
  }(std::make_index_sequence<lanes<T>>{});
#endif
}

// Its inverse.
template <class T>
CLEBSCH_INLINE void store_halves(T* low, T* high, Vec<T> v) {
  constexpr std::size_t half = sizeof(v) / 2;
  const char* bytes = reinterpret_cast<const char*>(&v);
  std::memcpy(low, bytes, half);
  std::memcpy(high, bytes + half, half);
}

template <int Odd>
struct QuartersOfTwo {  // quarters 0 and 2, or 1 and 3, of both
  template <int N>
  static constexpr int at(int j) {
    return (j < N / 2 ? 0 : N) + (j / (N / 4) % 2 * 2 + Odd) * (N / 4) + j % (N / 4);
  }
};

// v[i] becomes element i of each of the lanes<T> sources; source(j) points at source j.
template <class T, class Source>
CLEBSCH_INLINE void load_transposed(const Source& source, Vec<T>* v) {
  constexpr int half = lanes<T> / 2, quarter = lanes<T> / 4;
  if constexpr (CLEBSCH_VEC_BYTES == 64) {
    // Quarters are 16 bytes: the second step too is one instruction without an index vector.
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) {
      const int from = i % quarter, side = i / quarter;
      const Vec<T> a = load_halves(source(from) + side * half, source(from + quarter) + side * half);
      const Vec<T> b =
          load_halves(source(from + 2 * quarter) + side * half, source(from + 3 * quarter) + side * half);
      v[from + 2 * side * quarter] = shuffle<QuartersOfTwo<0>>(a, b);
      v[from + (2 * side + 1) * quarter] = shuffle<QuartersOfTwo<1>>(a, b);
    }
    transpose<T, quarter / 2>(v);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) {
      const T* a = source(i);
      const T* b = source(i + half);
      v[i] = load_halves(a, b);
      v[i + half] = load_halves(a + half, b + half);
    }
    transpose<T, half / 2>(v);
  }
}

// Four columns: halves exchanged, then one shuffle for each vector of rows. column(c) is the vector of column
// c.
template <int Q>
struct InterleaveFour {  // rows from point Q * N/4 on, from columns (0 | 2) and (1 | 3) of half the points
  template <int N>
  static constexpr int at(int j) {
    return (j & 1 ? N : 0) + (j & 2 ? N / 2 : 0) + Q * (N / 4) + j / 4;
  }
};
template <int Odd>
struct SplitFour {  // back, from two vectors of rows: columns (0 | 2) or (1 | 3)
  template <int N>
  static constexpr int at(int j) {
    return 4 * (j % (N / 2)) + (j < N / 2 ? 0 : 2) + Odd;
  }
};

template <class T, class Column>
CLEBSCH_INLINE void store_four(const Column& column, T* rows) {
  constexpr int W = lanes<T>;
  const Vec<T> a = column(0), b = column(1), c = column(2), d = column(3);
  const Vec<T> even = shuffle<KeepLow<W / 2>>(a, c), odd = shuffle<KeepLow<W / 2>>(b, d);
  store(rows, shuffle<InterleaveFour<0>>(even, odd));
  store(rows + W, shuffle<InterleaveFour<1>>(even, odd));
  const Vec<T> even_high = shuffle<KeepHigh<W / 2>>(a, c), odd_high = shuffle<KeepHigh<W / 2>>(b, d);
  store(rows + 2 * W, shuffle<InterleaveFour<0>>(even_high, odd_high));
  store(rows + 3 * W, shuffle<InterleaveFour<1>>(even_high, odd_high));
}

template <class T, class Column>
CLEBSCH_INLINE void load_four(const T* rows, const Column& column) {
  constexpr int W = lanes<T>;
  const Vec<T> a = load(rows), b = load(rows + W), c = load(rows + 2 * W), d = load(rows + 3 * W);
  const Vec<T> even = shuffle<SplitFour<0>>(a, b), even_high = shuffle<SplitFour<0>>(c, d);
  const Vec<T> odd = shuffle<SplitFour<1>>(a, b), odd_high = shuffle<SplitFour<1>>(c, d);
  store(column(0), shuffle<KeepLow<W / 2>>(even, even_high));
  store(column(1), shuffle<KeepLow<W / 2>>(odd, odd_high));
  store(column(2), shuffle<KeepHigh<W / 2>>(even, even_high));
  store(column(3), shuffle<KeepHigh<W / 2>>(odd, odd_high));
}

// Few and odd columns: as n and the number of lanes have no common factor, the transpose of (n, lanes) to
// (lanes, n), both as n full vectors, is a permutation inside each vector and then, lane by lane, a rotation
// of the n vectors, done as ceil(log2 n) rounds of blends. Memory is read and written in whole vectors, and
// only the n permutations need the shuffle port.
constexpr int inverse_modulo(int a, int n) {
  for (int b = 0; b < n; ++b) {
    if (a * b % n == 1 % n) return b;
  }
  return 0;
}
template <int n, int C>
struct PointOfLane {  // of column C, the point that goes to lane j
  template <int N>
  static constexpr int at(int j) {
    for (int p = 0; p < N; ++p) {
      if ((p * n + C) % N == j) return p;
    }
    return 0;
  }
};
template <int n, int C>
struct LaneOfPoint {
  template <int N>
  static constexpr int at(int p) {
    return (p * n + C) % N;
  }
};
template <int n, int Step>
struct LanesToRotate {  // the second vector where the rotation's binary form has bit Step
  template <int N>
  static constexpr int at(int j) {
    return (j * inverse_modulo(N, n) % n) & Step ? N + j : j;
  }
};

template <class T, int n, bool Back, int Step = 1>
CLEBSCH_INLINE void rotate(Vec<T>* v) {
  if constexpr (Step < n) {
    Vec<T> r[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i)
      r[i] = shuffle<LanesToRotate<n, Step>>(v[i], v[(i + (Back ? n - Step : Step)) % n]);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = r[i];
    rotate<T, n, Back, 2 * Step>(v);
  }
}

template <class T, int n, class Column>
CLEBSCH_INLINE void store_odd(const Column& column, T* rows) {
  Vec<T> v[n];
  [&]<std::size_t... C>(std::index_sequence<C...>) CLEBSCH_BODY {
    ((v[inverse_modulo(lanes<T>, n) * C % n] = shuffle<PointOfLane<n, C>>(column(C), column(C))), ...);
  }(std::make_index_sequence<n>{});
  rotate<T, n, false>(v);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store(rows + i * lanes<T>, v[i]);
}

template <class T, int n, class Column>
CLEBSCH_INLINE void load_odd(const T* rows, const Column& column) {
  Vec<T> v[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) v[i] = load(rows + i * lanes<T>);
  rotate<T, n, true>(v);
  [&]<std::size_t... C>(std::index_sequence<C...>) CLEBSCH_BODY {
    (store(column(C), shuffle<LaneOfPoint<n, C>>(v[inverse_modulo(lanes<T>, n) * C % n],
                                                 v[inverse_modulo(lanes<T>, n) * C % n])),
     ...);
  }(std::make_index_sequence<n>{});
}

// Blocks of 16 columns jump from row to row, which no hardware prefetcher follows: each block asks for as
// many lines of the rows that come next. Twice the speed of plain stores where rows are long. They wait in
// the nearest cache as long as three times the vectors of columns take 6 KiB, so that they and the rows in
// work lie there at ease; beyond, in the second cache (49 columns: 1.9 in place of 2.3 ms for 100,000
// points).
template <class T>
CLEBSCH_INLINE void prefetch_lines(const T* p, std::int64_t columns) {
  if (3 * columns * static_cast<std::int64_t>(sizeof(Vec<T>)) <= 6 << 10) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i) __builtin_prefetch(p + i * lanes<T>, 1, 3);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i) __builtin_prefetch(p + i * lanes<T>, 1, 2);
  }
}

// How rows of many columns are cut: whole blocks of lanes<T> columns, the last of which may repeat columns of
// the one before; or half a block, where that is enough, and the last column alone, as (l_max + 1)^2 columns
// often leave one over. As numbers it takes no shuffles and cheaper stores.
template <class T>
struct Tail {
  std::int64_t columns, blocks_end, half = -1;  // where half a block begins, if one does
  bool last;
  CLEBSCH_INLINE explicit Tail(std::int64_t count) : columns(count) {
    constexpr int W = lanes<T>, h = W / 2;
    const std::int64_t rest = columns % W;
    const bool split = W >= 4 && rest <= h + 1;
    last = split && (rest == 1 || rest == h + 1);
    blocks_end = columns - (split ? rest : rest - (rest ? W : 0));
    if (split && rest > 1) half = rest < h ? columns - h : columns - rest;
  }
  CLEBSCH_INLINE std::int64_t block(std::int64_t first) const {
    return first + lanes<T> <= columns ? first : columns - lanes<T>;
  }
};

// lanes<T> contiguous rows whose column c has its lanes<T> values at column(c); next: the rows written after
// these.
template <class T, class Column>
CLEBSCH_INLINE void store_rows(const Column& column, std::int64_t columns, T* rows, const T* next) {
  constexpr int W = lanes<T>;
  const auto whole = [&](int c) CLEBSCH_BODY { return load(column(c)); };
  switch (columns) {
    case 0:
      return;
    case 1:
      return store_odd<T, 1>(whole, rows);
    case 3:
      return store_odd<T, 3>(whole, rows);
    case 4:
      if constexpr (W >= 4) return store_four(whole, rows);
      break;
    case 5:
      return store_odd<T, 5>(whole, rows);
    case 9:
      return store_odd<T, 9>(whole, rows);
  }
  Vec<T> v[W];
  if (columns < W) {
    load_transposed<T>([&](int i) CLEBSCH_BODY { return column(i < columns ? i : 0); }, v);
    const Mask<T> mask(static_cast<int>(columns));
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(rows + i * columns, v[i], mask);
    return;
  }
  const Tail<T> tail(columns);
  for (std::int64_t first = 0; first < tail.blocks_end; first += W) {
    const std::int64_t at = tail.block(first);
    load_transposed<T>([&](int i) CLEBSCH_BODY { return column(at + i); }, v);
    T* row = rows + at;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i, row += columns) store(row, v[i]);
    prefetch_lines(next + first * W, columns);
  }
  if (tail.half >= 0) {
    constexpr int half = W / 2;
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) v[i] = load(column(tail.half + i));
    transpose_square<Vec<T>, half / 2, half>(v);
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) {
      T* row = rows + tail.half + i * columns;
      store_halves(row, row + half * columns, v[i]);
    }
    prefetch_lines(next + tail.half * W, columns);
  }
  if (tail.last) {
    const T* last = column(columns - 1);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[columns - 1 + i * columns] = last[i];
    __builtin_prefetch(next + (columns - 1) * W, 1);
  }
}

// The other way, from rows at a distance of stride. Add: columns that share their place are summed.
template <class T, bool Add, class Column>
CLEBSCH_INLINE void load_rows(const T* rows, std::int64_t stride, std::int64_t columns, const Column& column,
                              const T* next) {
  constexpr int W = lanes<T>;
  if (!Add && stride == columns) {
    switch (columns) {
      case 1:
        return load_odd<T, 1>(rows, column);
      case 3:
        return load_odd<T, 3>(rows, column);
      case 4:
        if constexpr (W >= 4) return load_four(rows, column);
        break;
      case 5:
        return load_odd<T, 5>(rows, column);
      case 9:
        return load_odd<T, 9>(rows, column);
    }
  }
  Vec<T> v[W];
  if (columns < W) {
    const Mask<T> mask(static_cast<int>(columns));
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = load(rows + i * stride, mask);
    transpose<T>(v);
    for (int i = 0; i < columns; ++i) store(column(i), Add ? load(column(i)) + v[i] : v[i]);
    return;
  }
  const auto give = [&](std::int64_t c, Vec<T> value, bool repeated) CLEBSCH_BODY {
    if (!Add || !repeated) store(column(c), Add ? load(column(c)) + value : value);
  };
  const Tail<T> tail(columns);
  for (std::int64_t first = 0; first < tail.blocks_end; first += W) {
    const std::int64_t at = tail.block(first);
    const T* row = rows + at;
    load_transposed<T>([&](int i) CLEBSCH_BODY { return row + i * stride; }, v);
    prefetch_lines(next + first * W, columns);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) give(at + i, v[i], at + i < first);
  }
  if (tail.half >= 0) {
    constexpr int half = W / 2;
    const T* row = rows + tail.half;
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) v[i] = load_halves(row + i * stride, row + (i + half) * stride);
    transpose_square<Vec<T>, half / 2, half>(v);
    prefetch_lines(next + tail.half * W, columns);
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) give(tail.half + i, v[i], tail.half + i < tail.blocks_end);
  }
  if (tail.last) {
    alignas(sizeof(Vec<T>)) T last[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) last[i] = rows[columns - 1 + i * stride];
    give(columns - 1, load(last), false);
  }
}

}  // namespace
}  // namespace clebsch
