// The operators of symmetric contractions, for a backend that says how results are made and kernels run:
//
//   struct Backend {
//     using Stored = Numbers<...>;  // types of numbers
//     static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes);
//     template <class T>
//     static void run(const Contraction<Backend>&, const ContractionCall<T>&, ContractionStep);
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <tuple>
#include <vector>

#include "symmetric_contraction_call.h"
#include "torch_operands.h"

namespace clebsch::operators {

// The operands that a symmetric contraction and its derivatives share, checked.
template <class Backend>
struct Contraction {
  static constexpr const char* noun = "symmetric_contraction";
  First first;
  Tensor table, index;
  ContractionSizes sizes;
  Tensor x, weight;
  int64_t nodes, channels, species;

  Contraction(const Tensor& x_, const Tensor& weight_, const Tensor& index_, const Tensor& table_,
              const std::vector<int64_t>& widths)
      : first{"x", x_} {
    require_float<typename Backend::Stored>(noun, "x", x_);
    require(table_.scalar_type() == ScalarType::Long && table_.dim() == 1, noun,
            "table must be a vector of int64");
    require(!table_.is_cuda(), noun, "table must be on the CPU");
    table = torch::stable::contiguous(table_);
    sizes = contraction_sizes(words());
    require(std::equal(widths.begin(), widths.end(), sizes.widths.begin(), sizes.widths.end()), noun,
            "widths must be those of table");
    require(x_.dim() == 3 && x_.size(2) == sizes.components, noun, "x must have shape (nodes, channels, ",
            sizes.components, ")");
    nodes = x_.size(0);
    channels = x_.size(1);
    require(channels < 1 << 24, noun, "x must have fewer than 2^24 channels, got ", channels);
    require(index_.scalar_type() == ScalarType::Long && index_.dim() == 1 && index_.size(0) == nodes, noun,
            "index must have shape (", nodes, ",) and dtype int64");
    require_device("index", index_);
    require(weight_.dim() == 3, noun, "weight must have 3 dimensions, got ", weight_.dim());
    species = weight_.size(0);
    require(species < int64_t{1} << 32, noun, "weight must be of fewer than 2^32 species, got ", species);
    x = operand("x", x_, {nodes, channels, sizes.components});
    weight = operand("weight", weight_, {species, sizes.weights, channels});
    index = torch::stable::contiguous(index_);
  }
  Tensor operand(const char* name, const Tensor& t, const std::vector<int64_t>& shape) const {
    require(t.scalar_type() == first.tensor.scalar_type(), noun, name, " must have the dtype of ",
            first.name);
    require_device(name, t);
    bool fits = t.dim() == static_cast<int64_t>(shape.size());
    for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(static_cast<int64_t>(d)) == shape[d];
    std::ostringstream expected;
    for (size_t d = 0; d < shape.size(); ++d) expected << (d ? ", " : "") << shape[d];
    require(fits, noun, name, " must have shape (", expected.str(), ")");
    return torch::stable::contiguous(t);
  }
  std::vector<int64_t> out_shape() const { return {nodes, channels * sizes.out_width}; }
  Tensor result(bool wanted, const std::vector<int64_t>& shape) const {
    return Backend::fresh(x, wanted ? shape : std::vector<int64_t>{0});
  }

  // fill(call) adds to the operands what the step has beside them.
  template <class F>
  void run(ContractionStep step, F fill) const {
    in_type_of(x, typename Backend::Stored{}, [&]<class T>(T) { run_as<T>(step, fill); });
  }

  TableWords words() const { return {static_cast<const int64_t*>(table.const_data_ptr()), table.numel()}; }

 private:
  void require_device(const char* name, const Tensor& t) const { require_same_device(noun, name, t, first); }
  template <class T, class F>
  void run_as(ContractionStep step, F fill) const {
    ContractionCall<T> call{};
    call.table = words();
    call.nodes = nodes;
    call.channels = channels;
    call.species = species;
    call.index = static_cast<const int64_t*>(index.const_data_ptr());
    call.x = read<T>(x);
    call.weight = read<T>(weight);
    fill(call);
    Backend::run(*this, call, step);
  }
};

template <class Backend>
Tensor symmetric_contraction(const Tensor& x, const Tensor& weight, const Tensor& index, const Tensor& table,
                             std::vector<int64_t> widths) {
  const Contraction<Backend> c(x, weight, index, table, widths);
  Tensor out = c.result(true, c.out_shape());
  c.run(ContractionStep::forward, [&]<class T>(ContractionCall<T>& call) { call.out = elements<T>(out); });
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor> symmetric_contraction_backward(const Tensor& grad, const Tensor& x,
                                                          const Tensor& weight, const Tensor& index,
                                                          const Tensor& table, std::vector<int64_t> widths,
                                                          int64_t needs) {
  const Contraction<Backend> c(x, weight, index, table, widths);
  const Tensor g = c.operand("grad", grad, c.out_shape());
  const bool wants_x = needs & 1, wants_weight = needs & 2;
  Tensor gx = c.result(wants_x, {c.nodes, c.channels, c.sizes.components});
  Tensor gw = c.result(wants_weight, {c.species, c.sizes.weights, c.channels});
  c.run(ContractionStep::backward, [&]<class T>(ContractionCall<T>& call) {
    call.grad = read<T>(g);
    call.grad_x = elements<T>(gx, wants_x);
    call.grad_weight = elements<T>(gw, wants_weight);
  });
  return {gx, gw};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> symmetric_contraction_double_backward(
    std::optional<Tensor> ax, std::optional<Tensor> aw, const Tensor& grad, const Tensor& x,
    const Tensor& weight, const Tensor& index, const Tensor& table, std::vector<int64_t> widths,
    int64_t needs) {
  const Contraction<Backend> c(x, weight, index, table, widths);
  const std::vector<int64_t> x_shape{c.nodes, c.channels, c.sizes.components},
      weight_shape{c.species, c.sizes.weights, c.channels};
  const Tensor g = c.operand("grad", grad, c.out_shape());
  std::optional<Tensor> tangent_x, tangent_weight;
  if (ax) tangent_x = c.operand("ax", *ax, x_shape);
  if (aw) tangent_weight = c.operand("aw", *aw, weight_shape);
  const bool wants_grad = needs & 1, wants_x = needs & 2, wants_weight = needs & 4;
  Tensor gg = c.result(wants_grad, c.out_shape()), gx = c.result(wants_x, x_shape),
         gw = c.result(wants_weight, weight_shape);
  c.run(ContractionStep::double_backward, [&]<class T>(ContractionCall<T>& call) {
    call.grad = read<T>(g);
    if (tangent_x) call.ax = read<T>(*tangent_x);
    if (tangent_weight) call.a_weight = read<T>(*tangent_weight);
    call.out = elements<T>(gg, wants_grad);
    call.grad_x = elements<T>(gx, wants_x);
    call.grad_weight = elements<T>(gw, wants_weight);
  });
  return {gg, gx, gw};
}

// The operators of symmetric contractions, for one dispatch key.
template <class Backend>
void register_symmetric_contraction(auto& library) {
  library.impl("symmetric_contraction", TORCH_BOX(&symmetric_contraction<Backend>));
  library.impl("symmetric_contraction_backward", TORCH_BOX(&symmetric_contraction_backward<Backend>));
  library.impl("symmetric_contraction_double_backward",
               TORCH_BOX(&symmetric_contraction_double_backward<Backend>));
}

}  // namespace clebsch::operators
