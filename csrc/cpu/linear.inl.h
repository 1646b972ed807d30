// Linear layers as matrix products that read x where it lies and write the result where it belongs.
//
//   out[r, w, m] = sum_u W[u, w] x[r, u, m]      2 (2l+1) flops for every weight and row
//   gx: the same with W transposed               gW[u, w] = sum_{r, m} x[r, u, m] g[r, w, m]
//
// Lanes are output channels w. An element of x is broadcast from the row itself, whatever its layout: no copy
// of x is made. The weights are packed into panels once a call. A panel of results lies with components
// outermost; where these are innermost in a row (mul_ir) it is turned in the nearest cache.
//
// The gradient of the weights sums over rows and components: there both operands are turned, a tile of rows
// at a time.
//
// Rows that are a list of numbers (those of one species) are read and written where they lie, too: x is
// needed one element at a time, so that a pointer for each row of a block is all it takes.
#pragma once

#include "linear.h"
#include "matrix_product.inl.h"
#include "panel.inl.h"

namespace clebsch {
namespace {

constexpr int kTileRows = 48;    // rows of x that wait in the second cache while panels of weights pass by
constexpr int kTileLines = 256;  // rows times components whose sum is kept in registers, at most
constexpr std::int64_t kTileElements = std::int64_t{1} << 20;  // of x and g in these lines, about

CLEBSCH_INLINE int components(const Block& b) { return 2 * b.l + 1; }

// Steps from channel to channel and from component to component of a block in a row.
struct BlockSteps {
  std::int64_t channel, component;
  CLEBSCH_INLINE BlockSteps(const Block& b, bool mul_ir)
      : channel(mul_ir ? components(b) : 1), component(mul_ir ? 1 : b.mul) {}
};

template <class T>
std::int64_t linear_packed_size(const LinearProgram& program) {
  std::int64_t size = 0;
  for (int i = 0; i < program.target_count; ++i) {
    const LinearTarget& target = program.targets[i];
    const std::int64_t width = PanelWidths::of<T>(target.block.mul).vectors * lanes<T>;
    for (int j = 0; j < target.term_count; ++j) size += width * target.terms[j].source.mul;
  }
  return size;
}

// For every u a line of `width` columns of the weights from `from` on, scaled; zeros beyond `columns`.
template <class T, int width>
void pack_lines(const LinearTerm& term, const T* from, int columns, T* packed) {
  const T scale = static_cast<T>(term.scale);
  for (int u = 0; u < term.source.mul; ++u, from += term.step_u, packed += width) {
    for (int w = 0; w < columns; ++w) packed[w] = scale * from[w * term.step_w];
    for (int w = columns; w < width; ++w) packed[w] = T{};
  }
}

// The same where the weights of neighbouring u lie side by side and those of neighbouring columns far apart:
// squares are turned in registers.
template <class T, int width>
void pack_columns(const LinearTerm& term, const T* from, int columns, T* packed) {
  constexpr int W = lanes<T>;
  const Vec<T> scale = broadcast(static_cast<T>(term.scale));
  const int lines = term.source.mul;
  for (int w = 0; w < width; w += W) {
    for (int u = 0; u < lines; u += W) {
      Vec<T> square[W];
      CLEBSCH_UNROLL
      for (int i = 0; i < W; ++i)
        square[i] = w + i < columns ? load(from + (w + i) * term.step_w + u, Mask<T>(lines - u)) : Vec<T>{};
      transpose<T>(square);
      T* to = packed + std::int64_t{u} * width + w;
      for (int i = 0; i < W && u + i < lines; ++i) store(to + i * width, scale * square[i]);
    }
  }
}

// Panel by panel, in each the terms, in each a line of the panel's columns for every u.
template <class T>
void linear_pack(const LinearProgram& program, const T* weight, std::int64_t v, T* packed) {
  for (int i = 0; i < program.target_count; ++i) {
    const LinearTarget& target = program.targets[i];
    each_panel<T>(target.block.mul, [&]<int Vectors>(int first) {
      constexpr int width = Vectors * lanes<T>;
      const int columns = target.block.mul - first < width ? target.block.mul - first : width;
      for (int j = 0; j < target.term_count; ++j) {
        const LinearTerm& term = target.terms[j];
        const T* from = weight + term.weight + v * term.step_v + first * term.step_w;
        const bool turns = term.step_u == 1 && term.step_w > 1;
        (turns ? pack_columns<T, width> : pack_lines<T, width>)(term, from, columns, packed);
        packed += std::int64_t{term.source.mul} * width;
      }
    });
  }
}

// The number of a row from its position: the position itself, or what is listed there.
template <bool Listed>
struct RowNumbers {
  const std::int64_t* order;
  CLEBSCH_INLINE std::int64_t operator[](std::int64_t position) const {
    if constexpr (Listed) return order[position];
    return position;
  }
};

// Results of the Rows rows from position `row` on, for the columns [first, first + width) of a target, from
// the panel of weights at packed.
template <class T, int Rows, int Vectors, bool Listed>
void apply_block(const LinearTarget& target, bool mul_ir, clebsch::Rows<const T> source, const T* packed,
                 clebsch::Rows<const T> bias, clebsch::Rows<T> to, RowNumbers<Listed> number,
                 std::int64_t row, int first, T* scratch) {
  constexpr int width = Vectors * lanes<T>;
  const int d = components(target.block);
  const BlockSteps steps(target.block, mul_ir);
  const bool in_place = steps.channel == 1;
  const int columns = target.block.mul - first < width ? target.block.mul - first : width;
  for (int m = 0; m < d; ++m) {
    Sums<T, Rows, Vectors> sums{};
    if (target.bias >= 0) {
      for (int i = 0; i < Rows; ++i) {
        const T* from = bias[number[row + i]] + target.bias + first;
        CLEBSCH_UNROLL
        for (int v = 0; v < Vectors; ++v)
          sums.at[i][v] = load(from + v * lanes<T>, Mask<T>(columns - v * lanes<T>));
      }
    }
    const T* b = packed;
    for (int j = 0; j < target.term_count; ++j) {
      const Block& x = target.terms[j].source;
      const BlockSteps x_steps(x, mul_ir);
      const std::int64_t at = x.offset + m * x_steps.component;
      if constexpr (Listed) {
        const T* rows[Rows];
        for (int i = 0; i < Rows; ++i) rows[i] = source[number[row + i]] + at;
        multiply_add(rows, x_steps.channel, b, width, x.mul, sums);
      } else {
        multiply_add(source[row] + at, source.stride, x_steps.channel, b, width, x.mul, sums);
      }
      b += std::int64_t{x.mul} * width;
    }
    for (int i = 0; i < Rows; ++i) {
      T* line = in_place ? to[number[row + i]] + target.block.offset + m * steps.component + first
                         : scratch + (i * d + m) * width;
      CLEBSCH_UNROLL
      for (int v = 0; v < Vectors; ++v) {
        if (in_place) {
          store(line + v * lanes<T>, sums.at[i][v], Mask<T>(columns - v * lanes<T>));
        } else {
          store(line + v * lanes<T>, sums.at[i][v]);
        }
      }
    }
  }
  if (in_place) return;
  const Block part{columns, target.block.l, 0, 0, width, true};
  for (int i = 0; i < Rows; ++i) {
    block_from_panel(part, true, scratch + std::int64_t{i} * d * width,
                     to[number[row + i]] + target.block.offset + first * steps.channel);
  }
}

template <class T, bool Listed>
void apply_rows(const LinearProgram& program, Rows<const T> source, const T* packed, Rows<const T> bias,
                Rows<T> to, RowNumbers<Listed> number, std::int64_t begin, std::int64_t end, T* scratch) {
  for (; begin < end; begin += kTileRows) {
    const std::int64_t count = end - begin < kTileRows ? end - begin : kTileRows;
    const T* weights = packed;
    for (int t = 0; t < program.target_count; ++t) {
      const LinearTarget& target = program.targets[t];
      std::int64_t lines = 0;
      for (int j = 0; j < target.term_count; ++j) lines += target.terms[j].source.mul;
      each_panel<T>(target.block.mul, [&]<int Vectors>(int first) {
        each_block<block_rows(Vectors)>(count, [&]<int Rows>(std::int64_t i) {
          apply_block<T, Rows, Vectors>(target, program.mul_ir, source, weights, bias, to, number, begin + i,
                                        first, scratch);
        });
        weights += lines * Vectors * lanes<T>;
      });
    }
  }
}

template <class T>
void linear_apply(const LinearProgram& program, Rows<const T> source, const T* packed, Rows<const T> bias,
                  Rows<T> to, RowRange rows, T* scratch) {
  const auto [order, begin, end] = rows;
  if (order) {
    apply_rows(program, source, packed, bias, to, RowNumbers<true>{order}, begin, end, scratch);
  } else {
    apply_rows(program, source, packed, bias, to, RowNumbers<false>{}, begin, end, scratch);
  }
}

// Lines of a tile of rows, one for each row and component, with channels side by side.
template <class T>
void turn_rows(const Block& b, bool mul_ir, Rows<const T> rows, const std::int64_t* order, std::int64_t begin,
               std::int64_t count, T* lines) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = order ? order[begin + i] : begin + i;
    block_to_panel(b, mul_ir, rows[row] + b.offset, lines + i * components(b) * b.stride);
  }
}

