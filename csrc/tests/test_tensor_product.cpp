// Products over rows and graphs against the form written out naively: every kernel of every instruction set
// that runs here, forward, backward and double backward, on arrays of exactly the size they need.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/run_product.h"
#include "form.h"
#include "graph_order.h"
#include "plan.h"
#include "schedules.h"

namespace {

using clebsch::Derivative;
using std::int64_t;

struct Edges {
  std::vector<int64_t> senders, receivers;
  int64_t nodes;
};

enum Operand { G, X, Y, W, AX, AY, AW };
const char* const results[] = {"out", "gx", "gy", "gw", "out''", "gx''", "gy''", "gw''"};

// A product with operands, and what the naive form says: the forward pass, the gradients, and those of the
// gradients along the tangents, in the order of `results`.
struct Problem {
  Description description;
  Form form;
  std::optional<Edges> edges;
  int64_t rows;
  bool shared;
  int tangents;  // bits of ax, ay, aw that are given
  std::array<std::vector<double>, 7> operand;
  std::array<Sums, 8> expected;

  Problem(const Description& d, int64_t row_count, bool shared_weights, const Edges* graph = nullptr,
          int given_tangents = 7)
      : description(d), form(d), rows(row_count), shared(shared_weights), tangents(given_tangents) {
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
    return edges && (k == G || k == X) ? edges->nodes : rows;
  }
  int64_t row(int i, int64_t r) const {
    const int k = kind(i);
    if (k == W && shared) return 0;
    if (!edges) return r;
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

  // wanted: bits of `results`.
  void run(clebsch::Parallel parallel, int wanted = 0xff) const {
    const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
    for (const auto derivative : {Derivative::none, Derivative::first, Derivative::second}) {
      clebsch::ProductCall<T> call{};
      call.plan = &plan;
      call.graph = problem.edges ? &graph : nullptr;
      call.rows = problem.rows;
      call.shared_weights = problem.shared;
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
      clebsch::run_product(call, derivative, parallel);
    }
  }

  void check(const std::string& label) const {
    for (int i = 0; i < 8; ++i) {
      check_close(outputs[i]->data(), problem.expected[i],
                  label + " " + results[i] + " of " + problem.description.text());
    }
  }
};

template <class T>
void check_problem(const Problem& problem, const std::string& isa, Place place) {
  const Arrays<T> arrays(problem, place);
  arrays.run(place == Place::heap ? &clebsch::run_here : &run_backwards);
  arrays.check(isa + (sizeof(T) == 4 ? " float" : " double"));
}

// Every problem meets both kinds of arrays, in turn with the instruction sets and types.
void check_everywhere(const Problem& problem) {
  static bool turn = false;
  for_each_instruction_set([&](const std::string& isa) {
    check_problem<float>(problem, isa, turn ? Place::heap : Place::page_end);
    check_problem<double>(problem, isa, turn ? Place::page_end : Place::heap);
    turn = !turn;
  });
}

// One path for each pair of blocks and degree up to l_max, several of them into each block of the output.
Description channelwise(const std::vector<Irrep>& in1, const std::vector<Irrep>& in2, int l_max,
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

Description one_path(const std::string& mode, int mul1, int mul2, int mul3, bool weighted, bool mul_ir) {
  return {{{mul1, 1, 'o'}}, {{mul2, 1, 'o'}}, {{mul3, 2, 'e'}}, {{0, 0, 0, mode, weighted, -1.5}}, mul_ir};
}

// Weights that, shared, meet x first, y first, or coupled pairs.
Description every_order(bool mul_ir) {
  return {{{17, 0, 'e'}, {9, 1, 'o'}},
          {{10, 1, 'o'}, {19, 0, 'e'}},
          {{11, 1, 'o'}, {9, 0, 'e'}},
          {{0, 0, 0, "uvw", true, 0.5}, {1, 1, 0, "uvw", true, -1.5}, {1, 0, 1, "uvw", true, 0.25}},
          mul_ir};
}

std::vector<Description> descriptions() {
  std::vector<Description> all;
  for (const bool mul_ir : {true, false}) {
    // lanes are channels
    all.push_back(
        channelwise({{16, 0, 'e'}, {17, 1, 'o'}}, {{1, 0, 'e'}, {1, 1, 'o'}, {1, 2, 'e'}}, 3, mul_ir));
    all.push_back(channelwise({{33, 2, 'e'}, {31, 3, 'o'}}, {{1, 1, 'o'}, {1, 3, 'o'}}, 2, mul_ir));
    all.push_back(channelwise({{32, 1, 'o'}}, {{1, 1, 'e'}, {1, 1, 'o'}}, 2, mul_ir));
    all.push_back(channelwise({{16, 4, 'e'}, {18, 1, 'o'}}, {{1, 4, 'e'}}, 5, mul_ir));
    all.push_back(channelwise({{16, 8, 'e'}}, {{1, 8, 'e'}}, 2, mul_ir));
    all.push_back(channelwise({{16, 1, 'o'}}, {{1, 7, 'o'}}, 8, mul_ir));
    all.push_back(one_path("uuu", 67, 67, 67, true, mul_ir));
    all.push_back(one_path("uuu", 32, 32, 32, false, mul_ir));
    all.push_back({{{17, 1, 'o'}},
                   {{1, 1, 'o'}, {17, 1, 'o'}, {1, 0, 'e'}},
                   {{17, 2, 'e'}},
                   {{0, 0, 0, "uvu", true, 0.5}, {0, 1, 0, "uuu", true, -1.5}, {0, 1, 0, "uuu", false, 0.25}},
                   mul_ir});
    all.push_back({{{17, 2, 'e'}, {16, 1, 'o'}},  // blocks that no path uses
                   {{1, 1, 'o'}, {3, 1, 'o'}},
                   {{16, 0, 'e'}, {17, 1, 'e'}},
                   {{1, 0, 0, "uvu", true, 0.5}},
                   mul_ir});
    // lanes are rows
    all.push_back(channelwise({{1, 0, 'e'}, {3, 1, 'o'}}, {{1, 0, 'e'}, {1, 1, 'o'}}, 2, mul_ir));
    all.push_back(channelwise({{5, 2, 'e'}, {0, 1, 'o'}}, {{2, 1, 'o'}, {0, 0, 'e'}}, 3, mul_ir));
    all.push_back(channelwise({{2, 8, 'e'}}, {{1, 7, 'o'}}, 3, mul_ir));
    all.push_back(one_path("uvw", 5, 3, 7, true, mul_ir));
    all.push_back(one_path("uvw", 9, 5, 31, true, mul_ir));
    all.push_back(one_path("uvu", 7, 19, 7, true, mul_ir));
    all.push_back(one_path("uvu", 4, 140, 4, false, mul_ir));
    all.push_back(one_path("uvv", 9, 33, 33, true, mul_ir));
    all.push_back(one_path("uvv", 9, 3, 3, false, mul_ir));
    all.push_back(one_path("uuw", 33, 33, 37, true, mul_ir));
    all.push_back(one_path("uuw", 5, 5, 1, false, mul_ir));
    all.push_back(one_path("uuu", 3, 3, 3, false, mul_ir));
    all.push_back(one_path("uvuv", 11, 3, 33, true, mul_ir));
    all.push_back(one_path("uvuv", 2, 3, 6, false, mul_ir));
    all.push_back(one_path("uvu<v", 19, 19, 171, true, mul_ir));
    all.push_back(one_path("uvu<v", 4, 4, 6, false, mul_ir));
    all.push_back(one_path("u<vw", 13, 13, 17, true, mul_ir));
    all.push_back(one_path("u<vw", 1, 1, 3, true, mul_ir));
    // weights that meet output channels in the lanes, a column at a time beyond degree 3
    all.push_back({{{5, 4, 'e'}}, {{3, 1, 'o'}}, {{9, 5, 'o'}}, {{0, 0, 0, "uvw", true, 0.5}}, mul_ir});
    all.push_back(every_order(mul_ir));
    // nothing, or next to it
    all.push_back({{}, {}, {}, {}, mul_ir});
    all.push_back({{{3, 1, 'o'}}, {{1, 0, 'e'}}, {{5, 0, 'e'}}, {}, mul_ir});
    all.push_back({{{0, 1, 'o'}}, {{0, 1, 'o'}}, {{4, 0, 'e'}}, {{0, 0, 0, "uvw", true, 1.0}}, mul_ir});
  }
  return all;
}

Edges random_edges(int64_t nodes, int64_t count) {
  std::mt19937 generator(static_cast<unsigned>(nodes + 100 * count));
  Edges edges{{}, {}, nodes};
  for (int64_t e = 0; e < count; ++e) {
    edges.senders.push_back(generator() % nodes);
    edges.receivers.push_back(generator() % (nodes - 1));  // the last one receives nothing
  }
  return edges;
}

template <class T>
std::vector<char> bits(const Arrays<T>& arrays) {
  std::vector<char> all;
  for (const Buffer<T>* b : arrays.outputs) {
    const char* bytes = reinterpret_cast<const char*>(b->data());
    all.insert(all.end(), bytes, bytes + b->size() * sizeof(T));
  }
  return all;
}

bool lanes_may_be_channels(const Description& d) {
  return std::all_of(d.paths.begin(), d.paths.end(), [&](const Coupled& p) {
    return p.mode == "uuu" ||
           (p.mode == "uvu" && d.in2[p.in2].mul == 1 && d.out[p.out].l <= clebsch::kChannelwiseMaxDegree);
  });
}

// The kernel itself, with scratch space of the size it asks for and not one element more.
template <class T>
void check_kernel(const Problem& problem, const clebsch::ProductKernels<T>& kernels, const std::string& label,
                  bool far) {
  const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
  const Arrays<T> arrays(problem, Place::page_end);
  const Buffer<T> scratch(kernels.scratch_size(plan.program, problem.shared), Place::page_end, 64);
  for (int pass = 0; pass < 3; ++pass) {
    clebsch::ProductArgs<T> args{};
    args.program = &plan.program;
    args.shared_weights = problem.shared;
    args.x = arrays.in(X), args.y = arrays.in(Y), args.w = arrays.in(W), args.g = arrays.in(G);
    args.ax = arrays.in(AX), args.ay = arrays.in(AY), args.aw = arrays.in(AW);
    args.far_out = args.far_x = args.far_y = far;
    args.far_w = far && !problem.shared;
    const int first = pass == 2 ? 4 : 0;
    args.out = arrays.out(first), args.gx = arrays.out(first + X);
    args.gy = arrays.out(first + Y), args.gw = arrays.out(first + W);
    if (pass > 0 && problem.shared) std::fill_n(args.gw.data, plan.program.weight_numel, T{});
    const auto run = pass == 0 ? kernels.forward : pass == 1 ? kernels.backward : kernels.double_backward;
    std::fill_n(scratch.data(), scratch.size(), std::numeric_limits<T>::quiet_NaN());
    run(args, 0, problem.rows, scratch.data());
  }
  arrays.check(label);
}

}  // namespace

TEST(products_of_rows) {
  int chosen[2][2] = {};
  for (const Description& d : descriptions()) {
    for (const bool shared : {false, true}) {
      for (const int64_t rows : {0, 1, 7, 17}) check_everywhere(Problem(d, rows, shared));
    }
    const clebsch::Lanes channels = clebsch::parse_plan(d.text()).channels;
    ++chosen[0][channels.forward];
    ++chosen[1][channels.derivatives];
  }
  for (const auto& counts : chosen) CHECK(counts[0] > 5 && counts[1] > 5, "both kinds of kernels are tested");
}

TEST(orders_of_shared_weights) {
  using clebsch::Order;
  const clebsch::Program& program = clebsch::parse_plan(every_order(true).text()).program;
  const Order orders[] = {Order::x_first, Order::y_first, Order::pairs};
  for (int i = 0; i < 3; ++i)
    CHECK(program.paths[i].forward == orders[i] && program.paths[i].backward == orders[i], i);
  const clebsch::Program& narrow = clebsch::parse_plan(one_path("uvw", 7, 7, 7, true, true).text()).program;
  CHECK(narrow.paths[0].backward == Order::unchosen, "no operand fills half a vector");
}

TEST(products_over_graphs) {
  const Edges none{{}, {}, 3}, loop{{0}, {0}, 1},
      all_in{std::vector<int64_t>(19, 1), std::vector<int64_t>(19, 2), 4}, some = random_edges(5, 7),
                                                                           many = random_edges(4, 37);
  for (const Description& d : descriptions()) {
    for (const bool shared : {false, true}) {
      for (const Edges* edges : {&none, &loop, &all_in, &some, &many}) {
        check_everywhere(Problem(d, 0, shared, edges));
      }
    }
  }
}

TEST(products_in_several_chunks) {
  const Edges edges = random_edges(30, 1100);
  for (const Description& d :
       {channelwise({{16, 0, 'e'}}, {{1, 1, 'o'}}, 1, true),
        channelwise({{3, 0, 'e'}}, {{1, 1, 'o'}}, 1, true), one_path("uvw", 9, 2, 3, true, true)}) {
    for (const bool shared : {false, true}) {
      check_everywhere(Problem(d, 150, shared));
      check_everywhere(Problem(d, 0, shared, &edges));
    }
  }
}

// Panels of x for the senders of a chunk, and chunks in several waves.
TEST(graphs_larger_than_the_work_space) {
  const Edges edges = random_edges(400, 900);
  for (const bool shared : {false, true}) {
    check_everywhere(Problem(channelwise({{1500, 0, 'e'}}, {{1, 0, 'e'}}, 0, shared), 0, shared, &edges));
    check_everywhere(Problem(one_path("uvv", 700, 2, 2, true, shared), 0, shared, &edges));
  }
}

// How many chunks run before their private sums are added depends on the machine; sums do not.
TEST(waves_do_not_change_a_bit) {
  const Edges edges = random_edges(60, 2600);
  for (const Description& d : {channelwise({{16, 1, 'o'}}, {{1, 1, 'o'}}, 1, true),
                               channelwise({{3, 1, 'o'}}, {{1, 1, 'o'}}, 1, true)}) {
    for (const bool shared : {false, true}) {
      const Problem problem(d, 0, shared, &edges);
      Arrays<float> one_wave(problem, Place::heap);
      clebsch::set_private_bytes(int64_t{1} << 40);
      one_wave.run(&clebsch::run_here);
      CHECK(one_wave.graph.chunks > 3, one_wave.graph.chunks);
      for (int64_t bytes = 1; bytes < int64_t{1} << 20; bytes *= 2) {
        Arrays<float> waves(problem, Place::heap);
        clebsch::set_private_bytes(bytes);
        waves.run(&clebsch::run_here);
        CHECK(bits(waves) == bits(one_wave), bytes);
      }
      clebsch::set_private_bytes(0);
    }
  }
}

TEST(kernels_stay_in_their_scratch) {
  for (const Description& d : descriptions()) {
    for (const bool shared : {false, true}) {
      const Problem problem(d, 11, shared);
      for_each_instruction_set([&](const std::string& isa) {
        const auto& in_float = clebsch::kernels<float>().tensor_product;
        const auto& in_double = clebsch::kernels<double>().tensor_product;
        check_kernel(problem, in_float.rows, isa + " float, rows", false);
        check_kernel(problem, in_double.rows, isa + " double, rows", false);
        for (const bool far : {false, true}) {
          if (!lanes_may_be_channels(d)) break;
          check_kernel(problem, in_float.channels, isa + " float, channels", far);
          check_kernel(problem, in_double.channels, isa + " double, channels", far);
        }
      });
    }
  }
}

TEST(tangents_that_are_not_given) {
  const Edges edges = random_edges(4, 9);
  for (const Description& d :
       {channelwise({{17, 1, 'o'}}, {{1, 1, 'o'}}, 1, true), one_path("uvv", 3, 2, 2, true, true),
        one_path("uuu", 3, 3, 3, false, false)}) {
    for (int given = 0; given < 7; ++given) {
      for (const bool shared : {false, true}) {
        check_everywhere(Problem(d, 5, shared, nullptr, given));
        check_everywhere(Problem(d, 0, shared, &edges, given));
      }
    }
  }
}

TEST(results_that_are_not_wanted) {
  const Edges edges = random_edges(4, 9);
  for (const Description& d : {channelwise({{17, 1, 'o'}}, {{1, 1, 'o'}}, 1, true),
                               one_path("uvw", 3, 2, 5, true, true), every_order(true)}) {
    for (const bool shared : {false, true}) {
      for (const Edges* graph : {static_cast<const Edges*>(nullptr), &edges}) {
        const Problem problem(d, 9, shared, graph);
        Arrays<float> every(problem, Place::heap);
        every.run(&clebsch::run_here);
        for (int wanted = 0; wanted < 256; wanted += wanted < 16 ? 1 : 15) {
          Arrays<float> some(problem, Place::page_end);
          some.run(&clebsch::run_here, wanted | 1);
          for (int i = 0; i < 8; ++i) {
            const bool here = (wanted | 1) >> i & 1;
            const Buffer<float>& a = *some.outputs[i];
            CHECK(here ? std::memcmp(a.data(), every.outputs[i]->data(), a.size() * sizeof(float)) == 0
                       : std::all_of(a.data(), a.data() + a.size(), [](float v) { return v != v; }),
                  results[i], wanted);
          }
        }
      }
    }
  }
}

TEST(threads_do_not_change_a_bit) {
  const Edges edges = random_edges(60, 2600);
  for (const Description& d :
       {channelwise({{16, 0, 'e'}}, {{1, 1, 'o'}}, 1, true),
        channelwise({{3, 0, 'e'}}, {{1, 1, 'o'}}, 1, true), one_path("uvw", 9, 2, 3, true, true)}) {
    for (const bool shared : {false, true}) {
      for (const Edges* graph : {static_cast<const Edges*>(nullptr), &edges}) {
        const Problem problem(d, 400, shared, graph);
        for_each_instruction_set([&](const std::string& isa) {
          Arrays<float> here(problem, Place::heap), backwards(problem, Place::heap),
              threads(problem, Place::heap);
          here.run(&clebsch::run_here);
          backwards.run(&run_backwards);
          threads.run(&run_in_threads);
          CHECK(bits(here) == bits(backwards), isa);
          CHECK(bits(here) == bits(threads), isa);
        });
      }
    }
  }
}

// An order in which one number was changed is refused, or harmless: whatever it says, kernels stay within
// their arrays. (The results then mean nothing.)
TEST(spoilt_orders_do_no_harm) {
  const Edges edges = random_edges(3, 5);
  for (const Description& d : {channelwise({{17, 1, 'o'}}, {{1, 1, 'o'}}, 1, true),
                               channelwise({{3, 1, 'o'}}, {{1, 1, 'o'}}, 1, true)}) {
    const Problem problem(d, 0, false, &edges);
    Arrays<float> arrays(problem, Place::page_end);
    const std::vector<int64_t> order(arrays.order.data(), arrays.order.data() + arrays.order.size());
    int survived = 0;
    for (int64_t at = 0; at < arrays.order.size(); ++at) {
      for (const int64_t value :
           {std::numeric_limits<int64_t>::min(), int64_t{-7}, int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{2},
            int64_t{3}, int64_t{5}, std::numeric_limits<int64_t>::max()}) {
        std::copy(order.begin(), order.end(), arrays.order.data());
        arrays.order[at] = value;
        const std::string message = check::refusal(
            [&] { arrays.graph = clebsch::view_order(arrays.order.data(), problem.rows, edges.nodes); });
        CHECK(message.empty() || message == "convolution: order must come from graph_order of the same graph",
              message);
        if (!message.empty()) continue;
        arrays.run(&clebsch::run_here);
        ++survived;
      }
    }
    CHECK(survived > 0 && survived < static_cast<int>(9 * order.size()) / 2, survived);
  }
}
