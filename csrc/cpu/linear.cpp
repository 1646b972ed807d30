// Compiled once for every instruction set; exports one constant table for each floating-point type.
#include "linear.h"

#include "linear.inl.h"

#define CLEBSCH_JOIN_(a, b) a##_##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {

extern constexpr LinearKernels<float> CLEBSCH_JOIN(linear_float, CLEBSCH_ISA) = linear_kernels<float>;
extern constexpr LinearKernels<double> CLEBSCH_JOIN(linear_double, CLEBSCH_ISA) = linear_kernels<double>;

}  // namespace clebsch
