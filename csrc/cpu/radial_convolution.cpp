// Compiled once for every instruction set; exports one constant table for each floating-point type.
#include "radial_convolution.h"

#include "radial_convolution.inl.h"

#define CLEBSCH_JOIN_(a, b) a##_##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {

extern constexpr RadialKernels<float> CLEBSCH_JOIN(radial_convolution_float,
                                                   CLEBSCH_ISA) = radial_kernels<float>;
extern constexpr RadialKernels<double> CLEBSCH_JOIN(radial_convolution_double,
                                                    CLEBSCH_ISA) = radial_kernels<double>;

}  // namespace clebsch
