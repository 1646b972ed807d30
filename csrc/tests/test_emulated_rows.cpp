// Gates, silu and rows that are one-hot on the emulator, against loops, in each order of threads, in as many
// blocks as a grid has and in two.
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cuda/device_rows.h"
#include "cuda/emulator.h"
#include "form.h"

namespace {

namespace cuda = clebsch::cuda;

// f(label) in each order, with and without a bound of blocks.
template <class F>
void in_each_order(const F& f) {
  for (const char* order : {"forward", "reverse", "random:3"}) {
    cuda::emulator::set_order(std::string(order));
    for (const int64_t most : {0, 2}) {
      cuda::emulator::set_most_blocks(most);
      f(std::string(order) + " " + std::to_string(most));
    }
  }
  cuda::emulator::set_order("forward");
  cuda::emulator::set_most_blocks(0);
}

// Random rows, NaN between them, before a page that may not be touched.
template <class T>
struct Matrix {
  int64_t stride;
  Buffer<T> numbers;
  Matrix(int64_t rows, int64_t width, int64_t apart, std::mt19937& generator)
      : stride(width + apart), numbers(rows > 0 ? (rows - 1) * stride + width : 0, Place::page_end) {
    numbers.poison();
    const std::vector<double> values = random_numbers(rows * width, generator);
    for (int64_t i = 0; i < rows * width; ++i)
      numbers[i / width * stride + i % width] = static_cast<T>(values[i]);
  }
  clebsch::Rows<const T> in() const { return {numbers.data(), stride}; }
  clebsch::Rows<T> out() const {
    forget();
    return {numbers.data(), stride};
  }
  T at(int64_t r, int64_t c) const { return numbers[r * stride + c]; }

 private:
  void forget() const {
    for (int64_t i = 0; i < numbers.size(); ++i) numbers[i] = std::numeric_limits<T>::quiet_NaN();
  }
};

template <class T>
void check_gate(int64_t rows, int64_t scalars, const std::vector<clebsch::GatedBlock>& blocks,
                const std::string& label) {
  std::mt19937 generator(static_cast<unsigned>(rows));
  int64_t gates = 0, gated = 0;
  for (const auto& block : blocks) {
    gates += block.mul;
    gated += block.mul * block.width;
  }
  const Matrix<T> s(rows, scalars, 2, generator), by(rows, gates, 1, generator), x(rows, gated, 3, generator),
      grad(rows, scalars + gated, 5, generator), out(rows, scalars + gated, 4, generator),
      grad_by(rows, gates, 0, generator), grad_x(rows, gated, 1, generator);
  Buffer<clebsch::GatedBlock> on_device(static_cast<int64_t>(blocks.size()), Place::page_end);
  for (std::size_t i = 0; i < blocks.size(); ++i) on_device[static_cast<int64_t>(i)] = blocks[i];
  cuda::DeviceGate<T> call{};
  call.args.blocks = on_device.data();
  call.args.block_count = static_cast<int>(blocks.size());
  call.args.scalar_count = scalars;
  call.args.scalars = s.in();
  call.args.gates = by.in();
  call.args.gated = x.in();
  call.args.out = out.out();
  call.rows = rows;
  call.gates = gates;
  call.gated = gated;
  cuda::launch_gate(call, false, nullptr);
  call.args.out = {};
  call.args.grad = grad.in();
  call.args.grad_gates = grad_by.out();
  call.args.grad_gated = grad_x.out();
  cuda::launch_gate(call, true, nullptr);
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < scalars; ++c) CHECK(out.at(r, c) == s.at(r, c), label, r, c);
    int64_t gate = 0, column = 0;
    for (const auto& block : blocks) {
      for (int64_t u = 0; u < block.mul; ++u, ++gate) {
        double sum = 0, size = 0;
        for (int64_t m = 0; m < block.width; ++m, ++column) {
          const T g = grad.at(r, scalars + column);
          CHECK(out.at(r, scalars + column) == by.at(r, gate) * x.at(r, column), label, r, column);
          CHECK(grad_x.at(r, column) == by.at(r, gate) * g, label, r, column);
          const double product = static_cast<double>(g) * x.at(r, column);
          sum += product;
          size += std::fabs(product);
        }
        const double bound = 2 * static_cast<double>(block.width) * unit * size;
        CHECK(std::fabs(grad_by.at(r, gate) - sum) <= bound, label, r, gate);
      }
    }
  }
}

