// The weights of a convolution made as hidden @ matrix, for a block of edges at a time.
//
// The receivers of a chunk are cut into blocks whose weights fit the second cache. For each block
//   1. the rows of hidden are gathered in the order of the edges by receiver,
//   2. w = hidden matrix goes into the thread's scratch,
//   3. the kernel of the product runs on these receivers; their gradient of w lands in scratch, too,
//   4. grad_hidden = gw matrix^T goes to the rows of the edges, grad_matrix += hidden^T gw to the private sum
//      of the chunk.
// A receiver with more edges than a block is met in parts, whose sums are added. Blocks depend on the call
// alone, so results are the same bits for any number of threads.
//
// Work for an edge, H columns of hidden and N weights: each product is 2 H N flops. Forward one; backward
// three (w again, grad_hidden, grad_matrix), or two where no gradient of the matrix is wanted; double
// backward
//   w = h M,  aw = ah M + h aM,  grad_h = gw M^T + gw1 aM^T,  grad_M = h^T gw + ah^T gw1
// up to seven and a backward pass for gw1, the first-order gradient of w. What nobody wants and what a null
// operand would give is left out. Traffic: H numbers of hidden an edge (and as many of its gradient) where w
// itself would be N; the packed matrix, H N numbers, comes from the second cache once for 16 KiB of it and
// block. MACE-medium, H = 64, N = 1280: 164 kflop and 256 bytes an edge for 5 KB of weights; the product with
// these weights, 19 kflop.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/run_product.h"
#include "cpu/work.h"

namespace clebsch {

template <class T>
class RadialBlocks {
 public:
  RadialBlocks(const ProductCall<T>& call, Derivative derivative)
      : call_(call),
        radial_(*call.radial),
        derivative_(derivative),
        numel_(call.plan->program.weight_numel),
        stride_(odd_lines(numel_)),
        hidden_stride_(whole_lines(radial_.size)) {
    const bool grad_hidden = radial_.grad_hidden.data, grad_matrix = radial_.grad_matrix;
    const bool results = call.gx.data || call.gy.data || call.out.data;
    const bool moved = derivative != Derivative::second || call.ax.data || call.ay.data;
    const bool ahidden = radial_.ahidden.data, amatrix = radial_.amatrix.data;
    w_ = moved && results;
    aw_ = (ahidden || amatrix) && results;
    gw_ = moved && (grad_hidden || grad_matrix);
    gw1_ = (ahidden && grad_matrix) || (amatrix && grad_hidden);
    runs_ = results || gw_;
    // w, aw, gw and gw1, wanted or not: what is asked for makes no difference to a bit.
    const std::int64_t most = derivative == Derivative::none ? 1 : derivative == Derivative::first ? 2 : 4;
    const std::int64_t row_bytes = most * stride_ * static_cast<std::int64_t>(sizeof(T));
    block_ = std::clamp(kBlockBytes / row_bytes, kFewestEdges, kMostEdges);
    if (w_ || (aw_ && ahidden)) pack(radial_.matrix, packed_);
    if (aw_ && amatrix) pack(radial_.amatrix, apacked_);
    if (grad_hidden && gw_) pack_transposed(radial_.matrix, turned_);
    if (grad_hidden && gw1_ && amatrix) pack_transposed(radial_.amatrix, aturned_);
  }

  // Elements that `run` works in.
  std::int64_t scratch_size() const {
    const std::int64_t weights = w_ + aw_ + gw_ + gw1_;
    return block_ * (weights * stride_ + 3 * hidden_stride_) + whole_lines(call_.plan->program.dim_out);
  }

