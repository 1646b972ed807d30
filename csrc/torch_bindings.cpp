// The operators: torch's stable ABI on one side, kernels on the other. Autograd and fake kernels are in
// Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/run_linear.h"
#include "cpu/run_product.h"
#include "cpu/run_symmetric_contraction.h"
#include "graph_order.h"
#include "memory.h"
#include "plan.h"
#include "torch_gate.h"
#include "torch_linear.h"
#include "torch_operands.h"
#include "torch_product.h"
#include "torch_radial_convolution.h"
#include "torch_silu.h"
#include "torch_spherical_harmonics.h"
#include "torch_symmetric_contraction.h"

extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* ret, int32_t layout,
    const uint8_t* opaque_metadata, int64_t opaque_metadata_size, void (*deleter)(void* data, void* context),
    void* deleter_context);

namespace {

using clebsch::operators::Matrix;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void run_in_torch_threads(int64_t tasks, clebsch::Body body, void* context) {
  if (tasks <= 1) return clebsch::run_here(tasks, body, context);
  // What can go wrong in a task is its memory; an error that leaves it would lose its type in torch.
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    try {
      body(context, begin, end);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  if (out_of_memory) throw std::bad_alloc();
}

// A kernel that allocates nothing, over [0, count) in pieces of `grain` or more.
template <class Kernel, class Args>
void run_in_pieces(Kernel kernel, const Args& args, int64_t count, int64_t grain) {
  if (count <= grain) return kernel(args, 0, count);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// A large result lives in pooled memory (memory.h). Torch hands out tensors over memory of ours since 2.11;
// before, the symbol is absent and torch allocates.
Tensor pooled(const Tensor& like, const std::vector<int64_t>& sizes, int64_t bytes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * sizes[d + 1];
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  void* data = nullptr;
  try {
    data = clebsch::acquire_memory(static_cast<size_t>(bytes));
  } catch (const std::bad_alloc&) {
    return torch::stable::new_empty(like, sizes);  // to fail in torch's words
  }
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = torch_from_blob(
      data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype,
      aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
      [](void* block, void*) { clebsch::release_memory(block); }, nullptr);
  if (error) clebsch::release_memory(data);
  TORCH_ERROR_CODE_CHECK(error);
  return Tensor(handle);
}

// A new result, not initialised: kernels write every element.
Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes) {
  int64_t bytes = like.scalar_type() == ScalarType::Float ? 4 : 8;
  for (const int64_t size : sizes) bytes *= size;
  const bool pool = torch_from_blob && static_cast<size_t>(bytes) >= clebsch::kSmallestPooled;
  Tensor t = pool ? pooled(like, sizes, bytes) : torch::stable::new_empty(like, sizes);
  if (clebsch::poisons_new_memory() && bytes)
    std::memset(t.mutable_data_ptr(), 0xff, static_cast<size_t>(bytes));
  return t;
}

// Kernels of the instruction set in use, torch's threads, pooled memory.
struct Cpu {
  using Stored = clebsch::operators::Floats;
  struct Order {
    Tensor tensor;
    clebsch::Graph graph;
    Order(Tensor order, int64_t edges, int64_t nodes)
        : tensor(std::move(order)),
          graph(clebsch::view_order(static_cast<const int64_t*>(tensor.const_data_ptr()), edges, nodes)) {}
  };
  static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes) { return ::fresh(like, sizes); }

  template <class T>
  static void run(const clebsch::operators::Product<Cpu>& product, clebsch::ProductCall<T> call,
                  clebsch::Derivative derivative) {
    call.graph = product.order ? &product.order->graph : nullptr;
    clebsch::run_product(call, derivative, &run_in_torch_threads);
  }

  // Splits the points over threads, some 30 us of work each at the least.
  template <class T>
  static void run(const clebsch::operators::Harmonics<Cpu>& harmonics,
                  const clebsch::SphericalHarmonicsArgs<T>& args, clebsch::operators::HarmonicsStep step) {
    using Step = clebsch::operators::HarmonicsStep;
    const clebsch::SphericalHarmonicsKernels<T>& kernels = clebsch::kernels<T>().spherical_harmonics;
    const auto kernel = step == Step::forward    ? kernels.forward
                        : step == Step::backward ? kernels.backward
                                                 : kernels.double_backward;
    const int64_t cost = (sizeof(T) == 4 ? 1 : 2) << static_cast<int>(step);
    const int64_t points = harmonics.points.rows, grain = (1 << 17) / (cost * (args.num_columns + 8)) + 64;
    run_in_pieces(kernel, args, points, grain);
  }

  template <class T>
  static void run(const clebsch::operators::Contraction<Cpu>&, const clebsch::ContractionCall<T>& call,
                  clebsch::ContractionStep step) {
    clebsch::run_symmetric_contraction(call, step, &run_in_torch_threads);
  }

  template <class T>
  static void run_linear(const clebsch::operators::Linear<Cpu>& l, const std::vector<int64_t>& biased,
                         clebsch::Rows<const T> x, const T* weight, clebsch::Rows<const T> bias,
                         clebsch::Rows<T> out) {
    clebsch::run_linear(l.plan, biased, groups(l), x, weight, bias, out, &run_in_torch_threads);
  }
  template <class T>
  static void run_linear_grad_x(const clebsch::operators::Linear<Cpu>& l, clebsch::Rows<const T> g,
                                const T* weight, clebsch::Rows<T> grad_x) {
    clebsch::run_linear_grad_x(l.plan, groups(l), g, weight, grad_x, &run_in_torch_threads);
  }
  template <class T>
  static void run_linear_grad_weight(const clebsch::operators::Linear<Cpu>& l, clebsch::Rows<const T> x,
                                     clebsch::Rows<const T> g, T* grad_weight) {
    clebsch::run_linear_grad_weight(l.plan, groups(l), x, g, grad_weight, &run_in_torch_threads);
  }
  template <class T>
  static bool find_ones(const Matrix& y, int64_t columns, int64_t* index) {
    const clebsch::Rows<const T> rows = y.read<T>();
    for (int64_t r = 0; r < y.rows; ++r) {
      const T* row = rows[r];
      int64_t one = -1, others = 0;
      for (int64_t c = 0; c < columns; ++c) {
        others += row[c] != T{0};
        if (row[c] == T{1}) one = c;
      }
      if (one < 0 || others != 1) return false;
      index[r] = one;
    }
    return true;
  }

  template <class T>
  static void run(const clebsch::operators::Gate<Cpu>& gate, const clebsch::GateArgs<T>& args,
                  bool backward) {
    const clebsch::GateKernels<T>& kernels = clebsch::kernels<T>().gate;
    const int64_t grain = (1 << 16) / (gate.gated_count + args.scalar_count + 16) + 1;
    run_in_pieces(backward ? kernels.backward : kernels.forward, args, gate.gates.rows, grain);
  }

  template <class T>
  static void run(const clebsch::operators::Silu<Cpu>& silu, const clebsch::SiluArgs<T>& args,
                  clebsch::operators::SiluStep step) {
    using Step = clebsch::operators::SiluStep;
    const clebsch::SiluKernels<T>& kernels = clebsch::kernels<T>().silu;
    const auto kernel = step == Step::forward    ? kernels.forward
                        : step == Step::backward ? kernels.backward
                                                 : kernels.double_backward;
    run_in_pieces(kernel, args, silu.x.numel(), 1 << 15);
  }

 private:
  static clebsch::RowGroups groups(const clebsch::operators::Linear<Cpu>& l) {
    if (!l.elements) return clebsch::RowGroups(l.row_count);
    try {
      return clebsch::RowGroups(static_cast<const int64_t*>(l.elements->const_data_ptr()), l.row_count,
                                l.plan.program.dim2);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(l.noun) + ": " + error.what());
    }
  }
};

