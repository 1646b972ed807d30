// What is not an operator: instruction sets, plans, couplings, and products of NumPy arrays without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "coupling.h"
#include "cpu/dispatch.h"
#include "cpu/run_product.h"
#include "memory.h"
#include "plan.h"
#include "spherical_harmonics_degrees.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

py::list kernels() {
  py::list entries;
  for (const clebsch::KernelEntry& kernel : clebsch::compiled_kernels()) {
    py::dict d;
    d["noun"] = kernel.noun;
    d["dtype"] = kernel.dtype;
    d["instruction_set"] = kernel.instruction_set;
    d["lanes"] = kernel.lanes;
    d["unrolled_degree"] = kernel.unrolled_degree;
    entries.append(d);
  }
  return entries;
}

py::object name_of(clebsch::Order order) {
  switch (order) {
    case clebsch::Order::pairs:
      return py::str("pairs");
    case clebsch::Order::x_first:
      return py::str("x");
    case clebsch::Order::y_first:
      return py::str("y");
    case clebsch::Order::unchosen:
      break;
  }
  return py::none();
}

py::dict describe_plan(const std::string& text) {
  const clebsch::Plan& plan = clebsch::parse_plan(text);
  const clebsch::Program& p = plan.program;
  const int unrolled = clebsch::kernels<float>().tensor_product.unrolled_degree;
  py::list paths;
  for (int i = 0; i < p.path_count; ++i) {
    const clebsch::Path& path = p.paths[i];
    py::dict d;
    d["degrees"] = py::make_tuple(path.in1.l, path.in2.l, path.out.l);
    d["cells"] = path.cell_count;
    d["terms"] = path.term_count;
    d["unrolled"] = std::max({path.in1.l, path.in2.l, path.out.l}) <= unrolled;
    d["outputs_in_lanes"] = path.outputs_in_lanes;
    d["shared_weights_meet"] = py::make_tuple(name_of(path.forward), name_of(path.backward));
    paths.append(d);
  }
  py::dict d;
  d["forward"] = plan.channels.forward ? "channels" : "rows";
  d["derivatives"] = plan.channels.derivatives ? "channels" : "rows";
  d["dim1"] = p.dim1;
  d["dim2"] = p.dim2;
  d["dim_out"] = p.dim_out;
  d["weight_numel"] = p.weight_numel;
  d["paths"] = paths;
  return d;
}

void register_coupling(int l1, int l2, int l3, const std::vector<std::array<int, 3>>& components,
                       const std::vector<double>& values) {
  if (components.size() != values.size())
    throw std::invalid_argument("register_coupling: as many values as components");
  clebsch::register_coupling(l1, l2, l3, static_cast<int>(components.size()),
                             components.empty() ? nullptr : components[0].data(), values.data());
}

// For the test that reads the table back.
py::list compiled_coupling(int l1, int l2, int l3) {
  py::list entries;
  for (int i = 0; i < clebsch::coupling_block_count; ++i) {
    const clebsch::CouplingBlock& b = clebsch::coupling_blocks[i];
    if (b.l1 != l1 || b.l2 != l2 || b.l3 != l3) continue;
    for (int n = 0; n < b.size; ++n) {
      const clebsch::CouplingEntry& e = b.entries[n];
      entries.append(py::make_tuple(int{e.m1}, int{e.m2}, int{e.m3}, e.value));
    }
  }
  return entries;
}

// x (rows, dim1), y (rows, dim2), weight (rows, numel) or (numel,); rows of length 1 repeat.
template <class T>
Array<T> tensor_product(Array<T> x, Array<T> y, Array<T> weight, const std::string& text) {
  const clebsch::Plan& plan = clebsch::parse_plan(text);
  const clebsch::Program& program = plan.program;
  const auto require = [](bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("tensor_product: ") + what);
  };
  require(x.ndim() == 2 && x.shape(1) == program.dim1, "x must have shape (rows, dim of irreps_in1)");
  require(y.ndim() == 2 && y.shape(1) == program.dim2 && y.shape(0) == x.shape(0),
          "y must have shape (rows, dim of irreps_in2) with the rows of x");
  require(
      (weight.ndim() == 1 && weight.shape(0) == program.weight_numel) ||
          (weight.ndim() == 2 && weight.shape(1) == program.weight_numel && weight.shape(0) == x.shape(0)),
      "weight must have shape (weight_numel,) or (rows, weight_numel)");
  Array<T> out({x.shape(0), static_cast<py::ssize_t>(program.dim_out)});
  clebsch::ProductCall<T> call{};
  call.plan = &plan;
  call.rows = x.shape(0);
  call.x = {x.data(), program.dim1};
  call.y = {y.data(), program.dim2};
  call.shared_weights = weight.ndim() == 1;
  call.w = {weight.data(), call.shared_weights ? 0 : program.weight_numel};
  call.out = {out.mutable_data(), program.dim_out};
  {
    py::gil_scoped_release release;
    clebsch::run_product(call, clebsch::Derivative::none, &clebsch::run_here);
  }
  return out;
}

