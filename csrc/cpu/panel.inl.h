// Blocks of irreps between rows and panels (program.h), a tile of lanes x (2l + 1) at a time in registers.
//
// In a mul_ir row, component m of channel u is element u * D + m, D = 2l + 1. D is odd, so over a tile of W =
// 2^n channels the positions (u * D + m) mod W of one component are all different: the D loaded vectors can
// be blended into one that holds component m whole, and a single permutation puts it in order. That is D
// blends and one permutation a vector, against W inserts.
#pragma once

#include "program.h"
#include "unrolled.inl.h"
#include "vec.h"

namespace clebsch {
namespace {

// Position p of the row tile, in vector q, belongs to component (q * W + p) mod D.
template <int D, int M, int Q>
struct TakeFromRow {  // component M: accept lanes of loaded vector Q (second operand) where they belong to M
  template <int N>
  static constexpr int at(int p) {
    return (Q * N + p) % D == M ? N + p : p;
  }
};
template <int D, int M>
struct OrderChannels {  // lane u comes from position (u * D + M) mod W
  template <int N>
  static constexpr int at(int u) {
    return (u * D + M) % N;
  }
};
template <int D, int M>
struct ScatterChannels {  // the inverse: position p comes from the lane u with (u * D + M) mod W == p
  template <int N>
  static constexpr int at(int p) {
    for (int u = 0; u < N; ++u) {
      if ((u * D + M) % N == p) return u;
    }
    return 0;
  }
};

template <class T, int D>
void block_to_panel(const T* row, int mul, int stride, T* panel) {
  constexpr int W = lanes<T>;
  for (int c = 0; c < stride; c += W) {
    Vec<T> v[D];
    each<D>([&]<int Q>() { v[Q] = load(row + c * D + Q * W, Mask<T>((mul - c) * D - Q * W)); });
    each<D>([&]<int M>() {
      Vec<T> component = v[0];
      each<D>([&]<int Q>() { component = shuffle<TakeFromRow<D, M, Q>>(component, v[Q]); });
      store(panel + M * stride + c, shuffle<OrderChannels<D, M>>(component, component));
    });
  }
}

// Stream: past the caches, of a row that is whole lines.
template <class T, int D, bool Stream>
void block_from_panel(const T* panel, int mul, int stride, T* row) {
  constexpr int W = lanes<T>;
  for (int c = 0; c < mul; c += W) {
    Vec<T> v[D];
    each<D>([&]<int M>() {
      const Vec<T> component = load(panel + M * stride + c);
      v[M] = shuffle<ScatterChannels<D, M>>(component, component);
    });
    each<D>([&]<int Q>() {
      Vec<T> part = v[0];
      each<D>([&]<int M>() { part = shuffle<TakeFromRow<D, M, Q>>(part, v[M]); });
      if constexpr (Stream) {
        stream(row + c * D + Q * W, part);
      } else {
        store(row + c * D + Q * W, part, Mask<T>((mul - c) * D - Q * W));
      }
    });
  }
}

template <class T>
void block_to_panel(const Block& b, bool mul_ir, const T* row, T* panel) {
  const int d = 2 * b.l + 1;
  if (!mul_ir) {
    for (int m = 0; m < d; ++m) {
      for (int c = 0; c < b.stride; c += lanes<T>) {
        store(panel + m * b.stride + c, load(row + std::int64_t{m} * b.mul + c, Mask<T>(b.mul - c)));
      }
    }
    return;
  }
  switch (b.l) {
    case 0:
      return block_to_panel<T, 1>(row, b.mul, b.stride, panel);
    case 1:
      return block_to_panel<T, 3>(row, b.mul, b.stride, panel);
    case 2:
      return block_to_panel<T, 5>(row, b.mul, b.stride, panel);
    case 3:
      return block_to_panel<T, 7>(row, b.mul, b.stride, panel);
    case 4:
      return block_to_panel<T, 9>(row, b.mul, b.stride, panel);
    case 5:
      return block_to_panel<T, 11>(row, b.mul, b.stride, panel);
    case 6:
      return block_to_panel<T, 13>(row, b.mul, b.stride, panel);
  }
  for (int m = 0; m < d; ++m) {
    for (int u = 0; u < b.mul; ++u) panel[m * b.stride + u] = row[std::int64_t{u} * d + m];
    for (int u = b.mul; u < b.stride; ++u) panel[m * b.stride + u] = T{};
  }
}

template <class T, int D>
CLEBSCH_INLINE void block_from_panel(const Block& b, const T* panel, T* row, bool far) {
  if (far && b.mul % lanes<T> == 0 && fills_lines(row, std::int64_t{b.mul} * D))
    return block_from_panel<T, D, true>(panel, b.mul, b.stride, row);
  block_from_panel<T, D, false>(panel, b.mul, b.stride, row);
}

// far: larger than caches, see stream() in vec.h.
template <class T>
void block_from_panel(const Block& b, bool mul_ir, const T* panel, T* row, bool far = false) {
  const int d = 2 * b.l + 1;
  if (!mul_ir && far && b.mul == b.stride && fills_lines(row, b.mul)) {
    for (std::int64_t i = 0; i < std::int64_t{d} * b.mul; i += lanes<T>) stream(row + i, load(panel + i));
    return;
  }
  if (!mul_ir) {
    for (int m = 0; m < d; ++m) {
      for (int c = 0; c < b.mul; c += lanes<T>) {
        store(row + std::int64_t{m} * b.mul + c, load(panel + m * b.stride + c), Mask<T>(b.mul - c));
      }
    }
    return;
  }
  switch (b.l) {
    case 0:
      return block_from_panel<T, 1>(b, panel, row, far);
    case 1:
      return block_from_panel<T, 3>(b, panel, row, far);
    case 2:
      return block_from_panel<T, 5>(b, panel, row, far);
    case 3:
      return block_from_panel<T, 7>(b, panel, row, far);
    case 4:
      return block_from_panel<T, 9>(b, panel, row, far);
    case 5:
      return block_from_panel<T, 11>(b, panel, row, far);
    case 6:
      return block_from_panel<T, 13>(b, panel, row, far);
  }
  for (int m = 0; m < d; ++m) {
    for (int u = 0; u < b.mul; ++u) row[std::int64_t{u} * d + m] = panel[m * b.stride + u];
  }
}

template <class T>
void to_panel(const Block* blocks, int count, bool mul_ir, const T* row, T* panel) {
  for (int i = 0; i < count; ++i) {
    if (blocks[i].used) block_to_panel(blocks[i], mul_ir, row + blocks[i].offset, panel + blocks[i].panel);
  }
}

template <class T>
void from_panel(const Block* blocks, int count, bool mul_ir, const T* panel, T* row, bool far) {
  for (int i = 0; i < count; ++i)
    block_from_panel(blocks[i], mul_ir, panel + blocks[i].panel, row + blocks[i].offset, far);
}
template <class T>
void from_panel(const Block* blocks, int count, bool mul_ir, const T* panel, T* row) {
  from_panel(blocks, count, mul_ir, panel, row, false);
}

}  // namespace
}  // namespace clebsch
