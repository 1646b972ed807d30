// The operators for tensors on a GPU; with CLEBSCH_EMULATED for tensors of the CPU, in the place of the
// CPU's, for tests. Links C symbols of torch alone, and none of libtorch_cuda.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/device_harmonics.h"
#include "cuda/device_rows.h"
#include "cuda/graph_view.h"
#include "cuda/run_linear.h"
#include "cuda/run_product.h"
#include "cuda/run_symmetric_contraction.h"
#include "cuda/tables.h"
#include "cuda/torch_stream.h"
#include "torch_gate.h"
#include "torch_linear.h"
#include "torch_operands.h"
#include "torch_product.h"
#include "torch_radial_convolution.h"
#include "torch_silu.h"
#include "torch_spherical_harmonics.h"
#include "torch_symmetric_contraction.h"
#ifdef CLEBSCH_EMULATED
#include "cuda/emulator.h"
#define CLEBSCH_KEY CPU
#else
#define CLEBSCH_KEY CUDA
#endif

namespace {

using clebsch::cuda::StreamOf;
using clebsch::operators::require;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;

const int64_t* words_of(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// Made and copied to a device. In a thread of its own: torch.cuda.use_mem_pool, and torch.compile where it
// warms up for CUDA graphs, redirect what a thread allocates to memory that is theirs to use again.
template <class Make>
Tensor copied(const Device& device, const Make& make) {
  const std::vector<int64_t> words = make();
  std::optional<Tensor> copy;
  std::string failure;
  std::thread([&] {
    try {
      const std::array<int64_t, 1> size{static_cast<int64_t>(words.size())};
      const Device cpu(torch::headeronly::DeviceType::CPU);
      Tensor made = torch::stable::empty(size, ScalarType::Long, std::nullopt, cpu);
      if (!words.empty()) std::memcpy(made.mutable_data_ptr(), words.data(), words.size() * sizeof(int64_t));
      copy = torch::stable::to(made, device);
    } catch (const std::exception& e) {
      failure = e.what();
    }
  }).join();
  if (!copy) throw std::runtime_error(failure);
  return *copy;
}

// Tables by kind and name, copied to the device of `like` at first use, which waits; kept for the life of the
// process.
template <class Make>
const int64_t* table(const char* noun, std::string_view kind, std::string_view name, const Tensor& like,
                     const StreamOf& current, const Make& make) {
  static std::mutex& mutex = *new std::mutex;
  // Found without a copy of the name, which may be long.
  static auto& tables = *new std::map<std::tuple<int32_t, std::string, std::string>, Tensor, std::less<>>;
  const std::lock_guard lock(mutex);
  const std::tuple key{like.get_device_index(), kind, name};
  const auto found = tables.find(key);
  if (found != tables.end()) return words_of(found->second);
  if (current.is_captured())
    throw std::runtime_error(
        std::string(noun) +
        ": the first use on a device copies tables there, which a CUDA graph cannot capture: run "
        "the same step once, with its derivatives, before it is captured");
  return words_of(tables.emplace(key, copied(like.device(), make)).first->second);
}

// Tables are those of the arithmetic.
template <class T>
std::string kind_of(const char* what) {
  return std::string(what) + (sizeof(clebsch::Arithmetic<T>) == 4 ? " float" : " double");
}

class TorchMemory {
 public:
  explicit TorchMemory(const Tensor& like) : like_(like) {}
  clebsch::cuda::Workspace workspace() { return {this, &take}; }

 private:
  static void* take(void* context, size_t bytes) {
    TorchMemory& self = *static_cast<TorchMemory*>(context);
    const int64_t words = static_cast<int64_t>((bytes + 7) / 8);
    self.pieces_.push_back(torch::stable::new_empty(self.like_, {words}, ScalarType::Long));
    return self.pieces_.back().mutable_data_ptr();
  }
  const Tensor& like_;
  std::vector<Tensor> pieces_;
};

// Sorted keys, and where each came from; equal ones stay in their order.
std::pair<Tensor, Tensor> sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}),
                                    from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

