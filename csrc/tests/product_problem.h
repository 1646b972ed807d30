// Products with operands, next to what the naive form says of them, for the tests of every backend.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "edges.h"
#include "form.h"
#include "graph_order.h"
#include "plan.h"
#include "product_call.h"

using clebsch::Derivative;
using std::int64_t;

enum Operand { G, X, Y, W, AX, AY, AW };
inline const char* const results[] = {"out", "gx", "gy", "gw", "out''", "gx''", "gy''", "gw''"};

// A product with operands, and what the naive form says: the forward pass, the gradients, and those of the
// gradients along the tangents, in the order of `results`.
struct Problem {
  Description description;
  Form form;
  std::optional<Edges> edges;
  int64_t rows;
  bool shared;
  int tangents;         // bits of ax, ay, aw that are given
  bool y_of_receivers;  // with a graph: nothing is summed, as in product_call.h
  std::array<std::vector<double>, 7> operand;
  std::array<Sums, 8> expected;

  Problem(const Description& d, int64_t row_count, bool shared_weights, const Edges* graph = nullptr,
          int given_tangents = 7, bool of_receivers = false)
      : description(d),
        form(d),
        rows(row_count),
        shared(shared_weights),
        tangents(given_tangents),
        y_of_receivers(of_receivers) {
    if (graph) {
      edges = *graph;
      rows = static_cast<int64_t>(graph->senders.size());
    }
    std::mt19937 generator(static_cast<unsigned>(7 * rows + form.terms.size()));
    for (const int i : {G, X, Y, W, AX, AY, AW}) operand[i] = random_numbers(count(i) * width(i), generator);
    const std::array<int, 4> forward{G, X, Y, W};
    for (int target = 0; target < 4; ++target) {
      expected[target].resize(count(target) * width(target));
      expected[4 + target].resize(count(target) * width(target));
      add(target, forward, 1, expected[target]);
    }
    // The form with one operand replaced by its tangent.
    for (const int a : {AX, AY, AW}) {
      if (!(tangents >> (a - AX) & 1)) continue;
      std::array<int, 4> moved = forward;
      moved[a - AX + 1] = a;
      for (int target = 0; target < 4; ++target) {
        if (target != a - AX + 1) add(target, moved, a == AW ? 0 : 1, expected[4 + target]);
      }
    }
  }

  static int kind(int i) { return i < AX ? i : i - AX + 1; }
  int64_t width(int i) const { return form.dim[kind(i)]; }
  int64_t count(int i) const {
    const int k = kind(i);
    if (k == W && shared) return 1;
    return edges && (y_of_receivers ? k == Y : k == G || k == X) ? edges->nodes : rows;
  }
  int64_t row(int i, int64_t r) const {
    const int k = kind(i);
    if (k == W && shared) return 0;
    if (!edges) return r;
    if (y_of_receivers) return k == Y ? edges->receivers[r] : r;
    return k == G ? edges->receivers[r] : k == X ? edges->senders[r] : r;
  }

 private:
  void add(int target, const std::array<int, 4>& which, double no_weight, Sums& sums) {
    for (int64_t r = 0; r < rows; ++r) {
      const double* pointers[4];
      for (int i = 0; i < 4; ++i) pointers[i] = operand[which[i]].data() + row(i, r) * width(i);
      contract(form, target, pointers, no_weight, row(target, r) * width(target), sums);
    }
  }
};

// The arrays of a problem in the type T. Before a protected page, rows are apart with NaN between them.
template <class T>
struct Arrays {
  const Problem& problem;
  std::array<int64_t, 7> stride{};
  std::vector<Buffer<T>*> operands, outputs;
  Buffer<int64_t> order;
  clebsch::Graph graph{};

