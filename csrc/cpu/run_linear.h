// Runs a linear layer over rows: arranges its matrix products, cuts the rows into pieces, and owns the packed
// weights and private sums. No torch, no Python.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "plan.h"
#include "row_groups.h"
#include "tensor_product.h"

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

// out = x W + bias; grad_x = g W^T; grad_weight = x^T g. All throw std::bad_alloc if there is no memory for
// the work space; then results are unspecified.
template <class T>
CLEBSCH_API void run_linear(const Plan& plan, const std::vector<std::int64_t>& biased, const RowGroups& rows,
                            Rows<const T> x, const T* weight, Rows<const T> bias, Rows<T> out,
                            Parallel parallel);
template <class T>
CLEBSCH_API void run_linear_grad_x(const Plan& plan, const RowGroups& rows, Rows<const T> g, const T* weight,
                                   Rows<T> grad_x, Parallel parallel);
template <class T>
CLEBSCH_API void run_linear_grad_weight(const Plan& plan, const RowGroups& rows, Rows<const T> x,
                                        Rows<const T> g, T* grad_weight, Parallel parallel);

}  // namespace clebsch
