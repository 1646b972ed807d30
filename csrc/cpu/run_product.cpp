#include "cpu/run_product.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "cpu/dispatch.h"
#include "cpu/run_density.h"
#include "cpu/run_edge_product.h"
#include "cpu/run_radial_convolution.h"
#include "cpu/work.h"
#include "graph_order.h"

namespace clebsch {
namespace {

// Panels of all nodes may take so much, the private sums of a wave of chunks as much or, where many cores
// wait for chunks, half a MiB for each of them.
constexpr std::int64_t kPanelBytes = std::int64_t{2} << 20, kPrivateBytes = 2 * kPanelBytes;
// Results of a call that are larger together go past the caches, where a kernel can write whole lines once:
// to read them first would be half of the traffic that they cause.
constexpr std::int64_t kFarBytes = std::int64_t{4} << 20;
constexpr std::int64_t kWidestVector = 16;  // lanes of any instruction set, at most
std::int64_t private_bytes() {
  const std::int64_t set = private_bytes_of_tests;
  return set ? set : std::max(kPrivateBytes, cores() << 19);
}

template <class T>
class ProductRun {
 public:
  ProductRun(const ProductCall<T>& call, Derivative derivative, Parallel parallel)
      : call_(call),
        program_(call.plan->program),
        derivative_(derivative),
        parallel_(parallel),
        table_(kernels<T>().tensor_product),
        channels_(derivative == Derivative::none ? call.plan->channels.forward
                                                 : call.plan->channels.derivatives),
        kernels_(channels_ ? table_.channels : table_.rows),
        sums_(call.graph && !call.y_of_receivers),
        panels_(channels_ && sums_),
        x_by_slot_(panels_ && !program_.whole_lines1 && panel_bytes() > kPanelBytes) {}

  void run() {
    ProductArgs<T> args{};
    args.program = &program_;
    args.graph = sums_ ? call_.graph : nullptr;
    args.rows = call_.rows;
    args.y = call_.y;
    args.w = call_.w;
    args.shared_weights = call_.shared_weights;
    args.x_by_slot = x_by_slot_;
    args.x = operand(call_.x, x_panels_);
    if (call_.radial) radial_.emplace(call_, derivative_);
    if (call_.y_of_receivers) edges_.emplace(call_, derivative_, channels_);
    if (derivative_ == Derivative::second || call_.radial) {
      const std::int64_t longest =
          std::max({program_.panel1, program_.dim1, program_.dim2, program_.weight_numel});
      std::fill_n(zeros_.reserve(longest + 16), longest + 16, T{});
    }
    if (derivative_ == Derivative::second) {
      args.ax = call_.ax.data ? operand(call_.ax, ax_panels_) : Rows<const T>{zeros_.data(), 0};
      args.ay = call_.ay.data ? call_.ay : Rows<const T>{zeros_.data(), 0};
      args.aw = call_.aw.data ? call_.aw : Rows<const T>{zeros_.data(), 0};
    }
    if (derivative_ != Derivative::first) args.out = call_.out;
    if (derivative_ != Derivative::none) {
      args.g = call_.g;
      args.gx = call_.gx;
      args.gy = call_.gy;
      args.gw = call_.gw;
    }
    if (!sums_) {
      const bool rows_of_y = !call_.graph, rows_of_w = !call_.shared_weights;
      const bool far = bytes(args.out, program_.dim_out) + bytes(args.gx, program_.dim1) +
                           (rows_of_y ? bytes(args.gy, program_.dim2) : 0) +
                           (rows_of_w ? bytes(args.gw, program_.weight_numel) : 0) >
                       kFarBytes;
      args.far_out = far && args.out.data;
      args.far_x = far && args.gx.data;
      args.far_y = far && args.gy.data && rows_of_y;
      args.far_w = far && args.gw.data && rows_of_w;
    }
    const bool sum_senders = sums_ && args.gx.data, sum_weights = sums_target();
    if (sum_senders) {
      for_each_piece(call_.graph->nodes, 64, parallel_, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) std::fill_n(call_.gx[n], program_.dim1, T{});
      });
    }
    if (sum_weights) std::fill_n(sums_target(), sums_numel(), T{});
    const std::int64_t chunks = chunk_count();
    for (std::int64_t begin = 0, end = 0; begin < chunks; begin = end) {
      end = wave_end(begin, chunks, sum_senders, sum_weights);
      if (sum_senders) slots_.reserve((first_slot(end) - first_slot(begin)) * gx_length());
      if (sum_weights) weight_sums_.reserve((end - begin) * sums_numel());
      for_each_chunk(end - begin, parallel_, [&](std::int64_t i) {
        ProductArgs<T> own = args;
        if (sum_senders) {
          const std::int64_t before = first_slot(begin + i) - first_slot(begin);
          own.gx = {slots_.data() + before * gx_length(), gx_length()};
        }
        T* sums = sum_weights ? weight_sums_.data() + i * sums_numel() : nullptr;
        if (call_.shared_weights) own.gw = {sums, 0};
        run_chunk(own, begin + i, chunks, sums);
      });
      if (sum_senders) add_sender_gradients(first_slot(begin), first_slot(end));
      if (sum_weights) add_weight_gradients(end - begin);
    }
  }

