// Compiled once for every instruction set; exports one constant table for each floating-point type.
#include "gate.h"

#include "gate.inl.h"

#define CLEBSCH_JOIN_(a, b) a##_##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {

extern constexpr GateKernels<float> CLEBSCH_JOIN(gate_float, CLEBSCH_ISA) = gate_kernels<float>;
extern constexpr GateKernels<double> CLEBSCH_JOIN(gate_double, CLEBSCH_ISA) = gate_kernels<double>;

}  // namespace clebsch
