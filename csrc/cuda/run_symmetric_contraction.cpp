#include "cuda/run_symmetric_contraction.h"

#include <algorithm>
#include <new>

namespace clebsch::cuda {
namespace {

// Chunks of nodes whose d/dw_r is summed by one warp each: enough of them for any device where nodes are
// many, and where they are few, of a few nodes each, so that sums are not written for every node.
constexpr std::int64_t kWarps = 2048, kFewest = 4, kLanes = 32;

template <class S>
class ContractionRun {
  using T = Arithmetic<S>;

 public:
  ContractionRun(const ContractionCall<S>& call, const ContractionTables<T>& plan, const Workspace& workspace,
                 void* stream)
      : call_(call), plan_(plan), workspace_(workspace), stream_(stream) {
    // Below 2^48 words for any table and number of species that has weights of one number each.
    length_ = std::int64_t{plan.rows} * call.channels;
    if (length_ > 0 && call.species > (std::int64_t{1} << 48) / length_) throw std::bad_alloc();
  }

  void run(ContractionStep step, const SortedSpecies& sorted) {
    DeviceContraction<S> a{};
    a.plan = plan_;
    a.nodes = call_.nodes;
    a.species = call_.species;
    a.channels = static_cast<int>(call_.channels);
    a.index = call_.index;
    a.chunk = 1;
    a.x = call_.x;
    a.ax = call_.ax;
    a.grad = call_.grad;
    a.out = call_.out;
    a.grad_x = call_.grad_x;
    if (call_.grad_weight) {
      const std::int64_t tiles = (call_.channels + kLanes - 1) / kLanes;
      a.order = sorted.node;
      a.chunk = std::max(kFewest, call_.nodes * tiles / kWarps);
      a.parts = take((call_.nodes / a.chunk + 1 + call_.species) * length_);
    }
    if (call_.nodes > 0 && call_.channels > 0) {
      a.weight = reduced(call_.weight);
      a.a_weight = reduced(call_.a_weight);
      const ContractionShape shape = contraction_shape(a, step);
      if (!shape.shared) a.columns = take(shape.blocks * shape.numbers);
      launch_contraction(a, step, shape, stream_);
    }
    if (call_.grad_weight) sum_weights(a, sorted);
  }

 private:
  T* take(std::int64_t count) const {
    return static_cast<T*>(workspace_.take(workspace_.context, static_cast<std::size_t>(count) * sizeof(T)));
  }
  const T* reduced(const S* weight) const {
    if (!weight) return nullptr;
    T* to = take(call_.species * length_);
    launch_reduce_weights<S>({plan_, call_.species, static_cast<int>(call_.channels), weight, to}, stream_);
    return to;
  }
  void sum_weights(const DeviceContraction<S>& a, const SortedSpecies& sorted) const {
    T* sums = take(call_.species * length_);
    launch_species_sums(
        SpeciesSums<T>{sorted.species, call_.nodes, call_.species, a.chunk, length_, a.parts, sums}, stream_);
    launch_spread_weights<S>({plan_, call_.species, a.channels, sums, call_.grad_weight}, stream_);
  }

  const ContractionCall<S>& call_;
  const ContractionTables<T>& plan_;
  const Workspace& workspace_;
  void* const stream_;
  std::int64_t length_;
};

}  // namespace

template <class S>
void run_symmetric_contraction(const ContractionCall<S>& call, const ContractionTables<Arithmetic<S>>& plan,
                               ContractionStep step, const SortedSpecies& sorted, const Workspace& workspace,
                               void* stream) {
  ContractionRun<S>(call, plan, workspace, stream).run(step, sorted);
}

template void run_symmetric_contraction(const ContractionCall<float>&,
                                        const ContractionTables<Arithmetic<float>>&, ContractionStep,
                                        const SortedSpecies&, const Workspace&, void*);
template void run_symmetric_contraction(const ContractionCall<double>&,
                                        const ContractionTables<Arithmetic<double>>&, ContractionStep,
                                        const SortedSpecies&, const Workspace&, void*);
template void run_symmetric_contraction(const ContractionCall<Half>&,
                                        const ContractionTables<Arithmetic<Half>>&, ContractionStep,
                                        const SortedSpecies&, const Workspace&, void*);
template void run_symmetric_contraction(const ContractionCall<BFloat16>&,
                                        const ContractionTables<Arithmetic<BFloat16>>&, ContractionStep,
                                        const SortedSpecies&, const Workspace&, void*);

}  // namespace clebsch::cuda
