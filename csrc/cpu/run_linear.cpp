#include "cpu/run_linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/work.h"

namespace clebsch {
namespace {

enum class Direction { to_out, to_x };

// The matrix products of a plan, by the block that they add up to.
class Arrangement {
 public:
  Arrangement(const Plan& plan, Direction direction, const std::vector<std::int64_t>& biased = {}) {
    const Program& from = plan.program;
    const bool to_out = direction == Direction::to_out;
    const Block* blocks = to_out ? from.out : from.in1;
    const int count = to_out ? from.out_count : from.in1_count;
    std::vector<std::vector<LinearTerm>> terms(count);
    for (int i = 0; i < from.path_count; ++i) {
      const Path& p = from.paths[i];
      const double scale = p.values[0];  // the coupling of l with a scalar is a multiple of the identity
      const std::int64_t next = p.out.mul;
      const Block& target = to_out ? p.out : p.in1;
      const LinearTerm term =
          to_out ? LinearTerm{p.in1, p.weight, next, 1, scale} : LinearTerm{p.out, p.weight, 1, next, scale};
      const Block* found = std::find_if(blocks, blocks + count, [&](const Block& b) {
        return b.offset == target.offset && b.mul > 0;  // blocks without a channel share an offset
      });
      terms[found - blocks].push_back(term);
    }
    std::int64_t bias = 0;
    std::vector<std::int64_t> bias_at(count, -1);
    for (const std::int64_t block : biased) {
      bias_at[block] = bias;
      bias += blocks[block].mul;
    }
    for (const auto& own : terms) terms_.insert(terms_.end(), own.begin(), own.end());
    const LinearTerm* first = terms_.data();
    for (int i = 0; i < count; ++i) {
      const int own = static_cast<int>(terms[i].size());
      if (blocks[i].mul > 0) targets_.push_back({blocks[i], first, own, bias_at[i]});
      first += own;
    }
    program_ = {targets_.data(), static_cast<int>(targets_.size()), from.mul_ir};
  }
  Arrangement(const Arrangement&) = delete;
  Arrangement& operator=(const Arrangement&) = delete;
  const LinearProgram& program() const { return program_; }

 private:
  std::vector<LinearTerm> terms_;
  std::vector<LinearTarget> targets_;
  LinearProgram program_{};
};

constexpr std::int64_t kPieceRows = 48, kChunkRows = 256, kChunks = 64;

// Chunks whose private sums of numel weights exist at once: 2^20 numbers of them, or a chunk for each core.
template <class T>
std::int64_t wave_chunks(std::int64_t numel) {
  if (const std::int64_t set = private_bytes_of_tests)
    return std::clamp<std::int64_t>(set / (numel * static_cast<std::int64_t>(sizeof(T))), 1, kChunks);
  return std::min(kChunks, std::max((std::int64_t{1} << 20) / numel, cores()));
}

template <class T>
void apply(const LinearProgram& program, std::int64_t rows, Rows<const T> source, const T* weight,
           Rows<const T> bias, Rows<T> target, Parallel parallel) {
  const LinearKernels<T>& table = kernels<T>().linear;
  Buffer<T> packed;
  table.pack(program, weight, packed.reserve(table.packed_size(program)));
  const std::int64_t scratch = table.scratch_size(program);
  for_each_piece(rows, kPieceRows, parallel, [&](std::int64_t begin, std::int64_t end) {
    table.apply(program, source, packed.data(), bias, target, begin, end, thread_scratch<T>(scratch));
  });
}

}  // namespace

void check_linear(const Plan& plan, const std::vector<std::int64_t>& biased) {
  const Program& p = plan.program;
  const auto require = [](bool ok, const std::string& what) {
    if (!ok) throw std::invalid_argument("linear: " + what);
  };
  bool dense = p.dim2 == 1;
  for (int i = 0; i < p.path_count; ++i) {
    const Path& path = p.paths[i];
    dense = dense && path.mode == Mode::uvw && path.weighted && path.in2.l == 0 && path.in2.mul == 1;
  }
  require(dense, "plan must have paths uvw with weights and one scalar as y");
  for (const std::int64_t block : biased) {
    require(block >= 0 && block < p.out_count && p.out[block].l == 0,
            "biased must name blocks of the output that hold scalars, got " + std::to_string(block));
  }
  std::vector<std::int64_t> sorted = biased;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) {
    throw std::invalid_argument("linear: biased must name a block once, got " + std::to_string(*twice) +
                                " twice");
  }
}

template <class T>
void run_linear(const Plan& plan, const std::vector<std::int64_t>& biased, std::int64_t rows, Rows<const T> x,
                const T* weight, Rows<const T> bias, Rows<T> out, Parallel parallel) {
  apply(Arrangement(plan, Direction::to_out, biased).program(), rows, x, weight, bias, out, parallel);
}

template <class T>
void run_linear_grad_x(const Plan& plan, std::int64_t rows, Rows<const T> g, const T* weight, Rows<T> grad_x,
                       Parallel parallel) {
  apply(Arrangement(plan, Direction::to_x).program(), rows, g, weight, Rows<const T>{}, grad_x, parallel);
}

// Sums of chunks of rows, which depend on the call alone, added in their order: the same for any number of
// threads.
template <class T>
void run_linear_grad_weight(const Plan& plan, std::int64_t rows, Rows<const T> x, Rows<const T> g,
                            T* grad_weight, Parallel parallel) {
  const Arrangement arrangement(plan, Direction::to_out);
  const LinearProgram& program = arrangement.program();
  const LinearKernels<T>& table = kernels<T>().linear;
  const std::int64_t numel = plan.program.weight_numel, scratch = table.scratch_size(program);
  const std::int64_t chunks = std::clamp<std::int64_t>((rows + kChunkRows - 1) / kChunkRows, 1, kChunks);
  std::fill_n(grad_weight, numel, T{});
  Buffer<T> sums;
  const std::int64_t at_once = wave_chunks<T>(std::max<std::int64_t>(numel, 1));
  for (std::int64_t first = 0; first < chunks; first += at_once) {
    const std::int64_t wave = std::min(at_once, chunks - first);
    if (chunks > 1) std::fill_n(sums.reserve(wave * numel), wave * numel, T{});
    for_each_chunk(wave, parallel, [&](std::int64_t i) {
      table.grad_weight(program, x, g, chunks > 1 ? sums.data() + i * numel : grad_weight,
                        rows * (first + i) / chunks, rows * (first + i + 1) / chunks,
                        thread_scratch<T>(scratch));
    });
    if (chunks == 1) return;
    for_each_piece(numel, 1024, parallel, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t chunk = 0; chunk < wave; ++chunk) {
        const T* part = sums.data() + chunk * numel;
        for (std::int64_t i = begin; i < end; ++i) grad_weight[i] += part[i];
      }
    });
  }
}

#define CLEBSCH_INSTANTIATE(T)                                                                              \
  template CLEBSCH_API void run_linear(const Plan&, const std::vector<std::int64_t>&, std::int64_t,         \
                                       Rows<const T>, const T*, Rows<const T>, Rows<T>, Parallel);          \
  template CLEBSCH_API void run_linear_grad_x(const Plan&, std::int64_t, Rows<const T>, const T*, Rows<T>,  \
                                              Parallel);                                                    \
  template CLEBSCH_API void run_linear_grad_weight(const Plan&, std::int64_t, Rows<const T>, Rows<const T>, \
                                                   T*, Parallel);
CLEBSCH_INSTANTIATE(float)
CLEBSCH_INSTANTIATE(double)

}  // namespace clebsch
