// Convolutions of scalars that many nodes have in common, as of nodes embedded by their species alone (the
// first layer of MACE, NequIP, SevenNet). With x_z the row of all nodes of kind z,
//
//   out[r, u, m] = sum over edges of x[s, u] y[e, m] sum over k of h[e, k] M[k, u]
//                = sum over z, k of x_z[u] M[k, u] B[r, z, k, m],
//   B[r, z, k, m] = sum over the edges of r from senders of kind z of h[e, k] y[e, m],
//
// the density of neighbours: the matrix is met once for a receiver and kind, not for an edge. The same
// numbers as run_radial_convolution.h gives, but for the order of sums.
//
// Work, with H hidden features, U channels, P paths and Q = sum of 2l + 1: 2 H Q flops an edge and 2 H U Q a
// receiver and kind in place of 2 H U P an edge. MACE-medium, H = 64, U = 128, P = 4, Q = 16, 44 edges for a
// receiver: 2 + 6 kflop an edge in place of 65, and 4 + 6 in place of 131 for the gradients of y and hidden.
// Those of x and of the matrix are left to run_radial_convolution.h: a row of x then stands for itself alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/run_product.h"
#include "cpu/work.h"

namespace clebsch {

// Nodes whose rows are the same bits are of one kind.
struct Kinds {
  std::vector<unsigned char> of;    // by node
  std::vector<std::int64_t> first;  // by kind: a node
};

// None if there are more than `most` (at most 256).
template <class T>
Kinds find_kinds(Rows<const T> x, std::int64_t nodes, std::int64_t width, std::int64_t most) {
  Kinds kinds;
  kinds.of.reserve(nodes);
  const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(T);
  for (std::int64_t n = 0; n < nodes; ++n) {
    const auto same = [&](std::int64_t other) { return std::memcmp(x[n], x[other], bytes) == 0; };
    const auto found = std::find_if(kinds.first.begin(), kinds.first.end(), same);
    kinds.of.push_back(static_cast<unsigned char>(found - kinds.first.begin()));
    if (found != kinds.first.end()) continue;
    if (static_cast<std::int64_t>(kinds.first.size()) == most) return {};
    kinds.first.push_back(n);
  }
  return kinds;
}

template <class T>
class DensityRun {
 public:
  DensityRun(const ProductCall<T>& call, Derivative derivative)
      : call_(call), program_(call.plan->program), radial_(*call.radial), derivative_(derivative) {
    if (!is_asked() || !is_known()) return;
    const std::int64_t most = most_kinds();
    if (most > 0) kinds_ = find_kinds(call.x, call.graph->nodes, program_.dim1, most);
    if (kinds_.first.empty()) return;
    find_terms();
    is_finite_ = pack();
  }

  // Whether `run` gives `out`, or the gradients of y and of hidden. It depends on the plan, the graph and x
  // alone, and on the matrix where that is not finite, so what else is asked for makes no difference to a
  // bit.
  bool serves() const { return is_finite_; }

  void run(Parallel parallel) const {
    for_each_chunk(call_.graph->chunks, parallel, [&](std::int64_t i) {
      const Space space = make_space();
      const std::int64_t end = call_.graph->chunk_begin[i + 1];
      for (std::int64_t r = call_.graph->chunk_begin[i]; r < end; r += block_) {
        const std::int64_t last = std::min(r + block_, end);
        if (derivative_ == Derivative::none) {
          sum_receivers(space, r, last);
        } else {
          give_edges(space, r, last);
        }
      }
    });
  }

 private:
  static constexpr std::int64_t kMostKinds = 16, kMostEdges = 64, kMostReceivers = 8;
  static constexpr std::int64_t kBlockBytes = 256 << 10;  // of the densities and sums of a block of receivers

  // y of an edge to the components of all paths: at += value y[column].
  struct Term {
    std::int64_t at, column;
    T value;
  };
  // Edges in pieces, and what belongs to all paths of a block of receivers, path by path, each with rows
  // (receiver, component).
  struct Space {
    T *hidden, *y, *grad_hidden, *grad_y;  // (kMostEdges, h_stride or q_stride)
    T* density;                            // rows of h_stride; of H where they are summed
    T* sums;                               // rows of stride(path)
    T* panel;                              // of one row of out or its gradient
    T *line, *by_feature, *by_component;   // the densities of one receiver, and packed
  };

