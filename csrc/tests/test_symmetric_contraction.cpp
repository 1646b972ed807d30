// Symmetric contractions: every kernel against sums in double, in arrays of exactly the right size.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "cpu/run_symmetric_contraction.h"
#include "cuda/emulator.h"
#include "cuda/run_symmetric_contraction.h"
#include "device_memory.h"
#include "memory.h"
#include "schedules.h"

namespace {

// A term of an out component: value W[weight] x[i] x[j] ..., factors -1 absent.
struct Term {
  int target, component, weight;
  std::vector<int> factors;
  double value;
};

// A contraction with a row of the basis for each (target, weight), and some weights that share one.
struct Problem {
  int components, weights, species;
  int64_t nodes, channels;
  std::vector<int> widths;
  std::vector<Term> terms;
  std::vector<int64_t> words, index;
  std::vector<double> x, ax, grad, weight, aw;

  int64_t out_width() const {
    int64_t sum = 0;
    for (const int width : widths) sum += width;
    return sum;
  }
};

struct Entry {
  int64_t product, first, second;
  double value;
};

// The words of a table, in the order of csrc/symmetric_contraction.h.
class Writer {
 public:
  explicit Writer(const Problem& p) : p_(p) {
    const int rows_a_target = p.weights / static_cast<int>(p.widths.size());
    for (const Term& term : p.terms) {
      int64_t product = 0;
      for (int t = 0; t < term.target; ++t) product += int64_t{p.widths[t]} * rows_a_target;
      product += int64_t{p.widths[term.target]} * (term.weight % rows_a_target) + term.component;
      std::vector<int64_t> factors;
      for (const int i : term.factors) factors.push_back(1 + i);
      if (factors.size() > 2)
        factors = {factors.size() == 4 ? pair(factors[2], factors[3]) : factors[2],
                   pair(factors[0], factors[1])};
      factors.resize(2, 0);
      entries_.push_back({product, factors[0], factors[1], term.value});
    }
  }

