#include "cpu/run_product.h"

#include <algorithm>
#include <limits>

#include "cpu/dispatch.h"
#include "graph_order.h"
#include "memory.h"

namespace clebsch {
namespace {

// Memory on cache lines, not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release_memory(data_); }
  T* reserve(std::int64_t count) {
    if (count > size_) {
      release_memory(data_);
      data_ = nullptr;
      size_ = 0;
      data_ = static_cast<T*>(acquire_memory(static_cast<std::size_t>(count) * sizeof(T)));
      size_ = count;
    }
    if (poisons_new_memory()) std::fill_n(data_, count, std::numeric_limits<T>::quiet_NaN());
    return data_;
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

// Kept from call to call: fresh pages cost more than the arithmetic of a small call.
template <class T>
T* thread_scratch(std::int64_t count) {
  static thread_local Buffer<T> buffer;
  return buffer.reserve(count);
}

template <class F>
void for_each_chunk(std::int64_t tasks, Parallel parallel, F f) {
  if (tasks == 0) return;
  parallel(
      tasks,
      [](void* context, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) (*static_cast<F*>(context))(i);
      },
      &f);
}

// Even pieces of [0, count) for work without private sums.
template <class F>
void for_each_piece(std::int64_t count, std::int64_t smallest, Parallel parallel, F f) {
  const std::int64_t pieces = std::clamp<std::int64_t>(count / smallest, 1, 64);
  for_each_chunk(pieces, parallel, [&](std::int64_t i) { f(count * i / pieces, count * (i + 1) / pieces); });
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
        panels_(channels_ && call.graph) {}

  void run() {
    ProductArgs<T> args{};
    args.program = &program_;
    args.graph = call_.graph;
    args.x = operand(call_.x, x_panels_);
    args.y = call_.y;
    args.w = call_.w;
    args.shared_weights = call_.shared_weights;
    const bool forward = derivative_ != Derivative::first, backward = derivative_ != Derivative::none;
    if (derivative_ == Derivative::second) {
      const std::int64_t longest =
          std::max({program_.panel1, program_.dim1, program_.dim2, program_.weight_numel});
      std::fill_n(zeros_.reserve(longest + 16), longest + 16, T{});
      args.ax = call_.ax.data ? operand(call_.ax, ax_panels_) : Rows<const T>{zeros_.data(), 0};
      args.ay = call_.ay.data ? call_.ay : Rows<const T>{zeros_.data(), 0};
      args.aw = call_.aw.data ? call_.aw : Rows<const T>{zeros_.data(), 0};
    }
    if (forward) args.out = call_.out;
    if (backward) {
      args.g = call_.g;
      args.gx = call_.gx;
      args.gy = call_.gy;
      args.gw = call_.gw;
      // Private sums of senders, one for each slot.
      if (call_.graph) args.gx = {slots_.reserve(call_.graph->slots * gx_length()), gx_length()};
    }
    const std::int64_t chunks = chunk_count();
    const bool reduce_weights =
        backward && call_.shared_weights && call_.gw.data && program_.weight_numel > 0;
    if (reduce_weights) weight_sums_.reserve(chunks * program_.weight_numel);
    for_each_chunk(chunks, parallel_, [&](std::int64_t chunk) {
      T* sums = reduce_weights ? weight_sums_.data() + chunk * program_.weight_numel : nullptr;
      run_chunk(args, chunk, chunks, sums);
    });
    if (reduce_weights) add_weight_gradients(chunks);
    if (backward && call_.graph && call_.gx.data) add_sender_gradients();
  }

 private:
  // Chunks depend on the call alone: sums are the same for any number of threads.
  std::int64_t chunk_count() const {
    if (call_.graph) return call_.graph->chunks;
    std::int64_t chunks = std::clamp<std::int64_t>(call_.rows / 64, 1, 64);
    if (call_.shared_weights && derivative_ != Derivative::none && program_.weight_numel > 0) {
      chunks = std::min(chunks, std::max<std::int64_t>(8, (std::int64_t{1} << 21) / program_.weight_numel));
    }
    return chunks;
  }

  void run_chunk(ProductArgs<T> args, std::int64_t chunk, std::int64_t chunks, T* weight_sums) const {
    const std::int64_t begin = call_.graph ? chunk_begin(*call_.graph, chunk) : call_.rows * chunk / chunks;
    const std::int64_t end =
        call_.graph ? chunk_begin(*call_.graph, chunk + 1) : call_.rows * (chunk + 1) / chunks;
    const std::int64_t needed = (kernels_.scratch_size(program_) + 15) / 16 * 16;
    const std::int64_t sink =
        std::max({program_.dim1, program_.dim2, program_.dim_out, program_.weight_numel}) + 16;
    T* scratch = thread_scratch<T>(needed + sink);
    const auto unless_wanted = [&](Rows<T>& result) {
      if (!result.data) result = {scratch + needed, 0};
    };
    unless_wanted(args.out);
    unless_wanted(args.gx);
    unless_wanted(args.gy);
    if (weight_sums) args.gw = {weight_sums, 0};
    unless_wanted(args.gw);
    if (args.shared_weights && derivative_ != Derivative::none)
      std::fill_n(args.gw.data, program_.weight_numel, T{});
    switch (derivative_) {
      case Derivative::none:
        return kernels_.forward(args, begin, end, scratch);
      case Derivative::first:
        return kernels_.backward(args, begin, end, scratch);
      case Derivative::second:
        return kernels_.double_backward(args, begin, end, scratch);
    }
  }

  // x as the kernel wants it: nodes are met once for every edge, so they are transposed once, here. (Design
  // asked for transposing at every edge; at 40 edges a node this is 40 times less work for a copy of 1/100 of
  // the weights.)
  Rows<const T> operand(const Rows<const T>& rows, Buffer<T>& panels) const {
    if (!panels_ || program_.whole_lines1) return rows;
    const std::int64_t nodes = call_.graph->nodes;
    T* data = panels.reserve(nodes * program_.panel1);
    for_each_piece(nodes, 32, parallel_, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        table_.to_panel(program_.in1, program_.in1_count, program_.mul_ir, rows[n],
                        data + n * program_.panel1);
      }
    });
    return {data, program_.panel1};
  }

