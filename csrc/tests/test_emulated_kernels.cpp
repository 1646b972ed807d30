// The kernels of the GPU on the emulator, against the form written out naively and the CPU's harmonics, in
// each order of threads, on arrays of exactly the size they need.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cuda/device.h"
#include "cuda/device_harmonics.h"
#include "cuda/emulator.h"
#include "cuda/run_product.h"
#include "cuda/tables.h"
#include "device_memory.h"
#include "form.h"
#include "product_problem.h"
#include "spherical_harmonics_degrees.h"

namespace {

namespace cuda = clebsch::cuda;

// As torch's sort, which the operator calls: keys sorted stably, and where each came from.
struct Sorted {
  std::vector<int64_t> keys, source;
  explicit Sorted(const int64_t* from, int64_t count) : keys(from, from + count), source(count) {
    std::iota(source.begin(), source.end(), 0);
    std::stable_sort(source.begin(), source.end(), [&](int64_t a, int64_t b) { return from[a] < from[b]; });
    for (int64_t i = 0; i < count; ++i) keys[i] = from[source[i]];
  }
};

struct DeviceOrder {
  Buffer<int64_t> order;
  cuda::GraphView view;
  DeviceOrder(const Edges& edges, int64_t nodes)
      : order(clebsch::order_size(static_cast<int64_t>(edges.senders.size()), nodes), Place::heap) {
    const int64_t count = static_cast<int64_t>(edges.senders.size());
    const Sorted by_receiver(edges.receivers.data(), count);
    cuda::launch_order_by_receiver(by_receiver.keys.data(), by_receiver.source.data(), edges.senders.data(),
                                   count, nodes, order.data(), nullptr);
    view = cuda::view_graph(order.data(), count, nodes);
    const Sorted by_sender(view.sender, count);
    cuda::launch_order_by_sender(by_sender.keys.data(), by_sender.source.data(), count, nodes, order.data(),
                                 nullptr);
  }
};

template <class T>
void check_problem(const Problem& problem, const std::string& label) {
  const Arrays<T> arrays(problem, Place::page_end);
  const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
  const std::vector<int64_t> words = cuda::plan_words<T>(plan);
  std::unique_ptr<DeviceOrder> order;
  if (problem.edges) order = std::make_unique<DeviceOrder>(*problem.edges, problem.edges->nodes);
  arrays.run([&](const clebsch::ProductCall<T>& call, Derivative derivative) {
    DeviceMemory memory;
    cuda::run_product(call, cuda::view_plan<T>(plan, words.data()), order ? &order->view : nullptr,
                      derivative, memory.workspace(), nullptr);
  });
  arrays.check(label);
}

void check_in_each_order(const Problem& problem) {
  static int turn = 0;
  for (const char* order : {"forward", "reverse", "random:3"}) {
    cuda::emulator::set_order(std::string(order));
    cuda::emulator::set_most_blocks(turn / 2 % 2 ? 2 : 0);
    if (++turn % 2) {
      check_problem<float>(problem, std::string(order) + " float");
    } else {
      check_problem<double>(problem, std::string(order) + " double");
    }
  }
  cuda::emulator::set_order("forward");
  cuda::emulator::set_most_blocks(0);
}

std::vector<Description> descriptions() {
  std::vector<Description> all;
  for (const bool mul_ir : {true, false}) {
    all.push_back(channelwise({{16, 0, 'e'}, {3, 1, 'o'}}, {{1, 0, 'e'}, {1, 1, 'o'}}, 2, mul_ir));
    all.push_back(channelwise({{132, 1, 'o'}}, {{1, 1, 'o'}}, 1, mul_ir));
    all.push_back(channelwise({{64, 1, 'o'}, {0, 2, 'e'}}, {{1, 0, 'e'}, {1, 1, 'o'}}, 1, mul_ir));
    all.push_back(channelwise({{5, 4, 'e'}}, {{1, 4, 'e'}}, 5, mul_ir));
    all.push_back(one_path("uvw", 5, 3, 7, true, mul_ir));
    all.push_back(one_path("uvu", 7, 19, 7, true, mul_ir));
    all.push_back(one_path("uvv", 9, 33, 33, true, mul_ir));
    all.push_back(one_path("uuw", 33, 33, 5, true, mul_ir));
    all.push_back(one_path("uuu", 67, 67, 67, true, mul_ir));
    all.push_back(one_path("uvuv", 11, 3, 33, true, mul_ir));
    all.push_back(one_path("uvu<v", 19, 19, 171, true, mul_ir));
    all.push_back(one_path("u<vw", 13, 13, 3, true, mul_ir));
  }
  return all;
}

}  // namespace