  Arrays(const Problem& p, Place place)
      : problem(p), order(p.edges ? clebsch::order_size(p.rows, p.edges->nodes) : 0, place) {
    const int64_t apart = place == Place::heap ? 0 : 3;
    for (const int i : {G, X, Y, W, AX, AY, AW}) {
      const int64_t n = p.count(i), width = p.width(i);
      stride[i] = Problem::kind(i) == W && p.shared ? 0 : width + apart;
      operands.push_back(new Buffer<T>(n == 0 ? 0 : (n - 1) * (width + apart) + width, place));
      operands.back()->poison();
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t d = 0; d < width; ++d)
          (*operands.back())[r * (width + apart) + d] = static_cast<T>(p.operand[i][r * width + d]);
      }
    }
    for (int i = 0; i < 8; ++i) {
      outputs.push_back(new Buffer<T>(p.count(i % 4) * p.width(i % 4), place));
      outputs.back()->poison();
    }
    if (p.edges) {
      clebsch::build_order(p.edges->senders.data(), p.edges->receivers.data(), p.rows, p.edges->nodes,
                           order.data());
      graph = clebsch::view_order(order.data(), p.rows, p.edges->nodes);
    }
  }
  ~Arrays() {
    for (Buffer<T>* b : operands) delete b;
    for (Buffer<T>* b : outputs) delete b;
  }

  clebsch::Rows<const T> in(int i) const {
    if (i >= AX && !(problem.tangents >> (i - AX) & 1)) return {nullptr, 0};
    return {operands[i]->data(), stride[i]};
  }
  clebsch::Rows<T> out(int i) const {
    return {outputs[i]->data(), i % 4 == W && problem.shared ? 0 : problem.width(i % 4)};
  }

  // run(call, derivative) for each derivative; wanted: bits of `results`.
  template <class Run>
  void run(const Run& run_call, int wanted = 0xff) const {
    const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
    for (const auto derivative : {Derivative::none, Derivative::first, Derivative::second}) {
      clebsch::ProductCall<T> call{};
      call.plan = &plan;
      call.graph = problem.edges ? &graph : nullptr;
      call.rows = problem.rows;
      call.shared_weights = problem.shared;
      call.y_of_receivers = problem.y_of_receivers;
      call.x = in(X);
      call.y = in(Y);
      call.w = in(W);
      const int first = derivative == Derivative::second ? 4 : 0;
      const auto result = [&](int i) {
        return wanted >> (first + i) & 1 ? out(first + i) : clebsch::Rows<T>{nullptr, 0};
      };
      if (derivative != Derivative::none) {
        call.g = in(G);
        call.gx = result(X);
        call.gy = result(Y);
        call.gw = result(W);
      }
      if (derivative == Derivative::second) {
        call.ax = in(AX);
        call.ay = in(AY);
        call.aw = in(AW);
      }
      if (derivative != Derivative::first) call.out = result(G);
      run_call(call, derivative);
    }
  }

  void check(const std::string& label) const {
    for (int i = 0; i < 8; ++i) {
      check_close(outputs[i]->data(), problem.expected[i],
                  label + " " + results[i] + " of " + problem.description.text());
    }
  }
};

// One path for each pair of blocks and degree up to l_max, several of them into each block of the output.
inline Description channelwise(const std::vector<Irrep>& in1, const std::vector<Irrep>& in2, int l_max,
                               bool mul_ir) {
  Description d{in1, in2, {}, {}, mul_ir};
  for (int i = 0; i < static_cast<int>(in1.size()); ++i) {
    for (int j = 0; j < static_cast<int>(in2.size()); ++j) {
      const char parity = in1[i].parity == in2[j].parity ? 'e' : 'o';
      for (int l = std::abs(in1[i].l - in2[j].l); l <= std::min(in1[i].l + in2[j].l, l_max); ++l) {
        int k = 0;
        for (; k < static_cast<int>(d.out.size()); ++k) {
          if (d.out[k].mul == in1[i].mul && d.out[k].l == l && d.out[k].parity == parity) break;
        }
        if (k == static_cast<int>(d.out.size())) d.out.push_back({in1[i].mul, l, parity});
        d.paths.push_back({i, j, k, "uvu", (i + j + l) % 3 != 2, 0.5 + 0.25 * l});
      }
    }
  }
  return d;
}

inline Description one_path(const std::string& mode, int mul1, int mul2, int mul3, bool weighted,
                            bool mul_ir) {
  return {{{mul1, 1, 'o'}}, {{mul2, 1, 'o'}}, {{mul3, 2, 'e'}}, {{0, 0, 0, mode, weighted, -1.5}}, mul_ir};
}
