// Gates: scalars beside irreps that are multiplied by scalars of their own. What a kernel is given, and the
// kernels of one instruction set.
#pragma once

#include <cstdint>

#include "tensor_product.h"

namespace clebsch {

// `mul` copies of `width` components each, and a gate for every copy.
struct GatedBlock {
  std::int64_t mul, width;
};

// A row of out is the row of scalars and, behind it, gated: element (u, m) of a block is multiplied by gate
// u.
template <class T>
struct GateArgs {
  const GatedBlock* blocks;
  int block_count;
  std::int64_t scalar_count;
  Rows<const T> scalars, gates, gated;
  Rows<T> out;
  Rows<const T> grad;  // of out; backward
  Rows<T> grad_gates, grad_gated;
};

// Rows [begin, end).
template <class T>
struct GateKernels {
  void (*forward)(const GateArgs<T>&, std::int64_t begin, std::int64_t end);
  void (*backward)(const GateArgs<T>&, std::int64_t begin, std::int64_t end);
};

}  // namespace clebsch
