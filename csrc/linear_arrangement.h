// The matrix products of a linear layer, whatever runs them.
#pragma once

#include <cstdint>
#include <vector>

#include "api.h"
#include "linear.h"
#include "plan.h"

namespace clebsch {

// The plan of a linear layer has paths uvw, all weighted, and one scalar as y: the layer is its product with
// y = 1. With an index, y is one block of scalars, and the product is that with a y that is 1 for the scalar
// that a row names and 0 for all others: through the matrix W[:, v, :] of element v = index[row]. Rows come
// in groups of one element; without an index all of them are one group, of element 0.
//
// `biased`: the blocks of the output that have a bias, in the order in which `bias` holds them. check_linear
// throws std::invalid_argument unless the plan is that of a linear layer and `biased` names blocks of
// scalars, each once.
CLEBSCH_API void check_linear(const Plan& plan, const std::vector<std::int64_t>& biased, bool indexed);

enum class LinearDirection { to_out, to_x };

// Whether weights lie as (u, v, w), or those of one v alone, as (u, w).
enum class LinearWeights { of_all, of_one };

// The products of a plan, by the block that they add up to.
class CLEBSCH_API LinearArrangement {
 public:
  LinearArrangement(const Plan& plan, LinearDirection direction, const std::vector<std::int64_t>& biased = {},
                    LinearWeights weights = LinearWeights::of_all);
  LinearArrangement(const LinearArrangement&) = delete;
  LinearArrangement& operator=(const LinearArrangement&) = delete;
  const LinearProgram& program() const { return program_; }

 private:
  std::vector<LinearTerm> terms_;
  std::vector<LinearTarget> targets_;
  LinearProgram program_{};
};

}  // namespace clebsch
