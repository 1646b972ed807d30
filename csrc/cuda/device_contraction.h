// Symmetric contractions on a device: what kernels are given, and how they are started. No torch, no CUDA:
// for both sides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "storage.h"
#include "symmetric_contraction_call.h"

namespace clebsch::cuda {

struct FactorRun {
  int factor, end;
};
template <class T>
struct alignas(2 * sizeof(T)) WeighedIndex {
  int index;
  T value;
};
struct ContractionTarget {
  int width, count;
};

template <class T>
struct WeightOfRow {
  int weight, row;
  T value;
};

// The program of symmetric_contraction.h, what is read together side by side; and its reductions by weight
// too, for gradients.
template <class T>
struct ContractionTables {
  int components, factors, pairs, weights, rows, targets, products, out_width, reductions;
  const WeighedIndex<T>* entry;       // by product: a factor
  const WeighedIndex<T>* term_entry;  // by first factor: a product
  const WeighedIndex<T>* of_row;      // of the weights: their number
  const WeightOfRow<T>* by_weight;
  const FactorRun *group, *term;
  const ContractionTarget* target;
  const int *pair, *product_end, *factor_end, *row_end;
};

// The tables in words of 8 bytes, and the view of them wherever they were copied to. The first throws
// std::invalid_argument if the table is none; the second takes it for one.
template <class T>
std::vector<std::int64_t> contraction_words(TableWords table);
template <class T>
ContractionTables<T> view_contraction(const ContractionSizes& sizes, const std::int64_t* words);

// What is null is absent or not wanted. weight and a_weight: w_r, (species, rows, channels).
template <class S>
struct DeviceContraction {
  using T = Arithmetic<S>;
  ContractionTables<T> plan;
  std::int64_t nodes, species;
  int channels;
  const std::int64_t* index;  // the species of each node
  const std::int64_t* order;  // nodes by position; null: in their places
  std::int64_t chunk;         // positions that a warp takes one after the other
  const S *x, *ax, *grad;
  const T *weight, *a_weight;
  S *out, *grad_x;
  T* parts;    // d/dw_r of the nodes of species z in a chunk: row chunk + z of (rows, channels)
  T* columns;  // where shared memory is too small: those of each block
};

// How the kernel of a step runs: channels of a thread, blocks, and numbers that each of these has in shared
// memory, or, if that is too small, in `columns`.
struct ContractionShape {
  int width;
  std::int64_t blocks, numbers;
  bool shared;
};
template <class S>
ContractionShape contraction_shape(const DeviceContraction<S>& contraction, ContractionStep step);
template <class S>
void launch_contraction(const DeviceContraction<S>& contraction, ContractionStep step,
                        const ContractionShape& shape, void* stream);

// Between the weights of paths and w_r.
template <class From, class To>
struct ContractionWeights {
  ContractionTables<Arithmetic<From>> plan;
  std::int64_t species;
  int channels;
  const From* from;
  To* to;
};
// w_r of all species; and grad_weight from d/dw_r.
template <class S>
void launch_reduce_weights(const ContractionWeights<S, Arithmetic<S>>& weights, void* stream);
template <class S>
void launch_spread_weights(const ContractionWeights<Arithmetic<S>, S>& weights, void* stream);

// d/dw_r of every species from the parts of chunks.
template <class T>
struct SpeciesSums {
  const std::int64_t* sorted;  // the species of each position
  std::int64_t nodes, species, chunk, length;
  const T* parts;
  T* sums;
};
template <class T>
void launch_species_sums(const SpeciesSums<T>& sums, void* stream);

}  // namespace clebsch::cuda