  // Receivers [begin, end). args: results that nobody wants point to `sink`, weights are left to this.
  void run(ProductArgs<T> args, std::int64_t begin, std::int64_t end, const ProductKernels<T>& kernels,
           T* scratch, T* own, T* sink, const T* zeros, T* grad_matrix) const {
    Space b{args, kernels, scratch, sink, zeros, grad_matrix};
    if (grad_matrix) std::fill_n(grad_matrix, radial_.size * numel_, T{});
    b.args.weights_by_position = true;
    const auto take = [&own](std::int64_t count) { return (own += count) - count; };
    b.w = w_ ? take(block_ * stride_) : nullptr;
    b.aw = aw_ ? take(block_ * stride_) : nullptr;
    b.gw = gw_ ? take(block_ * stride_) : nullptr;
    b.gw1 = gw1_ ? take(block_ * stride_) : nullptr;
    b.hidden = take(block_ * hidden_stride_);
    b.ahidden = take(block_ * hidden_stride_);
    b.grad_hidden = take(block_ * hidden_stride_);
    T* part = take(whole_lines(call_.plan->program.dim_out));
    const std::int64_t* first = call_.graph->receiver_begin;
    for (std::int64_t r = begin; r < end;) {
      if (first[r + 1] - first[r] > block_) {
        run_in_parts(b, r++, part);
        continue;
      }
      std::int64_t last = r + 1;
      while (last < end && first[last + 1] - first[r] <= block_) ++last;
      run_block(b, r, last, first[r], first[last]);
      r = last;
    }
  }

 private:
  // Of all weights of a block together: half of a second cache of 1 MiB, the rest for the packed matrix.
  static constexpr std::int64_t kBlockBytes = 512 << 10;
  static constexpr std::int64_t kFewestEdges = 16, kMostEdges = 96;

  // What a block is computed with and in; rows of w, aw, gw and gw1 are stride_ apart, of hidden
  // hidden_stride_.
  struct Space {
    ProductArgs<T> args;
    const ProductKernels<T>& kernels;
    T *scratch, *sink;
    const T* zeros;
    T *grad_matrix, *w = nullptr, *aw = nullptr, *gw = nullptr, *gw1 = nullptr;
    T *hidden = nullptr, *ahidden = nullptr, *grad_hidden = nullptr;
  };

  // An odd number of cache lines, so that the rows of a block spread over all sets of the nearest cache.
  static std::int64_t odd_lines(std::int64_t count) {
    constexpr std::int64_t line = 64 / sizeof(T);
    return ((count + line - 1) / line | 1) * line;
  }
  static std::int64_t whole_lines(std::int64_t count) { return (count + 15) / 16 * 16; }

  void pack(const Rows<const T>& m, Buffer<T>& to) { pack({m.data, m.stride, 1, radial_.size, numel_}, to); }
  void pack_transposed(const Rows<const T>& m, Buffer<T>& to) {
    pack({m.data, 1, m.stride, numel_, radial_.size}, to);
  }
  void pack(const DenseMatrix<T>& m, Buffer<T>& to) {
    table_.pack(m, to.reserve(table_.packed_size(m.depth, m.columns)));
  }

  // A receiver whose edges are more than a block, as a graph of one receiver.
  void run_in_parts(Space b, std::int64_t r, T* part) const {
    Graph alone = *call_.graph;
    std::int64_t ends[2];
    alone.receiver_begin = ends;
    const std::int64_t begin = call_.graph->receiver_begin[r], end = call_.graph->receiver_begin[r + 1];
    const std::int64_t parts = (end - begin + block_ - 1) / block_;
    b.args.graph = &alone;
    if (b.args.g.data) b.args.g = {b.args.g[r], 0};
    const std::int64_t length = call_.out.data ? call_.plan->program.dim_out : 0;
    T* out = b.args.out.data ? b.args.out[r] : nullptr;
    for (std::int64_t i = 0; i < parts; ++i) {
      ends[0] = begin + (end - begin) * i / parts;
      ends[1] = begin + (end - begin) * (i + 1) / parts;
      if (length) b.args.out = {i == 0 ? out : part, 0};
      run_block(b, 0, 1, ends[0], ends[1]);
      for (std::int64_t d = 0; i > 0 && d < length; ++d) out[d] += part[d];
    }
  }

