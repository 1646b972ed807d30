// Linear layers against the form written out naively with y = 1, or with one element of y that is 1: the
// kernels and `run_linear` under every instruction set that runs here, on arrays of exactly the size they
// need.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/run_linear.h"
#include "cpu/run_product.h"
#include "cuda/emulator.h"
#include "cuda/run_linear.h"
#include "device_memory.h"
#include "form.h"
#include "linear_arrangement.h"
#include "plan.h"
#include "schedules.h"

namespace {

using std::int64_t;

enum Operand { G, X, Y, W, B };  // the first four as in form.h; biases
const char* const results[] = {"out", "grad_x", "grad_weight"};

// A path between any two blocks of the same irrep.
Description mixing(const std::vector<Irrep>& in, const std::vector<Irrep>& out, bool mul_ir,
                   int elements = 1) {
  Description d{in, {{elements, 0, 'e'}}, out, {}, mul_ir};
  for (int i = 0; i < static_cast<int>(in.size()); ++i) {
    for (int k = 0; k < static_cast<int>(out.size()); ++k) {
      if (in[i].l == out[k].l && in[i].parity == out[k].parity)
        d.paths.push_back({i, 0, k, "uvw", true, 1 - 0.3 * static_cast<double>(d.paths.size())});
    }
  }
  return d;
}

// A layer with operands, and what the naive form says, in the order of `results`.
struct Problem {
  Description description;
  std::vector<int64_t> biased;
  Form form;
  std::vector<Form> form_of;  // of each element of y alone
  int64_t rows, biases = 0;
  bool bias_per_row;
  std::vector<int64_t> index;  // empty: without one
  std::array<std::vector<double>, 5> operand;
  std::array<Sums, 3> expected;

  Problem(const Description& d, int64_t row_count, const std::vector<int64_t>& biased_blocks = {},
          bool per_row = false, const std::vector<int64_t>& elements = {})
      : description(d),
        biased(biased_blocks),
        form(d),
        form_of(d.in2[0].mul, form),
        rows(row_count),
        bias_per_row(per_row),
        index(elements) {
    for (int64_t v = 0; v < d.in2[0].mul; ++v)
      std::erase_if(form_of[v].terms, [&](const Form::Term& t) { return t.index[Y] != v; });
    for (const int64_t block : biased) biases += d.out[block].mul;
    std::mt19937 generator(static_cast<unsigned>(7 * rows + form.terms.size()));
    for (const int i : {G, X, W, B}) operand[i] = random_numbers(count(i) * width(i), generator);
    operand[Y].assign(d.in2[0].mul, 1.0);
    const std::array<int, 3> targets{G, X, W};
    for (int i = 0; i < 3; ++i) expected[i].resize(count(targets[i]) * width(targets[i]));
    for (int64_t r = 0; r < rows; ++r) {
      const double* pointers[] = {row(G, r), row(X, r), row(Y, r), row(W, r)};
      for (int i = 0; i < 3; ++i)
        contract(form_of[index.empty() ? 0 : index[r]], targets[i], pointers, 1,
                 targets[i] == W ? 0 : r * width(targets[i]), expected[i]);
      add_bias(r);
    }
  }

  clebsch::RowGroups groups() const {
    if (index.empty()) return clebsch::RowGroups(rows);
    return clebsch::RowGroups(index.data(), rows, description.in2[0].mul);
  }
  int64_t width(int i) const { return i == B ? biases : form.dim[i]; }
  int64_t count(int i) const { return i == Y || i == W || (i == B && !bias_per_row) ? 1 : rows; }
  const double* row(int i, int64_t r) const { return operand[i].data() + (count(i) == 1 ? 0 : r) * width(i); }

 private:
  void add_bias(int64_t r) {
    const double* bias = row(B, r);
    for (const int64_t block : biased) {
      int64_t at = r * width(G);
      for (int64_t k = 0; k < block; ++k) at += description.out[k].mul * (2 * description.out[k].l + 1);
      for (int w = 0; w < description.out[block].mul; ++w, ++at, ++bias) {
        expected[0].value[at] += *bias;
        expected[0].magnitude[at] += std::fabs(*bias);
        ++expected[0].count[at];
      }
    }
  }
};

// The arrays of a problem in the type T. Before a protected page, rows are apart with NaN between them.
template <class T>
struct Arrays {
  const Problem& problem;
  std::array<int64_t, 5> stride{};
  std::array<Buffer<T>*, 5> operands{};
  std::array<Buffer<T>*, 3> outputs{};

