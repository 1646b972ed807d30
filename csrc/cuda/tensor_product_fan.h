// Sums over the weights of pairs (u, v) that reach all channels w of the output (uvw, uuw, u<vw), the degree
// of the output known when compiling. Where each row has weights of its own they are nearly all bytes that
// move.
//
// The weights of a pair lie side by side. A lane has a pack of them, 16 bytes of T, which it loads once and
// uses for all components; the packs of a pair belong to a group of lanes, a power of 2; the groups of a
// block take the pairs of a chunk in turn. For a pack of C weights and K components:
//
//   forward   1 load, K loads of shared memory (a lane of P for all of its group), C K multiply-adds
//   backward  1 load, 1 store, K loads of shared memory, 2 C K multiply-adds, K shuffles to halve the group
//
// with tangents one more load, K loads of shared memory forward, C K multiply-adds.
#pragma once

#include "cuda/edges.h"

namespace clebsch::cuda {

// Of the pairs of a chunk, and what this thread has of them.
template <class S>
struct Fan {
  using T = Arithmetic<S>;
  static constexpr int C = kPacked<T>;

  const S *w, *aw;      // of the first pair; null: ones, and zeros
  std::int64_t weight;  // of a row, where those of the first pair begin
  int channels, pairs;
  int lanes, lane, group, groups;

  __device__ Fan(const S* w_, const S* aw_, std::int64_t weight_, int channels_, int pairs_)
      : w(w_), aw(aw_), weight(weight_), channels(channels_), pairs(pairs_), lanes(1) {
    while (lanes < kWarp && lanes * C < channels) lanes *= 2;
    lane = static_cast<int>(threadIdx.x) % lanes;
    group = static_cast<int>(threadIdx.x) / lanes;
    groups = static_cast<int>(blockDim.x) / lanes;
  }
  // Channels that the lanes of a group have at a time.
  __device__ int stride() const { return lanes * C; }
  __device__ std::int64_t of_pair(int n) const { return weight + std::int64_t{n} * channels; }
  // The pack from channel `first` on, zero beyond the pairs.
  __device__ Pack<T, C> at(const S* row, int n, int first, T otherwise) const {
    if (n < pairs && row) return load<S, C>(row + of_pair(n), first, channels);
    Pack<T, C> pack;
    CLEBSCH_DEVICE_UNROLL
    for (int c = 0; c < C; ++c) pack[c] = n < pairs ? otherwise : T{};
    return pack;
  }
  __device__ Pack<T, C> weights(int n, int first) const { return at(w, n, first, T{1}); }
  __device__ Pack<T, C> tangents(int n, int first) const { return at(aw, n, first, T{}); }
};

// Pairs of which a thread loads weights before it uses them: bytes on their way, as far as there are
// registers.
template <bool Tangent, int K>
constexpr int kPairsAtOnce = Tangent || K > 7 ? 1 : 2;

// Of the largest output whose degree is known, for the sums of a group from each warp.
template <class T, int L>
constexpr int kFanValues = kForwardWarps * kWarp * kPacked<T> * (2 * L + 1);

// out(w, k) += sum of W P over the pairs, with tangents W P' + aW P. All threads must call it.
template <class S, bool Tangent, int K, class Out, class T = Arithmetic<S>>
__device__ __forceinline__ void add_fan(const Fan<S>& fan, const T* value, const T* tangent, T* scratch,
                                        const Out& out) {
  constexpr int C = Fan<S>::C, N = kPairsAtOnce<Tangent, K>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  for (int first = 0; first < fan.channels; first += fan.stride()) {
    const int own = first + fan.lane * C;
    Pack<T, C> sum[K]{};
    for (int base = fan.group; base < fan.pairs; base += N * fan.groups) {
      Pack<T, C> w[N], aw[N];
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < N; ++i) {
        w[i] = fan.weights(base + i * fan.groups, own);
        if constexpr (Tangent) aw[i] = fan.tangents(base + i * fan.groups, own);
      }
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < N; ++i) {
        const int from = (base + i * fan.groups) * K;
        if (base + i * fan.groups >= fan.pairs) break;  // not a zero weight: P may be infinite
        CLEBSCH_DEVICE_UNROLL
        for (int k = 0; k < K; ++k) {
          const T p = value[from + k], t = Tangent ? tangent[from + k] : T{};
          CLEBSCH_DEVICE_UNROLL
          for (int c = 0; c < C; ++c) {
            sum[k][c] += w[i][c] * (Tangent ? t : p);
            if constexpr (Tangent) sum[k][c] += aw[i][c] * p;
          }
        }
      }
    }
    // The groups of a warp, then the warps.
    for (int offset = fan.lanes; offset < kWarp; offset *= 2) {
      CLEBSCH_DEVICE_UNROLL
      for (int k = 0; k < K; ++k) {
        CLEBSCH_DEVICE_UNROLL
        for (int c = 0; c < C; ++c) sum[k][c] += __shfl_xor_sync(kAllLanes, sum[k][c], offset);
      }
    }
    const int values = fan.stride() * K;
    if (thread % kWarp < fan.lanes) {
      CLEBSCH_DEVICE_UNROLL
      for (int k = 0; k < K; ++k)
        *reinterpret_cast<Pack<T, C>*>(scratch + warp * values + k * fan.stride() + fan.lane * C) = sum[k];
    }
    __syncthreads();
    for (int i = thread; i < values; i += static_cast<int>(blockDim.x)) {
      const int w = first + i % fan.stride();
      if (w >= fan.channels) continue;
      T total{};
      for (int n = 0; n < kForwardWarps; ++n) total += scratch[n * values + i];
      out(w, i / fan.stride()) += total;
    }
    __syncthreads();
  }
}

