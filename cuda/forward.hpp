// forward as a product per cell (product.hpp). Cell: an output place o. Rows b, columns n, steps a
// and then the taps k inside the input.
// Order: a ascending, within each k ascending.
#pragma once

#include "product.hpp"

namespace unshared::cuda {

inline Product forward_product(const Problem& problem) {
  Product p = start_product(problem, Face::forward);
  for (int s = 0; s < p.axis_count; ++s) {
    CellAxis& a = p.axes[s];
    a.first_partner = a.axis.x_stride;
    a.second_tap = a.axis.w_tap_stride;
    a.second_cell = a.axis.w_place_stride;
    a.result_cell = a.axis.y_stride;
  }
  p.rows = problem.out_channels;
  p.row_second = problem.w_out_stride;
  p.row_result = problem.y_channel_stride;
  p.column[p.column_depth++] = {problem.batch, problem.x_batch_stride, problem.y_batch_stride};
  p.steps = problem.in_channels;
  p.step_first = problem.x_channel_stride;
  p.step_second = problem.w_in_stride;
  finish_product(p);
  return p;
}

}  // namespace unshared::cuda
