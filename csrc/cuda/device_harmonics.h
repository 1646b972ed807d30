// Spherical harmonics on a device: what kernels are given, and how they are started.
#pragma once

#include <cstdint>
#include <vector>

#include "spherical_harmonics.h"
#include "spherical_harmonics_steps.h"
#include "storage.h"

namespace clebsch::cuda {

constexpr int kUnrolledHarmonics = 4;  // degrees 0..l in order have a kernel of their own up to this l

// For degrees 0..l in order, l <= kUnrolledHarmonics, the coefficients are part of the arguments: they reach
// kernels through the constant cache. Otherwise they and the columns lie in tables.
template <class T>
struct HarmonicTables {
  Step<T> step[step_count(kUnrolledHarmonics)];
  T sectoral[kUnrolledHarmonics + 1];
  const Step<T>* more_steps;  // null: unrolled
  const T* more_sectoral;
  // Columns where degree l begins, for each time that it occurs: column[first[l]] to column[first[l + 1] -
  // 1].
  const std::int64_t *first, *column;
  int l_max;
};

// The tables in words of 8 bytes, none if the kernel is unrolled, and the view of them wherever they are.
template <class S>
std::vector<std::int64_t> harmonic_words(const SphericalHarmonicsArgs<S>& args);
template <class S>
HarmonicTables<Arithmetic<S>> view_harmonics(const SphericalHarmonicsArgs<S>& args,
                                             const std::int64_t* words);

template <class S>
struct DeviceHarmonics {
  HarmonicTables<Arithmetic<S>> tables;
  SphericalHarmonicsArgs<S> args;  // ls is not for the device
  std::int64_t points;
};
template <class S>
void launch_harmonics(const DeviceHarmonics<S>& harmonics, int derivative, void* stream);

}  // namespace clebsch::cuda