// Rows of x and g that are turned at a time for a target, and the elements that they take.
struct GradientTile {
  std::int64_t rows, x_size, g_size;
  explicit GradientTile(const LinearTarget& target) {
    const std::int64_t d = components(target.block);
    std::int64_t widest = 0;
    for (int j = 0; j < target.term_count; ++j) {
      const std::int64_t width = target.terms[j].source.stride;
      widest = widest < width ? width : widest;
    }
    const std::int64_t fit = kTileElements / (target.block.stride + widest);
    rows = (fit < kTileLines ? fit : kTileLines) / d;
    if (rows < 1) rows = 1;
    x_size = rows * d * widest;
    g_size = rows * d * target.block.stride;
  }
};

// grad_weight[u, w] += scale * sum over the lines of x[u] * g[w]; grad_weight is where those of one v begin
template <class T>
void add_products(const LinearTerm& term, const Block& target, const T* x, const T* g, std::int64_t lines,
                  T* grad_weight) {
  const Vec<T> scale = broadcast(static_cast<T>(term.scale));
  each_panel<T>(target.mul, [&]<int Vectors>(int first) {
    each_block<block_rows(Vectors)>(term.source.mul, [&]<int Rows>(std::int64_t u) {
      Sums<T, Rows, Vectors> sums{};
      multiply_add(x + u, 1, term.source.stride, g + first, target.stride, lines, sums);
      for (int i = 0; i < Rows; ++i) {
        T* to = grad_weight + (u + i) * term.step_u + first;
        CLEBSCH_UNROLL
        for (int v = 0; v < Vectors; ++v) {
          const Mask<T> mask(target.mul - first - v * lanes<T>);
          store(to + v * lanes<T>, load(to + v * lanes<T>, mask) + scale * sums.at[i][v], mask);
        }
      }
    });
  });
}