TEST(emulated_products_of_rows) {
  for (const Description& d : descriptions()) {
    for (const bool shared : {false, true}) check_in_each_order(Problem(d, 5, shared));
  }
  check_in_each_order(Problem(one_path("uvw", 5, 3, 7, true, true), 0, true));
}

TEST(emulated_products_over_graphs) {
  const Edges edges = random_edges(5, 13), none{{}, {}, 3};
  for (const Description& d : descriptions()) {
    for (const bool shared : {false, true}) check_in_each_order(Problem(d, 0, shared, &edges));
  }
  for (const bool shared : {false, true}) {
    check_in_each_order(Problem(channelwise({{3, 1, 'o'}}, {{1, 1, 'o'}}, 1, true), 0, shared, &none));
  }
}

TEST(emulated_products_in_several_windows) {
  const Edges edges = random_edges(7, 150);
  for (const int64_t bytes : {1000, 3000}) {
    cuda::set_workspace_bytes(bytes);
    for (const bool shared : {false, true}) {
      check_in_each_order(Problem(channelwise({{3, 1, 'o'}}, {{1, 1, 'o'}}, 1, true), 0, shared, &edges));
      check_in_each_order(Problem(one_path("uvw", 3, 2, 2, true, true), 0, shared, &edges));
      check_in_each_order(Problem(one_path("uvw", 3, 2, 2, true, true), 150, shared));
    }
  }
  cuda::set_workspace_bytes(0);
}

// Whether each call over the edges refuses their order: out, gradients, and both of a second derivative.
void check_refused(const Description& description, const Edges& edges, const cuda::GraphView& view) {
  const Problem problem(description, 0, false, &edges);
  const Arrays<float> arrays(problem, Place::heap);
  const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
  const std::vector<int64_t> words = cuda::plan_words<float>(plan);
  int calls = 0;
  arrays.run([&](const clebsch::ProductCall<float>& call, Derivative derivative) {
    ++calls;
    DeviceMemory memory;
    CHECK(check::refusal([&] {
            cuda::run_product(call, cuda::view_plan<float>(plan, words.data()), &view, derivative,
                              memory.workspace(), nullptr);
          }) == "convolution: order must come from graph_order of the same graph",
          problem.description.text(), static_cast<int>(derivative));
  });
  CHECK(calls == 3);
}

TEST(emulated_kernels_refuse_a_bad_order) {
  const Edges edges = random_edges(5, 13);
  const DeviceOrder order(edges, 5);
  const_cast<int64_t*>(order.view.sender)[3] = 5;
  check_refused(channelwise({{3, 1, 'o'}}, {{1, 1, 'o'}}, 1, true), edges, order.view);
}

// The CPU's order of the same graph. Of one node its indices are all those of a device's order but for the
// positions of senders: what kernels refuse is what it begins with.
TEST(emulated_kernels_refuse_the_order_of_the_cpu) {
  const Edges one_node{{0, 0, 0}, {0, 0, 0}, 1}, several = random_edges(5, 13);
  for (const Edges* edges : {&one_node, &several}) {
    const int64_t count = static_cast<int64_t>(edges->senders.size());
    const Buffer<int64_t> order(clebsch::order_size(count, edges->nodes), Place::page_end);
    clebsch::build_order(edges->senders.data(), edges->receivers.data(), count, edges->nodes, order.data());
    const cuda::GraphView view = cuda::view_graph(order.data(), count, edges->nodes);
    check_refused(channelwise({{3, 1, 'o'}}, {{1, 1, 'o'}}, 1, true), *edges, view);
    check_refused(one_path("uvw", 3, 2, 2, true, true), *edges, view);
  }
}

