// grad_weight as a product per cell (product.hpp). Cell: an output place o. Rows b, columns the
// taps k and a, steps n.
// Order: n ascending. Taps in padding get an empty chain.
#pragma once

#include <algorithm>

#include "product.hpp"

namespace unshared::cuda {

inline Product grad_weight_product(const Problem& problem) {
  Product p = start_product(problem, Face::grad_weight);
  for (int s = 0; s < p.axis_count; ++s) {
    CellAxis& a = p.axes[s];
    a.second_cell = a.axis.y_stride;
    a.result_cell = a.axis.w_place_stride;
    p.column[p.column_depth++] = {a.axis.kernel, a.axis.x_stride, a.axis.w_tap_stride, s};
  }
  p.column[p.column_depth++] = {problem.in_channels, problem.x_channel_stride, problem.w_in_stride};
  // Neighbouring columns should be neighbours in memory: in the result, unless its rows are.
  const auto distance = [by_result = problem.w_out_stride != 1](const ColumnLoop& loop) {
    const int64_t stride = by_result ? loop.result : loop.first;
    return loop.count == 1 ? max_extent : greater(stride, -stride);
  };
  std::stable_sort(p.column, p.column + p.column_depth, [&](const auto& one, const auto& other) {
    return distance(one) > distance(other);
  });
  p.taps_are_steps = false;
  p.rows = problem.out_channels;
  p.row_second = problem.y_channel_stride;
  p.row_result = problem.w_out_stride;
  p.steps = problem.batch;
  p.step_first = problem.x_batch_stride;
  p.step_second = problem.y_batch_stride;
  finish_product(p);
  return p;
}

}  // namespace unshared::cuda
