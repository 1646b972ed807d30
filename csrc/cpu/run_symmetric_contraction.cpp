#include "cpu/run_symmetric_contraction.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/work.h"

namespace clebsch {
namespace {

constexpr std::int64_t kFormat = 1, kHeader = 10, kMost = std::int64_t{1} << 30;

// Words taken from the front of a table, which may hold anything.
class Words {
 public:
  explicit Words(TableWords table) : at_(table.data), left_(table.size) {}

  static void require(bool ok) {
    if (!ok) throw std::invalid_argument("symmetric_contraction: table must be that of a ContractionTable");
  }
  const std::int64_t* take(std::int64_t count) {
    require(count >= 0 && count <= left_);
    const std::int64_t* here = at_;
    at_ += count;
    left_ -= count;
    return here;
  }
  std::int64_t count() {
    const std::int64_t value = *take(1);
    require(value >= 0 && value < kMost);
    return value;
  }
  // Integers in [low, high).
  void integers(std::int64_t count, std::int64_t low, std::int64_t high, int* to) {
    const std::int64_t* from = take(count);
    bool fits = true;
    for (std::int64_t i = 0; i < count; ++i) {
      fits &= from[i] >= low && from[i] < high;
      to[i] = static_cast<int>(from[i]);
    }
    require(fits);
  }
  // Where runs end: ascending, to `total`.
  void ends(std::int64_t count, std::int64_t total, int* to) {
    integers(count, 0, total + 1, to);
    require(std::is_sorted(to, to + count) && (count ? to[count - 1] : 0) == total);
  }
  template <class T>
  void numbers(std::int64_t count, T* to) {
    const std::int64_t* from = take(count);
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(std::bit_cast<double>(from[i]));
  }
  void finish() const { require(left_ == 0); }

 private:
  const std::int64_t* at_;
  std::int64_t left_;
};

struct Counts {
  std::int64_t components, weights, pairs, rows, targets, groups, entries, terms, reductions;

  explicit Counts(Words& words) {
    Words::require(words.count() == kFormat);
    components = words.count();
    weights = words.count();
    pairs = words.count();
    rows = words.count();
    targets = words.count();
    groups = words.count();
    entries = words.count();
    terms = words.count();
    reductions = words.count();
  }
  std::int64_t factors() const { return 1 + components + pairs; }
};

constexpr std::int64_t kMostComponents = 1 << 24;

template <class T>
class Table {
 public:
  explicit Table(TableWords table) {
    Words words(table);
    const Counts n(words);
    // Every count but those of components and weights is that of words which must be there.
    Words::require(n.components < 1 << 20 && n.pairs <= table.size && n.rows <= table.size &&
                   n.targets <= table.size && n.groups <= table.size && n.entries <= table.size &&
                   n.terms <= table.size && n.reductions <= table.size);
    targets_.resize(2 * n.targets);
    pairs_.resize(2 * n.pairs);
    words.integers(2 * n.pairs, 1, 1 + n.components, pairs_.data());
    words.integers(n.targets, 1, 1 << 16, targets_.data());
    words.integers(n.targets, 0, n.rows + 1, targets_.data() + n.targets);
    std::int64_t products = 0, width = 0, rows = 0;
    for (std::int64_t t = 0; t < n.targets; ++t) {
      width += targets_[t];
      rows += targets_[n.targets + t];
      products += std::int64_t{targets_[t]} * targets_[n.targets + t];
      Words::require(products <= table.size && width <= table.size << 16);
    }
    const std::int64_t factors = n.factors();
    // Kernels count vectors of them in int.
    Words::require(rows == n.rows && std::max({factors, products, width}) < kMostComponents);
    integers_.resize(products + 2 * n.groups + 2 * n.entries + factors + 2 * n.terms + n.rows + n.reductions);
    numbers_.resize(2 * n.entries + n.reductions);
    int* next = integers_.data();
    const auto reserve = [&](std::int64_t count) {
      int* here = next;
      next += count;
      return here;
    };
    int* product_end = reserve(products);
    int* group_factor = reserve(n.groups);
    int* group_end = reserve(n.groups);
    int* entry_factor = reserve(n.entries);
    int* factor_end = reserve(factors);
    int* term_factor = reserve(n.terms);
    int* term_end = reserve(n.terms);
    int* term_product = reserve(n.entries);
    int* reduction_end = reserve(n.rows);
    int* reduction_weight = reserve(n.reductions);
    words.ends(products, n.groups, product_end);
    words.integers(n.groups, 0, factors, group_factor);
    words.ends(n.groups, n.entries, group_end);
    words.integers(n.entries, 0, factors, entry_factor);
    words.ends(factors, n.terms, factor_end);
    words.integers(n.terms, 0, factors, term_factor);
    words.ends(n.terms, n.entries, term_end);
    words.integers(n.entries, 0, products, term_product);
    words.ends(n.rows, n.reductions, reduction_end);
    words.integers(n.reductions, 0, n.weights, reduction_weight);
    T* entry_value = numbers_.data();
    T* term_value = entry_value + n.entries;
    T* reduction_value = term_value + n.entries;
    words.numbers(n.entries, entry_value);
    words.numbers(n.entries, term_value);
    words.numbers(n.reductions, reduction_value);
    words.finish();
    program_ = {static_cast<int>(n.components),
                static_cast<int>(factors),
                static_cast<int>(n.pairs),
                static_cast<int>(n.weights),
                static_cast<int>(n.rows),
                static_cast<int>(n.targets),
                static_cast<int>(products),
                static_cast<int>(width),
                pairs_.data(),
                targets_.data(),
                targets_.data() + n.targets,
                product_end,
                group_factor,
                group_end,
                entry_factor,
                entry_value,
                factor_end,
                term_factor,
                term_end,
                term_product,
                term_value,
                reduction_end,
                reduction_weight,
                reduction_value};
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  const ContractionProgram<T>& program() const { return program_; }

 private:
  std::vector<int> pairs_, targets_, integers_;
  std::vector<T> numbers_;
  ContractionProgram<T> program_{};
};

// Nodes by species, in their order within each. A slot is a species that occurs; a segment a run of nodes of
// one species within a chunk. All depends on index alone, so sums in the order of segments are the same for
// any number of threads.
struct Segment {
  std::int64_t begin, end, slot;
};

class Arrangement {
 public:
  std::vector<std::int64_t> nodes, slot_species, slot_segment;  // slot_segment: where each slot's begin
  std::vector<Segment> segments;
  std::vector<std::int64_t> chunk_segment;  // where each chunk's begin