struct Cuda {
  using Stored = clebsch::operators::FloatsOr16Bits;
  struct Order {
    Tensor tensor;
    clebsch::cuda::GraphView graph;
    Order(Tensor order, int64_t edges, int64_t nodes)
        : tensor(std::move(order)), graph(clebsch::cuda::view_graph(words_of(tensor), edges, nodes)) {}
  };
  static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes) {
    return torch::stable::new_empty(like, sizes);
  }

  template <class T>
  static void run(const clebsch::operators::WeightedProduct<Cuda>& product,
                  const clebsch::ProductCall<T>& call, clebsch::Derivative derivative) {
    run_product(product, call, derivative, nullptr);
  }
  template <class Types, class S>
  static void run_product(const clebsch::operators::Product<Cuda, Types>& product,
                          const clebsch::ProductCall<S>& call, clebsch::Derivative derivative,
                          const clebsch::cuda::Window* window) {
    using T = clebsch::Arithmetic<S>;
    const Tensor& like = product.x.tensor;
    if (product.order)
      require(product.order->tensor.get_device_index() == like.get_device_index(), product.noun,
              "order must be on the device of x");
    const StreamOf current(like.get_device_index());
    const int64_t* words = table(product.noun, kind_of<S>("plan"), product.text, like, current,
                                 [&] { return clebsch::cuda::plan_words<T>(product.plan); });
    TorchMemory memory(like);
    clebsch::cuda::run_product(call, clebsch::cuda::view_plan<T>(product.plan, words),
                               product.order ? &product.order->graph : nullptr, derivative,
                               memory.workspace(), current.stream, window);
  }

  // Matrix products of torch's for a window of edges at a time, whose weights stay in the second cache.
  template <class T>
  static void run(const clebsch::operators::RadialProduct<Cuda>& product, const clebsch::ProductCall<T>& call,
                  clebsch::Derivative derivative);

  template <class T>
  static void run(const clebsch::operators::Harmonics<Cuda>& harmonics,
                  const clebsch::SphericalHarmonicsArgs<T>& args, clebsch::operators::HarmonicsStep step) {
    const Tensor& like = harmonics.points.tensor;
    const StreamOf current(like.get_device_index());
    std::string name = harmonics.normalization;
    for (const int64_t l : harmonics.ls) name.append(" ").append(std::to_string(l));
    const int64_t* words = table(harmonics.noun, kind_of<T>("harmonics"), name, like, current,
                                 [&] { return clebsch::cuda::harmonic_words(args); });
    const clebsch::cuda::DeviceHarmonics<T> call{clebsch::cuda::view_harmonics(args, words), args,
                                                 harmonics.points.rows};
    clebsch::cuda::launch_harmonics(call, static_cast<int>(step), current.stream);
  }

  template <class T>
  static void run(const clebsch::operators::Contraction<Cuda>& contraction,
                  const clebsch::ContractionCall<T>& call, clebsch::ContractionStep step) {
    const Tensor& like = contraction.x;
    const StreamOf current(like.get_device_index());
    // By content: whoever made the table may change or release it.
    const clebsch::TableWords in = contraction.words();
    const std::string_view name(reinterpret_cast<const char*>(in.data),
                                static_cast<size_t>(in.size) * sizeof(int64_t));
    const int64_t* words = table(contraction.noun, kind_of<T>("contraction"), name, like, current, [&] {
      return clebsch::cuda::contraction_words<clebsch::Arithmetic<T>>(in);
    });
    std::optional<std::pair<Tensor, Tensor>> sorted;
    clebsch::cuda::SortedSpecies by_species{};
    if (call.grad_weight) {
      sorted = sort(contraction.index);
      by_species = {words_of(sorted->first), words_of(sorted->second)};
    }
    TorchMemory memory(like);
    clebsch::cuda::run_symmetric_contraction(
        call, clebsch::cuda::view_contraction<clebsch::Arithmetic<T>>(contraction.sizes, words), step,
        by_species, memory.workspace(), current.stream);
  }

  template <class T>
  static void run_linear(const clebsch::operators::Linear<Cuda>& l, const std::vector<int64_t>& biased,
                         clebsch::Rows<const T> x, const T* weight, clebsch::Rows<const T> bias,
                         clebsch::Rows<T> out) {
    const LinearRun run(l, clebsch::LinearDirection::to_out, biased);
    clebsch::cuda::DeviceLinear<T> call = run.call<T>(x);
    call.weight = weight;
    call.bias = bias;
    call.target = out;
    clebsch::cuda::launch_mix_rows(call, run.current.stream);
  }
  template <class T>
  static void run_linear_grad_x(const clebsch::operators::Linear<Cuda>& l, clebsch::Rows<const T> g,
                                const T* weight, clebsch::Rows<T> grad_x) {
    const LinearRun run(l, clebsch::LinearDirection::to_x, {});
    clebsch::cuda::DeviceLinear<T> call = run.call<T>(g);
    call.weight = weight;
    call.target = grad_x;
    clebsch::cuda::launch_mix_rows(call, run.current.stream);
  }
  template <class T>
  static void run_linear_grad_weight(const clebsch::operators::Linear<Cuda>& l, clebsch::Rows<const T> x,
                                     clebsch::Rows<const T> g, T* grad_weight) {
    const LinearRun run(l, clebsch::LinearDirection::to_out, {});
    TorchMemory memory(l.first.tensor);
    clebsch::cuda::run_grad_weight(run.call<T>(x), g, run.sorted ? words_of(run.sorted->first) : nullptr,
                                   l.plan.program.weight_numel, grad_weight, memory.workspace(),
                                   run.current.stream);
  }

  // Waits: the host has to know.
  template <class T>
  static bool find_ones(const clebsch::operators::Matrix& y, int64_t columns, int64_t* index) {
    const StreamOf current(y.tensor.get_device_index());
    Tensor found = torch::stable::new_empty(y.tensor, {y.rows}, ScalarType::Long);
    int64_t* words = static_cast<int64_t*>(found.mutable_data_ptr());
    clebsch::cuda::launch_one_hot(clebsch::cuda::OneHotRows<T>{y.read<T>(), y.rows, columns, words, index},
                                  current.stream);
    const Tensor here = torch::stable::to(found, Device(torch::headeronly::DeviceType::CPU));
    const int64_t* first = words_of(here);
    return std::all_of(first, first + y.rows, [](int64_t column) { return column >= 0; });
  }

  template <class T>
  static void run(const clebsch::operators::Gate<Cuda>& gate, clebsch::GateArgs<T> args, bool backward) {
    const Tensor& like = gate.first.tensor;
    const StreamOf current(like.get_device_index());
    std::vector<int64_t> blocks;
    std::string name;
    for (const clebsch::GatedBlock& block : gate.blocks) {
      blocks.insert(blocks.end(), {block.mul, block.width});
      name.append(" ").append(std::to_string(block.mul)).append("x").append(std::to_string(block.width));
    }
    const int64_t* words = table(gate.noun, "gate", name, like, current, [&] { return blocks; });
    args.blocks = reinterpret_cast<const clebsch::GatedBlock*>(words);
    clebsch::cuda::launch_gate(
        clebsch::cuda::DeviceGate<T>{args, gate.gates.rows, gate.gate_count, gate.gated_count}, backward,
        current.stream);
  }

  template <class T>
  static void run(const clebsch::operators::Silu<Cuda>& silu, const clebsch::SiluArgs<T>& args,
                  clebsch::operators::SiluStep step) {
    const StreamOf current(silu.x.get_device_index());
    clebsch::cuda::launch_silu(clebsch::cuda::DeviceSilu<T>{args, silu.x.numel(), static_cast<int>(step)},
                               current.stream);
  }

 private:
  // Its tables, and its rows sorted by element, if they have any.
  struct LinearRun {
    const clebsch::operators::Linear<Cuda>& l;
    const StreamOf current;
    clebsch::cuda::LinearTables tables;
    std::optional<std::pair<Tensor, Tensor>> sorted;

    LinearRun(const clebsch::operators::Linear<Cuda>& l_, clebsch::LinearDirection direction,
              const std::vector<int64_t>& biased)
        : l(l_), current(l.first.tensor.get_device_index()) {
      const clebsch::LinearArrangement arrangement(l.plan, direction, biased);
      std::string kind = direction == clebsch::LinearDirection::to_out ? "linear" : "linear to x";
      for (const int64_t block : biased) kind.append(" ").append(std::to_string(block));
      const int64_t* words = table(l.noun, kind, l.text, l.first.tensor, current, [&] {
        return clebsch::cuda::linear_words(arrangement.program(), l.plan.program.dim2);
      });
      tables = clebsch::cuda::view_linear(arrangement.program(), words);
      if (l.elements) sorted = sort(*l.elements);
    }
    template <class T>
    clebsch::cuda::DeviceLinear<T> call(clebsch::Rows<const T> source) const {
      clebsch::cuda::DeviceLinear<T> call{};
      call.tables = tables;
      call.rows = l.row_count;
      call.elements = l.elements ? l.plan.program.dim2 : 1;
      if (sorted) call.order = words_of(sorted->second);
      if (l.elements) call.index = words_of(*l.elements);
      call.source = source;
      return call;
    }
  };
};