  std::vector<int64_t> words() {
    const int64_t targets = static_cast<int64_t>(p_.widths.size()), rows = p_.weights;
    int64_t products = 0;
    for (const int width : p_.widths) products += width * rows / targets;
    const int64_t factors = 1 + p_.components + static_cast<int64_t>(pairs_.size() / 2);
    sort([](const Entry& a, const Entry& b) {
      return std::tie(a.product, a.first, a.second) < std::tie(b.product, b.first, b.second);
    });
    std::vector<int64_t> product_end, group_factor, group_end, factor_end, term_factor, term_end;
    runs([](const Entry& e) { return std::pair(e.product, e.first); }, products, product_end, group_factor,
         group_end);
    std::vector<int64_t> entry_factor, entry_value, term_product, term_value;
    for (const Entry& e : entries_) {
      entry_factor.push_back(e.second);
      entry_value.push_back(std::bit_cast<int64_t>(e.value));
    }
    sort([](const Entry& a, const Entry& b) {
      return std::tie(a.first, a.second, a.product) < std::tie(b.first, b.second, b.product);
    });
    runs([](const Entry& e) { return std::pair(e.first, e.second); }, factors, factor_end, term_factor,
         term_end);
    for (const Entry& e : entries_) {
      term_product.push_back(e.product);
      term_value.push_back(std::bit_cast<int64_t>(e.value));
    }
    const int64_t entries = static_cast<int64_t>(entries_.size());
    std::vector<int64_t> all = {1,
                                p_.components,
                                p_.weights,
                                static_cast<int64_t>(pairs_.size() / 2),
                                rows,
                                targets,
                                static_cast<int64_t>(group_end.size()),
                                entries,
                                static_cast<int64_t>(term_end.size()),
                                rows};
    std::vector<int64_t> widths(p_.widths.begin(), p_.widths.end()), counts(targets, rows / targets);
    std::vector<int64_t> reduction_end, reduction_weight, reduction_value;
    for (int64_t r = 0; r < rows; ++r) {
      reduction_end.push_back(r + 1);
      reduction_weight.push_back(r);
      reduction_value.push_back(std::bit_cast<int64_t>(1.0));
    }
    for (const auto* part :
         {&pairs_, &widths, &counts, &product_end, &group_factor, &group_end, &entry_factor, &factor_end,
          &term_factor, &term_end, &term_product, &reduction_end, &reduction_weight, &entry_value,
          &term_value, &reduction_value}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    return all;
  }

 private:
  int64_t pair(int64_t i, int64_t j) {
    for (size_t s = 0; s < pairs_.size(); s += 2) {
      if (pairs_[s] == i && pairs_[s + 1] == j) return 1 + p_.components + static_cast<int64_t>(s / 2);
    }
    pairs_.insert(pairs_.end(), {i, j});
    return p_.components + static_cast<int64_t>(pairs_.size() / 2);
  }
  template <class F>
  void sort(F less) {
    std::sort(entries_.begin(), entries_.end(), less);
  }
  template <class F>
  void runs(F key, int64_t owners, std::vector<int64_t>& owner_end, std::vector<int64_t>& second,
            std::vector<int64_t>& end) {
    std::vector<int64_t> owner;
    for (size_t i = 0; i < entries_.size(); ++i) {
      const auto now = key(entries_[i]);
      if (!end.empty() && owner.back() == now.first && second.back() == now.second) {
        end.back() = static_cast<int64_t>(i) + 1;
        continue;
      }
      owner.push_back(now.first);
      second.push_back(now.second);
      end.push_back(static_cast<int64_t>(i) + 1);
    }
    for (int64_t o = 0; o < owners; ++o)
      owner_end.push_back(std::upper_bound(owner.begin(), owner.end(), o) - owner.begin());
  }

  const Problem& p_;
  std::vector<int64_t> pairs_;
  std::vector<Entry> entries_;
};

Problem random_problem(int components, std::vector<int> widths, int rows_a_target, int degree, int64_t nodes,
                       int64_t channels, int species) {
  const int weights = rows_a_target * static_cast<int>(widths.size());
  Problem p{components, weights, species, nodes, channels, widths, {}, {}, {}, {}, {}, {}, {}, {}};
  std::mt19937 random(static_cast<unsigned>(components * 31 + degree + channels));
  std::normal_distribution<double> normal;
  for (int t = 0; t < static_cast<int>(widths.size()); ++t) {
    for (int r = 0; r < rows_a_target; ++r) {
      for (int m = 0; m < widths[t]; ++m) {
        for (int i = 0; i < 5; ++i) {
          std::vector<int> factors(1 + (r + i) % degree);
          for (int& f : factors) f = static_cast<int>(random() % components);
          std::sort(factors.begin(), factors.end());
          const Term term{t, m, t * rows_a_target + r, factors, normal(random)};
          bool is_new = true;  // a table holds no monomial of a product twice
          for (const Term& other : p.terms)
            is_new &= other.component != m || other.weight != term.weight || other.factors != factors;
          if (is_new) p.terms.push_back(term);
        }
      }
    }
  }
  p.words = Writer(p).words();
  const auto fill = [&](std::vector<double>& values, int64_t count) {
    values.resize(count);
    for (double& value : values) value = static_cast<float>(normal(random));
  };
  fill(p.x, nodes * channels * components);
  fill(p.ax, nodes * channels * components);
  fill(p.grad, nodes * channels * p.out_width());
  fill(p.weight, int64_t{species} * weights * channels);
  fill(p.aw, int64_t{species} * weights * channels);
  for (int64_t i = 0; i < nodes; ++i)
    p.index.push_back(species > 1 ? static_cast<int64_t>(random() % (species - 1)) : 0);
  return p;
}

enum Output { OUT, GRAD_X, GRAD_WEIGHT, GRAD_GRAD, SECOND_X, SECOND_WEIGHT, kOutputs };

struct Sums {
  std::vector<double> value[kOutputs], size[kOutputs];
};

// All results, and the sums of absolute values, from the terms.
Sums expected(const Problem& p) {
  Sums sums;
  const size_t counts[kOutputs] = {p.grad.size(), p.x.size(), p.weight.size(),
                                   p.grad.size(), p.x.size(), p.weight.size()};
  for (int o = 0; o < kOutputs; ++o) {
    sums.value[o].assign(counts[o], 0);
    sums.size[o].assign(counts[o], 0);
  }
  const auto add = [&](Output o, int64_t at, double value) {
    sums.value[o][at] += value;
    sums.size[o][at] += std::abs(value);
  };
  for (int64_t n = 0; n < p.nodes; ++n) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const double *x = &p.x[(n * p.channels + c) * p.components],
                   *ax = &p.ax[(n * p.channels + c) * p.components];
      const int64_t x_at = (n * p.channels + c) * p.components;
      for (const Term& term : p.terms) {
        int64_t before = 0;
        for (int t = 0; t < term.target; ++t) before += p.widths[t];
        const int64_t out_at =
            n * p.channels * p.out_width() + before * p.channels + c * p.widths[term.target] + term.component;
        const int64_t w_at = (p.index[n] * p.weights + term.weight) * p.channels + c;
        const double w = p.weight[w_at], aw = p.aw[w_at], g = p.grad[out_at];
        const int nu = static_cast<int>(term.factors.size());
        const auto product = [&](int skip, int other, bool tangent) {
          double value = term.value;
          for (int s = 0; s < nu; ++s) {
            if (s == skip) continue;
            value *= tangent && s == other ? ax[term.factors[s]] : x[term.factors[s]];
          }
          return value;
        };
        const double whole = product(-1, -1, false);
        add(OUT, out_at, w * whole);
        add(GRAD_WEIGHT, w_at, g * whole);
        add(GRAD_GRAD, out_at, aw * whole);
        for (int s = 0; s < nu; ++s) {
          const double along = product(-1, s, true), rest = product(s, -1, false);
          add(GRAD_X, x_at + term.factors[s], g * w * rest);
          add(GRAD_GRAD, out_at, w * along);
          add(SECOND_WEIGHT, w_at, g * along);
          add(SECOND_X, x_at + term.factors[s], g * aw * rest);
          for (int other = 0; other < nu; ++other)
            if (other != s) add(SECOND_X, x_at + term.factors[s], g * w * product(s, other, true));
        }
      }
    }
  }
  return sums;
}

