// Coefficients of the recurrence for spherical harmonics (cpu/spherical_harmonics.inl.h has the formulas),
// square roots of rationals for any degree. In an anonymous namespace: objects of an instruction set must
// export nothing.
#pragma once

#include "spherical_harmonics.h"

namespace clebsch {
namespace {

// Of degree l and order m at l(l+1)/2 + m.
template <class T>
struct Step {
  T up, bend, dy, dr;
};

constexpr std::int64_t step_count(int l_max) { return std::int64_t{l_max + 1} * (l_max + 2) / 2; }

inline double root(double v) { return __builtin_sqrt(v); }

// step: step_count(l_max); sectoral: (l_max + 1,), q_m^m.
template <class T>
void fill_steps(int l_max, HarmonicNormalization normalization, Step<T>* step, T* sectoral) {
  constexpr double pi = 3.14159265358979323846;
  const bool norm = normalization == HarmonicNormalization::norm;
  double value = normalization == HarmonicNormalization::integral ? root(0.25 / pi) : 1.0;
  for (int m = 0; m <= l_max; ++m) {
    if (m > 0) value *= root((norm ? 2.0 * m - 1 : 2.0 * m + 1) / (m == 1 ? 1.0 : 2.0 * m));
    sectoral[m] = static_cast<T>(value);
  }
  for (int l = 0; l <= l_max; ++l) {
    // Ratios of the normalisation of degree l to that of l - 1, and of l - 1 to l - 2, squared.
    const double one = norm ? 1.0 : (2.0 * l + 1) / (2.0 * l - 1),
                 two = norm ? 1.0 : (2.0 * l - 1) / (2.0 * l - 3);
    for (int m = 0; m <= l; ++m, ++step) {
      const double sum = l + m, difference = l - m;
      step->up = m == l ? T(0) : static_cast<T>(root(one * difference / sum));
      step->bend = m >= l - 1
                       ? T(0)
                       : static_cast<T>((sum - 1) / difference * root(two * (difference - 1) / (sum - 1)));
      step->dy = static_cast<T>(root(one * difference * sum));
      step->dr = m >= l - 1
                     ? T(0)
                     : static_cast<T>(-root(one * difference * (difference - 1) * (m == 0 ? 0.5 : 1.0)));
    }
  }
}

}  // namespace
}  // namespace clebsch
