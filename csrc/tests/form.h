// A product written out naively from its description: the oracle of the kernels' tests. Knows the connection
// modes from their definition (python/clebsch/algebra/plan.py) and the compiled coupling table, nothing else.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "coupling.h"

struct Irrep {
  int mul, l;
  char parity;
};

struct Coupled {
  int in1, in2, out;
  std::string mode;
  bool weighted;
  double coefficient;
};

struct Description {
  std::vector<Irrep> in1, in2, out;
  std::vector<Coupled> paths;
  bool mul_ir = true;

  std::string text() const {
    const auto irreps = [](const std::vector<Irrep>& blocks) {
      std::string all;
      for (const Irrep& b : blocks) {
        all += (all.empty() ? "" : "+") + std::to_string(b.mul) + "x" + std::to_string(b.l) + b.parity;
      }
      return all;
    };
    std::string all =
        irreps(in1) + "*" + irreps(in2) + "->" + irreps(out) + (mul_ir ? ";mul_ir;" : ";ir_mul;");
    for (std::size_t i = 0; i < paths.size(); ++i) {
      char number[40];
      std::snprintf(number, sizeof number, "%.17g", paths[i].coefficient);
      all += (i ? "," : "") + std::to_string(paths[i].in1) + " " + std::to_string(paths[i].in2) + " " +
             std::to_string(paths[i].out) + " " + paths[i].mode + (paths[i].weighted ? " w " : " - ") +
             number;
    }
    return all;
  }
};

// F(g, x, y, w) = sum of value * g[out] * x[in1] * y[in2] * w[weight], the last only if weight >= 0.
struct Form {
  struct Term {
    std::int64_t index[4];  // in g, x, y, w
    double value;
  };
  std::vector<Term> terms;
  std::int64_t dim[4] = {0, 0, 0, 0};  // of g, x, y, w

  explicit Form(const Description& d);
};

// Numbers with the sum of the absolute values of their terms, and how many these are.
struct Sums {
  std::vector<double> value, magnitude;
  std::vector<int> count;
  void resize(std::int64_t n) {
    value.assign(n, 0);
    magnitude.assign(n, 0);
    count.assign(n, 0);
  }
};

// Adds the derivative of the form with respect to operand `target` of one row, at `at` in the sums. The
// weight of terms without one counts as `no_weight`.
inline void contract(const Form& form, int target, const double* const operand[4], double no_weight,
                     std::int64_t at, Sums& sums) {
  for (const Form::Term& t : form.terms) {
    if (target == 3 && t.index[3] < 0) continue;
    double product = t.value;
    for (int i = 0; i < 4; ++i) {
      if (i != target) product *= t.index[i] < 0 ? no_weight : operand[i][t.index[i]];
    }
    sums.value[at + t.index[target]] += product;
    sums.magnitude[at + t.index[target]] += std::fabs(product);
    ++sums.count[at + t.index[target]];
  }
}

template <class T>
void check_close(const T* actual, const Sums& expected, const std::string& label) {
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  for (std::size_t i = 0; i < expected.value.size(); ++i) {
    const double bound = 2 * (expected.count[i] + 8) * unit * expected.magnitude[i] + 1e-30;
    const double error = std::fabs(static_cast<double>(actual[i]) - expected.value[i]);
    CHECK(error <= bound, label, "at", i, "of", expected.value.size(), ":", actual[i], "for",
          expected.value[i]);
    if (!(error <= bound)) return;
  }
}

// Random numbers that float holds too.
inline std::vector<double> random_numbers(std::int64_t count, std::mt19937& generator) {
  std::normal_distribution<float> normal;
  std::vector<double> numbers(count);
  for (double& number : numbers) number = normal(generator);
  return numbers;
}
