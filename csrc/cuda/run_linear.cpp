#include "cuda/run_linear.h"

#include <algorithm>

namespace clebsch::cuda {
namespace {

// Chunks of rows whose gradients are summed apart: some for each processor, of rows enough to pay for it.
constexpr std::int64_t kChunks = 64, kFewestRows = 64;

}  // namespace

template <class T>
void run_grad_weight(const DeviceLinear<T>& linear, Rows<const T> g, const std::int64_t* sorted,
                     std::int64_t numel, T* grad_weight, const Workspace& workspace, void* stream) {
  LinearWeightSums<T> sums{};
  sums.linear = linear;
  sums.g = g;
  sums.sorted = sorted;
  sums.chunk = std::max((linear.rows + kChunks - 1) / kChunks, kFewestRows);
  sums.numel = numel / std::max<std::int64_t>(linear.elements, 1);
  const std::int64_t parts = linear.rows / sums.chunk + 1 + linear.elements;
  sums.parts = static_cast<T*>(
      workspace.take(workspace.context, static_cast<std::size_t>(parts * sums.numel) * sizeof(T)));
  sums.grad_weight = grad_weight;
  launch_weight_parts(sums, stream);
  launch_weight_sums(sums, stream);
}

template void run_grad_weight(const DeviceLinear<float>&, Rows<const float>, const std::int64_t*,
                              std::int64_t, float*, const Workspace&, void*);
template void run_grad_weight(const DeviceLinear<double>&, Rows<const double>, const std::int64_t*,
                              std::int64_t, double*, const Workspace&, void*);

}  // namespace clebsch::cuda
