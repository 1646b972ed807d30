// Compiled once for every instruction set; exports one constant table for each floating-point type.
#include "tensor_product.h"

#include "tensor_product_channels.inl.h"
#include "tensor_product_rows.inl.h"

#define CLEBSCH_JOIN_(a, b) a##_##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {

extern constexpr TensorProductKernels<float> CLEBSCH_JOIN(tensor_product_float, CLEBSCH_ISA) = {
    channel_kernels<float>, row_kernels<float>, kUnrolled<float> - 1, &to_panel<float>, &from_panel<float>};
extern constexpr TensorProductKernels<double> CLEBSCH_JOIN(tensor_product_double, CLEBSCH_ISA) = {
    channel_kernels<double>, row_kernels<double>, kUnrolled<double> - 1, &to_panel<double>,
    &from_panel<double>};

}  // namespace clebsch