  static std::int64_t whole_lines(std::int64_t count) { return (count + 15) / 16 * 16; }
  std::int64_t h_stride() const { return whole_lines(radial_.size); }
  std::int64_t q_stride() const { return whole_lines(q_); }
  static std::int64_t stride(const Path& p) { return whole_lines(p.in1.mul); }
  static std::int64_t degree(const Path& p) { return 2 * p.out.l + 1; }

  bool is_asked() const {
    return derivative_ == Derivative::none ||
           (derivative_ == Derivative::first && (call_.gy.data || radial_.grad_hidden.data));
  }
  bool is_known() const {
    const auto is_scalar = [](const Path& p) {
      return p.mode == Mode::uvu && p.weighted && p.in1.l == 0 && p.in2.mul == 1 && p.in1.mul > 0;
    };
    return program_.path_count > 0 && std::all_of(paths(), paths() + program_.path_count, is_scalar);
  }
  const Path* paths() const { return program_.paths; }

  // With more kinds than this it is no gain of twice.
  std::int64_t most_kinds() const {
    double edges = 0, receivers = 0;
    for (int p = 0; p < program_.path_count; ++p) {
      edges += static_cast<double>(degree(paths()[p]));
      receivers += static_cast<double>(degree(paths()[p]) * paths()[p].in1.mul);
    }
    const double count = static_cast<double>(call_.rows), nodes = static_cast<double>(call_.graph->nodes);
    const double gain = count * (0.5 * static_cast<double>(program_.weight_numel) - edges);
    return static_cast<std::int64_t>(std::clamp(gain / (nodes * receivers + 1), 0.0, double{kMostKinds}));
  }

  void find_terms() {
    for (int i = 0; i < program_.path_count; ++i) {
      const Path& p = paths()[i];
      const T* values = path_values<T>(p);
      for (int t = 0; t < p.term_count; ++t) {
        terms_.push_back({q_ + p.cells[p.terms[t].cell].m3, p.in2.offset + p.terms[t].m2, values[t]});
      }
      first_q_.push_back(q_);
      q_ += degree(p);
      sums_size_ += degree(p) * stride(p);
    }
    const std::int64_t bytes = (q_ * h_stride() + sums_size_) * static_cast<std::int64_t>(sizeof(T));
    block_ = std::clamp<std::int64_t>(kBlockBytes / bytes, 1, kMostReceivers);
  }

  // x_z M of every kind and path, as products read it (transposed, for gradients). False where one is not
  // finite: it would reach receivers that have no edge from that kind.
  bool pack() {
    std::int64_t longest = 0, all = 0;
    const bool turned = derivative_ == Derivative::first;
    const auto size = [&](const Path& p) {
      return turned ? table_.packed_size(p.in1.mul, radial_.size)
                    : table_.packed_size(radial_.size, p.in1.mul);
    };
    for (int i = 0; i < program_.path_count; ++i) {
      longest = std::max<std::int64_t>(longest, paths()[i].in1.mul);
      all += whole_lines(size(paths()[i]));
    }
    Buffer<T> matrix;
    matrix.reserve(radial_.size * longest + 16);
    T* packed = packed_.reserve(static_cast<std::int64_t>(kinds_.first.size()) * all + 16);
    for (const std::int64_t node : kinds_.first) {
      for (int i = 0; i < program_.path_count; ++i) {
        const Path& p = paths()[i];
        const std::int64_t mul = p.in1.mul;
        const T* x = call_.x[node] + p.in1.offset;
        for (std::int64_t k = 0; k < radial_.size; ++k) {
          const T* row = radial_.matrix[k] + p.weight;
          T* to = matrix.data() + k * mul;
          for (std::int64_t u = 0; u < mul; ++u) to[u] = x[u] * row[u];
          for (std::int64_t u = 0; u < mul; ++u) {
            if (!std::isfinite(to[u])) return false;
          }
        }
        if (turned) {
          table_.pack({matrix.data(), 1, mul, mul, radial_.size}, packed);
        } else {
          table_.pack({matrix.data(), mul, 1, radial_.size, mul}, packed);
        }
        places_.push_back(packed);
        packed += whole_lines(size(p));
      }
    }
    return true;
  }
  const T* packed(std::int64_t kind, int path) const { return places_[kind * program_.path_count + path]; }

