// The plan that kernels run: plain arrays, no container, so that files compiled for one instruction set
// pull in no code that could be shared with another.
#pragma once

#include <cstdint>

namespace clebsch {

// A block of an Irreps: `mul` copies of degree l, `offset` in the row. Its panel is the same block with
// components outermost and channels padded to whole cache lines: (2l+1) x stride, at `panel`.
struct Block {
  int mul, l;
  std::int64_t offset, panel;
  int stride;
  bool used;  // by a path: others need not be read
};

// Which channels meet: the connection modes of e3nn ("uvu<v" and "u<vw" are the triangular ones).
enum class Mode : int { uvw, uvu, uvv, uuw, uuu, uvuv, uvu_triangle, triangle_w };

// What meets the weights of a path uvw first where all rows share them (cpu/tensor_product_uvw.inl.h):
// coupled pairs (u, v), or copies of x or of y; unchosen where another kernel runs the path.
enum class Order : int { unchosen, pairs, x_first, y_first };

// How the coupling is contracted with the second operand first: matrix[cell] += value * y[m2], then
// out[m3] += x[m1] * matrix[cell] with cell = (m1, m3). Cells are sorted by (m3, m1); the first terms
// are one for each cell, in the order of the cells.
struct Cell {
  unsigned char m1, m3;
};
struct Term {
  int cell;   // among the non-zero cells of the path
  int dense;  // m1 * (2 l3 + 1) + m3
  int m2;
};

// A sparse matrix: component d of the result is the sum of the terms [first[d], first[d + 1]), each a value
// times a component of the source.
struct Contraction {
  const int *first, *source;
  const double* values;
  const float* values_float;  // the same, rounded
};

struct Path {
  Block in1, in2, out;
  Mode mode;
  bool weighted;
  std::int64_t weight, weight_numel;  // in the row of weights
  // Sparse coupling, coefficient of the path included.
  int cell_count, term_count;
  const Cell* cells;
  const Term* terms;
  const double* values;
  const float* values_float;  // the same, rounded
  std::int64_t dense;         // offset of this path's (2 l1 + 1) x (2 l3 + 1) matrix among those of all paths
  double coefficient;
  Contraction to_out;     // of an elementwise path, from the products x_i y_j of its two blocks
  int at_pair;            // where its outputs begin among those of all paths of these blocks
  bool outputs_in_lanes;  // weights are met with lanes = output channels: see choose_outputs in plan.cpp
  // With shared weights; for degrees that are constants in the code. Where the gradient of the weights is
  // summed with copies of x or y innermost, it begins at `turned` among those of all paths.
  Order forward, backward;
  std::int64_t turned;
};

// The values of the terms in the type of the arithmetic; `p` is a Path or a Contraction.
template <class T, class Coupled>
static inline const T* path_values(const Coupled& p) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return p.values;
  } else {
    return p.values_float;
  }
}

// Does the mode connect every output channel w (weight [..., w]) or one?
static inline bool connects_all(Mode mode) {
  return mode == Mode::uvw || mode == Mode::uuw || mode == Mode::triangle_w;
}

// A row of weights up to this long is transposed whole, for all paths at once, where lanes are rows.
constexpr int kWholeWeights = 1024;

// The channelwise kernel keeps the 2 l3 + 1 sums of a path in registers or close by; beyond, lanes are rows.
constexpr int kChannelwiseMaxDegree = 12;

// Two blocks whose copies meet one by one (uuu), and the paths from them.
struct ElementwisePair {
  Block in1, in2;
  const int* paths;  // numbers in Program::paths
  int path_count, output_count, largest_degree;
  bool weighted;  // any of them
  Contraction
      to_pair;  // from the outputs of all these paths, side by side, to (i, j): sum over k of C_ijk g_k
};

struct Program {
  const Path* paths;
  const ElementwisePair* pairs;
  int pair_count, most_products, most_outputs;  // of one pair: x_i y_j, and outputs
  const Block *in1, *in2, *out;
  int path_count, in1_count, in2_count, out_count;
  bool mul_ir;
  bool outputs_in_lanes;  // of any path
  // Lengths of a row of x, y, out and the weights; of a panel of x, y and out; of all dense matrices.
  std::int64_t dim1, dim2, dim_out, weight_numel, panel1, panel2, panel_out, dense_size;
  std::int64_t turned_size;     // of the gradients of shared weights that are summed turned
  bool x_in_lanes, y_in_lanes;  // of these sums, for any path
  int widest;                   // the largest padded multiplicity of x
  // Rows are panels already: ir_mul, multiplicities in whole cache lines.
  bool whole_lines1, whole_lines2, whole_lines_out;
  bool elementwise;  // there are pairs: blocks with several copies of y are read as panels
  // The columns of y from the first to the last of the blocks with one copy (of all, unless elementwise): the
  // channelwise kernel makes its matrices of them.
  std::int64_t single_begin, single_end;
};

}  // namespace clebsch