template <class T>
struct Arrays {
  const Problem& p;
  Buffer<T> x, ax, grad, weight, aw, outputs[kOutputs];
  Buffer<int64_t> index, words;

  Arrays(const Problem& p_, Place place)
      : p(p_),
        x(p.x, place),
        ax(p.ax, place),
        grad(p.grad, place),
        weight(p.weight, place),
        aw(p.aw, place),
        outputs{{size(p.grad), place}, {size(p.x), place}, {size(p.weight), place},
                {size(p.grad), place}, {size(p.x), place}, {size(p.weight), place}},
        index(p.nodes, place),
        words(size(p.words), place) {
    for (int64_t i = 0; i < p.nodes; ++i) index[i] = p.index[i];
    for (int64_t i = 0; i < words.size(); ++i) words[i] = p.words[i];
    for (Buffer<T>& output : outputs) output.poison();
  }
  template <class V>
  static int64_t size(const V& values) {
    return static_cast<int64_t>(values.size());
  }
  void run(clebsch::Parallel parallel) const {
    run([&](const auto& call, clebsch::ContractionStep step) {
      clebsch::run_symmetric_contraction(call, step, parallel);
    });
  }
  // runner(call, step) for each step.
  template <class Runner>
    requires std::is_invocable_v<Runner, clebsch::ContractionCall<T>, clebsch::ContractionStep>
  void run(const Runner& runner) const {
    clebsch::ContractionCall<T> call{};
    call.table = {words.data(), words.size()};
    call.nodes = p.nodes;
    call.channels = p.channels;
    call.species = p.species;
    call.index = index.data();
    call.x = x.data();
    call.weight = weight.data();
    call.out = outputs[OUT].data();
    runner(call, clebsch::ContractionStep::forward);
    call.grad = grad.data();
    call.out = nullptr;
    call.grad_x = outputs[GRAD_X].data();
    call.grad_weight = outputs[GRAD_WEIGHT].data();
    runner(call, clebsch::ContractionStep::backward);
    call.ax = ax.data();
    call.a_weight = aw.data();
    call.out = outputs[GRAD_GRAD].data();
    call.grad_x = outputs[SECOND_X].data();
    call.grad_weight = outputs[SECOND_WEIGHT].data();
    runner(call, clebsch::ContractionStep::double_backward);
  }
  void check(const Sums& sums, const std::string& label) const {
    const double unit = sizeof(T) == 4 ? std::ldexp(1.0, -24) : std::ldexp(1.0, -53);
    const double roundings = 2.0 * static_cast<double>(16 + p.terms.size() + 2 * p.nodes);
    for (int o = 0; o < kOutputs; ++o) {
      for (int64_t i = 0; i < outputs[o].size(); ++i) {
        const double error = std::abs(static_cast<double>(outputs[o][i]) - sums.value[o][i]);
        CHECK(error <= roundings * unit * sums.size[o][i], label, "output", o, "at", i);
      }
    }
  }
  std::string bits() const {
    std::string all;
    for (const Buffer<T>& output : outputs)
      all.append(reinterpret_cast<const char*>(output.data()), output.size() * sizeof(T));
    return all;
  }
};

