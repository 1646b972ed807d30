#include "cuda/run_product.h"

#include <algorithm>
#include <atomic>

namespace clebsch::cuda {
namespace {

std::atomic<std::int64_t> workspace_bytes_of_tests{0};

template <class T>
class DerivativeRun {
 public:
  DerivativeRun(const DeviceProduct<T>& product, bool tangent, const Workspace& workspace, void* stream)
      : whole_(product),
        tangent_(tangent),
        stream_(stream),
        sum_senders_(product.graph.edge && product.gx.data),
        sum_weights_(product.shared_weights && product.gw.data),
        part_x_(sum_senders_ ? product.plan.dim1 : 0),
        part_w_(sum_weights_ ? product.plan.weight_numel : 0),
        begin_(product.windowed ? product.window_begin : 0),
        end_(product.windowed ? product.window_end : product.rows),
        rows_(rows_at_a_time()) {
    const auto take = [&](std::int64_t count) {
      return static_cast<T*>(workspace.take(workspace.context, static_cast<std::size_t>(count) * sizeof(T)));
    };
    if (sum_senders_) parts_x_ = take(rows_ * part_x_);
    if (sum_weights_) parts_w_ = take(rows_ * part_w_);
    if (sum_weights_) sums_w_ = take(row_groups(rows_) * part_w_);
  }

  // Windows of positions follow each other, and add in their order.
  void run() const {
    std::int64_t first = begin_;
    do {
      DeviceProduct<T> product = whole_;
      product.first_position = first;
      product.last_position = std::min(first + rows_, end_);
      if (sum_senders_) product.gx = {parts_x_, part_x_};
      if (sum_weights_) product.gw = {parts_w_, part_w_};
      if (!launch_channels_backward(product, tangent_, stream_))
        launch_rows_backward(product, tangent_, stream_);
      if (sum_senders_)
        launch_sender_sums(SenderSums<T>{whole_.graph, parts_x_, whole_.gx, part_x_, first,
                                         product.last_position, first > 0},
                           stream_);
      if (sum_weights_) add_weights(product.last_position - first, first > 0);
      first += rows_;
    } while (first < end_);
  }

 private:
  std::int64_t rows_at_a_time() const {
    const std::int64_t part = (part_x_ + part_w_) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t all = std::max<std::int64_t>(end_ - begin_, 1);
    return part == 0 ? all
                     : std::clamp<std::int64_t>(workspace_bytes(std::int64_t{256} << 20) / part, 1, all);
  }

  // Groups of rows, then groups of those, there and back between two pieces, until one is left.
  void add_weights(std::int64_t rows, bool add) const {
    T *from = parts_w_, *to = sums_w_;
    for (; row_groups(rows) > 1; rows = row_groups(rows), std::swap(from, to)) {
      launch_row_sums(RowSums<T>{from, rows, part_w_, to, row_groups(rows), false}, stream_);
    }
    launch_row_sums(RowSums<T>{from, rows, part_w_, whole_.gw.data, 1, add}, stream_);
  }

  const DeviceProduct<T>& whole_;
  const bool tangent_;
  void* const stream_;
  const bool sum_senders_, sum_weights_;
  const std::int64_t part_x_, part_w_, begin_, end_, rows_;
  T *parts_x_ = nullptr, *parts_w_ = nullptr, *sums_w_ = nullptr;
};

}  // namespace

void set_workspace_bytes(std::int64_t bytes) { workspace_bytes_of_tests = bytes; }
std::int64_t workspace_bytes(std::int64_t bytes) {
  const std::int64_t set = workspace_bytes_of_tests;
  return set ? set : bytes;
}

template <class T>
void run_product(const ProductCall<T>& call, const PlanTables<T>& plan, const GraphView* graph,
                 Derivative derivative, const Workspace& workspace, void* stream, const Window* window) {
  DeviceProduct<T> product{};
  product.plan = plan;
  if (graph) product.graph = *graph;
  product.rows = call.rows;
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
  if (derivative != Derivative::first && call.out.data) {
    product.out = call.out;
    if (!launch_channels_forward(product, tangent, stream)) launch_rows_forward(product, tangent, stream);
  }
  if (derivative == Derivative::none) return;
  product.gx = call.gx;
  product.gy = call.gy;
  product.gw = call.gw;
  if (product.gx.data || product.gy.data || product.gw.data)
    DerivativeRun<T>(product, tangent, workspace, stream).run();
}

template void run_product(const ProductCall<float>&, const PlanTables<float>&, const GraphView*, Derivative,
                          const Workspace&, void*, const Window*);
template void run_product(const ProductCall<double>&, const PlanTables<double>&, const GraphView*, Derivative,
                          const Workspace&, void*, const Window*);

}  // namespace clebsch::cuda
