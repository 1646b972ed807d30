// Convolutions whose weights are hidden @ matrix, against the form with these weights written out naively, on
// arrays of exactly the size that they need; and the dense products that they are made of.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/run_density.h"
#include "cpu/run_product.h"
#include "edges.h"
#include "form.h"
#include "graph_order.h"
#include "plan.h"
#include "schedules.h"

namespace {

using clebsch::Derivative;
using std::int64_t;

Edges star(int64_t count) {
  Edges edges{{}, std::vector<int64_t>(count, 1), 3};
  for (int64_t e = 0; e < count; ++e) edges.senders.push_back(e % 3);
  return edges;
}

Description channelwise(int mul, bool mul_ir) {
  return {{{mul, 0, 'e'}, {mul, 1, 'o'}},
          {{1, 0, 'e'}, {1, 1, 'o'}},
          {{mul, 1, 'o'}, {mul, 0, 'e'}, {mul, 2, 'e'}},
          {{0, 1, 0, "uvu", true, 0.5},
           {1, 0, 0, "uvu", false, 1.5},
           {1, 1, 1, "uvu", true, -1},
           {1, 1, 2, "uvu", true, 0.25}},
          mul_ir};
}
Description scalars(int mul, bool mul_ir) {
  return {{{mul, 0, 'e'}, {3, 0, 'o'}},
          {{1, 0, 'e'}, {1, 1, 'o'}},
          {{mul, 1, 'o'}, {4, 0, 'e'}, {mul, 0, 'e'}, {3, 1, 'e'}},
          {{0, 1, 0, "uvu", true, 0.5},
           {0, 0, 2, "uvu", true, 1.5},
           {1, 1, 3, "uvu", true, -1},
           {0, 1, 0, "uvu", true, 0.25}},
          mul_ir};
}
Description dense(bool mul_ir) {
  return {{{5, 1, 'o'}}, {{3, 1, 'o'}}, {{9, 2, 'e'}}, {{0, 0, 0, "uvw", true, -1.5}}, mul_ir};
}

enum Operand { G, X, Y, H, M, AX, AY, AH, AM };
const char* const results[] = {"out",   "gx",   "gy",   "ghidden",   "gmatrix",
                               "out''", "gx''", "gy''", "ghidden''", "gmatrix''"};

struct Problem {
  Description description;
  Form form;
  Edges edges;
  int64_t size, rows;
  int tangents;  // bits of ax, ay, ahidden, amatrix that are given
  std::array<std::vector<double>, 9> operand;
  std::array<std::vector<double>, 10> expected;

  // kinds: of rows of x, 0 where every node has one of its own.
  Problem(const Description& d, const Edges& e, int64_t size_, int given = 15, int64_t kinds = 0)
      : description(d), form(d), edges(e), size(size_), tangents(given) {
    rows = static_cast<int64_t>(edges.senders.size());
    std::mt19937 generator(static_cast<unsigned>(7 * rows + size));
    for (int i = G; i <= AM; ++i) operand[i] = random_numbers(count(i) * width(i), generator);
    for (int64_t n = kinds; kinds > 0 && n < edges.nodes; ++n) {
      std::copy_n(operand[X].begin() + n % kinds * width(X), width(X), operand[X].begin() + n * width(X));
    }
    for (int i = AX; i <= AM; ++i) {
      if (!(tangents >> (i - AX) & 1)) std::fill(operand[i].begin(), operand[i].end(), 0.0);
    }
    solve();
  }

  static int kind(int i) { return i < AX ? i : i - AX + X; }
  int64_t numel() const { return form.dim[3]; }
  int64_t width(int i) const {
    const int k = kind(i);
    return k == H ? size : k == M ? numel() : form.dim[k];
  }
  int64_t count(int i) const {
    const int k = kind(i);
    return k == M ? size : k == G || k == X ? edges.nodes : rows;
  }