template <class T>
void check_problem(const Problem& p, const Sums& sums, const std::string& label) {
  for (const Place place : {Place::heap, Place::page_end}) {
    const Arrays<T> arrays(p, place);
    arrays.run(&run_in_threads);
    arrays.check(sums, label);
  }
}

// The kernels of the GPU, on arrays of exactly the right size.
template <class T>
void run_emulated(const Arrays<T>& arrays) {
  const Problem& p = arrays.p;
  std::vector<int64_t> node(static_cast<size_t>(p.nodes)), species;
  std::iota(node.begin(), node.end(), 0);
  std::stable_sort(node.begin(), node.end(), [&](int64_t a, int64_t b) { return p.index[a] < p.index[b]; });
  for (const int64_t n : node) species.push_back(p.index[n]);
  arrays.run([&](const clebsch::ContractionCall<T>& call, clebsch::ContractionStep step) {
    const std::vector<int64_t> words = clebsch::cuda::contraction_words<T>(call.table);
    DeviceMemory memory;
    clebsch::cuda::run_symmetric_contraction(
        call, clebsch::cuda::view_contraction<T>(clebsch::contraction_sizes(call.table), words.data()), step,
        {species.data(), node.data()}, memory.workspace(), nullptr);
  });
}

void check_emulated(const Problem& p) {
  const Sums sums = expected(p);
  for (const char* order : {"forward", "reverse", "random:3"}) {
    clebsch::cuda::emulator::set_order(std::string(order));
    for (const Place place : {Place::heap, Place::page_end}) {
      clebsch::cuda::emulator::set_most_blocks(place == Place::heap ? 0 : 2);
      const Arrays<float> single(p, place);
      run_emulated(single);
      single.check(sums, std::string("emulated float ") + order);
      const Arrays<double> twice(p, place);
      run_emulated(twice);
      twice.check(sums, std::string("emulated double ") + order);
    }
  }
  clebsch::cuda::emulator::set_order("forward");
  clebsch::cuda::emulator::set_most_blocks(0);
}

