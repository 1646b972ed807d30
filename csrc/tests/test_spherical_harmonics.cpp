// Spherical harmonics of every instruction set that runs here, on arrays of exactly the size they need,
// against the recurrence that couples degree l - 1 with the point to degree l.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "coupling.h"
#include "cpu/dispatch.h"
#include "schedules.h"

namespace {

using clebsch::HarmonicNormalization;
using std::int64_t;

// Y^0 to Y^l_max of a point, of norm 1 on the unit sphere, with their gradients in the point. As in the
// reference: Y^l = G^l (x, Y^{l-1}) and dY^l/dx_k = l G^l (e_k, Y^{l-1}), G a coupling scaled so that the
// pole y has Y^l_0 = 1.
struct Harmonics {
  std::vector<std::vector<double>> value;
  std::vector<std::vector<double>> gradient;  // of each component 3 numbers

  Harmonics(int l_max, const double* x) {
    value.push_back({1});
    gradient.push_back({0, 0, 0});
    for (int l = 1; l <= l_max; ++l) {
      std::vector<double> y(2 * l + 1), dy(3 * (2 * l + 1));
      double pole = 0;
      for_entries(l, [&](int j, int k, int i, double c) {
        if (j == l - 1 && k == 1 && i == l) pole = c;
      });
      for_entries(l, [&](int j, int k, int i, double c) {
        y[i] += c / pole * x[k] * value[l - 1][j];
        dy[3 * i + k] += l * c / pole * value[l - 1][j];
      });
      value.push_back(y);
      gradient.push_back(dy);
    }
  }

 private:
  template <class F>
  static void for_entries(int l, F f) {
    for (int b = 0; b < clebsch::coupling_block_count; ++b) {
      const clebsch::CouplingBlock& block = clebsch::coupling_blocks[b];
      if (block.l1 != l - 1 || block.l2 != 1 || block.l3 != l) continue;
      for (int n = 0; n < block.size; ++n) {
        const clebsch::CouplingEntry& e = block.entries[n];
        f(e.m1, e.m2, e.m3, e.value);
      }
    }
  }
};

struct Case {
  std::vector<int64_t> ls;
  bool normalize;
  HarmonicNormalization normalization;

  int64_t columns() const {
    int64_t sum = 0;
    for (const int64_t l : ls) sum += 2 * l + 1;
    return sum;
  }
  int l_max() const { return ls.empty() ? 0 : static_cast<int>(*std::max_element(ls.begin(), ls.end())); }
  double scale(int64_t l) const {
    const double component = std::sqrt(2.0 * l + 1);
    return normalization == HarmonicNormalization::norm        ? 1
           : normalization == HarmonicNormalization::component ? component
                                                               : component / std::sqrt(4 * M_PI);
  }

  // Y of a point and J(x)^T g.
  void naive(const double* x, const double* g, double* y, double* gx) const {
    const double length = std::sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2]);
    const double divisor = normalize ? std::max(length, 1e-12) : 1;
    const double u[3] = {x[0] / divisor, x[1] / divisor, x[2] / divisor};
    const Harmonics h(l_max(), u);
    double sum[3] = {0, 0, 0};
    for (const int64_t l : ls) {
      for (int i = 0; i <= 2 * l; ++i, ++y, ++g) {
        *y = scale(l) * h.value[l][i];
        for (int k = 0; k < 3; ++k) sum[k] += scale(l) * *g * h.gradient[l][3 * i + k];
      }
    }
    const double radial = normalize && length >= 1e-12 ? u[0] * sum[0] + u[1] * sum[1] + u[2] * sum[2] : 0;
    for (int k = 0; k < 3; ++k) gx[k] = (sum[k] - u[k] * radial) / divisor;
  }
};

// Operands and results of n points; before a protected page rows are apart with NaN between them.
template <class T>
struct Arrays {
  int64_t n, columns, apart;
  Buffer<T> points, grad, tangent, out, grad_points, grad_grad, second;

