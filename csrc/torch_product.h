// The operators of products over rows and graphs, for a backend that says how results are made and products
// run:
//
//   struct Backend {
//     using Stored = Numbers<...>;  // types of numbers
//     struct Order { Order(Tensor order, int64_t edges, int64_t nodes); };  // contiguous, of the right
//     length static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes); template <class T>
//     static void run(const Product<Backend>&, ProductCall<T>, Derivative);  // the call's graph is null
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "graph_order.h"
#include "product_call.h"
#include "torch_operands.h"

namespace clebsch::operators {

inline void require_edges(const Tensor& senders, const Tensor& receivers, int64_t num_nodes) {
  const char* noun = "graph_order";
  require(senders.scalar_type() == ScalarType::Long && receivers.scalar_type() == ScalarType::Long, noun,
          "senders and receivers must be int64");
  require(senders.dim() == 1 && receivers.dim() == 1 && senders.numel() == receivers.numel(), noun,
          "senders and receivers must be vectors of the same length");
  // Far above what memory holds, far below where sizes overflow.
  require(num_nodes >= 0 && num_nodes < int64_t{1} << 48, noun, "num_nodes must lie in [0, 2^48), got ",
          num_nodes);
}

// The operands that all derivatives share but for the weights, checked.
template <class Backend, class Types = typename Backend::Stored>
struct Product {
  const char* noun;
  const std::string& text;  // of the plan
  const Plan& plan;
  const bool y_of_receivers;  // of a graph: x and results are of its edges, y of its nodes
  Matrix x, y;
  std::optional<typename Backend::Order> order;  // of a graph
  int64_t out_rows = 0;

  Product(const char* noun_, const Tensor& x_, const Tensor& y_, const std::string& text_,
          bool y_of_receivers_ = false)
      : noun(noun_), text(text_), plan(parse_plan(text)), y_of_receivers(y_of_receivers_) {
    require_float<Types>(noun, "x", x_);
    x = matrix(noun, "x", x_, {"x", x_}, plan.program.dim1);
    y = operand("y", y_, plan.program.dim2);
  }

  // Of the weights; edges of a graph.
  int64_t rows() const { return y_of_receivers ? x.rows : y.rows; }
  Matrix operand(const char* name, const Tensor& t, int64_t columns, bool may_be_vector = false) const {
    return matrix(noun, name, t, {"x", x.tensor}, columns, may_be_vector);
  }
  // To be called once, when all operands are checked.
  void follow(const std::optional<Tensor>& order_) {
    if (order_) {
      const int64_t nodes = y_of_receivers ? y.rows : x.rows;
      require(order_->scalar_type() == ScalarType::Long && order_->dim() == 1 &&
                  order_->numel() == order_size(rows(), nodes),
              noun, "order must come from graph_order with ", rows(), " edges and ", nodes, " nodes");
      order.emplace(torch::stable::contiguous(*order_), rows(), nodes);
    } else {
      require(x.rows == y.rows, noun, "x and y must have the same number of rows, got ", x.rows, " and ",
              y.rows);
    }
    out_rows = x.rows;
  }

  Matrix grad_of_out(const Tensor& grad) const {
    Matrix g = operand("grad", grad, plan.program.dim_out);
    require(g.rows == out_rows, noun, "grad must have ", out_rows, " rows, got ", g.rows);
    return g;
  }
  Matrix tangent(const char* name, const Tensor& t, const Matrix& of, int64_t columns) const {
    Matrix m = operand(name, t, columns, true);
    require(t.dim() == of.tensor.dim() && m.rows == of.rows, noun, name,
            " must have the shape of its operand");
    return m;
  }

  Tensor result(bool wanted, int64_t rows, int64_t columns) const {
    return Backend::fresh(x.tensor, wanted ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{0});
  }
  Tensor new_out(bool wanted) const { return result(wanted, out_rows, plan.program.dim_out); }
  Tensor new_gx(bool wanted) const { return result(wanted, x.rows, plan.program.dim1); }
  Tensor new_gy(bool wanted) const { return result(wanted, y.rows, plan.program.dim2); }

