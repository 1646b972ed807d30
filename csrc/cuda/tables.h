// A plan as device kernels see it: plain arrays in one piece of memory, copied to a device once.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace clebsch::cuda {

struct BlockTable {
  std::int64_t offset;
  int mul, l;
};

// The rows of `first` that a path's terms are sorted by: of component d of the output those from
// first[by_out + d] to first[by_out + d + 1] are summed, each a value times component a of x and b of y;
// by_in1: of x, with a of y and b of the output; by_in2: of y, with a of x and b of the output.
struct PathTable {
  BlockTable in1, in2, out;
  std::int64_t weight, pairs;
  std::int64_t fan;  // output channels that a pair reaches with a weight for each; 0: one
  Mode mode;
  bool weighted;
  int by_out, by_in1, by_in2;
};

template <class T>
struct TermTable {
  int a, b;
  T value;
};

// What a kernel is given by value: pointers into the piece.
template <class T>
struct PlanTables {
  const PathTable* paths;
  const TermTable<T>* terms;
  const int* first;
  std::int64_t dim1, dim2, dim_out, weight_numel;
  int path_count;
  bool mul_ir;
};

// The piece, in words of 8 bytes, and the view of it wherever it was copied to.
template <class T>
std::vector<std::int64_t> plan_words(const Plan& plan);
template <class T>
PlanTables<T> view_plan(const Plan& plan, const std::int64_t* words);

}  // namespace clebsch::cuda