 private:
  std::int64_t bytes(const Rows<T>& result, std::int64_t length) const {
    return result.data ? call_.rows * length * static_cast<std::int64_t>(sizeof(T)) : 0;
  }
  // Chunks depend on the call alone: sums are the same for any number of threads. Private sums of weights are
  // cleared and added for each, as much traffic as sixteen rows cause.
  std::int64_t chunk_count() const {
    const std::int64_t rows = call_.shared_weights && derivative_ != Derivative::none ? 128 : 64;
    return call_.graph ? call_.graph->chunks : std::clamp<std::int64_t>(call_.rows / rows, 1, 64);
  }
  // Where rows are lanes, a vector of a few of them takes as long as a full one.
  std::int64_t first_row(std::int64_t chunk, std::int64_t chunks) const {
    return chunk == chunks ? call_.rows : call_.rows * chunk / chunks / kWidestVector * kWidestVector;
  }
  // A gradient that all rows add to, or null: of shared weights, or of the matrix that makes the weights.
  T* sums_target() const {
    if (call_.radial) return call_.radial->grad_matrix;
    return call_.shared_weights ? call_.gw.data : nullptr;
  }
  std::int64_t sums_numel() const {
    return call_.radial ? call_.radial->size * program_.weight_numel : program_.weight_numel;
  }
  std::int64_t first_slot(std::int64_t chunk) const { return call_.graph->chunk_slot[chunk]; }

  // Chunks run in waves whose private sums fit private_bytes(). Waves follow each other, and sums are added
  // in the order of the chunks, so memory is bounded for any number of edges. (Many shared weights, or a
  // large matrix: a chunk for each core all the same.)
  std::int64_t wave_end(std::int64_t begin, std::int64_t chunks, bool sum_senders, bool sum_weights) const {
    const std::int64_t most = private_bytes() / static_cast<std::int64_t>(sizeof(T));
    const auto fits = [&](std::int64_t last) {
      const std::int64_t senders = sum_senders ? (first_slot(last) - first_slot(begin)) * gx_length() : 0;
      return senders + (sum_weights ? (last - begin) * sums_numel() : 0) <= most;
    };
    std::int64_t end = begin + 1;
    while (end < chunks && (fits(end + 1) || (sum_weights && end - begin < cores()))) ++end;
    return end;
  }

  // sums: of the chunk, to which all its rows add; null if there are none.
  void run_chunk(ProductArgs<T> args, std::int64_t chunk, std::int64_t chunks, T* sums) const {
    const Graph* graph = call_.graph;
    const std::int64_t begin = graph ? graph->chunk_begin[chunk] : first_row(chunk, chunks);
    const std::int64_t end = graph ? graph->chunk_begin[chunk + 1] : first_row(chunk + 1, chunks);
    const std::int64_t needed = (kernels_.scratch_size(program_, call_.shared_weights) + 15) / 16 * 16;
    const std::int64_t longest =
        std::max({program_.panel1, program_.dim1, program_.dim2, program_.dim_out, program_.weight_numel});
    const std::int64_t sink = (longest + 31) / 16 * 16;
    const std::int64_t slots = sums_ ? first_slot(chunk + 1) - first_slot(chunk) : 0;
    const std::int64_t panels = x_by_slot_ ? slots * program_.panel1 : 0;
    const std::int64_t own = radial_ ? radial_->scratch_size() : edges_ ? edges_->scratch_size() : 0;
    T* scratch = thread_scratch<T>(needed + sink + 2 * panels + own);
    const auto unless_wanted = [&](Rows<T>& result) {
      if (!result.data) result = {scratch + needed, 0};
    };
    unless_wanted(args.out);
    unless_wanted(args.gx);
    unless_wanted(args.gy);
    unless_wanted(args.gw);
    if (args.shared_weights && derivative_ != Derivative::none)
      std::fill_n(args.gw.data, program_.weight_numel, T{});
    if (graph) args.first_slot = first_slot(chunk);
    if (x_by_slot_) {
      T* to = scratch + needed + sink;
      args.x = slot_panels(args.x, args.first_slot, slots, to);
      if (call_.ax.data) args.ax = slot_panels(args.ax, args.first_slot, slots, to + panels);
    }
    T* rest = scratch + needed + sink + 2 * panels;
    if (radial_) {
      return radial_->run(args, begin, end, kernels_, scratch, rest, scratch + needed, zeros_.data(), sums);
    }
    if (edges_) return edges_->run(args, begin, end, kernels_, scratch, rest);
    kernel_of(kernels_, derivative_)(args, begin, end, scratch);
  }

