#include "cpu/run_symmetric_contraction.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/work.h"

namespace clebsch {
namespace {

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

template <class T>
void run_symmetric_contraction(const ContractionCall<T>& call, ContractionStep step, Parallel parallel) {
  check_index(call.index, call.nodes, call.species);
  const ContractionTable<T> table(call.table);
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
