// What the library was built for and what the driver knows, for backend.py: asked before any kernel starts,
// and without waking the driver.
#include <cuda_runtime_api.h>

#define CLEBSCH_EXPORT extern "C" __attribute__((visibility("default")))

// As CMake was given them: "80-real 90-real 100".
CLEBSCH_EXPORT const char* clebsch_cuda_architectures() { return CLEBSCH_CUDA_ARCHITECTURES; }

// 1000 major + 10 minor.
CLEBSCH_EXPORT int clebsch_cuda_version() { return CUDART_VERSION; }

// The newest CUDA that the driver knows; 0: there is none.
CLEBSCH_EXPORT int clebsch_cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