// Q = sum of W g over the channels, with tangents Q' = aW g too, where it is wanted; and gW = g P, with
// tangents g P'. g(w, k): of the row. All threads must call it.
template <class S, bool Tangent, int K, class G, class T = Arithmetic<S>>
__device__ __forceinline__ void differentiate_fan(const Fan<S>& fan, const G& g, const T* value, T* q,
                                                  T* q_tangent, const Result<S>& gw) {
  constexpr int C = Fan<S>::C, N = kPairsAtOnce<Tangent, K>;
  for (int first = 0; first < fan.channels; first += fan.stride()) {
    const int own = first + fan.lane * C;
    Pack<T, C> factor[K];
    CLEBSCH_DEVICE_UNROLL
    for (int k = 0; k < K; ++k) {
      CLEBSCH_DEVICE_UNROLL
      for (int c = 0; c < C; ++c) factor[k][c] = own + c < fan.channels ? g(own + c, k) : T{};
    }
    // Lanes of a warp go in step, whatever the pairs of their groups: they exchange sums.
    const auto collect = [&](int base, const Pack<T, C>* w, T* to) {
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < N; ++i) {
        const int n = base + i * fan.groups;
        T sum[K];
        CLEBSCH_DEVICE_UNROLL
        for (int k = 0; k < K; ++k) sum[k] = dot<T, C>(w[i], factor[k]);
        for (int offset = fan.lanes / 2; offset > 0; offset /= 2) {
          CLEBSCH_DEVICE_UNROLL
          for (int k = 0; k < K; ++k) sum[k] += __shfl_xor_sync(kAllLanes, sum[k], offset);
        }
        if (fan.lane > 0 || n >= fan.pairs) continue;
        CLEBSCH_DEVICE_UNROLL
        for (int k = 0; k < K; ++k) to[n * K + k] = first > 0 ? to[n * K + k] + sum[k] : sum[k];
      }
    };
    for (int start = 0; start < fan.pairs; start += N * fan.groups) {
      const int base = start + fan.group;
      if (q) {
        Pack<T, C> w[N], aw[N];
        CLEBSCH_DEVICE_UNROLL
        for (int i = 0; i < N; ++i) {
          w[i] = fan.weights(base + i * fan.groups, own);
          if constexpr (Tangent) aw[i] = fan.tangents(base + i * fan.groups, own);
        }
        collect(base, w, q);
        if constexpr (Tangent) collect(base, aw, q_tangent);
      }
      if (!gw) continue;
      CLEBSCH_DEVICE_UNROLL
      for (int i = 0; i < N; ++i) {
        const int n = base + i * fan.groups;
        if (n >= fan.pairs) break;
        Pack<T, C> sum{};
        CLEBSCH_DEVICE_UNROLL
        for (int k = 0; k < K; ++k) {
          CLEBSCH_DEVICE_UNROLL
          for (int c = 0; c < C; ++c) sum[c] += factor[k][c] * value[n * K + k];
        }
        store<S, C>(sum, gw, fan.of_pair(n), own, fan.channels);
      }
    }
  }
}

}  // namespace clebsch::cuda
