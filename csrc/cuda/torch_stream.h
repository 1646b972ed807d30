// The stream that torch works on. In the emulated build there is none, and tests say whether it is captured.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <optional>
#include <stdexcept>

#ifndef CLEBSCH_EMULATED
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <string>
#endif

namespace clebsch::cuda {

// While it lives, the device of an operand is the current one, and `stream` is torch's on it.
class StreamOf {
 public:
  void* stream = nullptr;

#ifdef CLEBSCH_EMULATED
  static inline bool captures = false;
  explicit StreamOf(std::int32_t) {}
  bool is_captured() const { return captures; }
#else
  explicit StreamOf(std::int32_t device) : guard_(device) {
    // Of libtorch_cuda, which a torch without CUDA has not: looked for when there is a tensor on a GPU.
    using Get = AOTITorchError (*)(std::int32_t, void**);
    static const Get get = [] {
      void* found = dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
      if (!found) {
        if (void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD))
          found = dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream");
      }
      return reinterpret_cast<Get>(found);
    }();
    if (!get) throw std::runtime_error("clebsch: this torch has no CUDA");
    TORCH_ERROR_CODE_CHECK(get(device, &stream));
  }
  // Into a CUDA graph, rather than that what it is given runs.
  bool is_captured() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status)) {
      cudaGetLastError();
      throw std::runtime_error(std::string("clebsch: capture: ") + cudaGetErrorString(error));
    }
    return status != cudaStreamCaptureStatusNone;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace clebsch::cuda
