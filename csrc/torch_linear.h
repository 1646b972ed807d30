// The operators of linear layers, for a backend that says how results are made and kernels run:
//
//   struct Backend {
//     static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes);
//     // as in cpu/run_linear.h
//     template <class T>
//     static void run_linear(const Linear<Backend>&, const std::vector<int64_t>& biased, Rows<const T> x,
//                            const T* weight, Rows<const T> bias, Rows<T> out);
//     template <class T>
//     static void run_linear_grad_x(const Linear<Backend>&, Rows<const T> g, const T* weight, Rows<T>
//     grad_x); template <class T> static void run_linear_grad_weight(const Linear<Backend>&, Rows<const T> x,
//     Rows<const T> g,
//                                        T* grad_weight);
//     // The column of the 1 of every row, or false unless each row has one 1 and else zeros. -0 is 0.
//     template <class T>
//     static bool find_ones(const Matrix& y, int64_t columns, int64_t* index);
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "linear_arrangement.h"
#include "plan.h"
#include "torch_operands.h"

namespace clebsch::operators {

// What a linear layer and its derivatives share: the plan, and who is the first operand.
template <class Backend>
struct Linear {
  static constexpr const char* noun = "linear";
  const Plan& plan;
  First first;
  const std::string& text;  // of the plan
  const std::optional<Tensor>& index;
  int64_t row_count = 0;
  std::optional<Tensor> elements;  // the index, contiguous

  Linear(const char* name, const Tensor& tensor, const std::string& text_,
         const std::optional<Tensor>& index_, const std::vector<int64_t>& biased = {})
      : plan(parse_plan(text_)), first{name, tensor}, text(text_), index(index_) {
    require_float(noun, name, tensor);
    check_linear(plan, biased, index.has_value());
  }
  // To be called once, with the number of rows.
  void follow(int64_t rows) {
    row_count = rows;
    if (!index) return;
    require(index->scalar_type() == ScalarType::Long && index->dim() == 1 && index->numel() == rows, noun,
            "index must be a vector of ", rows, " int64, one for each row");
    require_same_device(noun, "index", *index, first);
    elements = torch::stable::contiguous(*index);
  }
  Matrix rows(const char* name, const Tensor& t, int64_t columns) const {
    return matrix(noun, name, t, first, columns);
  }
  Tensor flat(const Tensor& weight) const {
    require(weight.scalar_type() == first.tensor.scalar_type() && weight.dim() == 1 &&
                weight.numel() == plan.program.weight_numel,
            noun, "weight must be a vector of ", plan.program.weight_numel, " of the dtype of ", first.name);
    require_same_device(noun, "weight", weight, first);
    return torch::stable::contiguous(weight);
  }
  Tensor result(const std::vector<int64_t>& sizes) const { return Backend::fresh(first.tensor, sizes); }

  template <class F>
  void dispatch(F f) const {
    in_type_of(first.tensor, f);
  }
};

template <class Backend>
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, std::string plan,
              std::vector<int64_t> biased, std::optional<Tensor> index) {
  Linear<Backend> l("x", x, plan, index, biased);
  const Program& program = l.plan.program;
  int64_t biases = 0;
  for (const int64_t block : biased) biases += program.out[block].mul;
  const Matrix features = l.rows("x", x, program.dim1);
  const Matrix shifts = matrix(l.noun, "bias", bias, l.first, biases, true);
  require(bias.dim() == 1 || shifts.rows == features.rows, l.noun, "bias must have ", features.rows,
          " rows, got ", shifts.rows);
  const Tensor w = l.flat(weight);
  l.follow(features.rows);
  Tensor out = l.result({features.rows, program.dim_out});
  l.dispatch([&]<class T>(T) {
    Backend::run_linear(l, biased, features.read<T>(), read<T>(w), shifts.read<T>(), writable<T>(out, true));
  });
  return out;
}

template <class Backend>
Tensor linear_grad_x(const Tensor& grad, const Tensor& weight, std::string plan,
                     std::optional<Tensor> index) {
  Linear<Backend> l("grad", grad, plan, index);
  const Matrix g = l.rows("grad", grad, l.plan.program.dim_out);
  const Tensor w = l.flat(weight);
  l.follow(g.rows);
  Tensor gx = l.result({g.rows, l.plan.program.dim1});
  l.dispatch(
      [&]<class T>(T) { Backend::run_linear_grad_x(l, g.read<T>(), read<T>(w), writable<T>(gx, true)); });
  return gx;
}

template <class Backend>
Tensor linear_grad_weight(const Tensor& x, const Tensor& grad, std::string plan,
                          std::optional<Tensor> index) {
  Linear<Backend> l("x", x, plan, index);
  const Matrix features = l.rows("x", x, l.plan.program.dim1),
               g = l.rows("grad", grad, l.plan.program.dim_out);
  require(g.rows == features.rows, l.noun, "grad must have ", features.rows, " rows, got ", g.rows);
  l.follow(features.rows);
  Tensor gw = l.result({l.plan.program.weight_numel});
  l.dispatch([&]<class T>(T) {
    Backend::run_linear_grad_weight(l, features.read<T>(), g.read<T>(),
                                    static_cast<T*>(gw.mutable_data_ptr()));
  });
  return gw;
}

template <class Backend>
Tensor one_hot_index(const Tensor& y) {
  const char* noun = "one_hot_index";
  require_float(noun, "y", y);
  require(y.dim() == 2, noun, "y must have 2 dimensions, got ", y.dim());
  const Matrix rows = matrix(noun, "y", y, {"y", y}, y.size(1));
  Tensor index = torch::stable::new_empty(y, {rows.rows}, ScalarType::Long);
  int64_t* at = static_cast<int64_t*>(index.mutable_data_ptr());
  const bool found = y.scalar_type() == ScalarType::Float
                         ? Backend::template find_ones<float>(rows, y.size(1), at)
                         : Backend::template find_ones<double>(rows, y.size(1), at);
  return found ? index : torch::stable::new_empty(index, {0});
}

// The operators of linear layers, and what finds their index, for one dispatch key.
template <class Backend>
void register_linear(auto& library) {
  library.impl("linear", TORCH_BOX(&linear<Backend>));
  library.impl("linear_grad_x", TORCH_BOX(&linear_grad_x<Backend>));
  library.impl("linear_grad_weight", TORCH_BOX(&linear_grad_weight<Backend>));
  library.impl("one_hot_index", TORCH_BOX(&one_hot_index<Backend>));
}

}  // namespace clebsch::operators