// A call on numbers of 16 bits that float numbers hold, in arrays that end where no memory is.
template <class S>
class ShortCall {
 public:
  ShortCall(const Problem& problem, const clebsch::ProductCall<float>& long_call) : problem_(problem) {
    call.rows = long_call.rows;
    call.shared_weights = long_call.shared_weights;
    call.x = operand(X, long_call.x);
    call.y = operand(Y, long_call.y);
    call.w = operand(W, long_call.w);
    call.g = operand(G, long_call.g);
    call.ax = operand(AX, long_call.ax);
    call.ay = operand(AY, long_call.ay);
    call.aw = operand(AW, long_call.aw);
    call.out = result(G, long_call.out);
    call.gx = result(X, long_call.gx);
    call.gy = result(Y, long_call.gy);
    call.gw = result(W, long_call.gw);
  }
  // One unit in the last place apart at most, where a compiler fuses other products and sums.
  void check(const std::string& label) const {
    for (std::size_t n = 0; n < results_.size(); ++n) {
      const Buffer<S>& found = *results_[n];
      for (int64_t i = 0; i < found.size(); ++i) {
        const S expected = cuda::rounded<S>(expected_[n][i]);
        CHECK(std::abs(int{found[i].bits} - int{expected.bits}) <= 1, label, n, i, cuda::widened(found[i]),
              expected_[n][i]);
      }
    }
  }
  clebsch::ProductCall<S> call{};

 private:
  clebsch::Rows<const S> operand(int i, const clebsch::Rows<const float>& from) {
    if (!from.data) return {nullptr, 0};
    const int64_t count = problem_.count(i), width = problem_.width(i);
    operands_.push_back(std::make_unique<Buffer<S>>(count * width, Place::page_end));
    S* to = operands_.back()->data();
    for (int64_t n = 0; n < count * width; ++n)
      to[n] = cuda::rounded<S>(from.data[n / width * from.stride + n % width]);
    return {to, from.stride ? width : 0};
  }
  clebsch::Rows<S> result(int i, const clebsch::Rows<float>& expected) {
    if (!expected.data) return {nullptr, 0};
    results_.push_back(std::make_unique<Buffer<S>>(problem_.count(i) * problem_.width(i), Place::page_end));
    for (int64_t n = 0; n < results_.back()->size(); ++n) (*results_.back())[n] = {0x7fff};  // not a number
    expected_.push_back(expected.data);
    return {results_.back()->data(), expected.stride};
  }
  const Problem& problem_;
  std::vector<std::unique_ptr<Buffer<S>>> operands_, results_;
  std::vector<const float*> expected_;
};

template <class S>
void check_short(Problem problem, const std::string& label) {
  for (std::vector<double>& numbers : problem.operand) {
    for (double& number : numbers) number = cuda::widened(cuda::rounded<S>(static_cast<float>(number)));
  }
  const Arrays<float> arrays(problem, Place::page_end);
  const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
  const std::vector<int64_t> words = cuda::plan_words<float>(plan);
  const cuda::PlanTables<float> tables = cuda::view_plan<float>(plan, words.data());
  std::unique_ptr<DeviceOrder> order;
  if (problem.edges) order = std::make_unique<DeviceOrder>(*problem.edges, problem.edges->nodes);
  const cuda::GraphView* graph = order ? &order->view : nullptr;
  arrays.run([&](const clebsch::ProductCall<float>& call, Derivative derivative) {
    DeviceMemory memory;
    cuda::run_product(call, tables, graph, derivative, memory.workspace(), nullptr);
    ShortCall<S> other(problem, call);
    cuda::run_product(other.call, tables, graph, derivative, memory.workspace(), nullptr);
    other.check(label);
  });
}

TEST(emulated_products_of_16_bits) {
  const Edges edges = random_edges(5, 13);
  const char* const orders[] = {"forward", "reverse", "random:3"};
  int turn = 0;
  for (const Description& d : descriptions()) {
    for (const bool shared : {false, true}) {
      const std::string order = orders[++turn % 3];
      cuda::emulator::set_order(order);
      for (const Edges* graph : {static_cast<const Edges*>(nullptr), &edges}) {
        check_short<clebsch::Half>(Problem(d, 5, shared, graph), order + " half");
        check_short<clebsch::BFloat16>(Problem(d, 5, shared, graph), order + " bfloat16");
      }
    }
  }
  cuda::emulator::set_order("forward");
}

// Of these every kernel has more tasks than three times its blocks, along y too: the sums of gw have 4 groups
// of rows, and 343 weights in 3 blocks.
TEST(emulated_products_in_few_blocks) {
  const Edges edges = random_edges(9, 30);
  cuda::emulator::set_most_blocks(2);
  const auto check_both = [](const Problem& problem) {
    check_problem<float>(problem, "float");
    check_short<clebsch::BFloat16>(problem, "bfloat16");
  };
  check_both(Problem(one_path("uvw", 7, 7, 7, true, true), 200, true));
  check_both(Problem(channelwise({{16, 1, 'o'}}, {{1, 1, 'o'}}, 2, true), 0, false, &edges));
  cuda::emulator::set_most_blocks(0);
}