 private:
  std::vector<double> product(int a, int b) const {
    std::vector<double> w(rows * numel());
    for (int64_t e = 0; e < rows; ++e) {
      for (int64_t k = 0; k < size; ++k) {
        for (int64_t n = 0; n < numel(); ++n)
          w[e * numel() + n] += operand[a][e * size + k] * operand[b][k * numel() + n];
      }
    }
    return w;
  }
  // Adds to results first .. first + 4 the derivatives of the form with x, y and the weights h m, or, where
  // no_weight is 0, of its weighted part.
  void add(int first, int x, int y, int h, int m, double no_weight, int skip) {
    const std::vector<double> w = product(h, m);
    std::vector<double> gw(rows * numel());
    for (int target = 0; target < 4; ++target) {
      const int64_t length = target == 3 ? numel() : form.dim[target];
      const int64_t lines = target == 0 || target == 1 ? edges.nodes : rows;
      Sums sums;
      sums.resize(lines * length);
      for (int64_t e = 0; e < rows; ++e) {
        const int64_t s = edges.senders[e], r = edges.receivers[e];
        const double* of[4] = {operand[G].data() + r * form.dim[0], operand[x].data() + s * form.dim[1],
                               operand[y].data() + e * form.dim[2], w.data() + e * numel()};
        contract(form, target, of, no_weight, (target == 0 ? r : target == 1 ? s : e) * length, sums);
      }
      if (target == 3) {
        gw = sums.value;
      } else if (target != skip) {
        for (std::size_t i = 0; i < sums.value.size(); ++i) expected[first + target][i] += sums.value[i];
      }
    }
    for (int64_t e = 0; e < rows; ++e) {
      for (int64_t k = 0; k < size; ++k) {
        for (int64_t n = 0; n < numel(); ++n) {
          const double g = gw[e * numel() + n];
          if (skip != H) expected[first + H][e * size + k] += g * operand[m][k * numel() + n];
          if (skip != M) expected[first + M][k * numel() + n] += g * operand[h][e * size + k];
        }
      }
    }
  }
  void solve() {
    for (int i = 0; i < 10; ++i) expected[i].assign(count(i % 5) * width(i % 5), 0.0);
    add(0, X, Y, H, M, 1, -1);
    add(5, AX, Y, H, M, 1, X);
    add(5, X, AY, H, M, 1, Y);
    add(5, X, Y, AH, M, 0, H);
    add(5, X, Y, H, AM, 0, M);
  }
};

// The arrays of a problem in the type T. Before a protected page, rows are apart with NaN between them.
template <class T>
struct Arrays {
  const Problem& problem;
  std::vector<std::unique_ptr<Buffer<T>>> operands, outputs;
  int64_t apart;
  Buffer<int64_t> order;
  clebsch::Graph graph{};