  Arrangement(const std::int64_t* index, std::int64_t count, std::int64_t species) : nodes(count) {
    std::vector<std::int64_t> start(species + 1, 0);
    for (std::int64_t i = 0; i < count; ++i) ++start[index[i] + 1];
    for (std::int64_t z = 0; z < species; ++z) {
      if (start[z + 1] > 0) slot_species.push_back(z);
      start[z + 1] += start[z];
    }
    std::vector<std::int64_t> slot_end;
    for (const std::int64_t z : slot_species) slot_end.push_back(start[z + 1]);
    for (std::int64_t i = 0; i < count; ++i) nodes[start[index[i]]++] = i;
    // Some for every thread where nodes are few, of four nodes and more where they are many.
    const std::int64_t pieces = std::clamp(count / 4, std::min<std::int64_t>(count, 8), kChunks);
    std::int64_t slot = 0, begin = 0;
    for (std::int64_t chunk = 0; chunk < pieces; ++chunk) {
      chunk_segment.push_back(static_cast<std::int64_t>(segments.size()));
      const std::int64_t end_of_chunk = count * (chunk + 1) / pieces;
      while (begin < end_of_chunk) {
        const std::int64_t end = std::min(end_of_chunk, slot_end[slot]);
        if (static_cast<std::int64_t>(slot_segment.size()) == slot)
          slot_segment.push_back(static_cast<std::int64_t>(segments.size()));
        segments.push_back({begin, end, slot});
        begin = end;
        if (begin == slot_end[slot]) ++slot;
      }
    }
    chunk_segment.push_back(static_cast<std::int64_t>(segments.size()));
    slot_segment.push_back(static_cast<std::int64_t>(segments.size()));
  }
  std::int64_t chunks() const { return static_cast<std::int64_t>(chunk_segment.size()) - 1; }
  std::int64_t slots() const { return static_cast<std::int64_t>(slot_species.size()); }

