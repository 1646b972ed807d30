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

// A convolution window by window, each with a row of weights and of their gradients for each position; rows
// of gx wait for so many windows together.
template <class T>
void check_windows(const Problem& problem, const std::vector<int64_t>& bounds, std::size_t together,
                   const std::string& label) {
  const Arrays<T> arrays(problem, Place::page_end);
  const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
  const std::vector<int64_t> words = cuda::plan_words<T>(plan);
  const DeviceOrder order(*problem.edges, problem.edges->nodes);
  const int64_t width = problem.width(W);
  arrays.run([&](const clebsch::ProductCall<T>& whole, Derivative derivative) {
    std::unique_ptr<Buffer<T>> parts;
    for (std::size_t i = 1; i < bounds.size(); ++i) {
      const std::size_t group = (i - 1) / together * together;
      const int64_t parts_begin = bounds[group],
                    parts_end = bounds[std::min(group + together, bounds.size() - 1)];
      if (i - 1 == group) {
        parts = std::make_unique<Buffer<T>>((parts_end - parts_begin) * problem.width(X), Place::page_end);
        parts->poison();
      }
      const cuda::Window window{bounds[i - 1], bounds[i], parts->data(), parts_begin, parts_end};
      const int64_t count = window.end - window.begin;
      Buffer<T> w(count * width, Place::page_end), aw(count * width, Place::page_end),
          gw(count * width, Place::page_end);
      gw.poison();
      const auto each = [&](const auto& f) {
        for (int64_t n = 0; n < count * width; ++n)
          f(n, order.view.edge[window.begin + n / width], n % width);
      };
      const auto gather = [&](const Buffer<T>& to, clebsch::Rows<const T>& rows) {
        if (!rows.data) return;
        each([&](int64_t n, int64_t edge, int64_t d) { to[n] = rows.data[edge * rows.stride + d]; });
        rows = {to.data(), width};
      };
      clebsch::ProductCall<T> call = whole;
      gather(w, call.w);
      gather(aw, call.aw);
      if (call.gw.data) call.gw = {gw.data(), width};
      DeviceMemory memory;
      cuda::run_product(call, cuda::view_plan<T>(plan, words.data()), &order.view, derivative,
                        memory.workspace(), nullptr, &window);
      if (!whole.gw.data) continue;
      each([&](int64_t n, int64_t edge, int64_t d) { whole.gw.data[edge * whole.gw.stride + d] = gw[n]; });
    }
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

// Degrees that kernels know when compiled: pairs with one of 4, of which they have no more than some rows and
// columns in registers, by one channel a thread and by several.
std::vector<Description> known_degrees() {
  return {channelwise({{5, 4, 'e'}, {3, 3, 'o'}}, {{1, 1, 'o'}, {1, 4, 'e'}}, 4, true),
          channelwise({{66, 4, 'e'}}, {{1, 1, 'o'}}, 4, false)};
}

// Pairs that fan out to outputs of all these degrees, and one beyond, in packs that end before a row does and
// after; then to more pairs than a chunk has.
std::vector<Description> fans() {
  std::vector<Description> all;
  for (const bool mul_ir : {true, false}) {
    Description d{{{3, 2, 'e'}}, {{2, 2, 'e'}, {1, 3, 'e'}}, {}, {}, mul_ir};
    for (const Irrep& out : {Irrep{130, 0, 'e'}, Irrep{48, 1, 'e'}, Irrep{10, 2, 'e'}, Irrep{8, 3, 'e'},
                             Irrep{3, 4, 'e'}, Irrep{1, 4, 'e'}, Irrep{2, 5, 'e'}}) {
      const int k = static_cast<int>(d.out.size());
      d.out.push_back(out);
      d.paths.push_back({0, out.l == 5, k, "uvw", true, 0.5 + k});
    }
    all.push_back(d);
  }
  all.push_back({{{12, 2, 'e'}}, {{10, 2, 'e'}}, {{3, 4, 'e'}}, {{0, 0, 0, "uvw", true, 1}}, true});
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

TEST(emulated_products_of_known_degrees) {
  const Edges edges = random_edges(4, 9);
  for (const Description& d : known_degrees()) check_in_each_order(Problem(d, 0, false, &edges));
  for (const Description& d : fans()) {
    check_in_each_order(Problem(d, 2, false));
    check_in_each_order(Problem(d, 0, true, &edges));
  }
}

TEST(emulated_edge_products) {
  const Edges edges = random_edges(5, 13), none{{}, {}, 3};
  for (const Description& d : descriptions()) {
    if (!d.mul_ir) continue;
    for (const bool shared : {false, true}) check_in_each_order(Problem(d, 0, shared, &edges, 7, true));
  }
  check_in_each_order(Problem(one_path("uvw", 3, 2, 2, true, true), 0, true, &none, 7, true));
}

// Shared weights: a row of gw for several positions, as of thousands of them, in two launches.
TEST(emulated_rows_of_gw_for_several_positions) {
  for (const Description& d :
       {one_path("uvw", 5, 3, 7, true, true), one_path("uvu", 7, 19, 7, true, false), fans().front()}) {
    const Problem problem(d, 10, true);
    const Arrays<float> arrays(problem, Place::page_end);
    const clebsch::Plan& plan = clebsch::parse_plan(d.text());
    const std::vector<int64_t> words = cuda::plan_words<float>(plan);
    const int64_t width = problem.width(W), group = 3, half = 6;
    arrays.run([&](clebsch::ProductCall<float> call, Derivative derivative) {
      const bool tangent = derivative == Derivative::second;
      const clebsch::Rows<float> gw = call.gw;
      call.gw = {};
      DeviceMemory memory;
      const cuda::PlanTables<float> tables = cuda::view_plan<float>(plan, words.data());
      cuda::run_product(call, tables, nullptr, derivative, memory.workspace(), nullptr);
      if (derivative == Derivative::none) return;
      cuda::DeviceProduct<float> product{};
      product.plan = tables;
      product.rows = product.tasks = call.rows;
      product.shared_weights = true;
      product.positions_of_gw = group;
      product.x = call.x, product.y = call.y, product.w = call.w, product.g = call.g;
      product.ax = call.ax, product.ay = call.ay, product.aw = call.aw;
      std::vector<double> total(width);
      for (const int64_t first : {int64_t{0}, half}) {
        product.first_position = first;
        product.last_position = first == 0 ? half : call.rows;
        const int64_t groups = (product.last_position - first + group - 1) / group;
        Buffer<float> parts(groups * width, Place::page_end);
        parts.poison();
        product.gw = cuda::written_once(clebsch::Rows<float>{parts.data(), width});
        cuda::launch_rows_backward(product, tangent, nullptr);
        for (int64_t i = 0; i < groups * width; ++i) total[i % width] += parts[i];
      }
      for (int64_t i = 0; i < width; ++i) gw.data[i] = static_cast<float>(total[i]);
    });
    arrays.check("several positions");
  }
}

TEST(emulated_convolutions_window_by_window) {
  const Edges edges = random_edges(5, 13);
  for (const Description& d :
       {channelwise({{16, 0, 'e'}, {3, 1, 'o'}}, {{1, 0, 'e'}, {1, 1, 'o'}}, 2, true),
        channelwise({{132, 1, 'o'}}, {{1, 1, 'o'}}, 1, true), one_path("uvw", 5, 3, 7, true, true)}) {
    const Problem problem(d, 0, false, &edges);
    for (const char* order : {"forward", "reverse"}) {
      cuda::emulator::set_order(std::string(order));
      check_windows<float>(problem, {0, 13}, 1, "one window");
      check_windows<double>(problem, {0, 4, 5, 13}, 1, "three windows");
      check_windows<double>(problem, {0, 4, 5, 9, 13}, 2, "four windows, two together");
      check_windows<float>(problem, {0, 4, 5, 13}, 3, "three windows together");
    }
  }
  cuda::emulator::set_order("forward");
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
    call.y_of_receivers = long_call.y_of_receivers;
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

// Against the kernel of float on the same numbers, rounded once; a place apart where compilers fuse other
// sums.
template <class S>
void check_short_harmonics(const std::vector<int64_t>& ls, bool normalize, const std::string& label) {
  constexpr int64_t points = 131;
  auto args = clebsch::spherical_harmonics_args<float>(ls, normalize, "component");
  auto short_args = clebsch::spherical_harmonics_args<S>(ls, normalize, "component");
  std::mt19937 generator(1);
  const auto random = [&](int64_t width, Buffer<S>& narrow, Buffer<float>& wide) {
    const std::vector<double> numbers = random_numbers(points * width, generator);
    for (int64_t i = 0; i < points * width; ++i) {
      narrow[i] = cuda::rounded<S>(static_cast<float>(numbers[i]));
      wide[i] = cuda::widened(narrow[i]);
    }
  };
  const int64_t columns = args.num_columns;
  Buffer<S> at(points * 3, Place::page_end), grad(points * columns, Place::page_end),
      tangent(points * 3, Place::page_end);
  Buffer<float> wide_at(points * 3, Place::heap), wide_grad(points * columns, Place::heap),
      wide_tangent(points * 3, Place::heap);
  random(3, at, wide_at);
  random(columns, grad, wide_grad);
  random(3, tangent, wide_tangent);
  const auto fill = [&](auto& to, const auto& p, const auto& g, const auto& t, auto& out, auto& gradient) {
    to.points = p.data();
    to.grad = g.data();
    to.grad_stride = columns;
    to.grad_grad_points = t.data();
    to.out = out.data();
    to.grad_points = gradient.data();
  };
  for (int step = 0; step < 3; ++step) {
    Buffer<S> out(points * columns, Place::page_end), gradient(points * 3, Place::page_end);
    Buffer<float> wide_out(points * columns, Place::heap), wide_gradient(points * 3, Place::heap);
    for (Buffer<S>* result : {&out, &gradient}) {
      for (int64_t i = 0; i < result->size(); ++i) (*result)[i] = {0x7fff};  // not a number
    }
    fill(args, wide_at, wide_grad, wide_tangent, wide_out, wide_gradient);
    fill(short_args, at, grad, tangent, out, gradient);
    const std::vector<int64_t> words = cuda::harmonic_words(args),
                               short_words = cuda::harmonic_words(short_args);
    cuda::launch_harmonics(
        cuda::DeviceHarmonics<float>{cuda::view_harmonics(args, words.data()), args, points}, step, nullptr);
    cuda::launch_harmonics(
        cuda::DeviceHarmonics<S>{cuda::view_harmonics(short_args, short_words.data()), short_args, points},
        step, nullptr);
    const auto check = [&](const Buffer<S>& found, const Buffer<float>& expected) {
      for (int64_t i = 0; i < found.size(); ++i) {
        CHECK(std::abs(int{found[i].bits} - int{cuda::rounded<S>(expected[i]).bits}) <= 1, label, step, i,
              cuda::widened(found[i]), expected[i]);
      }
    };
    if (step != 1) check(out, wide_out);
    if (step != 0) check(gradient, wide_gradient);
  }
}

TEST(emulated_harmonics_of_16_bits) {
  for (const char* order : {"forward", "reverse"}) {
    cuda::emulator::set_order(std::string(order));
    for (const std::vector<int64_t>& ls : {std::vector<int64_t>{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {9, 4}}) {
      for (const bool normalize : {true, false}) {
        check_short_harmonics<clebsch::Half>(ls, normalize, std::string(order) + " half");
        check_short_harmonics<clebsch::BFloat16>(ls, normalize, std::string(order) + " bfloat16");
      }
    }
  }
  cuda::emulator::set_order("forward");
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