  Arrays(const Problem& p, Place place)
      : problem(p),
        apart(place == Place::heap ? 0 : 3),
        order(clebsch::order_size(p.rows, p.edges.nodes), place) {
    for (int i = G; i <= AM; ++i) {
      const int64_t n = p.count(i), width = p.width(i);
      operands.push_back(std::make_unique<Buffer<T>>(n == 0 ? 0 : (n - 1) * (width + apart) + width, place));
      operands.back()->poison();
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t d = 0; d < width; ++d)
          (*operands.back())[r * (width + apart) + d] = static_cast<T>(p.operand[i][r * width + d]);
      }
    }
    for (int i = 0; i < 10; ++i) {
      outputs.push_back(std::make_unique<Buffer<T>>(p.count(i % 5) * p.width(i % 5), place));
      outputs.back()->poison();
    }
    clebsch::build_order(p.edges.senders.data(), p.edges.receivers.data(), p.rows, p.edges.nodes,
                         order.data());
    graph = clebsch::view_order(order.data(), p.rows, p.edges.nodes);
  }

  clebsch::Rows<const T> in(int i) const {
    if (i >= AX && !(problem.tangents >> (i - AX) & 1)) return {nullptr, 0};
    return {operands[i]->data(), problem.width(i) + apart};
  }

  // wanted: bits of `results`.
  void run(clebsch::Parallel parallel, int wanted = 0x3ff) const {
    const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
    for (const auto derivative : {Derivative::none, Derivative::first, Derivative::second}) {
      clebsch::ProductCall<T> call{};
      clebsch::RadialWeights<T> weights{};
      call.plan = &plan;
      call.graph = &graph;
      call.rows = problem.rows;
      call.radial = &weights;
      call.x = in(X), call.y = in(Y);
      weights.size = problem.size;
      weights.hidden = in(H), weights.matrix = in(M);
      const int first = derivative == Derivative::second ? 5 : 0;
      const auto result = [&](int i) {
        if (!(wanted >> (first + i) & 1)) return clebsch::Rows<T>{nullptr, 0};
        return clebsch::Rows<T>{outputs[first + i]->data(), problem.width(i)};
      };
      if (derivative != Derivative::none) {
        call.g = in(G);
        call.gx = result(X), call.gy = result(Y);
        weights.grad_hidden = result(H), weights.grad_matrix = result(M).data;
      }
      if (derivative == Derivative::second) {
        call.ax = in(AX), call.ay = in(AY);
        weights.ahidden = in(AH), weights.amatrix = in(AM);
      }
      if (derivative != Derivative::first) call.out = result(G);
      clebsch::run_product(call, derivative, parallel);
    }
  }

  // Within rounding of the largest number of a result (Python's tests look at each number).
  void check(const std::string& isa) const {
    for (int i = 0; i < 10; ++i) {
      const std::vector<double>& expected = problem.expected[i];
      double largest = 1;
      for (const double value : expected) largest = std::max(largest, std::fabs(value));
      for (std::size_t n = 0; n < expected.size(); ++n) {
        const double error = std::fabs(static_cast<double>((*outputs[i])[n]) - expected[n]);
        const bool close = error <= (sizeof(T) == 4 ? 3e-6 : 1e-14) * largest;
        CHECK(close, isa, results[i], "of", problem.description.text(), "size", problem.size, "at", n, ":",
              (*outputs[i])[n], "for", expected[n]);
        if (!close) break;
      }
    }
  }
  std::vector<char> bits() const {
    std::vector<char> all;
    for (const auto& b : outputs) {
      const char* bytes = reinterpret_cast<const char*>(b->data());
      all.insert(all.end(), bytes, bytes + b->size() * sizeof(T));
    }
    return all;
  }
};

template <class T>
void check_problem(const Problem& problem, const std::string& isa, Place place) {
  const Arrays<T> arrays(problem, place);
  arrays.run(place == Place::heap ? &clebsch::run_here : &run_backwards);
  arrays.check(isa + (sizeof(T) == 4 ? " float" : " double"));
}

void check_everywhere(const Problem& problem) {
  static bool turn = false;
  for_each_instruction_set([&](const std::string& isa) {
    check_problem<float>(problem, isa, turn ? Place::heap : Place::page_end);
    check_problem<double>(problem, isa, turn ? Place::page_end : Place::heap);
    turn = !turn;
  });
}

const std::vector<Description>& descriptions() {
  static const std::vector<Description> all{channelwise(17, true), channelwise(32, false),
                                            channelwise(2, true),  dense(true),
                                            dense(false),          {{}, {}, {}, {}, true}};
  return all;
}

