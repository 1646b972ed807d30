#include "cpu/run_linear.h"

#include <algorithm>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/work.h"
#include "linear_arrangement.h"

namespace clebsch {
namespace {

constexpr std::int64_t kPieceRows = 48, kChunkRows = 256, kChunks = 64;

// Chunks whose private sums of numel weights exist at once: 2^20 numbers of them, or a chunk for each core.
template <class T>
std::int64_t wave_chunks(std::int64_t numel) {
  if (const std::int64_t set = private_bytes_of_tests)
    return std::clamp<std::int64_t>(set / (numel * static_cast<std::int64_t>(sizeof(T))), 1, kChunks);
  return std::min(kChunks, std::max((std::int64_t{1} << 20) / numel, cores()));
}

// Rows [begin, end) of the order, of the group with this number.
struct Piece {
  std::size_t group;
  std::int64_t begin, end;
};

// Each group of rows in even pieces of kPieceRows rows or more, 64 of them at most.
std::vector<Piece> pieces_of(std::span<const RowGroup> groups) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto [element, begin, end] = groups[i];
    const std::int64_t rows = end - begin, count = std::clamp<std::int64_t>(rows / kPieceRows, 1, 64);
    for (std::int64_t n = 0; n < count; ++n)
      pieces.push_back({i, begin + rows * n / count, begin + rows * (n + 1) / count});
  }
  return pieces;
}

template <class T>
void apply(const LinearProgram& program, const RowGroups& rows, Rows<const T> source, const T* weight,
           Rows<const T> bias, Rows<T> target, Parallel parallel) {
  const LinearKernels<T>& table = kernels<T>().linear;
  const std::int64_t scratch = table.scratch_size(program), size = table.packed_size(program);
  const std::int64_t* order = rows.order();
  Buffer<T> packed;
  const auto run = [&](std::int64_t group, std::int64_t begin, std::int64_t end) {
    table.apply(program, source, packed.data() + group * size, bias, target, {order, begin, end},
                thread_scratch<T>(scratch));
  };
  if (!order) {
    table.pack(program, weight, 0, packed.reserve(size));
    return for_each_piece(rows.rows(), kPieceRows, parallel,
                          [&](std::int64_t begin, std::int64_t end) { run(0, begin, end); });
  }
  const std::span<const RowGroup> groups = rows.groups();
  packed.reserve(size * static_cast<std::int64_t>(groups.size()));
  for_each_chunk(static_cast<std::int64_t>(groups.size()), parallel, [&](std::int64_t i) {
    table.pack(program, weight, groups[i].element, packed.data() + i * size);
  });
  const std::vector<Piece> pieces = pieces_of(groups);
  for_each_chunk(static_cast<std::int64_t>(pieces.size()), parallel, [&](std::int64_t i) {
    run(static_cast<std::int64_t>(pieces[i].group), pieces[i].begin, pieces[i].end);
  });
}

// Rows whose gradient of the weights of element v is summed at once. The first of an element adds to the
// result, the others to private sums, one of which is its own.
struct Chunk {
  std::int64_t v, begin, end;
  bool is_first;
  std::int64_t own;
};

// By element; each has one for kChunkRows rows, kChunks of them at most.
std::vector<Chunk> chunks_of(std::span<const RowGroup> groups) {
  std::vector<Chunk> chunks;
  for (const auto& [element, begin, end] : groups) {
    const std::int64_t rows = end - begin;
    const std::int64_t count = std::clamp<std::int64_t>((rows + kChunkRows - 1) / kChunkRows, 1, kChunks);
    for (std::int64_t i = 0; i < count; ++i)
      chunks.push_back({element, begin + rows * i / count, begin + rows * (i + 1) / count, i == 0, 0});
  }
  return chunks;
}

// Numbers the private sums of chunks from `first` on, and returns the end of those that have one of `limit`.
std::size_t end_of_wave(std::vector<Chunk>& chunks, std::size_t first, std::int64_t limit) {
  std::int64_t count = 0;
  for (; first < chunks.size(); ++first) {
    if (chunks[first].is_first) continue;
    if (count == limit) break;
    chunks[first].own = count++;
  }
  return first;
}

