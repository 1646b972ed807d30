// Spherical harmonics for one instruction set: compiled once for each with -DCLEBSCH_ISA=name and its flags.
#include "spherical_harmonics.inl.h"

#define CLEBSCH_JOIN_(a, b) a##b
#define CLEBSCH_JOIN(a, b) CLEBSCH_JOIN_(a, b)

namespace clebsch {
namespace {

template <class T>
void forward(const SphericalHarmonicsArgs<T>& args, std::int64_t begin, std::int64_t end) {
  run(args, begin, end, &RowKernels<T>::forward);
}

template <class T>
void backward(const SphericalHarmonicsArgs<T>& args, std::int64_t begin, std::int64_t end) {
  run(args, begin, end, &RowKernels<T>::backward);
}

template <class T>
void double_backward(const SphericalHarmonicsArgs<T>& args, std::int64_t begin, std::int64_t end) {
  run(args, begin, end, &RowKernels<T>::double_backward);
}

}  // namespace

extern const SphericalHarmonicsKernels<float> CLEBSCH_JOIN(spherical_harmonics_float_, CLEBSCH_ISA);
extern const SphericalHarmonicsKernels<double> CLEBSCH_JOIN(spherical_harmonics_double_, CLEBSCH_ISA);
constinit const SphericalHarmonicsKernels<float> CLEBSCH_JOIN(spherical_harmonics_float_, CLEBSCH_ISA) = {
    &forward<float>, &backward<float>, &double_backward<float>, unrolled_harmonic_degree<float>};
constinit const SphericalHarmonicsKernels<double> CLEBSCH_JOIN(spherical_harmonics_double_, CLEBSCH_ISA) = {
    &forward<double>, &backward<double>, &double_backward<double>, unrolled_harmonic_degree<double>};

}  // namespace clebsch
