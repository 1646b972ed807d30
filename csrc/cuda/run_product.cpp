#include "cuda/run_product.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

namespace clebsch::cuda {
namespace {

std::atomic<std::int64_t> workspace_bytes_of_tests{0};

template <class T>
T* take(const Workspace& workspace, std::int64_t count) {
  return static_cast<T*>(workspace.take(workspace.context, static_cast<std::size_t>(count) * sizeof(T)));
}

// A result, and if wanted what kernels add to. Numbers of 16 bits are sums in work space meanwhile, and
// rounded once.
template <class S>
class Sums {
  using T = Arithmetic<S>;

 public:
  Sums(const Rows<S>& result, bool wanted, std::int64_t rows, std::int64_t length, const Workspace& workspace)
      : result_(result), count_(rows * length) {
    if (!wanted || !result.data) return;
    if constexpr (kShort<S>) {
      rows_ = {take<T>(workspace, count_), length};
    } else {
      rows_ = result;
    }
  }
  const Rows<T>& rows() const { return rows_; }
  // Where kernels put it if it is no sum of parts.
  Results<S> results() const { return rows_.data ? Results<S>{{}, rows_} : written_once(result_); }
  void round(void* stream) const {
    if constexpr (kShort<S>) {
      if (rows_.data) launch_round(RoundedSums<S>{rows_.data, result_.data, count_}, stream);
    }
  }

 private:
  const Rows<S> result_;
  const std::int64_t count_;
  Rows<T> rows_{};
};

template <class S>
void run_forward(DeviceProduct<S> product, const Rows<S>& out, bool tangent, const Workspace& workspace,
                 void* stream) {
  if constexpr (!kShort<S>) {
    if (product.windowed && product.window_begin == 0)
      launch_clear(ZeroRows<S>{out, product.tasks, product.plan.dim_out}, stream);
  }
  if (channels_serve_forward(product.plan, tangent)) {
    product.out = written_once(out);
    launch_channels_forward(product, tangent, stream);
    return;
  }
  const Sums<S> sums(out, true, product.tasks, product.plan.dim_out, workspace);
  product.out.sums = sums.rows();
  launch_rows_forward(product, tangent, stream);
  sums.round(stream);
}

// The results are those of the call.
template <class S>
class DerivativeRun {
  using T = Arithmetic<S>;

 public:
  DerivativeRun(const DeviceProduct<S>& product, const ProductCall<S>& call, bool tangent,
                const Workspace& workspace, void* stream, const Window* window)
      : whole_(product),
        window_(window),
        tangent_(tangent),
        stream_(stream),
        channels_(channels_serve_backward(product.plan, tangent)),
        sum_x_(product.graph.edge && !product.y_of_receivers && call.gx.data),
        sum_y_(product.y_of_receivers && call.gy.data),
        sum_w_(product.shared_weights && call.gw.data),
        parts_x_{nullptr, sum_x_ ? product.plan.dim1 : 0},
        parts_y_{nullptr, sum_y_ ? product.plan.dim2 : 0},
        parts_w_{nullptr, sum_w_ ? product.plan.weight_numel : 0},
        begin_(product.windowed ? product.window_begin : 0),
        end_(product.windowed ? product.window_end : product.rows),
        group_(sum_w_ && !channels_ ? rows_positions_of_gw(end_ - begin_) : 1),
        rows_(rows_at_a_time()),
        gx_(call.gx, sum_x_ || !channels_, product.tasks, product.plan.dim1, workspace),
        gy_(call.gy, true, sum_y_ ? product.graph.nodes : product.rows, product.plan.dim2, workspace),
        gw_(call.gw, sum_w_, 1, product.plan.weight_numel, workspace) {
    if (sum_x_ && window_ && (window_->begin < window_->parts_begin || window_->end > window_->parts_end))
      throw std::logic_error("a window lies outside of what its rows of gx have room for");
    if (sum_x_)
      parts_x_.data = window_ ? static_cast<T*>(window_->parts) : take<T>(workspace, rows_ * parts_x_.stride);
    if (sum_y_) parts_y_.data = take<T>(workspace, rows_ * parts_y_.stride);
    if (sum_w_) parts_w_.data = take<T>(workspace, groups(rows_) * parts_w_.stride);
    if (sum_w_) sums_w_ = take<T>(workspace, row_groups(groups(rows_)) * parts_w_.stride);
  }

  // Windows of positions follow each other, and add in their order.
  void run() const {
    std::int64_t first = begin_;
    do {
      DeviceProduct<S> product = whole_;
      product.first_position = first;
      product.positions_of_gw = group_;
      product.parts_begin = window_ ? window_->parts_begin : first;
      product.last_position = std::min(first + rows_, end_);
      product.gx = sum_x_ ? Results<S>{{}, parts_x_} : gx_.results();
      product.gy = sum_y_ ? Results<S>{{}, parts_y_} : gy_.results();
      product.gw = sum_w_ ? Results<S>{{}, parts_w_} : gw_.results();
      if (channels_) {
        launch_channels_backward(product, tangent_, stream_);
      } else {
        launch_rows_backward(product, tangent_, stream_);
      }
      const std::int64_t last = product.last_position;
      if (sum_x_ && (!window_ || last == window_->parts_end))
        add_parts(false, product.parts_begin, last, parts_x_, gx_.rows());
      if (sum_y_) add_parts(true, first, last, parts_y_, gy_.rows());
      if (sum_w_) add_weights(groups(last - first), first > 0);
      first += rows_;
    } while (first < end_);
    for (const Sums<S>* sums : {&gx_, &gy_, &gw_}) sums->round(stream_);
  }