  Arrays(const Case& c, int64_t count, Place place)
      : n(count),
        columns(c.columns()),
        apart(place == Place::heap ? 0 : 2),
        points(length(3), place),
        grad(length(columns), place),
        tangent(length(3), place),
        out(n * columns, place),
        grad_points(n * 3, place),
        grad_grad(n * columns, place),
        second(n * 3, place) {
    std::mt19937 generator(static_cast<unsigned>(n));
    for (const auto& [buffer, width] :
         {std::pair{&points, int64_t{3}}, {&grad, columns}, {&tangent, int64_t{3}}}) {
      buffer->poison();
      std::normal_distribution<float> normal;
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t d = 0; d < width; ++d) (*buffer)[r * (width + apart) + d] = normal(generator);
      }
    }
    for (const Buffer<T>* buffer : {&out, &grad_points, &grad_grad, &second})
      const_cast<Buffer<T>*>(buffer)->poison();
  }
  int64_t length(int64_t width) const { return n == 0 ? 0 : (n - 1) * (width + apart) + width; }

  // Points in pieces, as threads would take them.
  void run(const Case& c, const std::vector<int64_t>& cuts) const {
    clebsch::SphericalHarmonicsArgs<T> args;
    args.ls = c.ls.data();
    args.num_ls = static_cast<int>(c.ls.size());
    args.normalize = c.normalize;
    args.normalization = c.normalization;
    args.num_columns = columns;
    args.points = points.data();
    args.points_stride = 3 + apart;
    const auto& kernels = clebsch::kernels<T>().spherical_harmonics;
    const auto over_pieces = [&](auto kernel) {
      int64_t begin = 0;
      for (const int64_t cut : cuts) {
        if (cut > begin && cut < n) kernel(args, begin, cut), begin = cut;
      }
      kernel(args, begin, n);
    };
    args.out = out.data();
    over_pieces(kernels.forward);
    args.grad = grad.data();
    args.grad_stride = columns + apart;
    args.out = nullptr;
    args.grad_points = grad_points.data();
    over_pieces(kernels.backward);
    args.grad_grad_points = tangent.data();
    args.grad_grad_points_stride = 3 + apart;
    args.out = grad_grad.data();
    args.grad_points = second.data();
    over_pieces(kernels.double_backward);
  }

  std::vector<char> bits() const {
    std::vector<char> all;
    for (const Buffer<T>* b : {&out, &grad_points, &grad_grad, &second}) {
      const char* bytes = reinterpret_cast<const char*>(b->data());
      all.insert(all.end(), bytes, bytes + b->size() * sizeof(T));
    }
    return all;
  }
};

template <class T>
bool near(T actual, double expected, double size) {
  return std::fabs(static_cast<double>(actual) - expected) <= (sizeof(T) == 4 ? 2e-5 : 2e-13) * (size + 1);
}

template <class T>
void check_values(const Case& c, const Arrays<T>& a, const std::string& label) {
  std::vector<double> y(a.columns), g(a.columns), gx(3), above(3), below(3), y_above(a.columns),
      y_below(a.columns);
  for (int64_t r = 0; r < a.n; ++r) {
    double x[3], h[3], size = 0;
    for (int k = 0; k < 3; ++k) x[k] = a.points[r * (3 + a.apart) + k];
    for (int k = 0; k < 3; ++k) h[k] = a.tangent[r * (3 + a.apart) + k];
    for (int64_t d = 0; d < a.columns; ++d) g[d] = a.grad[r * (a.columns + a.apart) + d];
    c.naive(x, g.data(), y.data(), gx.data());
    for (int64_t d = 0; d < a.columns; ++d) size = std::max(size, std::fabs(y[d] * g[d]) + std::fabs(y[d]));
    size *= static_cast<double>(a.columns + 1) * (c.l_max() + 1);
    for (int64_t d = 0; d < a.columns; ++d)
      CHECK(near(a.out[r * a.columns + d], y[d], size), label, "value", r, d);
    for (int k = 0; k < 3; ++k) {
      CHECK(near(a.grad_points[3 * r + k], gx[k], size / (c.normalize ? std::hypot(x[0], x[1], x[2]) : 0.1)),
            label, "gradient", r, k, a.grad_points[3 * r + k], gx[k]);
    }
    if (sizeof(T) == 4) continue;
    // Along the tangent: central differences of both, with an error of step^2 and of rounding / step.
    const double step = 1e-5 * std::hypot(x[0], x[1], x[2]) / std::hypot(h[0], h[1], h[2]);
    double moved[3];
    for (int k = 0; k < 3; ++k) moved[k] = x[k] + step * h[k];
    c.naive(moved, g.data(), y_above.data(), above.data());
    for (int k = 0; k < 3; ++k) moved[k] = x[k] - step * h[k];
    c.naive(moved, g.data(), y_below.data(), below.data());
    double largest = 0;
    for (int k = 0; k < 3; ++k) largest = std::max(largest, std::fabs(gx[k]));
    for (int64_t d = 0; d < a.columns; ++d) {
      const double expected = (y_above[d] - y_below[d]) / (2 * step);
      CHECK(std::fabs(a.grad_grad[r * a.columns + d] - expected) <
                1e-6 * (size + std::fabs(expected)) / step * 1e-5,
            label, "gradient of grad", r, d, a.grad_grad[r * a.columns + d], expected);
    }
    for (int k = 0; k < 3; ++k) {
      const double expected = (above[k] - below[k]) / (2 * step);
      CHECK(std::fabs(a.second[3 * r + k] - expected) <
                1e-6 * (size + largest + std::fabs(expected)) / step * 1e-5 * (c.l_max() + 1),
            label, "second gradient", r, k, a.second[3 * r + k], expected);
    }
  }
}