// The dense products alone: sizes around those of vectors, blocks and pieces of panels.
template <class T>
void check_products(int64_t rows, int64_t depth, int64_t columns, Place place, const std::string& isa) {
  const clebsch::RadialKernels<T>& table = clebsch::kernels<T>().radial_convolution;
  std::mt19937 generator(static_cast<unsigned>(rows + 10 * depth + 1000 * columns));
  const int64_t room = (columns + 15) / 16 * 16;
  const std::vector<double> a = random_numbers(rows * depth, generator),
                            b = random_numbers(depth * columns, generator),
                            c = random_numbers(rows * columns, generator);
  const Buffer<T> left(a, place), right(b, place);
  Buffer<T> third(rows * room, place, 64), to(rows * room, place, 64), outer(depth * columns, place);
  third.poison();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t n = 0; n < columns; ++n) third[i * room + n] = static_cast<T>(c[i * columns + n]);
  }
  for (int64_t i = 0; i < outer.size(); ++i) outer[i] = T{1};
  const Buffer<T> packed(table.packed_size(depth, columns), place, 64),
      turned(table.packed_size(depth, columns), place, 64);
  table.pack({right.data(), columns, 1, depth, columns}, packed.data());
  std::vector<double> transposed(b.size());
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t n = 0; n < columns; ++n) transposed[n * depth + k] = b[k * columns + n];
  }
  const Buffer<T> down(transposed, place);
  table.pack({down.data(), 1, depth, depth, columns}, turned.data());
  CHECK(columns == 1 || std::memcmp(packed.data(), turned.data(), packed.size() * sizeof(T)) == 0, isa);
  for (const bool add : {false, true}) {
    if (!add) to.poison();
    table.multiply({left.data(), depth}, rows, packed.data(), depth, columns, {to.data(), room}, add);
    for (int64_t i = 0; i < rows * columns; ++i) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < depth; ++k) {
        const double term = a[i / columns * depth + k] * b[k * columns + i % columns];
        sum += term, size += std::fabs(term);
      }
      const double found = to[i / columns * room + i % columns];
      const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
      CHECK(std::fabs(found - (add ? 2 : 1) * sum) <= 4 * (depth + 2) * unit * size, isa, rows, depth,
            columns);
    }
  }
  table.add_outer({left.data(), depth}, {third.data(), room}, rows, depth, columns, outer.data());
  for (int64_t i = 0; i < depth * columns; ++i) {
    double sum = 1, size = 1;
    for (int64_t r = 0; r < rows; ++r) {
      const double term = a[r * depth + i / columns] * c[r * columns + i % columns];
      sum += term, size += std::fabs(term);
    }
    const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
    CHECK(std::fabs(static_cast<double>(outer[i]) - sum) <= 2 * (rows + 2) * unit * size, isa, rows, depth,
          columns);
  }
}

}  // namespace

TEST(dense_products_of_radial_convolutions) {
  for_each_instruction_set([&](const std::string& isa) {
    for (const int64_t rows : {0, 1, 5, 13}) {
      for (const int64_t depth : {0, 1, 7, 33, 300}) {
        for (const int64_t columns : {0, 1, 15, 16, 17, 65, 129}) {
          check_products<float>(rows, depth, columns, Place::page_end, isa);
          check_products<double>(rows, depth, columns, Place::heap, isa);
          check_products<double>(rows, depth, columns, Place::page_end, isa);
        }
      }
    }
  });
}

TEST(radial_convolutions) {
  const Edges none{{}, {}, 3}, loop{{0}, {0}, 1}, some = random_edges(5, 7), many = random_edges(4, 37);
  for (const Description& d : descriptions()) {
    for (const int64_t size : {0, 1, 7, 17}) {
      for (const Edges* edges : {&none, &loop, &some, &many}) check_everywhere(Problem(d, *edges, size));
    }
  }
}

TEST(radial_convolutions_in_parts_and_chunks) {
  for (const Description& d : descriptions()) {
    for (const int64_t count : {96, 97, 250}) check_everywhere(Problem(d, star(count), 3));
    check_everywhere(Problem(d, random_edges(30, 1100), 3));
  }
}

TEST(radial_convolutions_without_some_tangents) {
  for (const Description& d : {channelwise(17, true), dense(false)}) {
    for (int given = 0; given < 15; ++given) check_everywhere(Problem(d, random_edges(4, 9), 5, given));
  }
}