  Space make_space() const {
    const std::int64_t h = h_stride(), q = q_stride();
    const std::int64_t by_feature = whole_lines(table_.packed_size(q_, radial_.size));
    const std::int64_t by_component = whole_lines(table_.packed_size(radial_.size, q_));
    const std::int64_t sizes[] = {kMostEdges * h,
                                  kMostEdges * q,
                                  kMostEdges * h,
                                  kMostEdges * q,
                                  block_ * q_ * h + 16,
                                  block_ * sums_size_,
                                  whole_lines(program_.panel_out),
                                  q_ * h,
                                  by_feature,
                                  by_component};
    std::int64_t all = 0;
    for (const std::int64_t size : sizes) all += size;
    T* at = thread_scratch<T>(all);
    T* parts[10];
    for (int i = 0; i < 10; at += sizes[i++]) parts[i] = at;
    return {parts[0], parts[1], parts[2], parts[3], parts[4],
            parts[5], parts[6], parts[7], parts[8], parts[9]};
  }

  // f(number of edges, positions of them) for the edges of a receiver from senders of a kind, a piece at a
  // time.
  template <class F>
  void for_each_piece_of(std::int64_t receiver, std::int64_t kind, F f) const {
    const Graph& graph = *call_.graph;
    std::int64_t edges[kMostEdges], count = 0;
    for (std::int64_t i = graph.receiver_begin[receiver]; i < graph.receiver_begin[receiver + 1]; ++i) {
      if (kinds_.of[graph.sender[i]] != kind) continue;
      edges[count++] = graph.edge[i];
      if (count == kMostEdges) f(count, edges), count = 0;
    }
    if (count > 0) f(count, edges);
  }
  void gather_hidden(const Space& s, std::int64_t count, const std::int64_t* edges) const {
    for (std::int64_t e = 0; e < count; ++e) {
      std::copy_n(radial_.hidden[edges[e]], radial_.size, s.hidden + e * h_stride());
    }
  }
  void gather_y(const Space& s, std::int64_t count, const std::int64_t* edges) const {
    for (std::int64_t e = 0; e < count; ++e) {
      T* to = s.y + e * q_stride();
      std::fill_n(to, q_, T{});
      for (const Term& term : terms_) to[term.at] += term.value * call_.y[edges[e]][term.column];
    }
  }

  // Rows of `out` of receivers [begin, end).
  void sum_receivers(const Space& s, std::int64_t begin, std::int64_t end) const {
    const std::int64_t receivers = end - begin, size = radial_.size;
    const std::int64_t kinds = static_cast<std::int64_t>(kinds_.first.size());
    for (std::int64_t z = 0; z < kinds; ++z) {
      std::fill_n(s.density, receivers * q_ * size, T{});
      for (std::int64_t r = 0; r < receivers; ++r) {
        for_each_piece_of(begin + r, z, [&](std::int64_t count, const std::int64_t* edges) {
          gather_hidden(s, count, edges);
          gather_y(s, count, edges);
          for (int i = 0; i < program_.path_count; ++i) {
            const std::int64_t d = degree(paths()[i]);
            table_.add_outer({s.y + first_q_[i], q_stride()}, {s.hidden, h_stride()}, count, d, size,
                             s.density + (receivers * first_q_[i] + r * d) * size);
          }
        });
      }
      each_sums(s, receivers, [&](int i, T* sums) {
        const Path& p = paths()[i];
        table_.multiply({s.density + receivers * first_q_[i] * size, size}, receivers * degree(p),
                        packed(z, i), size, p.in1.mul, {sums, stride(p)}, z > 0);
      });
    }
    for (std::int64_t r = 0; r < receivers; ++r) {
      std::fill_n(s.panel, program_.panel_out, T{});
      each_sums(s, receivers, [&](int i, T* sums) {
        each_line(
            paths()[i], r, sums,
            [&](T* line, T* panel) {
              for (int u = 0; u < paths()[i].in1.mul; ++u) panel[u] += line[u];
            },
            s.panel);
      });
      products_.from_panel(program_.out, program_.out_count, program_.mul_ir, s.panel, call_.out[begin + r]);
    }
  }

