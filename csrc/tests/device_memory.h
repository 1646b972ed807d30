// Work space of emulated kernels: pieces of exactly the size that was asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "cuda/workspace.h"

class DeviceMemory {
 public:
  clebsch::cuda::Workspace workspace() { return {this, &take}; }

 private:
  static void* take(void* context, std::size_t bytes) {
    auto& pieces = static_cast<DeviceMemory*>(context)->pieces_;
    pieces.push_back(std::make_unique<Buffer<char>>(static_cast<int64_t>(bytes), Place::heap, 64));
    return pieces.back()->data();
  }
  std::vector<std::unique_ptr<Buffer<char>>> pieces_;
};