TEST(emulated_orders_in_few_blocks) {
  const Edges edges = random_edges(600, 1100);
  const DeviceOrder in_many(edges, 600);
  cuda::emulator::set_most_blocks(2);
  const DeviceOrder in_few(edges, 600);
  cuda::emulator::set_most_blocks(0);
  const auto check_same = [&](const int64_t* cuda::GraphView::* array, int64_t count) {
    for (int64_t i = 0; i < count; ++i) CHECK((in_few.view.*array)[i] == (in_many.view.*array)[i], i);
  };
  check_same(&cuda::GraphView::head, 2);
  for (const auto begins : {&cuda::GraphView::receiver_begin, &cuda::GraphView::sender_begin})
    check_same(begins, 601);
  for (const auto by_edge : {&cuda::GraphView::edge, &cuda::GraphView::sender, &cuda::GraphView::receiver,
                             &cuda::GraphView::outgoing})
    check_same(by_edge, 1100);
}

template <class T>
void check_harmonics(const std::vector<int64_t>& ls, bool normalize, const std::string& label,
                     int64_t points = 131) {
  auto args = clebsch::spherical_harmonics_args<T>(ls, normalize, "component");
  std::mt19937 generator(1);
  const auto random = [&](int64_t width) { return random_numbers(points * width, generator); };
  const Buffer<T> at(random(3), Place::page_end), grad(random(args.num_columns), Place::page_end),
      tangent(random(3), Place::page_end);
  args.points = at.data();
  args.grad = grad.data();
  args.grad_stride = args.num_columns;
  args.grad_grad_points = tangent.data();
  const std::vector<int64_t> words = cuda::harmonic_words(args);
  const auto& kernels = clebsch::kernels<T>().spherical_harmonics;
  for (int step = 0; step < 3; ++step) {
    Buffer<T> out[2] = {{points * args.num_columns, Place::page_end},
                        {points * args.num_columns, Place::heap}};
    Buffer<T> gradient[2] = {{points * 3, Place::page_end}, {points * 3, Place::heap}};
    for (int i = 0; i < 2; ++i) {
      out[i].poison();
      gradient[i].poison();
      args.out = out[i].data();
      args.grad_points = gradient[i].data();
      if (i == 0) {
        cuda::launch_harmonics(
            cuda::DeviceHarmonics<T>{cuda::view_harmonics(args, words.data()), args, points}, step, nullptr);
      } else {
        (step == 0   ? kernels.forward
         : step == 1 ? kernels.backward
                     : kernels.double_backward)(args, 0, points);
      }
    }
    const double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
    for (const auto* results : {out, gradient}) {
      double error = 0, norm = 0;
      for (int64_t i = 0; i < results[0].size(); ++i) {
        const double expected = results[1][i], found = results[0][i];
        CHECK(std::isnan(expected) == std::isnan(found), label, step, i);  // what is not written
        if (std::isnan(expected)) continue;
        error += (found - expected) * (found - expected);
        norm += expected * expected;
      }
      CHECK(std::sqrt(error) <= 300 * unit * std::sqrt(norm), label, step);
    }
  }
}

TEST(emulated_harmonics) {
  const std::vector<std::vector<int64_t>> lists = {
      {0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {2, 0, 2, 1}, {9, 4}, {}};
  for (const char* order : {"forward", "reverse", "random:3"}) {
    cuda::emulator::set_order(std::string(order));
    for (const std::vector<int64_t>& ls : lists) {
      for (const bool normalize : {true, false}) {
        check_harmonics<float>(ls, normalize, std::string(order) + " float");
        check_harmonics<double>(ls, normalize, std::string(order) + " double");
      }
    }
  }
  cuda::emulator::set_order("forward");
  cuda::emulator::set_most_blocks(2);
  for (const auto& ls : {std::vector<int64_t>{0, 1, 2}, std::vector<int64_t>{9, 4}})
    check_harmonics<float>(ls, true, "few blocks", 600);
  cuda::emulator::set_most_blocks(0);
}
