// Compiled once for every instruction set; exports one constant table for each floating-point type.
#include "symmetric_contraction.h"

#include "symmetric_contraction.inl.h"

#define CLEBSCH_JOIN_(a, b) a##_##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {

extern constexpr ContractionKernels<float> CLEBSCH_JOIN(symmetric_contraction_float,
                                                        CLEBSCH_ISA) = symmetric_contraction_kernels<float>;
extern constexpr ContractionKernels<double> CLEBSCH_JOIN(symmetric_contraction_double,
                                                         CLEBSCH_ISA) = symmetric_contraction_kernels<double>;

}  // namespace clebsch
