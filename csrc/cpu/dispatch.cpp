#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace clebsch {

#define CLEBSCH_DECLARE(isa)                                                       \
  extern const SphericalHarmonicsKernels<float> spherical_harmonics_float_##isa;   \
  extern const SphericalHarmonicsKernels<double> spherical_harmonics_double_##isa; \
  extern const TensorProductKernels<float> tensor_product_float_##isa;             \
  extern const TensorProductKernels<double> tensor_product_double_##isa;           \
  extern const LinearKernels<float> linear_float_##isa;                            \
  extern const LinearKernels<double> linear_double_##isa;                          \
  extern const GateKernels<float> gate_float_##isa;                                \
  extern const GateKernels<double> gate_double_##isa;                              \
  extern const SiluKernels<float> silu_float_##isa;                                \
  extern const SiluKernels<double> silu_double_##isa;                              \
  extern const RadialKernels<float> radial_convolution_float_##isa;                \
  extern const RadialKernels<double> radial_convolution_double_##isa;              \
  extern const ContractionKernels<float> symmetric_contraction_float_##isa;        \
  extern const ContractionKernels<double> symmetric_contraction_double_##isa;
CLEBSCH_DECLARE(baseline)
#ifdef CLEBSCH_HAS_avx2
CLEBSCH_DECLARE(avx2)
#endif
#ifdef CLEBSCH_HAS_avx512
CLEBSCH_DECLARE(avx512)
#endif

namespace {

struct InstructionSet {
  const char* name;
  bool usable;
  Kernels<float> in_float;
  Kernels<double> in_double;
};

#define CLEBSCH_TABLES(isa)                                                                                \
  {spherical_harmonics_float_##isa,                                                                        \
   tensor_product_float_##isa,                                                                             \
   linear_float_##isa,                                                                                     \
   gate_float_##isa,                                                                                       \
   silu_float_##isa,                                                                                       \
   radial_convolution_float_##isa,                                                                         \
   symmetric_contraction_float_##isa},                                                                     \
  {                                                                                                        \
    spherical_harmonics_double_##isa, tensor_product_double_##isa, linear_double_##isa, gate_double_##isa, \
        silu_double_##isa, radial_convolution_double_##isa, symmetric_contraction_double_##isa             \
  }

// Narrowest first.
const std::vector<InstructionSet>& instruction_sets() {
  static const auto& sets = *new std::vector<InstructionSet>{
      {"baseline", true, CLEBSCH_TABLES(baseline)},
#ifdef CLEBSCH_HAS_avx2
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), CLEBSCH_TABLES(avx2)},
#endif
#ifdef CLEBSCH_HAS_avx512
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("fma"),
       CLEBSCH_TABLES(avx512)},
#endif
  };
  return sets;
}

const InstructionSet& find(const std::string& name) {
  std::string usable;
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.usable) continue;
    if (name == set.name) return set;
    usable += (usable.empty() ? "" : ", ") + std::string(set.name);
  }
  throw std::invalid_argument("CLEBSCH_ISA must be one of the instruction sets usable here (" + usable +
                              "), got '" + name + "'");
}

const InstructionSet& detect() {
  const char* wish = std::getenv("CLEBSCH_ISA");
  if (wish && *wish) return find(wish);
  const InstructionSet* widest = nullptr;
  for (const InstructionSet& set : instruction_sets()) {
    if (set.usable) widest = &set;
  }
  return *widest;
}

std::atomic<const InstructionSet*> in_use{nullptr};

const InstructionSet& current() {
  const InstructionSet* set = in_use.load(std::memory_order_acquire);
  if (!set) {
    set = &detect();
    in_use.store(set, std::memory_order_release);
  }
  return *set;
}

template <class T>
void add_entries(std::vector<KernelEntry>& entries, const char* dtype, const char* isa,
                 const Kernels<T>& kernels) {
  const int degree = kernels.tensor_product.unrolled_degree;
  entries.push_back(
      {"spherical_harmonics", dtype, isa, "points", kernels.spherical_harmonics.unrolled_degree});
  entries.push_back({"tensor_product", dtype, isa, "channels", degree});
  entries.push_back({"tensor_product", dtype, isa, "rows", degree});
  entries.push_back({"linear", dtype, isa, "channels", kPanelDegree});
  entries.push_back({"gate", dtype, isa, "elements", kPanelDegree});
  entries.push_back({"silu", dtype, isa, "elements", 0});
  entries.push_back({"symmetric_contraction", dtype, isa, "channels", 0});
}

}  // namespace

std::vector<KernelEntry> compiled_kernels() {
  std::vector<KernelEntry> entries;
  for (const InstructionSet& set : instruction_sets()) {
    add_entries(entries, "float32", set.name, set.in_float);
    add_entries(entries, "float64", set.name, set.in_double);
  }
  return entries;
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets()) names.emplace_back(set.name);
  return names;
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets()) {
    if (set.usable) names.emplace_back(set.name);
  }
  return names;
}

std::string instruction_set() { return current().name; }

void select_instruction_set(const std::string& name) { in_use.store(&find(name), std::memory_order_release); }

template <>
CLEBSCH_API const Kernels<float>& kernels<float>() {
  return current().in_float;
}
template <>
CLEBSCH_API const Kernels<double>& kernels<double>() {
  return current().in_double;
}

}  // namespace clebsch
