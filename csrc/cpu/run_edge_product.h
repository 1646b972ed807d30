// Products of edges with what their receivers have: x, weights and results have a row for every edge, y and
// gy one for every node.
//
// Edges are taken in blocks, by receiver. Where lanes are channels a block has one receiver, whose y is read
// where it is and whose gy the kernel sums. Where lanes are edges a block may have many: their rows of y are
// copied next to each other, and the rows of gy that the kernel leaves are added to those of the receivers.
// From memory y comes once for a node, not for an edge. Edges that follow each other in the order of their
// receivers are read and written in place; others are copied.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dispatch.h"
#include "product_call.h"

namespace clebsch {

template <class T>
class EdgeBlocks {
 public:
  EdgeBlocks(const ProductCall<T>& call, Derivative derivative, bool channels)
      : call_(call), derivative_(derivative), channels_(channels) {}

  // Elements that `run` works in.
  std::int64_t scratch_size() const {
    const Program& p = call_.plan->program;
    const std::int64_t weights = call_.shared_weights ? 0 : p.weight_numel;
    return kBlock * (3 * p.dim2 + 3 * p.dim1 + 3 * weights + 2 * p.dim_out);
  }

  // The edges of receivers [begin, end). args: results that nobody wants have stride 0.
  void run(const ProductArgs<T>& args, std::int64_t begin, std::int64_t end, const ProductKernels<T>& kernels,
           T* scratch, T* own) const {
    const std::int64_t* first = call_.graph->receiver_begin;
    const std::int64_t dim2 = call_.plan->program.dim2;
    if (call_.gy.data) {
      for (std::int64_t r = begin; r < end; ++r) std::fill_n(call_.gy[r], dim2, T{});
    }
    std::int64_t receiver = begin;
    for (std::int64_t at = first[begin], count = 0; at < first[end]; at += count) {
      while (first[receiver + 1] <= at) ++receiver;
      count = std::min(kBlock, first[channels_ ? receiver + 1 : end] - at);
      Block b{own, call_.graph->edge + at, count};
      for (std::int64_t e = 0; e < count; ++e) {
        while (first[receiver + 1] <= at + e) ++receiver;
        b.receivers[e] = receiver;
      }
      b.adjacent = b.edges[count - 1] - b.edges[0] == count - 1 && std::is_sorted(b.edges, b.edges + count);
      run_block(args, b, kernels, scratch);
    }
  }

 private:
  static constexpr std::int64_t kBlock = 64;

  struct Block {
    T* own;
    const std::int64_t* edges;
    std::int64_t count;
    bool adjacent = false;
    std::int64_t receivers[kBlock] = {};

    T* take(std::int64_t length) { return (own += count * length) - count * length; }
    Rows<const T> gather(const Rows<const T>& rows, const std::int64_t* index, std::int64_t length) {
      if (rows.stride == 0) return rows;
      T* to = take(length);
      for (std::int64_t e = 0; e < count; ++e) std::copy_n(rows[index[e]], length, to + e * length);
      return {to, length};
    }
    Rows<const T> operand(const Rows<const T>& rows, std::int64_t length) {
      return adjacent ? Rows<const T>{rows[edges[0]], rows.stride} : gather(rows, edges, length);
    }
    Rows<T> result(const Rows<T>& rows, std::int64_t length) {
      if (rows.stride == 0) return rows;
      return adjacent ? Rows<T>{rows[edges[0]], rows.stride} : Rows<T>{take(length), length};
    }
    void give(const Rows<T>& from, const Rows<T>& rows, std::int64_t length) const {
      if (adjacent || rows.stride == 0) return;
      for (std::int64_t e = 0; e < count; ++e) std::copy_n(from[e], length, rows[edges[e]]);
    }
  };

  void run_block(const ProductArgs<T>& all, Block& b, const ProductKernels<T>& kernels, T* scratch) const {
    const Program& p = call_.plan->program;
    ProductArgs<T> args = all;
    args.rows = b.count;
    args.x = b.operand(all.x, p.dim1);
    args.shared_y = channels_;
    args.y = of_receivers(all.y, b);
    args.w = b.operand(all.w, p.weight_numel);
    args.out = b.result(all.out, p.dim_out);
    if (derivative_ != Derivative::none) {
      args.g = b.operand(all.g, p.dim_out);
      args.gx = b.result(all.gx, p.dim1);
      args.gw = b.result(all.gw, p.weight_numel);
      if (call_.gy.data)
        args.gy = channels_ ? Rows<T>{all.gy[b.receivers[0]], 0} : Rows<T>{b.take(p.dim2), p.dim2};
    }
    if (derivative_ == Derivative::second) {
      args.ax = b.operand(all.ax, p.dim1);
      args.ay = of_receivers(all.ay, b);
      args.aw = b.operand(all.aw, p.weight_numel);
    }
    kernel_of(kernels, derivative_)(args, 0, b.count, scratch);
    b.give(args.out, all.out, p.dim_out);
    b.give(args.gx, all.gx, p.dim1);
    b.give(args.gw, all.gw, p.weight_numel);
    for (std::int64_t e = 0; call_.gy.data && !channels_ && e < b.count; ++e) {
      T* sum = call_.gy[b.receivers[e]];
      for (std::int64_t d = 0; d < p.dim2; ++d) sum[d] += args.gy[e][d];
    }
  }

  Rows<const T> of_receivers(const Rows<const T>& rows, Block& b) const {
    if (channels_) return {rows[b.receivers[0]], 0};
    return b.gather(rows, b.receivers, call_.plan->program.dim2);
  }

  const ProductCall<T>& call_;
  const Derivative derivative_;
  const bool channels_;  // lie in the lanes
};

}  // namespace clebsch
