// Gates, in one pass: out = scalars beside gate_u * x[u, m].
//
//   backward   grad_x[u, m] = gate_u g[u, m],   grad_gate_u = sum_m g[u, m] x[u, m]
//
// One product for every 8 bytes read and written, so memory decides; all operands are met where they lie.
// Lanes are elements of a row: a vector of gates is spread over the width of its irreps, and products are
// brought together again, by permutations known when compiling (panel.inl.h) for widths up to 13.
#pragma once

#include "gate.h"
#include "panel.inl.h"

namespace clebsch {
namespace {

// Element Q * N + p of a tile of N copies belongs to copy (Q * N + p) / D.
template <int D, int Q>
struct SpreadCopies {
  template <int N>
  static constexpr int at(int p) {
    return (Q * N + p) / D;
  }
};

template <class T, int D>
void gate_block(std::int64_t mul, const T* gate, const T* x, T* out) {
  constexpr int W = lanes<T>;
  for (std::int64_t u = 0; u < mul; u += W, gate += W, x += D * W, out += D * W) {
    const int left = mul - u < W ? static_cast<int>(mul - u) : W;
    const Vec<T> a = load(gate, Mask<T>(left));
    each<D>([&]<int Q>() {
      const Mask<T> mask(left * D - Q * W);
      store(out + Q * W, load(x + Q * W, mask) * shuffle<SpreadCopies<D, Q>>(a, a), mask);
    });
  }
}

template <class T, int D>
void gate_block_backward(std::int64_t mul, const T* gate, const T* x, const T* g, T* grad_gate, T* grad_x) {
  constexpr int W = lanes<T>;
  for (std::int64_t u = 0; u < mul;
       u += W, gate += W, grad_gate += W, x += D * W, g += D * W, grad_x += D * W) {
    const int left = mul - u < W ? static_cast<int>(mul - u) : W;
    const Vec<T> a = load(gate, Mask<T>(left));
    Vec<T> product[D];
    each<D>([&]<int Q>() {
      const Mask<T> mask(left * D - Q * W);
      const Vec<T> gq = load(g + Q * W, mask);
      product[Q] = gq * load(x + Q * W, mask);
      store(grad_x + Q * W, gq * shuffle<SpreadCopies<D, Q>>(a, a), mask);
    });
    Vec<T> sum{};
    each<D>([&]<int M>() {
      Vec<T> component = product[0];
      each<D>([&]<int Q>() { component = shuffle<TakeFromRow<D, M, Q>>(component, product[Q]); });
      sum += shuffle<OrderChannels<D, M>>(component, component);
    });
    store(grad_gate, sum, Mask<T>(left));
  }
}

// Wide irreps, a copy at a time.
template <class T>
void gate_block(GatedBlock b, const T* gate, const T* x, T* out) {
  switch (b.width) {
    case 1:
      return gate_block<T, 1>(b.mul, gate, x, out);
    case 3:
      return gate_block<T, 3>(b.mul, gate, x, out);
    case 5:
      return gate_block<T, 5>(b.mul, gate, x, out);
    case 7:
      return gate_block<T, 7>(b.mul, gate, x, out);
    case 9:
      return gate_block<T, 9>(b.mul, gate, x, out);
    case 11:
      return gate_block<T, 11>(b.mul, gate, x, out);
    case 13:
      return gate_block<T, 13>(b.mul, gate, x, out);
  }
  for (std::int64_t u = 0; u < b.mul; ++u) {
    for (std::int64_t m = 0; m < b.width; ++m) out[u * b.width + m] = gate[u] * x[u * b.width + m];
  }
}

template <class T>
void gate_block_backward(GatedBlock b, const T* gate, const T* x, const T* g, T* grad_gate, T* grad_x) {
  switch (b.width) {
    case 1:
      return gate_block_backward<T, 1>(b.mul, gate, x, g, grad_gate, grad_x);
    case 3:
      return gate_block_backward<T, 3>(b.mul, gate, x, g, grad_gate, grad_x);
    case 5:
      return gate_block_backward<T, 5>(b.mul, gate, x, g, grad_gate, grad_x);
    case 7:
      return gate_block_backward<T, 7>(b.mul, gate, x, g, grad_gate, grad_x);
    case 9:
      return gate_block_backward<T, 9>(b.mul, gate, x, g, grad_gate, grad_x);
    case 11:
      return gate_block_backward<T, 11>(b.mul, gate, x, g, grad_gate, grad_x);
    case 13:
      return gate_block_backward<T, 13>(b.mul, gate, x, g, grad_gate, grad_x);
  }
  for (std::int64_t u = 0; u < b.mul; ++u) {
    T sum{};
    for (std::int64_t m = 0; m < b.width; ++m) {
      const std::int64_t at = u * b.width + m;
      sum += g[at] * x[at];
      grad_x[at] = gate[u] * g[at];
    }
    grad_gate[u] = sum;
  }
}

template <class T>
void gate_forward(const GateArgs<T>& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const T *scalars = args.scalars[r], *gate = args.gates[r], *x = args.gated[r];
    T* out = args.out[r];
    for (std::int64_t s = 0; s < args.scalar_count; ++s) out[s] = scalars[s];
    out += args.scalar_count;
    for (int i = 0; i < args.block_count; ++i) {
      const GatedBlock b = args.blocks[i];
      gate_block(b, gate, x, out);
      gate += b.mul;
      x += b.mul * b.width;
      out += b.mul * b.width;
    }
  }
}

template <class T>
void gate_backward(const GateArgs<T>& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const T *gate = args.gates[r], *x = args.gated[r], *g = args.grad[r] + args.scalar_count;
    T *grad_gate = args.grad_gates[r], *grad_x = args.grad_gated[r];
    for (int i = 0; i < args.block_count; ++i) {
      const GatedBlock b = args.blocks[i];
      gate_block_backward(b, gate, x, g, grad_gate, grad_x);
      gate += b.mul;
      grad_gate += b.mul;
      x += b.mul * b.width;
      g += b.mul * b.width;
      grad_x += b.mul * b.width;
    }
  }
}

template <class T>
constexpr GateKernels<T> gate_kernels = {gate_forward<T>, gate_backward<T>};

}  // namespace
}  // namespace clebsch