  Arrays(const Problem& p, Place place) : problem(p) {
    const int64_t apart = place == Place::heap ? 0 : 3;
    for (const int i : {G, X, W, B}) {
      const int64_t n = p.count(i), width = p.width(i), step = width + apart;
      stride[i] = n == 1 && i != G && i != X ? 0 : step;
      operands[i] = new Buffer<T>(n == 0 ? 0 : (n - 1) * step + width, place);
      operands[i]->poison();
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t d = 0; d < width; ++d) (*operands[i])[r * step + d] = static_cast<T>(p.row(i, r)[d]);
      }
    }
    const std::array<int, 3> targets{G, X, W};
    for (int i = 0; i < 3; ++i) {
      outputs[i] = new Buffer<T>(p.count(targets[i]) * p.width(targets[i]), place);
      outputs[i]->poison();
    }
  }
  ~Arrays() {
    for (Buffer<T>* b : operands) delete b;
    for (Buffer<T>* b : outputs) delete b;
  }

  clebsch::Rows<const T> in(int i) const { return {operands[i]->data(), stride[i]}; }
  clebsch::Rows<T> out(int i) const { return {outputs[i]->data(), problem.width(i == 0 ? G : X)}; }

  void run(clebsch::Parallel parallel) const {
    const clebsch::Plan& plan = clebsch::parse_plan(problem.description.text());
    const T* weight = operands[W]->data();
    const clebsch::RowGroups rows = problem.groups();
    clebsch::check_linear(plan, problem.biased, !problem.index.empty());
    clebsch::run_linear(plan, problem.biased, rows, in(X), weight, in(B), out(0), parallel);
    clebsch::run_linear_grad_x(plan, rows, in(G), weight, out(1), parallel);
    clebsch::run_linear_grad_weight(plan, rows, in(X), in(G), outputs[2]->data(), parallel);
  }

  void check(const std::string& label) const {
    for (int i = 0; i < 3; ++i) {
      check_close(outputs[i]->data(), problem.expected[i],
                  label + " " + results[i] + " of " + problem.description.text());
    }
  }

  std::vector<char> bits() const {
    std::vector<char> all;
    for (const Buffer<T>* b : outputs) {
      const char* bytes = reinterpret_cast<const char*>(b->data());
      all.insert(all.end(), bytes, bytes + b->size() * sizeof(T));
    }
    return all;
  }
};

