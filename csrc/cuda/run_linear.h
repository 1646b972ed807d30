// Runs linear layers on a device. Nothing waits.
#pragma once

#include "cuda/device_linear.h"
#include "cuda/workspace.h"

namespace clebsch::cuda {

// grad_weight of numel numbers = source^T g; sorted: elements by position, null with the order of linear.
template <class T>
void run_grad_weight(const DeviceLinear<T>& linear, Rows<const T> g, const std::int64_t* sorted,
                     std::int64_t numel, T* grad_weight, const Workspace& workspace, void* stream);

}  // namespace clebsch::cuda
