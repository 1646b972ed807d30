// Gates, silu and rows that are one-hot on a device: how their kernels are started.
#pragma once

#include <cstdint>

#include "gate.h"
#include "silu.h"
#include "tensor_product.h"

namespace clebsch::cuda {

// The blocks of args lie on the device.
template <class T>
struct DeviceGate {
  GateArgs<T> args;
  std::int64_t rows, gates, gated;
};
template <class T>
void launch_gate(const DeviceGate<T>& gate, bool backward, void* stream);

template <class T>
struct DeviceSilu {
  SiluArgs<T> args;
  std::int64_t count;
  int derivative;
};
template <class T>
void launch_silu(const DeviceSilu<T>& silu, void* stream);

// found[r], index[r]: the column of the 1 of row r; found is -1 unless the row has one 1 and else zeros.
template <class T>
struct OneHotRows {
  Rows<const T> y;
  std::int64_t rows, columns;
  std::int64_t *found, *index;
};
template <class T>
void launch_one_hot(const OneHotRows<T>& rows, void* stream);

}  // namespace clebsch::cuda