template <class T>
void check_problem(const Problem& problem, const std::string& isa, Place place) {
  const Arrays<T> arrays(problem, place);
  arrays.run(place == Place::heap ? &clebsch::run_here : &run_backwards);
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

// The matrix products of a plan, from x to the result or back, by the block that they add up to.
struct Arrangement {
  std::vector<std::vector<clebsch::LinearTerm>> terms;
  std::vector<clebsch::LinearTarget> targets;

  Arrangement(const clebsch::Program& program, bool to_out, const std::vector<int64_t>& biased) {
    const clebsch::Block* blocks = to_out ? program.out : program.in1;
    const int count = to_out ? program.out_count : program.in1_count;
    terms.resize(count);
    for (int k = 0; k < count; ++k) {
      for (int i = 0; i < program.path_count; ++i) {
        const clebsch::Path& p = program.paths[i];
        if ((to_out ? p.out : p.in1).offset != blocks[k].offset || blocks[k].mul == 0) continue;
        const int64_t line = p.out.mul, next = p.in2.mul * line;
        terms[k].push_back(
            {to_out ? p.in1 : p.out, p.weight, to_out ? next : 1, line, to_out ? 1 : next, p.values[0]});
      }
      int64_t bias = -1, at = 0;
      for (const int64_t block : biased) {
        if (block == k && to_out) bias = at;
        at += program.out[block].mul;
      }
      if (blocks[k].mul > 0)
        targets.push_back({blocks[k], terms[k].data(), static_cast<int>(terms[k].size()), bias});
    }
  }
  clebsch::LinearProgram program(bool mul_ir) const {
    return {targets.data(), static_cast<int>(targets.size()), mul_ir};
  }
};

// The kernels themselves, with packed weights and scratch space of the size that they ask for and not one
// element more; rows of an element in two parts.
template <class T>
void check_kernels(const Problem& problem, const std::string& label) {
  const auto& kernels = clebsch::kernels<T>().linear;
  const clebsch::Program& plan = clebsch::parse_plan(problem.description.text()).program;
  const Arrays<T> arrays(problem, Place::page_end);
  const clebsch::RowGroups groups = problem.groups();
  for (const bool to_out : {true, false}) {
    const Arrangement arrangement(plan, to_out, problem.biased);
    const clebsch::LinearProgram program = arrangement.program(plan.mul_ir);
    Buffer<T> packed(kernels.packed_size(program), Place::page_end);
    Buffer<T> scratch(kernels.scratch_size(program), Place::page_end);
    if (to_out) std::fill_n(arrays.outputs[2]->data(), plan.weight_numel, T{});
    for (const auto& [v, first, last] : groups.groups()) {
      packed.poison();
      kernels.pack(program, arrays.operands[W]->data(), v, packed.data());
      const int64_t middle = (first + last) / 2;
      for (const auto& [begin, end] : {std::pair(first, middle), std::pair(middle, last)}) {
        const clebsch::RowRange range{groups.order(), begin, end};
        scratch.poison();
        kernels.apply(program, arrays.in(to_out ? X : G), packed.data(), arrays.in(B),
                      arrays.out(to_out ? 0 : 1), range, scratch.data());
        scratch.poison();
        if (!to_out) continue;
        kernels.grad_weight(program, arrays.in(X), arrays.in(G), arrays.outputs[2]->data(), v, range,
                            scratch.data());
      }
    }
  }
  arrays.check(label);
}

// The kernels of the GPU; positions sorted by element, as torch's sort does for the operator.
template <class T>
void run_emulated(const Arrays<T>& arrays) {
  namespace cuda = clebsch::cuda;
  using clebsch::LinearDirection;
  const Problem& p = arrays.problem;
  const clebsch::Plan& plan = clebsch::parse_plan(p.description.text());
  std::vector<int64_t> order(p.index.size()), sorted;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p.index[a] < p.index[b]; });
  for (const int64_t row : order) sorted.push_back(p.index[row]);
  for (const int result : {0, 1, 2}) {
    const clebsch::LinearArrangement arrangement(
        plan, result == 1 ? LinearDirection::to_x : LinearDirection::to_out,
        result == 0 ? p.biased : std::vector<int64_t>{});
    const std::vector<int64_t> words = cuda::linear_words(arrangement.program(), plan.program.dim2);
    cuda::DeviceLinear<T> call{};
    call.tables = cuda::view_linear(arrangement.program(), words.data());
    call.rows = p.rows;
    call.elements = p.index.empty() ? 1 : plan.program.dim2;
    if (!p.index.empty()) {
      call.order = order.data();
      call.index = p.index.data();
    }
    call.source = arrays.in(result == 1 ? G : X);
    if (result < 2) {
      call.weight = arrays.operands[W]->data();
      call.bias = arrays.in(B);
      call.target = arrays.out(result);
      cuda::launch_mix_rows(call, nullptr);
    } else {
      DeviceMemory memory;
      cuda::run_grad_weight(call, arrays.in(G), p.index.empty() ? nullptr : sorted.data(),
                            plan.program.weight_numel, arrays.outputs[2]->data(), memory.workspace(),
                            nullptr);
    }
  }
}

void check_emulated(const Problem& problem) {
  for (const char* order : {"forward", "reverse", "random:3"}) {
    clebsch::cuda::emulator::set_order(std::string(order));
    for (const Place place : {Place::heap, Place::page_end}) {
      clebsch::cuda::emulator::set_most_blocks(place == Place::heap ? 0 : 2);
      const Arrays<float> single(problem, place);
      run_emulated(single);
      single.check(std::string("emulated float ") + order);
      const Arrays<double> twice(problem, place);
      run_emulated(twice);
      twice.check(std::string("emulated double ") + order);
    }
  }
  clebsch::cuda::emulator::set_order("forward");
  clebsch::cuda::emulator::set_most_blocks(0);
}

struct Layer {
  Description description;
  std::vector<int64_t> biased;
};

