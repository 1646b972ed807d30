// Numbers of 16 bits as they lie in memory. Kernels that take them compute in float, and round once, where
// they store.
#pragma once

#include <cstdint>
#include <type_traits>

namespace clebsch {

struct Half {  // IEEE 754 binary16, torch's float16
  std::uint16_t bits;
};
struct BFloat16 {  // the upper half of a float
  std::uint16_t bits;
};

template <class S>
constexpr bool kShort = std::is_same_v<S, Half> || std::is_same_v<S, BFloat16>;
// The type that numbers stored as S are computed with.
template <class S>
using Arithmetic = std::conditional_t<kShort<S>, float, S>;

}  // namespace clebsch
