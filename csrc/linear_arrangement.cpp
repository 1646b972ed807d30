#include "linear_arrangement.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace clebsch {

void check_linear(const Plan& plan, const std::vector<std::int64_t>& biased, bool indexed) {
  const Program& p = plan.program;
  const auto require = [](bool ok, const std::string& what) {
    if (!ok) throw std::invalid_argument("linear: " + what);
  };
  bool dense = indexed || p.dim2 == 1;
  for (int i = 0; i < p.in2_count && indexed; ++i)
    dense = dense && (p.in2[i].mul == 0 || (p.in2[i].l == 0 && p.in2[i].mul == p.dim2));
  for (int i = 0; i < p.path_count; ++i) {
    const Path& path = p.paths[i];
    dense = dense && path.mode == Mode::uvw && path.weighted && path.in2.l == 0 && path.in2.mul == p.dim2;
  }
  require(dense, indexed ? "plan must have paths uvw with weights and one block of scalars as y"
                         : "plan must have paths uvw with weights and one scalar as y");
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

LinearArrangement::LinearArrangement(const Plan& plan, LinearDirection direction,
                                     const std::vector<std::int64_t>& biased, LinearWeights weights) {
  const Program& from = plan.program;
  const bool to_out = direction == LinearDirection::to_out;
  const Block* blocks = to_out ? from.out : from.in1;
  const int count = to_out ? from.out_count : from.in1_count;
  std::vector<std::vector<LinearTerm>> terms(count);
  for (int i = 0; i < from.path_count; ++i) {
    const Path& p = from.paths[i];
    const double scale = p.values[0];  // the coupling of l with a scalar is a multiple of the identity
    const bool one = weights == LinearWeights::of_one;
    const std::int64_t line = p.out.mul, next = one ? line : p.in2.mul * line;
    const std::int64_t weight = one ? p.weight / p.in2.mul : p.weight;
    const Block& target = to_out ? p.out : p.in1;
    const LinearTerm term = to_out ? LinearTerm{p.in1, weight, next, line, 1, scale}
                                   : LinearTerm{p.out, weight, 1, line, next, scale};
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

}  // namespace clebsch
