// Memory of the device that lives until a call is through; torch's, so that it belongs to the stream.
#pragma once

#include <cstddef>

namespace clebsch::cuda {

struct Workspace {
  void* context;
  void* (*take)(void* context, std::size_t bytes);
};

}  // namespace clebsch::cuda