  template <class T>
  ProductCall<T> call() const {
    ProductCall<T> c{};
    c.plan = &plan;
    c.y_of_receivers = y_of_receivers;
    c.rows = rows();
    c.x = x.read<T>();
    c.y = y.read<T>();
    return c;
  }
  // f(call) in the type of x.
  template <class F>
  void dispatch(F f) const {
    in_type_of(x.tensor, Types{}, [&]<class T>(T) { f(call<T>()); });
  }
};

// With a row of weights for each row, or one for all.
template <class Backend>
struct WeightedProduct : Product<Backend> {
  using Base = Product<Backend>;
  using Base::noun, Base::plan, Base::rows, Base::x;
  Matrix weight;
  bool shared_weights;

  WeightedProduct(const char* noun_, const Tensor& x_, const Tensor& y_, const Tensor& weight_,
                  const std::optional<Tensor>& order_, const std::string& text, bool y_of_receivers = false)
      : Base(noun_, x_, y_, text, y_of_receivers), shared_weights(weight_.dim() == 1) {
    weight = this->operand("weight", weight_, plan.program.weight_numel, true);
    require(shared_weights || weight.rows == rows(), noun, "weight must have ", rows(), " rows, got ",
            weight.rows);
    this->follow(order_);
  }

  Tensor new_gw(bool wanted) const {
    if (wanted && shared_weights) return Backend::fresh(x.tensor, {plan.program.weight_numel});
    return this->result(wanted, rows(), plan.program.weight_numel);
  }