// In double; 6 roundings and those of exp, which the terms of a derivative share.
template <class T>
void check_silu(int64_t count, const std::string& label) {
  std::mt19937 generator(1);
  const Matrix<T> x(1, count, 0, generator), grad(1, count, 0, generator), along(1, count, 0, generator),
      out(1, count, 0, generator), grad_x(1, count, 0, generator);
  if (count > 2) {
    x.numbers[0] = 0;
    x.numbers[1] = -1000;
    x.numbers[2] = 1000;
  }
  const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  for (const int derivative : {0, 1, 2}) {
    cuda::DeviceSilu<T> call{};
    call.args.x = x.numbers.data();
    call.args.grad = derivative > 0 ? grad.numbers.data() : nullptr;
    call.args.grad_grad_x = derivative > 1 ? along.numbers.data() : nullptr;
    call.args.out = derivative != 1 ? out.out().data : nullptr;
    call.args.grad_x = derivative > 0 ? grad_x.out().data : nullptr;
    call.count = count;
    call.derivative = derivative;
    cuda::launch_silu(call, nullptr);
    for (int64_t i = 0; i < count; ++i) {
      const double v = x.numbers[i], g = grad.numbers[i], a = along.numbers[i];
      const double s = 1 / (1 + std::exp(-v)), rest = 1 / (1 + std::exp(v)), wide = 1 + std::fabs(v);
      const double first = s * (1 + v * rest), second = s * rest * (2 + v * (rest - s));
      const auto check = [&](double found, double expected, double size) {
        CHECK(std::fabs(found - expected) <= 16 * unit * wide * size + 1e-30, label, derivative, v, found,
              expected);
      };
      if (derivative == 0) check(out.numbers[i], v * s, s * std::fabs(v));
      if (derivative == 1) check(grad_x.numbers[i], g * first, std::fabs(g) * s * wide);
      if (derivative == 2) {
        check(out.numbers[i], a * first, std::fabs(a) * s * wide);
        check(grad_x.numbers[i], a * g * second, std::fabs(a * g) * s * rest * (2 + std::fabs(v)));
      }
    }
  }
}

template <class T>
void check_one_hot(int64_t rows, int64_t columns, const std::string& label) {
  std::mt19937 generator(1);
  const Matrix<T> y(rows, columns, 3, generator);
  Buffer<int64_t> found(rows, Place::page_end), index(rows, Place::page_end);
  std::vector<int64_t> expected;
  for (int64_t r = 0; r < rows; ++r) {
    found[r] = index[r] = -7;
    const int64_t one = r * 5 % columns, other = (one + 1) % columns;
    for (int64_t c = 0; c < columns; ++c) y.numbers[r * y.stride + c] = c == one;
    expected.push_back(r % 7 > 3 ? -1 : one);
    if (r % 7 == 4) y.numbers[r * y.stride + one] = T(0.5);
    if (r % 7 == 5) y.numbers[r * y.stride + one] = 0;
    if (r % 7 == 6) y.numbers[r * y.stride + (columns > 1 ? other : one)] = columns > 1 ? T(1) : T(-1);
  }
  cuda::launch_one_hot(cuda::OneHotRows<T>{y.in(), rows, columns, found.data(), index.data()}, nullptr);
  for (int64_t r = 0; r < rows; ++r) {
    CHECK(found[r] == expected[r], label, r);
    if (expected[r] >= 0) CHECK(index[r] == expected[r], label, r);
  }
}

}  // namespace

TEST(emulated_gates) {
  in_each_order([](const std::string& label) {
    for (const int64_t rows : {0, 1, 61}) {
      check_gate<float>(rows, 5, {{7, 3}, {0, 5}, {1, 1}, {3, 9}}, label + " float");
      check_gate<double>(rows, 0, {{13, 5}}, label + " double");
      check_gate<float>(rows, 3, {}, label + " no gates");
    }
  });
}

TEST(emulated_silu) {
  in_each_order([](const std::string& label) {
    for (const int64_t count : {0, 1, 1600}) {
      check_silu<float>(count, label + " float");
      check_silu<double>(count, label + " double");
    }
  });
}

TEST(emulated_one_hot_rows) {
  in_each_order([](const std::string& label) {
    for (const int64_t columns : {1, 3, 32, 89}) {
      for (const int64_t rows : {0, 23}) {
        check_one_hot<float>(rows, columns, label + " float");
        check_one_hot<double>(rows, columns, label + " double");
      }
    }
  });
}