  std::int64_t gx_length() const { return panels_ ? program_.panel1 : program_.dim1; }

  void add_sender_gradients() const {
    const Graph& graph = *call_.graph;
    const std::int64_t length = gx_length();
    for_each_piece(graph.nodes, 16, parallel_, [&](std::int64_t begin, std::int64_t end) {
      T* sum = thread_scratch<T>(length);
      for (std::int64_t n = begin; n < end; ++n) {
        const std::int64_t first = graph.sender_begin[n], last = graph.sender_begin[n + 1];
        if (first == last) {
          std::fill_n(call_.gx[n], program_.dim1, T{});
          continue;
        }
        std::copy_n(slots_.data() + graph.slot_of_sender[first] * length, length, sum);
        for (std::int64_t at = first + 1; at < last; ++at) {
          const T* part = slots_.data() + graph.slot_of_sender[at] * length;
          for (std::int64_t d = 0; d < length; ++d) sum[d] += part[d];
        }
        if (panels_) {
          table_.from_panel(program_.in1, program_.in1_count, program_.mul_ir, sum, call_.gx[n]);
        } else {
          std::copy_n(sum, length, call_.gx[n]);
        }
      }
    });
  }

  void add_weight_gradients(std::int64_t chunks) const {
    const std::int64_t numel = program_.weight_numel;
    for_each_piece(numel, 1024, parallel_, [&](std::int64_t begin, std::int64_t end) {
      std::copy(weight_sums_.data() + begin, weight_sums_.data() + end, call_.gw.data + begin);
      for (std::int64_t chunk = 1; chunk < chunks; ++chunk) {
        const T* part = weight_sums_.data() + chunk * numel;
        for (std::int64_t i = begin; i < end; ++i) call_.gw.data[i] += part[i];
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
  const bool panels_;  // x, ax and the private sums of gx are panels
  Buffer<T> x_panels_, ax_panels_, slots_, weight_sums_, zeros_;
};

}  // namespace

void run_here(std::int64_t tasks, Body body, void* context) { body(context, 0, tasks); }

template <class T>
void run_product(const ProductCall<T>& call, Derivative derivative, Parallel parallel) {
  ProductRun<T>(call, derivative, parallel).run();
}

template CLEBSCH_API void run_product(const ProductCall<float>&, Derivative, Parallel);
template CLEBSCH_API void run_product(const ProductCall<double>&, Derivative, Parallel);

}  // namespace clebsch
