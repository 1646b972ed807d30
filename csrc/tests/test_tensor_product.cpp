// Products over rows and graphs against the form written out naively: every kernel of every instruction set
// that runs here, forward, backward and double backward, on arrays of exactly the size they need.
#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/run_product.h"
#include "plan.h"
#include "product_problem.h"
#include "schedules.h"

namespace {

auto on_cpu(clebsch::Parallel parallel) {
  return [parallel](const auto& call, Derivative derivative) {
    clebsch::run_product(call, derivative, parallel);
  };
}

template <class T>
void check_problem(const Problem& problem, const std::string& isa, Place place) {
  const Arrays<T> arrays(problem, place);
  arrays.run(on_cpu(place == Place::heap ? &clebsch::run_here : &run_backwards));
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
    args.rows = problem.rows;
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
      check_everywhere(Problem(d, 300, shared));
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
      one_wave.run(on_cpu(&clebsch::run_here));
      CHECK(one_wave.graph.chunks > 3, one_wave.graph.chunks);
      for (int64_t bytes = 1; bytes < int64_t{1} << 20; bytes *= 2) {
        Arrays<float> waves(problem, Place::heap);
        clebsch::set_private_bytes(bytes);
        waves.run(on_cpu(&clebsch::run_here));
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
        every.run(on_cpu(&clebsch::run_here));
        for (int wanted = 0; wanted < 256; wanted += wanted < 16 ? 1 : 15) {
          Arrays<float> some(problem, Place::page_end);
          some.run(on_cpu(&clebsch::run_here), wanted | 1);
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
          here.run(on_cpu(&clebsch::run_here));
          backwards.run(on_cpu(&run_backwards));
          threads.run(on_cpu(&run_in_threads));
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
        arrays.run(on_cpu(&clebsch::run_here));
        ++survived;
      }
    }
    CHECK(survived > 0 && survived < static_cast<int>(9 * order.size()) / 2, survived);
  }
}
