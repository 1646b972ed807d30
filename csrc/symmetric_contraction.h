// Symmetric contraction: polynomials of the components of each channel, mixed by weights of the node's
// species. What a kernel is given, and the kernels of one instruction set.
#pragma once

#include <cstdint>

namespace clebsch {

// Factors q: q_0 = 1, then the components of x, then `pairs`, products of two components each. Products are
//
//   P_p = sum over entries (p, a, b, value) of value q_a q_b
//
// and belong, one for each component M, to the rows r of a basis, these to targets:
//
//   out[M] = sum_r w_r P_{r, M},   w_r = sum over reductions (r, k, value) of value W[z, k]
//
// Entries stand twice, by (p, a) and by (a, b): item i of a list of ends says where the i-th run ends.
template <class T>
struct ContractionProgram {
  int components, factors, pairs, weights, rows, targets, products, out_width;
  const int* pair;           // two factors each
  const int *width, *count;  // of each target: components, and rows of the basis
  // by product
  const int *product_end, *group_factor, *group_end, *entry_factor;
  const T* entry_value;
  // by first factor
  const int *factor_end, *term_factor, *term_end, *term_product;
  const T* term_value;
  // the weights of a row
  const int *reduction_end, *reduction_weight;
  const T* reduction_value;
};

// Nodes of one species. x, ax, grad_x hold (channels, components) for a node, out and grad (which have the
// same form) a block (channels, width) for every target. weight and a_weight are w_r, of `padded` channels a
// row; grad_weight, the same for d/dw_r, is added to. A pointer that is null is absent or not wanted.
template <class T>
struct ContractionArgs {
  const ContractionProgram<T>* program;
  int channels, padded;
  const T *x, *ax, *grad, *weight, *a_weight;
  T *out, *grad_x, *grad_weight;
};

// nodes[0] to nodes[count - 1].
template <class T>
using ContractionKernel = void (*)(const ContractionArgs<T>&, const std::int64_t* nodes, std::int64_t count,
                                   T* scratch);

template <class T>
struct ContractionKernels {
  ContractionKernel<T> forward, backward, double_backward;
  std::int64_t (*scratch_size)(const ContractionProgram<T>&);  // elements that each of them needs
  int (*padded)(int channels);
  // w_r of one species from its weights (weights, channels), and grad_w_r back, added to.
  void (*reduce)(const ContractionProgram<T>&, int channels, const T* weight, T* reduced);
  void (*spread)(const ContractionProgram<T>&, int channels, const T* grad_reduced, T* grad_weight);
};

}  // namespace clebsch