// a b in their type. Autocast is still on in a kernel, and torch's products give 16 bits under it, but where
// the result is given to them.
Tensor matrix_product(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  const Tensor product = torch::stable::new_empty(a, {a.size(0), b.size(1)});
  std::array<StableIValue, 3> stack{from(a), from(b), from(product)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
// a b + c, c of no tensor counting as zero.
Tensor added(const std::optional<Tensor>& c, const Tensor& product) {
  return c ? torch::stable::subtract(*c, product, -1.0) : product;
}
Tensor turned(const Tensor& m) { return torch::stable::transpose(m, 0, 1); }

// Rows of `of` that index names, and rows given to where it says.
Tensor rows_at(const Tensor& of, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(of), from(int64_t{0}), from(index)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
void give_rows(const Tensor& to, const Tensor& index, const Tensor& rows) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(to), from(int64_t{0}), from(index), from(rows)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_copy_", "", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

// A convolution with w = hidden matrix, window by window:
//
//   w = h m,  aw = ah m + h am,  grad_h = gw m^T + gw1 am^T,  grad_m = h^T gw + ah^T gw1
//
// gw1 being the first derivative's gw, which the tangents of h and m meet in the second.
template <class T>
class RadialWindows {
 public:
  RadialWindows(const clebsch::operators::RadialProduct<Cuda>& product, const clebsch::ProductCall<T>& call,
                clebsch::Derivative derivative)
      : p_(product), call_(call), derivative_(derivative) {}

  void run() {
    const int64_t edges = p_.y.rows, numel = p_.plan.program.weight_numel;
    const int64_t most = derivative_ == clebsch::Derivative::none    ? 1
                         : derivative_ == clebsch::Derivative::first ? 2
                                                                     : 4;
    const int64_t row = std::max<int64_t>(most * numel * static_cast<int64_t>(sizeof(T)), 1);
    // Rows of gx wait for several windows, if one does not have enough of them.
    const int64_t dim1 = std::max<int64_t>(p_.plan.program.dim1, 1),
                  held = std::max<int64_t>(
                      clebsch::cuda::workspace_bytes(kPartsBytes) / (dim1 * int64_t{sizeof(T)}), 1);
    const int64_t count =
        std::clamp<int64_t>(clebsch::cuda::workspace_bytes(kWindowBytes) / row, 1,
                            std::max<int64_t>(call_.gx.data ? std::min(edges, held) : edges, 1));
    const int64_t wait = std::min(std::max<int64_t>(held / count, 1) * count, edges);
    const Tensor parts = torch::stable::new_empty(p_.x.tensor, {call_.gx.data ? wait : 0, dim1});
    int64_t begin = 0;
    do {
      const int64_t first = wait ? begin / wait * wait : 0;
      run_window({begin, std::min(begin + count, edges), parts.mutable_data_ptr(), first,
                  std::min(first + wait, edges)});
      begin += count;
    } while (begin < edges);
    if (p_.grad_last) {
      Tensor result = *p_.grad_last;
      torch::stable::copy_(result, *grad_matrix_);
    }
  }

 private:
  // Of all weights of a window together: they stay in the second cache of any device that has 40 MiB.
  static constexpr int64_t kWindowBytes = int64_t{16} << 20, kPartsBytes = int64_t{256} << 20;

  void run_window(clebsch::cuda::Window window) {
    Tensor order = p_.order->tensor;
    const int64_t at = p_.order->graph.edge - words_of(order);
    const Tensor edge = torch::stable::narrow(order, 0, at + window.begin, window.end - window.begin);
    const Tensor &matrix = p_.last.tensor, h = rows_at(p_.hidden.tensor, edge);
    std::optional<Tensor> ah, aw, grad_hidden;
    if (p_.ahidden) ah = rows_at(p_.ahidden->tensor, edge);
    const Tensor w = matrix_product(h, matrix);
    if (ah) aw = matrix_product(*ah, matrix);
    if (p_.alast) aw = added(aw, matrix_product(h, p_.alast->tensor));
    const bool grads = p_.grad_hidden || p_.grad_last;
    const bool crossed = (p_.grad_hidden && p_.alast) || (p_.grad_last && ah);
    const Tensor gw = torch::stable::new_empty(w, {grads ? w.size(0) : 0, w.size(1)});
    clebsch::ProductCall<T> call = call_;
    call.w = rows<const T>(w);
    if (aw) call.aw = rows<const T>(*aw);
    if (grads) call.gw = rows<T>(gw);
    product(call, derivative_, window);
    Tensor gw1;
    if (crossed) {
      gw1 = torch::stable::new_empty(w, {w.size(0), w.size(1)});
      call.gx = call.gy = call.out = {};
      call.gw = rows<T>(gw1);
      product(call, clebsch::Derivative::first, window);
    }
    if (p_.grad_hidden) {
      grad_hidden = matrix_product(gw, turned(matrix));
      if (p_.alast) grad_hidden = added(grad_hidden, matrix_product(gw1, turned(p_.alast->tensor)));
      give_rows(*p_.grad_hidden, edge, *grad_hidden);
    }
    if (p_.grad_last) {
      grad_matrix_ = added(grad_matrix_, matrix_product(turned(h), gw));
      if (ah) grad_matrix_ = added(grad_matrix_, matrix_product(turned(*ah), gw1));
    }
  }
  // Of torch's results, whose type is torch's to choose.
  template <class Number>
  static clebsch::Rows<Number> rows(const Tensor& t) {
    require(t.scalar_type() == clebsch::operators::kScalarType<T>, "radial_convolution",
            "torch gave weights of another dtype than that of x");
    return {static_cast<Number*>(t.mutable_data_ptr()), t.size(1)};
  }
  void product(const clebsch::ProductCall<T>& call, clebsch::Derivative derivative,
               const clebsch::cuda::Window& window) const {
    Cuda::run_product(p_, call, derivative, &window);
  }

  const clebsch::operators::RadialProduct<Cuda>& p_;
  const clebsch::ProductCall<T>& call_;
  const clebsch::Derivative derivative_;
  std::optional<Tensor> grad_matrix_;
};

template <class T>
void Cuda::run(const clebsch::operators::RadialProduct<Cuda>& product, const clebsch::ProductCall<T>& call,
               clebsch::Derivative derivative) {
  RadialWindows<T>(product, call, derivative).run();
}

Tensor graph_order(const Tensor& senders, const Tensor& receivers, int64_t num_nodes) {
  const char* noun = "graph_order";
  clebsch::operators::require_edges(senders, receivers, num_nodes);
  require(senders.get_device_index() == receivers.get_device_index(), noun,
          "senders and receivers must be on one device");
  const StreamOf current(senders.get_device_index());
  const Tensor from = torch::stable::contiguous(senders);
  const int64_t edges = from.numel();
  Tensor order = torch::stable::new_empty(from, {clebsch::order_size(edges, num_nodes)});
  int64_t* words = static_cast<int64_t*>(order.mutable_data_ptr());
  const auto [sorted, edge] = sort(torch::stable::contiguous(receivers));
  clebsch::cuda::launch_order_by_receiver(words_of(sorted), words_of(edge), words_of(from), edges, num_nodes,
                                          words, current.stream);
  const int64_t at = clebsch::cuda::view_graph(words, edges, num_nodes).sender - words;
  const auto [by_sender, position] = sort(torch::stable::narrow(order, 0, at, edges));
  clebsch::cuda::launch_order_by_sender(words_of(by_sender), words_of(position), edges, num_nodes, words,
                                        current.stream);
  return order;
}

}  // namespace

// For tests, by name.
extern "C" __attribute__((visibility("default"))) void clebsch_set_workspace_bytes(int64_t bytes) {
  clebsch::cuda::set_workspace_bytes(bytes);
}
#ifdef CLEBSCH_EMULATED
extern "C" __attribute__((visibility("default"))) void clebsch_set_thread_order(const char* words) {
  clebsch::cuda::emulator::set_order(std::string(words));
}
extern "C" __attribute__((visibility("default"))) void clebsch_set_captured(bool captured) {
  StreamOf::captures = captured;
}
extern "C" __attribute__((visibility("default"))) int64_t clebsch_shared_bytes_since() {
  return clebsch::cuda::emulator::shared_bytes_since();
}
extern "C" __attribute__((visibility("default"))) void clebsch_set_shared_limit(int64_t bytes) {
  clebsch::cuda::emulator::set_shared_limit(bytes);
}
extern "C" __attribute__((visibility("default"))) const void* clebsch_take_launch() {
  return clebsch::cuda::emulator::take_launch();
}
#endif

STABLE_TORCH_LIBRARY_IMPL(clebsch, CLEBSCH_KEY, m) {
  m.impl("graph_order", TORCH_BOX(&graph_order));
  clebsch::operators::register_spherical_harmonics<Cuda>(m);
  clebsch::operators::register_products<Cuda>(m);
  clebsch::operators::register_edge_products<Cuda>(m);
  clebsch::operators::register_symmetric_contraction<Cuda>(m);
  clebsch::operators::register_linear<Cuda>(m);
  clebsch::operators::register_radial_convolution<Cuda>(m);
  clebsch::operators::register_gate<Cuda>(m);
  clebsch::operators::register_silu<Cuda>(m);
}
