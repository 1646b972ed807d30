// The vocabulary of one instruction set: vectors, masked loads and stores, transposes, sums across lanes.
//
// Included only by files that are compiled once per instruction set; everything sits in an anonymous
// namespace so that no symbol compiled under wide flags can be picked by the linker for a narrow machine.
// Arithmetic is the compiler's vector extension (a * b + c contracts to one FMA where there is one), so the
// same source serves SSE, AVX2, AVX-512 and NEON; only masked memory access differs by set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define CLEBSCH_VEC_BYTES 64
#elif defined(__AVX2__)
#define CLEBSCH_VEC_BYTES 32
#else
#define CLEBSCH_VEC_BYTES 16
#endif

#define CLEBSCH_INLINE inline __attribute__((always_inline))

// Before a loop over a constant range: arrays that it indexes become registers, tests of constant tables go.
#define CLEBSCH_UNROLL _Pragma("GCC unroll 256")

namespace clebsch {
namespace {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(CLEBSCH_VEC_BYTES)));
  typedef T unaligned __attribute__((vector_size(CLEBSCH_VEC_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;

// Lanes of a vector of T.
template <class T>
constexpr int lanes = CLEBSCH_VEC_BYTES / sizeof(T);

template <class T>
CLEBSCH_INLINE Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // value + 0 is no copy: it changes -0
}

template <class T>
CLEBSCH_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}

template <class T>
CLEBSCH_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}

// Past the caches, for results that are larger than they: a whole line written so need not be read first. p
// is a multiple of the vector's width; lines of narrower vectors are written piece after piece. Before
// another thread may read, end_stream().
template <class T>
CLEBSCH_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
#else
  store(p, v);
#endif
}
CLEBSCH_INLINE void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
// Whether `count` elements at p are whole cache lines.
template <class T>
CLEBSCH_INLINE bool fills_lines(const T* p, std::int64_t count) {
  return (reinterpret_cast<std::uintptr_t>(p) | (static_cast<std::uintptr_t>(count) * sizeof(T))) % 64 == 0;
}

// Mask<T>(n): the first n lanes (n <= 0: none, n >= lanes: all). A masked load gives zero elsewhere and
// touches no memory there; a masked store leaves memory there alone.
template <class T>
struct Mask {
#if defined(__AVX512F__)
  std::conditional_t<sizeof(T) == 4, __mmask16, __mmask8> bits;
  CLEBSCH_INLINE explicit Mask(int n) {
    bits = n >= lanes<T> ? static_cast<decltype(bits)>(~0u)
                         : static_cast<decltype(bits)>((1u << (n < 0 ? 0 : n)) - 1u);
  }
#elif defined(__AVX2__)
  __m256i bits;
  CLEBSCH_INLINE explicit Mask(int n) {
    if constexpr (sizeof(T) == 4) {
      bits = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    } else {
      bits = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    }
  }
#else
  int count;
  CLEBSCH_INLINE explicit Mask(int n) : count(n < 0 ? 0 : (n > lanes<T> ? lanes<T> : n)) {}
#endif
};

template <class T>
CLEBSCH_INLINE Vec<T> load(const T* p, Mask<T> m) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_ps(m.bits, p));
  } else {
    return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_pd(m.bits, p));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<Vec<T>>(_mm256_maskload_ps(p, m.bits));
  } else {
    return reinterpret_cast<Vec<T>>(_mm256_maskload_pd(p, m.bits));
  }
#else
  if (m.count == lanes<T>) return load(p);
  T partial[lanes<T>] = {};
  for (int i = 0; i < m.count; ++i) partial[i] = p[i];
  return load(partial);
#endif
}

template <class T>
CLEBSCH_INLINE void store(T* p, Vec<T> v, Mask<T> m) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, m.bits, reinterpret_cast<__m512>(v));
  } else {
    _mm512_mask_storeu_pd(p, m.bits, reinterpret_cast<__m512d>(v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_ps(p, m.bits, reinterpret_cast<__m256>(v));
  } else {
    _mm256_maskstore_pd(p, m.bits, reinterpret_cast<__m256d>(v));
  }
#else
  if (m.count == lanes<T>) return store(p, v);
  for (int i = 0; i < m.count; ++i) p[i] = v[i];
#endif
}

// Whether a comparison of Vec<T> holds in any lane.
template <class T, class Comparison>
CLEBSCH_INLINE bool any(Comparison c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(c)) != 0;
  } else {
    return _mm512_movepi64_mask(reinterpret_cast<__m512i>(c)) != 0;
  }
#elif defined(__AVX2__)
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(c), reinterpret_cast<__m256i>(c));
#else
  bool found = false;
  for (int i = 0; i < lanes<T>; ++i) found |= c[i] != 0;
  return found;
#endif
}

