#include "cuda/run_product.h"

#include <algorithm>
#include <atomic>

namespace clebsch::cuda {
namespace {

std::atomic<std::int64_t> workspace_bytes_of_tests{0};

template <class T>
T* take(const Workspace& workspace, std::int64_t count) {
  return static_cast<T*>(workspace.take(workspace.context, static_cast<std::size_t>(count) * sizeof(T)));
}

// A result that kernels add to. Numbers of 16 bits are sums in work space meanwhile, and rounded once.
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
  if (channels_serve_forward(product.plan, tangent)) {
    product.out = written_once(out);
    launch_channels_forward(product, tangent, stream);
    return;
  }
  const Sums<S> sums(out, true, product.receivers(), product.plan.dim_out, workspace);
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
                const Workspace& workspace, void* stream)
      : whole_(product),
        call_(call),
        tangent_(tangent),
        stream_(stream),
        channels_(channels_serve_backward(product.plan, tangent)),
        sum_senders_(product.graph.edge && call.gx.data),
        sum_weights_(product.shared_weights && call.gw.data),
        part_x_(sum_senders_ ? product.plan.dim1 : 0),
        part_w_(sum_weights_ ? product.plan.weight_numel : 0),
        begin_(product.windowed ? product.window_begin : 0),
        end_(product.windowed ? product.window_end : product.rows),
        rows_(rows_at_a_time()),
        gx_(call.gx, sum_senders_ || !channels_, product.receivers(), product.plan.dim1, workspace),
        gy_(call.gy, true, product.rows, product.plan.dim2, workspace),
        gw_(call.gw, sum_weights_, 1, product.plan.weight_numel, workspace) {
    if (sum_senders_) parts_x_ = take<T>(workspace, rows_ * part_x_);
    if (sum_weights_) parts_w_ = take<T>(workspace, rows_ * part_w_);
    if (sum_weights_) sums_w_ = take<T>(workspace, row_groups(rows_) * part_w_);
  }

  // Windows of positions follow each other, and add in their order.
  void run() const {
    std::int64_t first = begin_;
    do {
      DeviceProduct<S> product = whole_;
      product.first_position = first;
      product.last_position = std::min(first + rows_, end_);
      set_results(product);
      if (channels_) {
        launch_channels_backward(product, tangent_, stream_);
      } else {
        launch_rows_backward(product, tangent_, stream_);
      }
      if (sum_senders_)
        launch_sender_sums(SenderSums<T>{whole_.graph, parts_x_, gx_.rows(), part_x_, first,
                                         product.last_position, first > 0},
                           stream_);
      if (sum_weights_) add_weights(product.last_position - first, first > 0);
      first += rows_;
    } while (first < end_);
    for (const Sums<S>* sums : {&gx_, &gy_, &gw_}) sums->round(stream_);
  }

 private:
  std::int64_t rows_at_a_time() const {
    const std::int64_t part = (part_x_ + part_w_) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t all = std::max<std::int64_t>(end_ - begin_, 1);
    return part == 0 ? all
                     : std::clamp<std::int64_t>(workspace_bytes(std::int64_t{256} << 20) / part, 1, all);
  }

  void set_results(DeviceProduct<S>& product) const {
    product.gx = written_once(call_.gx);
    product.gw = written_once(call_.gw);
    if (gx_.rows().data) product.gx = {{}, gx_.rows()};
    product.gy = {{}, gy_.rows()};
    if (sum_senders_) product.gx = {{}, {parts_x_, part_x_}};
    if (sum_weights_) product.gw = {{}, {parts_w_, part_w_}};
  }

  // Groups of rows, then groups of those, there and back between two pieces, until one is left.
  void add_weights(std::int64_t rows, bool add) const {
    T *from = parts_w_, *to = sums_w_;
    for (; row_groups(rows) > 1; rows = row_groups(rows), std::swap(from, to)) {
      launch_row_sums(RowSums<T>{from, rows, part_w_, to, row_groups(rows), false}, stream_);
    }
    launch_row_sums(RowSums<T>{from, rows, part_w_, gw_.rows().data, 1, add}, stream_);
  }

  const DeviceProduct<S>& whole_;
  const ProductCall<S>& call_;
  const bool tangent_;
  void* const stream_;
  const bool channels_, sum_senders_, sum_weights_;
  const std::int64_t part_x_, part_w_, begin_, end_, rows_;
  const Sums<S> gx_, gy_, gw_;
  T *parts_x_ = nullptr, *parts_w_ = nullptr, *sums_w_ = nullptr;
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
    DerivativeRun<S>(product, call, tangent, workspace, stream).run();
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
