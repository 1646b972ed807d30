// The instruction set in use: detected at first use, overridden by CLEBSCH_ISA or select_instruction_set().
#pragma once

#include <string>
#include <vector>

#include "api.h"
#include "gate.h"
#include "linear.h"
#include "radial_convolution.h"
#include "silu.h"
#include "spherical_harmonics.h"
#include "symmetric_contraction.h"
#include "tensor_product.h"

namespace clebsch {

// All kernels of one instruction set for one floating-point type.
template <class T>
struct Kernels {
  SphericalHarmonicsKernels<T> spherical_harmonics;
  TensorProductKernels<T> tensor_product;
  LinearKernels<T> linear;
  GateKernels<T> gate;
  SiluKernels<T> silu;
  RadialKernels<T> radial_convolution;
  ContractionKernels<T> symmetric_contraction;
};

// Names compiled into this binary, narrowest first, and those of them that this processor runs.
CLEBSCH_API std::vector<std::string> compiled_instruction_sets();
CLEBSCH_API std::vector<std::string> usable_instruction_sets();

// What is compiled: an entry for every noun, type, instruction set and choice of what lies in the lanes of a
// vector. Products over rows and over the edges of a graph have the same kernels; what a radial_convolution
// has besides, matrix products, has no entry.
struct KernelEntry {
  const char *noun, *dtype, *instruction_set, *lanes;
  int unrolled_degree;  // degrees up to this one are known when compiling
};
CLEBSCH_API std::vector<KernelEntry> compiled_kernels();

// The one in use. Throws std::invalid_argument if CLEBSCH_ISA names none of the usable ones.
CLEBSCH_API std::string instruction_set();

// Uses another one from the next call on, in every thread. Throws std::invalid_argument as above.
CLEBSCH_API void select_instruction_set(const std::string& name);

template <class T>
CLEBSCH_API const Kernels<T>& kernels();

}  // namespace clebsch