// Whether a lane lies outside [low, high] or is not a number.
template <class T>
CLEBSCH_INLINE bool any_outside(Vec<T> v, T low, T high) {
#if defined(__AVX512F__)
  // Left to itself the compiler takes each mask to a vector and back.
  if constexpr (sizeof(T) == 4) {
    const __m512 x = reinterpret_cast<__m512>(v);
    return !_kortestz_mask16_u8(_mm512_cmp_ps_mask(x, _mm512_set1_ps(low), _CMP_NGE_UQ),
                                _mm512_cmp_ps_mask(x, _mm512_set1_ps(high), _CMP_NLE_UQ));
  } else {
    const __m512d x = reinterpret_cast<__m512d>(v);
    return !_kortestz_mask8_u8(_mm512_cmp_pd_mask(x, _mm512_set1_pd(low), _CMP_NGE_UQ),
                               _mm512_cmp_pd_mask(x, _mm512_set1_pd(high), _CMP_NLE_UQ));
  }
#else
  return any<T>(~((v >= broadcast(low)) & (v <= broadcast(high))));
#endif
}

// shuffle<F>(a, b): lane i of the result is lane F::at(i) of the concatenation (a, b).
template <class F, class V>
CLEBSCH_INLINE V shuffle(V a, V b) {
  constexpr int n = sizeof(V) / sizeof(a[0]);
  return [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, F::template at<n>(static_cast<int>(I))...);
  }(std::make_index_sequence<n>{});
}

// Exchanging blocks of S lanes between two vectors, the step of a transpose.
template <int S>
struct KeepLow {
  template <int N>
  static constexpr int at(int j) {
    return j & S ? N + j - S : j;
  }
};
template <int S>
struct KeepHigh {
  template <int N>
  static constexpr int at(int j) {
    return j & S ? N + j : j + S;
  }
};

template <int High>
struct InterleaveFours {  // in every four lanes, the low or high two of both
  template <int N>
  static constexpr int at(int j) {
    return (j & 1 ? N : 0) + (j & ~3) + (j & 2) / 2 + 2 * High;
  }
};

// The last two steps for numbers of four bytes: in this order each shuffle stays in its 16 bytes and is one
// instruction without an index vector, for which Zen 4 has three ports and not two.
template <int Count, class V>
CLEBSCH_INLINE void transpose_fours(V* v) {
#pragma GCC unroll 64
  for (int i = 0; i < Count; i += 4) {
    const V a = shuffle<InterleaveFours<0>>(v[i], v[i + 1]), b = shuffle<InterleaveFours<1>>(v[i], v[i + 1]);
    const V c = shuffle<InterleaveFours<0>>(v[i + 2], v[i + 3]);
    const V d = shuffle<InterleaveFours<1>>(v[i + 2], v[i + 3]);
    v[i] = shuffle<KeepLow<2>>(a, c);
    v[i + 1] = shuffle<KeepHigh<2>>(a, c);
    v[i + 2] = shuffle<KeepLow<2>>(b, d);
    v[i + 3] = shuffle<KeepHigh<2>>(b, d);
  }
}

// Squares of Count vectors side by side, for Count = 2 S a power of two.
template <class V, int S = sizeof(V) / sizeof(V{}[0]) / 2, int Count = sizeof(V) / sizeof(V{}[0])>
CLEBSCH_INLINE void transpose_square(V* v) {
  if constexpr (S == 2 && sizeof(v[0][0]) == 4) {
    transpose_fours<Count>(v);
  } else if constexpr (S > 0) {
#pragma GCC unroll 64
    for (int i = 0; i < Count; ++i) {
      if (i & S) continue;
      const V a = v[i], b = v[i + S];
      v[i] = shuffle<KeepLow<S>>(a, b);
      v[i + S] = shuffle<KeepHigh<S>>(a, b);
    }
    transpose_square<V, S / 2, Count>(v);
  }
}
template <class T, int S = lanes<T> / 2>
CLEBSCH_INLINE void transpose(Vec<T>* v) {
  transpose_square<Vec<T>, S>(v);
}

// The same where only the first `columns` of the results are wanted: a few columns need few shuffles.
template <class T, int S = lanes<T> / 2>
CLEBSCH_INLINE void transpose_columns(Vec<T>* v, int columns) {
  if constexpr (S > 0) {
    if (columns <= S) {
#pragma GCC unroll 64
      for (int i = 0; i < S; ++i) v[i] = shuffle<KeepLow<S>>(v[i], v[i + S]);
      transpose_columns<T, S / 2>(v, columns);
    } else {
#pragma GCC unroll 64
      for (int i = 0; i < S; ++i) {
        const Vec<T> a = v[i], b = v[i + S];
        v[i] = shuffle<KeepLow<S>>(a, b);
        v[i + S] = shuffle<KeepHigh<S>>(a, b);
      }
      transpose_columns<T, S / 2>(v, S);
      transpose_columns<T, S / 2>(v + S, columns - S);
    }
  }
}

// Lane i of the result is the sum over the lanes of v[i], for lanes<T> vectors; v is used up. Halving the
// number of vectors at each step costs 3 instructions per sum instead of 10.
template <class T, int S = lanes<T> / 2>
CLEBSCH_INLINE Vec<T> sum_lanes(Vec<T>* v) {
  if constexpr (S == 0) {
    return v[0];
  } else {
#pragma GCC unroll 64
    for (int i = 0; i < S; ++i) {
      const Vec<T> a = v[i], b = v[i + S];
      v[i] = shuffle<KeepLow<S>>(a, b) + shuffle<KeepHigh<S>>(a, b);
    }
    return sum_lanes<T, S / 2>(v);
  }
}

}  // namespace
}  // namespace clebsch