  // x as the kernel wants it, in panels: transposed at every edge it would be met 40 times instead of once.
  // As long as all nodes fit kPanelBytes they are transposed here, else each chunk does so for its senders.
  Rows<const T> operand(const Rows<const T>& rows, Buffer<T>& panels) const {
    if (!panels_ || x_by_slot_ || program_.whole_lines1) return rows;
    const std::int64_t nodes = call_.graph->nodes;
    T* data = panels.reserve(nodes * program_.panel1);
    for_each_piece(nodes, 32, parallel_, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) to_panel(rows[n], data + n * program_.panel1);
    });
    return {data, program_.panel1};
  }
  Rows<const T> slot_panels(const Rows<const T>& rows, std::int64_t first, std::int64_t slots,
                            T* data) const {
    for (std::int64_t s = 0; s < slots; ++s) {
      to_panel(rows[call_.graph->owner[first + s]], data + s * program_.panel1);
    }
    return {data, program_.panel1};
  }
  void to_panel(const T* row, T* panel) const {
    table_.to_panel(program_.in1, program_.in1_count, program_.mul_ir, row, panel);
  }

  std::int64_t panel_bytes() const {
    const std::int64_t operands = derivative_ == Derivative::second ? 2 : 1;
    return operands * call_.graph->nodes * program_.panel1 * static_cast<std::int64_t>(sizeof(T));
  }
  std::int64_t gx_length() const { return panels_ ? program_.panel1 : program_.dim1; }

  // The sums of slots [begin, end) onto the rows of their senders. The first slot of a sender among them
  // stands for all. One after the other, from the row on: where a wave ends makes no difference to a bit.
  void add_sender_gradients(std::int64_t begin, std::int64_t end) const {
    const Graph& graph = *call_.graph;
    const std::int64_t length = gx_length();
    for_each_piece(end - begin, 64, parallel_, [&](std::int64_t first, std::int64_t last) {
      T* sum = thread_scratch<T>(length + 16);
      std::fill_n(sum, length, T{});  // blocks that no path uses stay as they are in panels
      for (std::int64_t leader = begin + first; leader < begin + last; ++leader) {
        if (graph.previous[leader] >= begin) continue;
        T* gx = call_.gx[graph.owner[leader]];
        if (panels_) {
          to_panel(gx, sum);
        } else {
          std::copy_n(gx, length, sum);
        }
        for (std::int64_t s = leader; s >= 0 && s < end; s = graph.next[s]) {
          const T* part = slots_.data() + (s - begin) * length;
          for (std::int64_t d = 0; d < length; ++d) sum[d] += part[d];
        }
        if (panels_) {
          table_.from_panel(program_.in1, program_.in1_count, program_.mul_ir, sum, gx);
        } else {
          std::copy_n(sum, length, gx);
        }
      }
    });
  }

  void add_weight_gradients(std::int64_t chunks) const {
    const std::int64_t numel = sums_numel();
    T* target = sums_target();
    for_each_piece(numel, 1024, parallel_, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        const T* part = weight_sums_.data() + chunk * numel;
        for (std::int64_t i = begin; i < end; ++i) target[i] += part[i];
      }
    });
  }

  const ProductCall<T>& call_;
  const Program& program_;
  const Derivative derivative_;
  const Parallel parallel_;
  const TensorProductKernels<T>& table_;
  const bool channels_;  // what lies in the lanes
  const ProductKernels<T>& kernels_;
  const bool sums_;                        // at receivers, of what senders have
  const bool panels_;                      // x, ax and the private sums of gx are panels
  const bool x_by_slot_;                   // panels of x and ax are made by each chunk for its senders
  std::optional<RadialBlocks<T>> radial_;  // where weights are made a block of edges at a time
  std::optional<EdgeBlocks<T>> edges_;     // where edges meet what receivers have
  Buffer<T> x_panels_, ax_panels_, slots_, weight_sums_, zeros_;
};

}  // namespace

std::atomic<std::int64_t> private_bytes_of_tests{0};
void set_private_bytes(std::int64_t bytes) { private_bytes_of_tests = bytes; }

template <class T>
void run_product(const ProductCall<T>& call, Derivative derivative, Parallel parallel) {
  if (!call.radial) return ProductRun<T>(call, derivative, parallel).run();
  ProductCall<T> rest = call;
  RadialWeights<T> weights = *call.radial;
  rest.radial = &weights;
  if (const DensityRun<T> density(call, derivative); density.serves()) {
    density.run(parallel);
    rest.out = rest.gy = weights.grad_hidden = {};
    if (!rest.gx.data && !weights.grad_matrix) return;
  }
  ProductRun<T>(rest, derivative, parallel).run();
}

template CLEBSCH_API void run_product(const ProductCall<float>&, Derivative, Parallel);
template CLEBSCH_API void run_product(const ProductCall<double>&, Derivative, Parallel);

}  // namespace clebsch
