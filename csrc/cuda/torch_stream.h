// The stream that torch works on. In the emulated build there is none.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <optional>
#include <stdexcept>

#ifndef CLEBSCH_EMULATED
#include <dlfcn.h>
#endif

namespace clebsch::cuda {

// While it lives, the device of an operand is the current one, and `stream` is torch's on it.
class StreamOf {
 public:
  void* stream = nullptr;

#ifdef CLEBSCH_EMULATED
  explicit StreamOf(std::int32_t) {}
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

 private:
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace clebsch::cuda