// For the program from x to the result: weights of a term lie in rows of output channels.
template <class T>
void linear_grad_weight(const LinearProgram& program, Rows<const T> source, Rows<const T> g, T* grad_weight,
                        std::int64_t v, RowRange rows, T* scratch) {
  for (int t = 0; t < program.target_count; ++t) {
    const LinearTarget& target = program.targets[t];
    const GradientTile tile(target);
    const std::int64_t d = components(target.block);
    T* g_lines = scratch;
    T* x_lines = scratch + tile.g_size;
    for (std::int64_t row = rows.begin; row < rows.end && target.term_count; row += tile.rows) {
      const std::int64_t count = rows.end - row < tile.rows ? rows.end - row : tile.rows;
      turn_rows(target.block, program.mul_ir, g, rows.order, row, count, g_lines);
      for (int j = 0; j < target.term_count; ++j) {
        const LinearTerm& term = target.terms[j];
        turn_rows(term.source, program.mul_ir, source, rows.order, row, count, x_lines);
        add_products(term, target.block, x_lines, g_lines, count * d,
                     grad_weight + term.weight + v * term.step_v);
      }
    }
  }
}

template <class T>
std::int64_t linear_scratch_size(const LinearProgram& program) {
  std::int64_t size = 0;
  const auto at_least = [&](std::int64_t needed) { size = size < needed ? needed : size; };
  for (int t = 0; t < program.target_count; ++t) {
    const LinearTarget& target = program.targets[t];
    const GradientTile tile(target);
    at_least(8 * std::int64_t{components(target.block)} * kPanelVectors * lanes<T>);
    if (target.term_count) at_least(tile.x_size + tile.g_size);
  }
  return size;
}

template <class T>
constexpr LinearKernels<T> linear_kernels = {linear_packed_size<T>, linear_pack<T>, linear_apply<T>,
                                             linear_grad_weight<T>, linear_scratch_size<T>};

}  // namespace
}  // namespace clebsch