// points (rows, 3)
template <class T>
Array<T> spherical_harmonics(Array<T> points, const std::vector<std::int64_t>& ls, bool normalize,
                             const std::string& normalization) {
  if (points.ndim() != 2 || points.shape(1) != 3)
    throw std::invalid_argument("spherical_harmonics: points must have shape (rows, 3)");
  auto args = clebsch::spherical_harmonics_args<T>(ls, normalize, normalization);
  Array<T> out({points.shape(0), static_cast<py::ssize_t>(args.num_columns)});
  args.points = points.data();
  args.out = out.mutable_data();
  {
    py::gil_scoped_release release;
    if (args.num_columns > 0) {
      clebsch::kernels<T>().spherical_harmonics.forward(args, 0, points.shape(0));
    }
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Instruction sets, plans, and products of NumPy arrays.";
  m.def("compiled_instruction_sets", &clebsch::compiled_instruction_sets,
        "Names of the instruction sets in this build, narrowest first.");
  m.def("usable_instruction_sets", &clebsch::usable_instruction_sets,
        "Those of them that this processor runs.");
  m.def("instruction_set", &clebsch::instruction_set,
        "The one in use. ValueError if CLEBSCH_ISA names none of the usable ones.");
  m.def("select_instruction_set", &clebsch::select_instruction_set, py::arg("name"),
        "Use another one from the next call on, in all threads. ValueError with the choices.");
  m.def("kernels", &kernels,
        "Every compiled kernel: noun, dtype, instruction_set, lanes and unrolled_degree.");
  m.def("kept_memory", &clebsch::kept_memory, "Bytes of freed results and work space kept for reuse.");
  m.def("drop_kept_memory", &clebsch::drop_kept_memory, "Give them back to the system.");
  m.def("poison_new_memory", &clebsch::poison_new_memory, py::arg("on"),
        "Fill results and work space with NaN before a kernel sees them, for tests.");
  m.def("describe_plan", &describe_plan, py::arg("plan"),
        "How the plan of a canonical string runs: see clebsch.backend.describe_plan. ValueError if it is "
        "none.");
  m.def("has_coupling", &clebsch::has_coupling, py::arg("l1"), py::arg("l2"), py::arg("l3"),
        "Whether the coupling of these degrees was compiled or registered.");
  m.def("register_coupling", &register_coupling, py::arg("l1"), py::arg("l2"), py::arg("l3"),
        py::arg("components"), py::arg("values"),
        "Make a coupling known: (m1, m2, m3) of its non-zeros, counted from 0, and their values. ValueError "
        "for "
        "degrees above 100 or that violate the triangle rule, and for components out of range.");
  m.def("coupling", &compiled_coupling, py::arg("l1"), py::arg("l2"), py::arg("l3"),
        "The compiled coefficients of these degrees, (m1, m2, m3, value) of each; [] beyond the table.");
  m.def("tensor_product", &tensor_product<float>, py::arg("x").noconvert(), py::arg("y").noconvert(),
        py::arg("weight").noconvert(), py::arg("plan"),
        "Rows of the product of a canonical string, in float32: see clebsch.numpy.tensor_product.");
  m.def("tensor_product", &tensor_product<double>, py::arg("x"), py::arg("y"), py::arg("weight"),
        py::arg("plan"), "The same in float64.");
  m.def("spherical_harmonics", &spherical_harmonics<float>, py::arg("points").noconvert(), py::arg("ls"),
        py::arg("normalize"), py::arg("normalization"),
        "Harmonics of points (rows, 3), in float32: see clebsch.numpy.spherical_harmonics.");
  m.def("spherical_harmonics", &spherical_harmonics<double>, py::arg("points"), py::arg("ls"),
        py::arg("normalize"), py::arg("normalization"), "The same in float64.");
}
