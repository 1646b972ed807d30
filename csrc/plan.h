// A product as the kernels see it: parsed once from the canonical string of python/clebsch/algebra/plan.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "api.h"
#include "program.h"

namespace clebsch {

// Whether the lanes of a vector are channels (every path uvu with one copy of y or uuu, multiplicities wide
// enough) or rows.
struct Lanes {
  bool forward, derivatives;
};

// What a Contraction points to.
struct SortedTerms {
  std::vector<int> first, source;
  std::vector<double> values;
  std::vector<float> values_float;
  Contraction view() const { return {first.data(), source.data(), values.data(), values_float.data()}; }
};

struct Plan {
  Program program{};
  Lanes channels{};

 private:
  friend const Plan& parse_plan(const std::string&);
  void pair_blocks();
  std::vector<Block> in1_, in2_, out_;
  std::vector<Path> paths_;
  std::vector<std::vector<Cell>> cells_;
  std::vector<std::vector<Term>> terms_;
  std::vector<std::vector<double>> values_;
  std::vector<std::vector<float>> values_float_;
  std::vector<SortedTerms> sorted_terms_;
  std::vector<ElementwisePair> pairs_;
  std::vector<std::vector<int>> pair_paths_;
};

// The plan of a canonical string, parsed at first use and kept for the life of the process.
// Throws std::invalid_argument that says what is wrong with the string.
CLEBSCH_API const Plan& parse_plan(const std::string& text);

// Adds the coupling of (l1, l2, l3) for degrees beyond the compiled table: n entries of
// (m1, m2, m3) and their values.
CLEBSCH_API void register_coupling(int l1, int l2, int l3, int n, const int* m, const double* values);
CLEBSCH_API bool has_coupling(int l1, int l2, int l3);

}  // namespace clebsch
