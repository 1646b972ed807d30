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

// Which rows go through which matrices, and `biased`: linear_arrangement.h.
//
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