std::vector<Layer> layers() {
  std::vector<Layer> all;
  for (const bool mul_ir : {true, false}) {
    for (const int mul : {1, 5, 16, 17, 33, 65, 100}) {
      for (const int l : {0, 1, 2}) {
        all.push_back({mixing({{mul, l, 'e'}}, {{3, l, 'e'}, {mul, l, 'e'}}, mul_ir),
                       l == 0 ? std::vector<int64_t>{1, 0} : std::vector<int64_t>{}});
      }
    }
    // degrees with code of their own for turning, and beyond
    for (const int l : {3, 4, 5, 8})
      all.push_back({mixing({{17, l, 'o'}, {2, l, 'o'}}, {{5, l, 'o'}, {19, l, 'o'}}, mul_ir), {}});
    // several paths into a block, blocks without paths or channels, biases in another order
    all.push_back(
        {mixing({{5, 0, 'e'}, {7, 1, 'o'}, {17, 0, 'e'}, {3, 2, 'e'}, {0, 0, 'e'}, {9, 1, 'o'}},
                {{4, 3, 'o'}, {33, 0, 'e'}, {0, 0, 'e'}, {8, 1, 'o'}, {6, 0, 'e'}, {5, 0, 'o'}}, mul_ir),
         {4, 5, 2, 1}});
    // nothing, or next to it
    all.push_back({mixing({}, {}, mul_ir), {}});
    all.push_back({mixing({{3, 1, 'o'}}, {}, mul_ir), {}});
    all.push_back({mixing({}, {{4, 0, 'e'}, {2, 1, 'o'}}, mul_ir), {0}});
    all.push_back({mixing({{0, 0, 'e'}}, {{4, 0, 'e'}}, mul_ir), {}});
  }
  return all;
}

// Rows of `present` of `elements` elements, in turn, the last first.
std::vector<int64_t> in_turn(int64_t rows, int64_t elements, int64_t present) {
  std::vector<int64_t> index(rows);
  for (int64_t r = 0; r < rows; ++r) index[r] = elements - 1 - r * r % present;
  return index;
}

// A layer with several scalars as y.
Description with_elements(Description d, int elements) {
  d.in2[0].mul = elements;
  return d;
}

}  // namespace

TEST(linear_rows) {
  for (const Layer& layer : layers()) {
    for (const int64_t rows : {0, 1, 2, 7, 13, 49}) {
      check_everywhere(Problem(layer.description, rows, layer.biased));
      check_everywhere(Problem(layer.description, rows, layer.biased, true));
    }
  }
}

TEST(linear_rows_in_several_pieces_and_chunks) {
  for (const bool mul_ir : {true, false}) {
    const Description d =
        mixing({{3, 0, 'e'}, {5, 1, 'o'}, {2, 5, 'o'}}, {{2, 0, 'e'}, {4, 1, 'o'}, {1, 5, 'o'}}, mul_ir);
    for (const int64_t rows : {257, 600, 3000}) check_everywhere(Problem(d, rows, {0}));
    check_everywhere(Problem(mixing({{1, 0, 'e'}}, {{2, 0, 'e'}}, mul_ir), 64 * 256 + 1));
  }
}

TEST(linear_rows_of_several_elements) {
  for (const Layer& layer : layers()) {
    for (const int elements : {2, 7}) {
      const Description d = with_elements(layer.description, elements);
      for (const int64_t rows : {2, 13, 100}) {
        for (const int64_t present : {1, elements})
          check_everywhere(Problem(d, rows, layer.biased, rows == 13, in_turn(rows, elements, present)));
      }
    }
  }
}

TEST(linear_elements_in_several_pieces_and_chunks) {
  for (const bool mul_ir : {true, false}) {
    const Description d =
        mixing({{3, 0, 'e'}, {5, 1, 'o'}, {2, 5, 'o'}}, {{2, 0, 'e'}, {4, 1, 'o'}, {1, 5, 'o'}}, mul_ir, 3);
    for (const int64_t rows : {600, 3000})
      check_everywhere(Problem(d, rows, {0}, false, in_turn(rows, 3, 2)));
  }
}