 private:
  std::int64_t groups(std::int64_t positions) const { return (positions + group_ - 1) / group_; }
  // A multiple of the group, or all.
  std::int64_t rows_at_a_time() const {
    const std::int64_t part = (group_ * (parts_x_.stride + parts_y_.stride) + parts_w_.stride) *
                              static_cast<std::int64_t>(sizeof(T));
    const std::int64_t all = std::max<std::int64_t>(end_ - begin_, 1);
    if (part == 0 || window_) return all;
    // Every window goes over all nodes: few of them, where there are weights for each position anyway.
    const bool each = !whole_.shared_weights && whole_.w.stride > 0;
    const std::int64_t weights =
        each ? all * whole_.plan.weight_numel * static_cast<std::int64_t>(sizeof(S)) : 0;
    const std::int64_t bytes = workspace_bytes(std::max(std::int64_t{256} << 20, weights / 3));
    return std::min(all, group_ * std::max<std::int64_t>(bytes / part, 1));
  }

  void add_parts(bool of_receivers, std::int64_t first, std::int64_t last, const Rows<T>& parts,
                 const Rows<T>& sums) const {
    launch_node_sums(NodeSums<T>{whole_.graph, of_receivers, parts, sums, first, last, first > 0}, stream_);
  }

  // Groups of rows, then groups of those, there and back between two pieces, until one is left.
  void add_weights(std::int64_t rows, bool add) const {
    const std::int64_t length = parts_w_.stride;
    T *from = parts_w_.data, *to = sums_w_;
    for (; row_groups(rows) > 1; rows = row_groups(rows), std::swap(from, to)) {
      launch_row_sums(RowSums<T>{from, rows, length, to, row_groups(rows), false}, stream_);
    }
    launch_row_sums(RowSums<T>{from, rows, length, gw_.rows().data, 1, add}, stream_);
  }

  const DeviceProduct<S>& whole_;
  const Window* const window_;
  const bool tangent_;
  void* const stream_;
  const bool channels_, sum_x_, sum_y_, sum_w_;  // sum parts, of which each position has one
  Rows<T> parts_x_, parts_y_, parts_w_;
  const std::int64_t begin_, end_, group_, rows_;  // positions: all, those of a row of gw, those at a time
  const Sums<S> gx_, gy_, gw_;
  T* sums_w_ = nullptr;
};

}  // namespace

void set_workspace_bytes(std::int64_t bytes) { workspace_bytes_of_tests = bytes; }
std::int64_t workspace_bytes(std::int64_t bytes) {
  const std::int64_t set = workspace_bytes_of_tests;
  return set ? set : bytes;
}

template <class S>
void run_product(const ProductCall<S>& call, const PlanTables<Arithmetic<S>>& plan, const GraphView* graph,
                 Derivative derivative, const Workspace& workspace, void* stream, const Window* window) {
  DeviceProduct<S> product{};
  product.plan = plan;
  if (graph) product.graph = *graph;
  product.rows = call.rows;
  product.y_of_receivers = call.y_of_receivers;
  product.tasks = graph && !call.y_of_receivers ? graph->nodes : call.rows;
  product.x = call.x;
  product.y = call.y;
  product.w = call.w;
  product.shared_weights = call.shared_weights;
  if (window) {
    product.windowed = true;
    product.window_begin = window->begin;
    product.window_end = window->end;
  }
  const bool tangent = derivative == Derivative::second;
  if (derivative != Derivative::none) product.g = call.g;
  if (tangent) {
    product.ax = call.ax;
    product.ay = call.ay;
    product.aw = call.aw;
  }
  if (derivative != Derivative::first && call.out.data)
    run_forward(product, call.out, tangent, workspace, stream);
  if (derivative == Derivative::none) return;
  if (call.gx.data || call.gy.data || call.gw.data)
    DerivativeRun<S>(product, call, tangent, workspace, stream, window).run();
}

template void run_product(const ProductCall<float>&, const PlanTables<Arithmetic<float>>&, const GraphView*,
                          Derivative, const Workspace&, void*, const Window*);
template void run_product(const ProductCall<double>&, const PlanTables<Arithmetic<double>>&, const GraphView*,
                          Derivative, const Workspace&, void*, const Window*);
template void run_product(const ProductCall<Half>&, const PlanTables<Arithmetic<Half>>&, const GraphView*,
                          Derivative, const Workspace&, void*, const Window*);
template void run_product(const ProductCall<BFloat16>&, const PlanTables<Arithmetic<BFloat16>>&,
                          const GraphView*, Derivative, const Workspace&, void*, const Window*);

}  // namespace clebsch::cuda
