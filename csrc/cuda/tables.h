// A plan as device kernels see it: plain arrays in one piece of memory, copied to a device once.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace clebsch::cuda {

// component: where its components begin among those of the blocks that paths use; -1: no path does.
struct BlockTable {
  std::int64_t offset;
  int mul, l, component;
};

constexpr int kForwardWarps = 4;  // of a block of threads, which share the paths

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
  // Of channelwise plans: terms by cell m1 (2 l3 + 1) + m3 (a is the component of y); where the cells lie
  // among those of all paths; and the warp that adds to the output block.
  int by_cell, dense, warp;
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
  const BlockTable *in1, *out;
  std::int64_t dim1, dim2, dim_out, weight_numel;
  int path_count, in1_count, out_count;
  int components1, components_out, dense;  // of the blocks that paths use; cells of all paths
  int widest;                              // multiplicity, of a block of x or the output
  bool mul_ir;
  bool channelwise;  // every path uvu with one copy of y
  bool fans;         // a path's weights fan out
};

// The piece, in words of 8 bytes, and the view of it wherever it was copied to.
template <class T>
std::vector<std::int64_t> plan_words(const Plan& plan);
template <class T>
PlanTables<T> view_plan(const Plan& plan, const std::int64_t* words);

}  // namespace clebsch::cuda