 private:
  static constexpr std::int64_t kChunks = 64;
};

void check_index(const std::int64_t* index, std::int64_t count, std::int64_t species) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (index[i] < 0 || index[i] >= species) {
      throw std::invalid_argument("symmetric_contraction: index must lie in [0, " + std::to_string(species) +
                                  "), got " + std::to_string(index[i]) + " for node " + std::to_string(i));
    }
  }
}

}  // namespace

ContractionSizes contraction_sizes(TableWords table) {
  Words words(table);
  const Counts n(words);
  Words::require(n.targets <= table.size);
  words.take(2 * n.pairs);
  std::vector<int> widths(n.targets);
  words.integers(n.targets, 1, 1 << 16, widths.data());
  std::int64_t width = 0;
  for (const int own : widths) width += own;
  Words::require(width < kMostComponents);
  return {n.components, n.weights, width, std::move(widths)};
}

template <class T>
void run_symmetric_contraction(const ContractionCall<T>& call, ContractionStep step, Parallel parallel) {
  check_index(call.index, call.nodes, call.species);
  const Table<T> table(call.table);
  const ContractionProgram<T>& program = table.program();
  const ContractionKernels<T>& kernels_of_isa = kernels<T>().symmetric_contraction;
  const ContractionKernel<T> kernel = step == ContractionStep::forward    ? kernels_of_isa.forward
                                      : step == ContractionStep::backward ? kernels_of_isa.backward
                                                                          : kernels_of_isa.double_backward;
  const Arrangement arrangement(call.index, call.nodes, call.species);
  const int channels = static_cast<int>(call.channels), padded = kernels_of_isa.padded(channels);
  const std::int64_t size = std::int64_t{program.rows} * padded, slots = arrangement.slots();
  const std::int64_t weights = std::int64_t{program.weights} * channels;
  Buffer<T> reduced, reduced_tangent, sums;
  const auto reduce = [&](const T* weight, Buffer<T>& to) {
    if (!weight) return;
    to.reserve(slots * size);
    for_each_piece(slots, 4, parallel, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t s = begin; s < end; ++s) {
        kernels_of_isa.reduce(program, channels, weight + arrangement.slot_species[s] * weights,
                              to.data() + s * size);
      }
    });
  };
  reduce(call.weight, reduced);
  reduce(call.a_weight, reduced_tangent);
  if (call.grad_weight) sums.reserve(static_cast<std::int64_t>(arrangement.segments.size()) * size);
  const std::int64_t scratch = kernels_of_isa.scratch_size(program);
  for_each_chunk(arrangement.chunks(), parallel, [&](std::int64_t chunk) {
    for (std::int64_t i = arrangement.chunk_segment[chunk]; i < arrangement.chunk_segment[chunk + 1]; ++i) {
      const Segment& segment = arrangement.segments[i];
      ContractionArgs<T> args{&program, channels, padded,   call.x,      call.ax, call.grad,
                              nullptr,  nullptr,  call.out, call.grad_x, nullptr};
      args.weight = reduced.data() + segment.slot * size;
      if (call.a_weight) args.a_weight = reduced_tangent.data() + segment.slot * size;
      if (call.grad_weight) {
        args.grad_weight = sums.data() + i * size;
        std::fill_n(args.grad_weight, size, T{});
      }
      kernel(args, arrangement.nodes.data() + segment.begin, segment.end - segment.begin,
             thread_scratch<T>(scratch));
    }
  });
  if (!call.grad_weight) return;
  std::fill_n(call.grad_weight, call.species * weights, T{});
  for_each_chunk(slots, parallel, [&](std::int64_t s) {
    T* sum = sums.data() + arrangement.slot_segment[s] * size;
    for (std::int64_t i = arrangement.slot_segment[s] + 1; i < arrangement.slot_segment[s + 1]; ++i) {
      const T* part = sums.data() + i * size;
      for (std::int64_t j = 0; j < size; ++j) sum[j] += part[j];
    }
    kernels_of_isa.spread(program, channels, sum, call.grad_weight + arrangement.slot_species[s] * weights);
  });
}

template CLEBSCH_API void run_symmetric_contraction(const ContractionCall<float>&, ContractionStep, Parallel);
template CLEBSCH_API void run_symmetric_contraction(const ContractionCall<double>&, ContractionStep,
                                                    Parallel);

}  // namespace clebsch