  // Receivers [begin, end) of b.args.graph, whose edges lie at [first, last).
  void run_block(Space& b, std::int64_t begin, std::int64_t end, std::int64_t first,
                 std::int64_t last) const {
    const std::int64_t count = last - first;
    const bool amatrix = radial_.amatrix.data, ahidden = radial_.ahidden.data;
    const Rows<const T> h{b.hidden, hidden_stride_}, ah{b.ahidden, hidden_stride_};
    if (w_ || (aw_ && amatrix) || (gw_ && b.grad_matrix)) gather(radial_.hidden, first, count, b.hidden);
    if (ahidden && (aw_ || (gw1_ && b.grad_matrix))) gather(radial_.ahidden, first, count, b.ahidden);
    if (w_) multiply(h, count, packed_, {b.w, stride_}, false);
    if (aw_ && ahidden) multiply(ah, count, packed_, {b.aw, stride_}, false);
    if (aw_ && amatrix) multiply(h, count, apacked_, {b.aw, stride_}, ahidden);

    b.args.first_position = first;
    b.args.w = {w_ ? b.w : b.zeros, w_ ? stride_ : 0};
    b.args.aw = {aw_ ? b.aw : b.zeros, aw_ ? stride_ : 0};
    b.args.gw = {gw_ ? b.gw : b.sink, gw_ ? stride_ : 0};
    if (runs_) kernel_of(b.kernels, derivative_)(b.args, begin, end, b.scratch);
    if (gw1_) {
      ProductArgs<T> args = b.args;
      args.w = {b.zeros, 0};
      args.gx = args.gy = {b.sink, 0};
      args.gw = {b.gw1, stride_};
      b.kernels.backward(args, begin, end, b.scratch);
    }
    if (radial_.grad_hidden.data) give_hidden(b, first, count);
    if (b.grad_matrix) {
      if (gw_) add_outer(h, {b.gw, stride_}, count, b.grad_matrix);
      if (gw1_ && ahidden) add_outer(ah, {b.gw1, stride_}, count, b.grad_matrix);
    }
  }

  void gather(const Rows<const T>& rows, std::int64_t first, std::int64_t count, T* to) const {
    for (std::int64_t e = 0; e < count; ++e)
      std::copy_n(rows[call_.graph->edge[first + e]], radial_.size, to + e * hidden_stride_);
  }
  void give_hidden(const Space& b, std::int64_t first, std::int64_t count) const {
    const Rows<T> to{b.grad_hidden, hidden_stride_};
    const bool second = gw1_ && radial_.amatrix.data;
    const auto multiply = [&](const T* gw, const Buffer<T>& turned, bool add) {
      table_.multiply({gw, stride_}, count, turned.data(), numel_, radial_.size, to, add);
    };
    if (gw_) multiply(b.gw, turned_, false);
    if (second) multiply(b.gw1, aturned_, gw_);
    for (std::int64_t e = 0; e < count; ++e) {
      T* row = radial_.grad_hidden[call_.graph->edge[first + e]];
      if (gw_ || second) {
        std::copy_n(to[e], radial_.size, row);
      } else {
        std::fill_n(row, radial_.size, T{});
      }
    }
  }
  void multiply(const Rows<const T>& a, std::int64_t rows, const Buffer<T>& packed, Rows<T> to,
                bool add) const {
    table_.multiply(a, rows, packed.data(), radial_.size, numel_, to, add);
  }
  void add_outer(const Rows<const T>& a, Rows<const T> b, std::int64_t rows, T* to) const {
    table_.add_outer(a, b, rows, radial_.size, numel_, to);
  }

  const ProductCall<T>& call_;
  const RadialWeights<T>& radial_;
  const Derivative derivative_;
  const RadialKernels<T>& table_ = kernels<T>().radial_convolution;
  const std::int64_t numel_;
  const std::int64_t stride_;  // of rows of weights
  const std::int64_t hidden_stride_;
  std::int64_t block_;             // edges, at most
  bool w_, aw_, gw_, gw1_, runs_;  // what is to be made
  Buffer<T> packed_, apacked_, turned_, aturned_;
};

}  // namespace clebsch