  // Rows of the gradients of y and of hidden of the edges of receivers [begin, end).
  void give_edges(const Space& s, std::int64_t begin, std::int64_t end) const {
    const std::int64_t receivers = end - begin, size = radial_.size, h = h_stride();
    const std::int64_t kinds = static_cast<std::int64_t>(kinds_.first.size());
    for (std::int64_t r = 0; r < receivers; ++r) {
      products_.to_panel(program_.out, program_.out_count, program_.mul_ir, call_.g[begin + r], s.panel);
      each_sums(s, receivers, [&](int i, T* sums) {
        each_line(
            paths()[i], r, sums,
            [&](T* line, const T* panel) { std::copy_n(panel, paths()[i].in1.mul, line); }, s.panel);
      });
    }
    for (std::int64_t z = 0; z < kinds; ++z) {
      each_sums(s, receivers, [&](int i, T* sums) {
        const Path& p = paths()[i];
        table_.multiply({sums, stride(p)}, receivers * degree(p), packed(z, i), p.in1.mul, size,
                        {s.density + receivers * first_q_[i] * h, h}, false);
      });
      for (std::int64_t r = 0; r < receivers; ++r) {
        bool is_packed = false;
        for_each_piece_of(begin + r, z, [&](std::int64_t count, const std::int64_t* edges) {
          if (!is_packed) pack_density(s, receivers, r);
          is_packed = true;
          if (radial_.grad_hidden.data) give_hidden(s, count, edges);
          if (call_.gy.data) give_y(s, count, edges);
        });
      }
    }
  }
  // What the gradients of the edges of receiver r are made with.
  void pack_density(const Space& s, std::int64_t receivers, std::int64_t r) const {
    const std::int64_t h = h_stride();
    for (int i = 0; i < program_.path_count; ++i) {
      const std::int64_t d = degree(paths()[i]);
      std::copy_n(s.density + (receivers * first_q_[i] + r * d) * h, d * h, s.line + first_q_[i] * h);
    }
    if (radial_.grad_hidden.data) table_.pack({s.line, h, 1, q_, radial_.size}, s.by_feature);
    if (call_.gy.data) table_.pack({s.line, 1, h, radial_.size, q_}, s.by_component);
  }
  void give_hidden(const Space& s, std::int64_t count, const std::int64_t* edges) const {
    const std::int64_t h = h_stride();
    gather_y(s, count, edges);
    table_.multiply({s.y, q_stride()}, count, s.by_feature, q_, radial_.size, {s.grad_hidden, h}, false);
    for (std::int64_t e = 0; e < count; ++e) {
      std::copy_n(s.grad_hidden + e * h, radial_.size, radial_.grad_hidden[edges[e]]);
    }
  }
  void give_y(const Space& s, std::int64_t count, const std::int64_t* edges) const {
    gather_hidden(s, count, edges);
    table_.multiply({s.hidden, h_stride()}, count, s.by_component, radial_.size, q_, {s.grad_y, q_stride()},
                    false);
    for (std::int64_t e = 0; e < count; ++e) {
      T* to = call_.gy[edges[e]];
      std::fill_n(to, program_.dim2, T{});
      for (const Term& term : terms_) to[term.column] += term.value * s.grad_y[e * q_stride() + term.at];
    }
  }

  // f(path, its rows among the sums).
  template <class F>
  void each_sums(const Space& s, std::int64_t receivers, F f) const {
    T* sums = s.sums;
    for (int i = 0; i < program_.path_count; ++i) {
      f(i, sums);
      sums += receivers * degree(paths()[i]) * stride(paths()[i]);
    }
  }
  // f(row of a component of receiver r among the sums of a path, the same of its panel).
  template <class F>
  void each_line(const Path& p, std::int64_t r, T* sums, F f, T* panel) const {
    for (std::int64_t m = 0; m < degree(p); ++m) {
      f(sums + (r * degree(p) + m) * stride(p), panel + p.out.panel + m * p.out.stride);
    }
  }

  const ProductCall<T>& call_;
  const Program& program_;
  const RadialWeights<T>& radial_;
  const Derivative derivative_;
  const RadialKernels<T>& table_ = kernels<T>().radial_convolution;
  const TensorProductKernels<T>& products_ = kernels<T>().tensor_product;
  bool is_finite_ = false;
  Kinds kinds_;
  std::vector<Term> terms_;
  std::vector<std::int64_t> first_q_;  // by path: where its components begin
  std::int64_t q_ = 0;                 // components of all paths
  std::int64_t sums_size_ = 0;         // of all paths, of a receiver
  std::int64_t block_ = 1;             // receivers, at most
  Buffer<T> packed_;
  std::vector<const T*> places_;  // in packed_, by kind and path
};

}  // namespace clebsch