// Adds [begin, end) of the sums of one element, which lie as (u, w), to its place in weights that lie as
// (u, v, w).
template <class T>
void add_sums(const Program& program, std::int64_t v, const T* sums, std::int64_t begin, std::int64_t end,
              T* weights) {
  for (int i = 0; i < program.path_count; ++i) {
    const Path& p = program.paths[i];
    const std::int64_t elements = p.in2.mul, first = p.weight / elements;
    const std::int64_t stop = std::min(end, first + p.weight_numel / elements);
    // with one element alone, all lines follow each other
    const std::int64_t width = elements == 1 ? p.weight_numel : p.out.mul;
    for (std::int64_t at = std::max(begin, first); at < stop;) {
      const std::int64_t u = (at - first) / width, line = first + u * width;
      T* to = weights + p.weight + (u * elements + v) * width - line;
      const std::int64_t line_end = std::min(stop, line + width);
      for (; at < line_end; ++at) to[at] += sums[at];
    }
  }
}

}  // namespace

template <class T>
void run_linear(const Plan& plan, const std::vector<std::int64_t>& biased, const RowGroups& rows,
                Rows<const T> x, const T* weight, Rows<const T> bias, Rows<T> out, Parallel parallel) {
  apply(LinearArrangement(plan, LinearDirection::to_out, biased).program(), rows, x, weight, bias, out,
        parallel);
}

template <class T>
void run_linear_grad_x(const Plan& plan, const RowGroups& rows, Rows<const T> g, const T* weight,
                       Rows<T> grad_x, Parallel parallel) {
  apply(LinearArrangement(plan, LinearDirection::to_x).program(), rows, g, weight, Rows<const T>{}, grad_x,
        parallel);
}

// Sums of chunks of rows, which depend on the call alone, added in their order: the same for any number of
// threads.
template <class T>
void run_linear_grad_weight(const Plan& plan, const RowGroups& rows, Rows<const T> x, Rows<const T> g,
                            T* grad_weight, Parallel parallel) {
  const LinearArrangement all(plan, LinearDirection::to_out);
  const Program& program = plan.program;
  const LinearKernels<T>& table = kernels<T>().linear;
  const std::int64_t numel = program.weight_numel / std::max<std::int64_t>(program.dim2, 1);
  const std::int64_t scratch = table.scratch_size(all.program());
  const std::int64_t limit = wave_chunks<T>(std::max<std::int64_t>(numel, 1));
  std::fill_n(grad_weight, program.weight_numel, T{});
  std::vector<Chunk> chunks = chunks_of(rows.groups());
  std::optional<LinearArrangement> one;  // that of private sums
  if (chunks.size() > rows.groups().size())
    one.emplace(plan, LinearDirection::to_out, std::vector<std::int64_t>{}, LinearWeights::of_one);
  Buffer<T> sums;
  for (std::size_t first = 0; first < chunks.size();) {
    const std::size_t end = end_of_wave(chunks, first, limit);
    const Chunk* wave = chunks.data() + first;
    const std::int64_t count = static_cast<std::int64_t>(end - first);
    const std::int64_t owned = std::count_if(wave, wave + count, [](const Chunk& c) { return !c.is_first; });
    if (owned) std::fill_n(sums.reserve(owned * numel), owned * numel, T{});
    for_each_chunk(count, parallel, [&](std::int64_t i) {
      const Chunk& chunk = wave[i];
      const RowRange range{rows.order(), chunk.begin, chunk.end};
      T* own = thread_scratch<T>(scratch);
      if (chunk.is_first) {
        table.grad_weight(all.program(), x, g, grad_weight, chunk.v, range, own);
      } else {
        table.grad_weight(one->program(), x, g, sums.data() + chunk.own * numel, 0, range, own);
      }
    });
    first = end;
    if (!owned) continue;
    for_each_piece(numel, 1024, parallel, [&](std::int64_t begin, std::int64_t stop) {
      for (std::int64_t i = 0; i < count; ++i) {
        if (wave[i].is_first) continue;
        add_sums(program, wave[i].v, sums.data() + wave[i].own * numel, begin, stop, grad_weight);
      }
    });
  }
}

#define CLEBSCH_INSTANTIATE(T)                                                                          \
  template CLEBSCH_API void run_linear(const Plan&, const std::vector<std::int64_t>&, const RowGroups&, \
                                       Rows<const T>, const T*, Rows<const T>, Rows<T>, Parallel);      \
  template CLEBSCH_API void run_linear_grad_x(const Plan&, const RowGroups&, Rows<const T>, const T*,   \
                                              Rows<T>, Parallel);                                       \
  template CLEBSCH_API void run_linear_grad_weight(const Plan&, const RowGroups&, Rows<const T>,        \
                                                   Rows<const T>, T*, Parallel);
CLEBSCH_INSTANTIATE(float)
CLEBSCH_INSTANTIATE(double)

}  // namespace clebsch
