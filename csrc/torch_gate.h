// The operators of gates, for a backend that says how results are made and kernels run:
//
//   struct Backend {
//     static Tensor fresh(const Tensor& like, const std::vector<int64_t>& sizes);
//     template <class T>
//     static void run(const Gate<Backend>&, const GateArgs<T>&, bool backward);
//   };
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "gate.h"
#include "torch_operands.h"

namespace clebsch::operators {

// The operands of gates, checked: blocks of `muls` copies of `widths` components.
template <class Backend>
struct Gate {
  static constexpr const char* noun = "gate";
  std::vector<GatedBlock> blocks;
  int64_t gate_count = 0, gated_count = 0;
  First first;
  Matrix gates, gated;

  Gate(const char* name, const Tensor& tensor, const Tensor& gates_, const Tensor& gated_,
       const std::vector<int64_t>& muls, const std::vector<int64_t>& widths)
      : first{name, tensor} {
    require_float(noun, name, tensor);
    require(muls.size() == widths.size(), noun, "muls and widths must be of the same length");
    constexpr int64_t most = int64_t{1} << 40;  // far above what memory holds, far below where sizes overflow
    for (size_t i = 0; i < muls.size(); ++i) {
      require(muls[i] >= 0 && widths[i] >= 1 && muls[i] < most && widths[i] < 1 << 16, noun,
              "muls must be >= 0 and widths >= 1");
      blocks.push_back({muls[i], widths[i]});
      gate_count += muls[i];
      gated_count += muls[i] * widths[i];
      require(gated_count < most, noun, "muls and widths must be of a size that memory holds");
    }
    gates = matrix(noun, "gates", gates_, first, gate_count);
    gated = matrix(noun, "gated", gated_, first, gated_count);
    require(gated.rows == gates.rows, noun, "gated must have ", gates.rows, " rows, got ", gated.rows);
  }
  Matrix beside(const char* name, const Tensor& t, int64_t columns) const {
    Matrix m = matrix(noun, name, t, first, columns);
    require(m.rows == gates.rows, noun, name, " must have ", gates.rows, " rows, got ", m.rows);
    return m;
  }

  template <class F>
  void dispatch(F f) const {
    in_type_of(first.tensor, [&]<class T>(T) { run<T>(f); });
  }

 private:
  template <class T, class F>
  void run(F f) const {
    GateArgs<T> args{};
    args.blocks = blocks.data();
    args.block_count = static_cast<int>(blocks.size());
    args.gates = gates.read<T>();
    args.gated = gated.read<T>();
    const bool backward = f(args);
    Backend::run(*this, args, backward);
  }
};

template <class Backend>
Tensor gate(const Tensor& scalars, const Tensor& gates, const Tensor& gated, std::vector<int64_t> muls,
            std::vector<int64_t> widths) {
  const Gate<Backend> g("scalars", scalars, gates, gated, muls, widths);
  require(scalars.dim() == 2, g.noun, "scalars must have 2 dimensions, got ", scalars.dim());
  const Matrix own = g.beside("scalars", scalars, scalars.size(1));
  Tensor out = Backend::fresh(scalars, {own.rows, scalars.size(1) + g.gated_count});
  g.dispatch([&]<class T>(GateArgs<T>& args) {
    args.scalar_count = scalars.size(1);
    args.scalars = own.read<T>();
    args.out = writable<T>(out, true);
    return false;
  });
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor> gate_backward(const Tensor& grad, const Tensor& gates, const Tensor& gated,
                                         std::vector<int64_t> muls, std::vector<int64_t> widths) {
  const Gate<Backend> g("grad", grad, gates, gated, muls, widths);
  require(grad.dim() == 2 && grad.size(1) >= g.gated_count, g.noun, "grad must have 2 dimensions and ",
          g.gated_count, " columns or more");
  const Matrix cotangent = g.beside("grad", grad, grad.size(1));
  Tensor grad_gates = Backend::fresh(grad, {g.gates.rows, g.gate_count});
  Tensor grad_gated = Backend::fresh(grad, {g.gates.rows, g.gated_count});
  g.dispatch([&]<class T>(GateArgs<T>& args) {
    args.scalar_count = grad.size(1) - g.gated_count;
    args.grad = cotangent.read<T>();
    args.grad_gates = writable<T>(grad_gates, true);
    args.grad_gated = writable<T>(grad_gated, true);
    return true;
  });
  return {grad_gates, grad_gated};
}

// The operators of gates, for one dispatch key.
template <class Backend>
void register_gate(auto& library) {
  library.impl("gate", TORCH_BOX(&gate<Backend>));
  library.impl("gate_backward", TORCH_BOX(&gate_backward<Backend>));
}

}  // namespace clebsch::operators
