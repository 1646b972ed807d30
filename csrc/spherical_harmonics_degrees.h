// From the arguments of a call to what its kernel is given, for the bindings.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "spherical_harmonics.h"

namespace clebsch {

// Work space grows with the square of the degree: this one takes 130 MB.
constexpr std::int64_t kMaxHarmonicDegree = 1000;

// Everything but the arrays. ls must outlive the result. Throws std::invalid_argument for a degree that is
// negative or above kMaxHarmonicDegree, or an unknown normalization.
template <class T>
SphericalHarmonicsArgs<T> spherical_harmonics_args(const std::vector<std::int64_t>& ls, bool normalize,
                                                   const std::string& normalization) {
  SphericalHarmonicsArgs<T> args;
  args.ls = ls.data();
  args.num_ls = static_cast<int>(ls.size());
  args.normalize = normalize;
  for (const std::int64_t l : ls) {
    if (l < 0) throw std::invalid_argument("spherical_harmonics: ls must be >= 0, got " + std::to_string(l));
    if (l > kMaxHarmonicDegree)
      throw std::invalid_argument("spherical_harmonics: ls must be <= " + std::to_string(kMaxHarmonicDegree) +
                                  ", got " + std::to_string(l));
    args.num_columns += 2 * l + 1;
  }
  if (normalization == "component") {
    args.normalization = HarmonicNormalization::component;
  } else if (normalization == "norm") {
    args.normalization = HarmonicNormalization::norm;
  } else if (normalization == "integral") {
    args.normalization = HarmonicNormalization::integral;
  } else {
    throw std::invalid_argument(
        "spherical_harmonics: normalization must be 'integral', 'component' or 'norm', got '" +
        normalization + "'");
  }
  return args;
}

}  // namespace clebsch