TEST(kinds_of_nodes) {
  const std::vector<double> rows{1, 2, 0, 1, 2, 9, 3, 2, 9, 1, 2, 9, -0.0, 0, 9, 0.0, 0, 9};
  const clebsch::Rows<const double> x{rows.data(), 3};
  const auto found = clebsch::find_kinds(x, 6, 2, 4);
  CHECK((found.of == std::vector<unsigned char>{0, 0, 1, 0, 2, 3}));
  CHECK((found.first == std::vector<int64_t>{0, 2, 4, 5}));
  CHECK(clebsch::find_kinds(x, 6, 2, 3).first.empty());
  CHECK(clebsch::find_kinds(x, 0, 2, 3).first.empty());
  CHECK(clebsch::find_kinds(x, 6, 0, 1).first.size() == 1);
}

TEST(radial_convolutions_of_nodes_in_common) {
  for (const Description& d : {scalars(17, true), scalars(32, false), scalars(2, true)}) {
    for (const int64_t size : {0, 1, 7, 17}) {
      for (const int64_t kinds : {1, 2, 3}) {
        check_everywhere(Problem(d, random_edges(4, 137), size, 15, kinds));
        check_everywhere(Problem(d, random_edges(3, 2), size, 15, kinds));  // too few edges to gain
      }
    }
    check_everywhere(Problem(d, star(600), 5, 15, 2));
    check_everywhere(Problem(d, random_edges(30, 1100), 3, 15, 2));
  }
}

TEST(radial_results_of_nodes_in_common_that_are_not_wanted) {
  const Problem problem(scalars(17, true), random_edges(30, 1100), 5, 15, 2);
  Arrays<float> every(problem, Place::heap);
  every.run(&run_in_threads);
  for (int wanted = 0; wanted < 32; ++wanted) {
    Arrays<float> some(problem, Place::page_end);
    some.run(&run_backwards, wanted | 1);
    for (int i = 0; i < 5; ++i) {
      const bool here = (wanted | 1) >> i & 1;
      const Buffer<float>& a = *some.outputs[i];
      CHECK(here ? std::memcmp(a.data(), every.outputs[i]->data(), a.size() * sizeof(float)) == 0
                 : std::all_of(a.data(), a.data() + a.size(), [](float v) { return v != v; }),
            results[i], wanted);
    }
  }
}

TEST(radial_results_that_are_not_wanted) {
  for (const Description& d : {channelwise(17, true), dense(true)}) {
    const Problem problem(d, star(120), 5);
    Arrays<float> every(problem, Place::heap);
    every.run(&clebsch::run_here);
    for (int wanted = 0; wanted < 1024; wanted += 31) {
      Arrays<float> some(problem, Place::page_end);
      some.run(&clebsch::run_here, wanted | 1);
      for (int i = 0; i < 10; ++i) {
        const bool here = (wanted | 1) >> i & 1;
        const Buffer<float>& a = *some.outputs[i];
        CHECK(here ? std::memcmp(a.data(), every.outputs[i]->data(), a.size() * sizeof(float)) == 0
                   : std::all_of(a.data(), a.data() + a.size(), [](float v) { return v != v; }),
              results[i], wanted);
      }
    }
  }
}

TEST(threads_and_waves_do_not_change_a_bit_of_radial_convolutions) {
  for (const Description& d : {channelwise(16, true), dense(true)}) {
    const Problem problem(d, random_edges(60, 2600), 5);
    for_each_instruction_set([&](const std::string& isa) {
      Arrays<float> here(problem, Place::heap);
      here.run(&clebsch::run_here);
      CHECK(here.graph.chunks > 3, here.graph.chunks);
      for (const clebsch::Parallel parallel : {&run_backwards, &run_in_threads}) {
        Arrays<float> other(problem, Place::heap);
        other.run(parallel);
        CHECK(other.bits() == here.bits(), isa);
      }
      for (int64_t bytes = 1; bytes < int64_t{1} << 20; bytes *= 32) {
        Arrays<float> waves(problem, Place::heap);
        clebsch::set_private_bytes(bytes);
        waves.run(&clebsch::run_here);
        CHECK(waves.bits() == here.bits(), isa, bytes);
      }
      clebsch::set_private_bytes(0);
    });
  }
}