Tensor graph_order(const Tensor& senders, const Tensor& receivers, int64_t num_nodes) {
  clebsch::operators::require_edges(senders, receivers, num_nodes);
  const Tensor s = torch::stable::contiguous(senders), r = torch::stable::contiguous(receivers);
  const int64_t edges = s.numel();
  Tensor order = torch::stable::new_empty(s, {clebsch::order_size(edges, num_nodes)});
  clebsch::build_order(static_cast<const int64_t*>(s.const_data_ptr()),
                       static_cast<const int64_t*>(r.const_data_ptr()), edges, num_nodes,
                       static_cast<int64_t*>(order.mutable_data_ptr()));
  return order;
}

}  // namespace

STABLE_TORCH_LIBRARY(clebsch, m) {
  m.def("graph_order(Tensor senders, Tensor receivers, SymInt num_nodes) -> Tensor");
  m.def("spherical_harmonics(Tensor points, int[] ls, bool normalize, str normalization) -> Tensor");
  m.def(
      "spherical_harmonics_backward(Tensor grad, Tensor points, int[] ls, bool normalize, str normalization)"
      " -> Tensor");
  m.def(
      "spherical_harmonics_double_backward(Tensor grad_grad_points, Tensor grad, Tensor points, int[] ls,"
      " bool normalize, str normalization) -> (Tensor, Tensor)");
  m.def("tensor_product(Tensor x, Tensor y, Tensor weight, str plan) -> Tensor");
  m.def(
      "tensor_product_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, str plan, int needs)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "tensor_product_double_backward(Tensor? ax, Tensor? ay, Tensor? aw, Tensor grad, Tensor x, Tensor y,"
      " Tensor weight, str plan, int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("gate(Tensor scalars, Tensor gates, Tensor gated, int[] muls, int[] widths) -> Tensor");
  m.def(
      "gate_backward(Tensor grad, Tensor gates, Tensor gated, int[] muls, int[] widths) -> (Tensor, Tensor)");
  m.def("silu(Tensor x) -> Tensor");
  m.def("silu_backward(Tensor grad, Tensor x) -> Tensor");
  m.def("silu_double_backward(Tensor grad_grad_x, Tensor grad, Tensor x) -> (Tensor, Tensor)");
  m.def("linear(Tensor x, Tensor weight, Tensor bias, str plan, int[] biased, Tensor? index=None) -> Tensor");
  m.def("linear_grad_x(Tensor grad, Tensor weight, str plan, Tensor? index=None) -> Tensor");
  m.def("linear_grad_weight(Tensor x, Tensor grad, str plan, Tensor? index=None) -> Tensor");
  m.def("one_hot_index(Tensor y) -> Tensor");
  m.def("symmetric_contraction(Tensor x, Tensor weight, Tensor index, Tensor table, int[] widths) -> Tensor");
  m.def(
      "symmetric_contraction_backward(Tensor grad, Tensor x, Tensor weight, Tensor index, Tensor table,"
      " int[] widths, int needs) -> (Tensor, Tensor)");
  m.def(
      "symmetric_contraction_double_backward(Tensor? ax, Tensor? aw, Tensor grad, Tensor x, Tensor weight,"
      " Tensor index, Tensor table, int[] widths, int needs) -> (Tensor, Tensor, Tensor)");
  m.def("convolution(Tensor x, Tensor y, Tensor weight, Tensor order, str plan) -> Tensor");
  m.def(
      "convolution_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor order, str plan, int "
      "needs)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "convolution_double_backward(Tensor? ax, Tensor? ay, Tensor? aw, Tensor grad, Tensor x, Tensor y,"
      " Tensor weight, Tensor order, str plan, int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("edge_product(Tensor x, Tensor y, Tensor weight, Tensor order, str plan) -> Tensor");
  m.def(
      "edge_product_backward(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor order, str plan, int "
      "needs)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "edge_product_double_backward(Tensor? ax, Tensor? ay, Tensor? aw, Tensor grad, Tensor x, Tensor y,"
      " Tensor weight, Tensor order, str plan, int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "radial_convolution(Tensor x, Tensor y, Tensor hidden, Tensor matrix, Tensor order, str plan) -> "
      "Tensor");
  m.def(
      "radial_convolution_backward(Tensor grad, Tensor x, Tensor y, Tensor hidden, Tensor matrix,"
      " Tensor order, str plan, int needs) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "radial_convolution_double_backward(Tensor? ax, Tensor? ay, Tensor? ahidden, Tensor? amatrix,"
      " Tensor grad, Tensor x, Tensor y, Tensor hidden, Tensor matrix, Tensor order, str plan, int needs)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(clebsch, CPU, m) {
  m.impl("graph_order", TORCH_BOX(&graph_order));
  clebsch::operators::register_spherical_harmonics<Cpu>(m);
  clebsch::operators::register_products<Cpu>(m);
  clebsch::operators::register_edge_products<Cpu>(m);
  clebsch::operators::register_symmetric_contraction<Cpu>(m);
  clebsch::operators::register_linear<Cpu>(m);
  clebsch::operators::register_radial_convolution<Cpu>(m);
  clebsch::operators::register_gate<Cpu>(m);
  clebsch::operators::register_silu<Cpu>(m);
}