template <class T>
void check_case(const Case& c, int64_t n, const std::string& isa) {
  const std::string label = isa + (sizeof(T) == 4 ? " float" : " double") + ", l_max " +
                            std::to_string(c.l_max()) + (c.normalize ? ", normalize," : ",");
  const Arrays<T> whole(c, n, Place::heap), pieces(c, n, Place::page_end);
  whole.run(c, {});
  pieces.run(c, {1, 4, 9, 30});
  CHECK(whole.bits() == pieces.bits(), label, n);
  if (c.l_max() <= clebsch::table_l_max) {
    check_values(c, pieces, label);
  } else {
    for (int64_t i = 0; i < whole.out.size(); ++i) CHECK(std::isfinite(whole.out[i]), label);
    for (int64_t i = 0; i < whole.second.size(); ++i) CHECK(std::isfinite(whole.second[i]), label);
  }
}

}  // namespace

TEST(spherical_harmonics) {
  const std::vector<std::vector<int64_t>> degrees = {{0},
                                                     {1},
                                                     {2},
                                                     {0, 1},
                                                     {0, 1, 2, 3},
                                                     {3, 0, 3, 1},
                                                     {0, 1, 2, 3, 4},
                                                     {5},
                                                     {6, 2},
                                                     {0, 1, 2, 3, 4, 5, 6},
                                                     {8, 1},
                                                     {7},
                                                     {12},
                                                     {20, 13}};
  for_each_instruction_set([&](const std::string& isa) {
    for (const auto& ls : degrees) {
      for (const auto normalization :
           {HarmonicNormalization::component, HarmonicNormalization::norm, HarmonicNormalization::integral}) {
        for (const bool normalize : {false, true}) {
          const Case c{ls, normalize, normalization};
          for (const int64_t n : {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 40}) {
            check_case<float>(c, n, isa);
            check_case<double>(c, n, isa);
          }
        }
      }
    }
  });
}

TEST(harmonics_of_zero_are_finite) {
  for_each_instruction_set([&](const std::string& isa) {
    for (const bool normalize : {false, true}) {
      const Case c{{0, 1, 2, 3, 4, 5}, normalize, HarmonicNormalization::component};
      Arrays<double> a(c, 5, Place::heap);
      std::fill_n(a.points.data(), a.points.size(), 0.0);
      a.run(c, {});
      for (int64_t i = 0; i < a.out.size(); ++i) {
        CHECK(a.out[i] == (i % a.columns == 0 ? 1 : 0), isa);
        CHECK(std::isfinite(a.grad_grad[i]), isa);
      }
      for (int64_t i = 0; i < a.second.size(); ++i)
        CHECK(std::isfinite(a.second[i]) && std::isfinite(a.grad_points[i]), isa);
    }
  });
}