void check_everywhere(const Problem& p) {
  const Sums sums = expected(p);
  clebsch::poison_new_memory(true);
  for_each_instruction_set([&](const std::string& isa) {
    check_problem<float>(p, sums, isa + " float");
    check_problem<double>(p, sums, isa + " double");
  });
  clebsch::poison_new_memory(false);
}

}  // namespace

TEST(symmetric_contraction_channels) {
  for (const int64_t channels : {1, 3, 4, 7, 16, 17, 31, 32, 47, 65})
    check_everywhere(random_problem(9, {1, 3}, 3, 3, 5, channels, 3));
}

TEST(symmetric_contraction_components_and_degrees) {
  for (const int components : {1, 2, 4, 8, 15, 16, 17, 33}) {
    for (const int degree : {1, 2, 3, 4})
      check_everywhere(random_problem(components, {5, 1, 9}, 2, degree, 3, 6, 2));
  }
}

TEST(symmetric_contraction_nodes_and_species) {
  for (const int64_t nodes : {0, 1, 4, 5, 70, 300}) {
    for (const int species : {1, 4, 50}) check_everywhere(random_problem(4, {3}, 2, 2, nodes, 5, species));
  }
  check_everywhere(random_problem(4, {3}, 2, 2, 3, 0, 2));
}

TEST(symmetric_contraction_threads_do_not_change_a_bit) {
  const Problem p = random_problem(9, {1, 3}, 4, 3, 400, 20, 6);
  for_each_instruction_set([&](const std::string& isa) {
    const Arrays<float> here(p, Place::heap), backwards(p, Place::heap), threads(p, Place::page_end);
    here.run(&clebsch::run_here);
    backwards.run(&run_backwards);
    threads.run(&run_in_threads);
    CHECK(here.bits() == backwards.bits(), isa);
    CHECK(here.bits() == threads.bits(), isa);
  });
}

TEST(emulated_symmetric_contraction) {
  for (const int64_t channels : {0, 1, 33, 36, 70, 132})
    check_emulated(random_problem(9, {1, 3}, 3, 3, 10, channels, 3));
  for (const int components : {1, 17, 40})
    check_emulated(random_problem(components, {5, 1, 9}, 2, 4, 3, 6, 2));
  for (const int64_t nodes : {0, 1, 70}) {
    for (const int species : {1, 4, 50}) check_emulated(random_problem(4, {3}, 2, 2, nodes, 8, species));
  }
}

TEST(symmetric_contraction_refusals) {
  Problem p = random_problem(4, {1, 3}, 2, 3, 5, 3, 3);
  const auto refusal = [&](const Problem& problem) {
    return check::refusal([&] { Arrays<double>(problem, Place::heap).run(&clebsch::run_here); });
  };
  CHECK(refusal(p).empty());
  for (const int64_t species : {int64_t{3}, int64_t{-1}}) {
    Problem outside = p;
    outside.index[4] = species;
    CHECK(refusal(outside) ==
          "symmetric_contraction: index must lie in [0, 3), got " + std::to_string(species) + " for node 4");
  }
  // Cut short anywhere, and any word but the coefficients replaced by what cannot be there.
  const std::string message = "symmetric_contraction: table must be that of a ContractionTable";
  const int64_t numbers = 2 * p.words[7] + p.words[9];
  for (size_t length = 0; length < p.words.size(); ++length) {
    Problem shorter = p;
    shorter.words.resize(length);
    CHECK(refusal(shorter) == message, length);
  }
  for (int64_t i = 0; i < static_cast<int64_t>(p.words.size()) - numbers; ++i) {
    for (const int64_t bad : {int64_t{-1}, int64_t{1} << 20, int64_t{1} << 40, INT64_MAX, INT64_MIN}) {
      Problem other = p;
      other.words[i] = bad;
      if (i == 1 || i == 2) continue;  // components and weights come with the shapes of the operands
      CHECK(refusal(other) == message, i, bad);
    }
  }
}