  template <class F>
  void dispatch(F f) const {
    Base::dispatch([&]<class T>(ProductCall<T> c) {
      c.w = weight.template read<T>();
      c.shared_weights = shared_weights;
      f(c);
    });
  }
};

template <class Backend>
Tensor product(const WeightedProduct<Backend>& p) {
  Tensor out = p.new_out(true);
  p.dispatch([&]<class T>(ProductCall<T> call) {
    call.out = writable<T>(out, true);
    Backend::run(p, call, Derivative::none);
  });
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> product_backward(const WeightedProduct<Backend>& p, const Tensor& grad,
                                                    int64_t needs) {
  const Matrix g = p.grad_of_out(grad);
  const bool x = needs & 1, y = needs & 2, w = needs & 4;
  Tensor gx = p.new_gx(x), gy = p.new_gy(y), gw = p.new_gw(w);
  p.dispatch([&]<class T>(ProductCall<T> call) {
    call.g = g.read<T>();
    call.gx = writable<T>(gx, x);
    call.gy = writable<T>(gy, y);
    call.gw = writable<T>(gw, w);
    Backend::run(p, call, Derivative::first);
  });
  return {gx, gy, gw};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> product_double_backward(const WeightedProduct<Backend>& p,
                                                                   const std::optional<Tensor>& ax,
                                                                   const std::optional<Tensor>& ay,
                                                                   const std::optional<Tensor>& aw,
                                                                   const Tensor& grad, int64_t needs) {
  const Matrix g = p.grad_of_out(grad);
  const Program& program = p.plan.program;
  std::array<std::optional<Matrix>, 3> tangents;
  if (ax) tangents[0] = p.tangent("ax", *ax, p.x, program.dim1);
  if (ay) tangents[1] = p.tangent("ay", *ay, p.y, program.dim2);
  if (aw) tangents[2] = p.tangent("aw", *aw, p.weight, program.weight_numel);
  const bool o = needs & 1, x = needs & 2, y = needs & 4, w = needs & 8;
  Tensor gg = p.new_out(o), gx = p.new_gx(x), gy = p.new_gy(y), gw = p.new_gw(w);
  p.dispatch([&]<class T>(ProductCall<T> call) {
    call.g = g.read<T>();
    if (tangents[0]) call.ax = tangents[0]->read<T>();
    if (tangents[1]) call.ay = tangents[1]->read<T>();
    if (tangents[2]) call.aw = tangents[2]->read<T>();
    call.out = writable<T>(gg, o);
    call.gx = writable<T>(gx, x);
    call.gy = writable<T>(gy, y);
    call.gw = writable<T>(gw, w);
    Backend::run(p, call, Derivative::second);
  });
  return {gg, gx, gy, gw};
}

template <class Backend>
Tensor tensor_product(const Tensor& x, const Tensor& y, const Tensor& weight, std::string plan) {
  return product(WeightedProduct<Backend>("tensor_product", x, y, weight, std::nullopt, plan));
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> tensor_product_backward(const Tensor& grad, const Tensor& x,
                                                           const Tensor& y, const Tensor& weight,
                                                           std::string plan, int64_t needs) {
  return product_backward(WeightedProduct<Backend>("tensor_product", x, y, weight, std::nullopt, plan), grad,
                          needs);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> tensor_product_double_backward(
    std::optional<Tensor> ax, std::optional<Tensor> ay, std::optional<Tensor> aw, const Tensor& grad,
    const Tensor& x, const Tensor& y, const Tensor& weight, std::string plan, int64_t needs) {
  return product_double_backward(WeightedProduct<Backend>("tensor_product", x, y, weight, std::nullopt, plan),
                                 ax, ay, aw, grad, needs);
}

template <class Backend>
Tensor convolution(const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& order,
                   std::string plan) {
  return product(WeightedProduct<Backend>("convolution", x, y, weight, order, plan));
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                        const Tensor& weight, const Tensor& order,
                                                        std::string plan, int64_t needs) {
  return product_backward(WeightedProduct<Backend>("convolution", x, y, weight, order, plan), grad, needs);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> convolution_double_backward(
    std::optional<Tensor> ax, std::optional<Tensor> ay, std::optional<Tensor> aw, const Tensor& grad,
    const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& order, std::string plan,
    int64_t needs) {
  return product_double_backward(WeightedProduct<Backend>("convolution", x, y, weight, order, plan), ax, ay,
                                 aw, grad, needs);
}

template <class Backend>
Tensor edge_product(const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& order,
                    std::string plan) {
  return product(WeightedProduct<Backend>("edge_product", x, y, weight, order, plan, true));
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> edge_product_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                                         const Tensor& weight, const Tensor& order,
                                                         std::string plan, int64_t needs) {
  return product_backward(WeightedProduct<Backend>("edge_product", x, y, weight, order, plan, true), grad,
                          needs);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> edge_product_double_backward(
    std::optional<Tensor> ax, std::optional<Tensor> ay, std::optional<Tensor> aw, const Tensor& grad,
    const Tensor& x, const Tensor& y, const Tensor& weight, const Tensor& order, std::string plan,
    int64_t needs) {
  return product_double_backward(WeightedProduct<Backend>("edge_product", x, y, weight, order, plan, true),
                                 ax, ay, aw, grad, needs);
}

// The operators of the products, for one dispatch key.
template <class Backend>
void register_products(auto& library) {
  library.impl("tensor_product", TORCH_BOX(&tensor_product<Backend>));
  library.impl("tensor_product_backward", TORCH_BOX(&tensor_product_backward<Backend>));
  library.impl("tensor_product_double_backward", TORCH_BOX(&tensor_product_double_backward<Backend>));
  library.impl("convolution", TORCH_BOX(&convolution<Backend>));
  library.impl("convolution_backward", TORCH_BOX(&convolution_backward<Backend>));
  library.impl("convolution_double_backward", TORCH_BOX(&convolution_double_backward<Backend>));
}

template <class Backend>
void register_edge_products(auto& library) {
  library.impl("edge_product", TORCH_BOX(&edge_product<Backend>));
  library.impl("edge_product_backward", TORCH_BOX(&edge_product_backward<Backend>));
  library.impl("edge_product_double_backward", TORCH_BOX(&edge_product_double_backward<Backend>));
}

}  // namespace clebsch::operators