TEST(linear_groups_of_rows) {
  const int64_t index[] = {2, 0, 2, 4, 0, 2};
  const clebsch::RowGroups groups(index, 6, 6);
  const std::vector<int64_t> order(groups.order(), groups.order() + 6);
  CHECK((order == std::vector<int64_t>{1, 4, 0, 2, 5, 3}));
  std::vector<int64_t> found;
  for (const auto& [element, begin, end] : groups.groups()) found.insert(found.end(), {element, begin, end});
  CHECK((found == std::vector<int64_t>{0, 0, 2, 2, 2, 5, 4, 5, 6}));
  CHECK(clebsch::RowGroups(index, 0, 0).groups().empty());
  CHECK(clebsch::RowGroups(0).groups().empty());
  for (const int64_t wrong :
       {int64_t{-1}, int64_t{3}, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
    const int64_t given[] = {0, 2, wrong};
    CHECK(check::refusal([&] { clebsch::RowGroups(given, 3, 3); }) ==
          "index must lie in [0, 3), got " + std::to_string(wrong) + " in row 2");
  }
}

// Panels times vectors exceed 32 bits; 256 rows of such a block would take a gigabyte.
TEST(linear_blocks_that_are_very_wide) {
  for (const bool mul_ir : {true, false}) {
    check_everywhere(Problem(mixing({{1, 0, 'e'}}, {{300000, 0, 'e'}}, mul_ir), 2));
    check_everywhere(Problem(mixing({{300000, 1, 'o'}}, {{1, 1, 'o'}}, mul_ir), 2));
  }
}

TEST(linear_kernels_stay_in_their_scratch) {
  for (const Layer& layer : layers()) {
    for (const int64_t rows : {23, 290}) {  // 290: gradients fill their tile of 256 rows
      const Problem problem(layer.description, rows, layer.biased, rows == 23);
      const Problem of_elements(with_elements(layer.description, 3), rows, layer.biased, rows == 23,
                                in_turn(rows, 3, 2));
      for_each_instruction_set([&](const std::string& isa) {
        for (const Problem* each : {&problem, &of_elements}) {
          check_kernels<float>(*each, isa + " float");
          check_kernels<double>(*each, isa + " double");
        }
      });
    }
  }
}

TEST(linear_threads_do_not_change_a_bit) {
  for (const int elements : {0, 2}) {  // 0: without an index
    const bool mul_ir = elements == 0;
    const Description d =
        mixing({{16, 0, 'e'}, {5, 1, 'o'}}, {{17, 0, 'e'}, {6, 1, 'o'}}, mul_ir, std::max(elements, 1));
    const Problem problem(d, 700, {0}, false,
                          elements ? in_turn(700, elements, elements) : std::vector<int64_t>{});
    for_each_instruction_set([&](const std::string& isa) {
      const Arrays<float> here(problem, Place::heap), backwards(problem, Place::heap),
          threads(problem, Place::page_end);
      here.run(&clebsch::run_here);
      backwards.run(&run_backwards);
      threads.run(&run_in_threads);
      CHECK(here.bits() == backwards.bits(), isa);
      CHECK(here.bits() == threads.bits(), isa);
      here.check(isa);
    });
  }
}

TEST(linear_waves_do_not_change_a_bit) {
  for (const int elements : {0, 2}) {
    const bool mul_ir = elements == 0;
    const Description d =
        mixing({{16, 0, 'e'}, {5, 1, 'o'}}, {{17, 0, 'e'}, {6, 1, 'o'}}, mul_ir, std::max(elements, 1));
    const Problem problem(d, 1500, {0}, false,
                          elements ? in_turn(1500, elements, elements) : std::vector<int64_t>{});
    for_each_instruction_set([&](const std::string& isa) {
      const Arrays<double> one_wave(problem, Place::heap);
      clebsch::set_private_bytes(int64_t{1} << 40);
      one_wave.run(&clebsch::run_here);
      one_wave.check(isa);
      for (const int64_t bytes : {1, 2 * 302 * 8, 4 * 302 * 8}) {  // of the 6 chunks: each, two, four at once
        const Arrays<double> waves(problem, Place::page_end);
        clebsch::set_private_bytes(bytes);
        waves.run(&run_in_threads);
        CHECK(waves.bits() == one_wave.bits(), isa);
      }
      clebsch::set_private_bytes(0);
    });
  }
}

// Tiles of 64 pairs and of 64 columns, chunks of 64 rows: of each some problem has more than three.
TEST(emulated_linear) {
  for (const bool mul_ir : {true, false}) {
    const Description several = mixing({{5, 0, 'e'}, {7, 1, 'o'}, {0, 0, 'e'}, {9, 1, 'o'}},
                                       {{4, 3, 'o'}, {33, 0, 'e'}, {8, 1, 'o'}, {6, 0, 'e'}}, mul_ir);
    check_emulated(Problem(several, 5, {3, 1}, true));
    check_emulated(Problem(several, 0, {3, 1}));
    check_emulated(Problem(with_elements(several, 3), 13, {1}, false, in_turn(13, 3, 2)));
    check_emulated(Problem(mixing({{70, 0, 'e'}}, {{133, 0, 'e'}}, mul_ir), 3));
    check_emulated(
        Problem(mixing({{3, 1, 'o'}}, {{5, 1, 'o'}}, mul_ir, 4), 200, {}, false, in_turn(200, 4, 3)));
  }
}

// Not under ThreadSanitizer, to which nothing orders what a kernel that was left did before.
TEST(linear_elements_that_the_gpu_refuses) {
  for (const int64_t wrong : {int64_t{-1}, int64_t{3}}) {
    const Description d = with_elements(mixing({{3, 1, 'o'}}, {{2, 1, 'o'}}, true), 3);
    Problem problem(d, 4, {}, false, {0, 1, 2, 1});
    problem.index[2] = wrong;
    const Arrays<float> arrays(problem, Place::heap);
    CHECK(check::refusal([&] { run_emulated(arrays); }) ==
          "linear: index must lie in [0, 3), got " + std::to_string(wrong) + " in row 2");
  }
}

TEST(linear_plans_and_biases_that_are_refused) {
  const auto refusal = [](const std::string& text, const std::vector<int64_t>& biased = {}) {
    return check::refusal([&] { clebsch::check_linear(clebsch::parse_plan(text), biased, false); });
  };
  const auto refusal_of_index = [](const std::string& text) {
    return check::refusal([&] { clebsch::check_linear(clebsch::parse_plan(text), {}, true); });
  };
  const std::string plan = "linear: plan must have paths uvw with weights and one scalar as y";
  CHECK(refusal("4x0e*1x0e->4x0e;mul_ir;0 0 0 uvu w 1.0") == plan);
  CHECK(refusal("4x0e*1x0e->4x0e;mul_ir;0 0 0 uvu - 1.0") == plan);
  CHECK(refusal("4x0e*4x0e->2x0e;mul_ir;0 0 0 uuw w 1.0") == plan);
  CHECK(refusal("2x0e*2x0e->1x0e;mul_ir;0 0 0 uvw w 1.0") == plan);
  CHECK(refusal("4x1o*1x1o->1x0e;mul_ir;0 0 0 uvw w 1.0") == plan);
  CHECK(refusal("4x0e*1x0e+1x0e->1x0e;mul_ir;0 1 0 uvw w 1.0") == plan);
  CHECK(refusal("2x0e*->2x0e;mul_ir;") == plan);
  const std::string good = "4x0e*1x0e->2x0e+3x1o+5x0o;mul_ir;0 0 0 uvw w 1.0";
  CHECK(refusal(good).empty());
  CHECK(refusal(good, {2, 0}).empty());
  for (const int64_t wrong : {int64_t{1}, int64_t{3}, int64_t{-1}, std::numeric_limits<int64_t>::max(),
                              std::numeric_limits<int64_t>::min()}) {
    CHECK(refusal(good, {0, wrong}) ==
          "linear: biased must name blocks of the output that hold scalars, got " + std::to_string(wrong));
  }
  const std::string block = "linear: plan must have paths uvw with weights and one block of scalars as y";
  CHECK(refusal_of_index("4x0e*3x0e->4x0e;mul_ir;0 0 0 uvw w 1.0").empty());
  CHECK(refusal_of_index("4x1e*0x1o+3x0o->4x1o;mul_ir;0 1 0 uvw w 1.0").empty());
  CHECK(refusal_of_index("4x0e*->2x0e;mul_ir;").empty());
  CHECK(refusal_of_index("4x0e*0x0e->2x0e;mul_ir;0 0 0 uvw w 1.0").empty());
  CHECK(refusal_of_index("4x0e*3x0e->4x0e;mul_ir;0 0 0 uvu w 1.0") == block);
  CHECK(refusal_of_index("4x0e*1x0e+2x0e->4x0e;mul_ir;0 0 0 uvw w 1.0,0 1 0 uvw w 1.0") == block);
  CHECK(refusal_of_index("4x0e*1x0e+2x0e->4x0e;mul_ir;0 1 0 uvw w 1.0") == block);
  CHECK(refusal_of_index("4x1o*1x1o->1x0e;mul_ir;0 0 0 uvw w 1.0") == block);
  CHECK(refusal_of_index("4x0e*1x1o->1x0e;mul_ir;") == block);
  CHECK(refusal(good, {2, 0, 2}) == "linear: biased must name a block once, got 2 twice");
}
