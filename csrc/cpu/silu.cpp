// Compiled once for every instruction set; exports one constant table for each floating-point type.
#include "silu.h"

#include "silu.inl.h"

#define CLEBSCH_JOIN_(a, b) a##_##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {

extern constexpr SiluKernels<float> CLEBSCH_JOIN(silu_float, CLEBSCH_ISA) = silu_kernels<float>;
extern constexpr SiluKernels<double> CLEBSCH_JOIN(silu_double, CLEBSCH_ISA) = silu_kernels<double>;

}  // namespace clebsch
