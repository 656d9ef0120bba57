// grad_input as a product per cell (product.hpp). Cell: an input pixel i. Rows a, columns n, steps
// the places o that reach i and then b.
// Order: o ascending, within each b ascending.
#pragma once

#include "product.hpp"

namespace unshared::cuda {

inline Product grad_input_product(const Problem& problem) {
  Product p = start_product(problem, Face::grad_input);
  for (int s = 0; s < p.axis_count; ++s) {
    CellAxis& a = p.axes[s];
    a.first_partner = a.axis.y_stride;
    a.second_partner = a.axis.w_place_stride;
    a.second_tap = a.axis.w_tap_stride;
    a.result_cell = a.axis.x_stride;
  }
  p.taps_inside = false;
  p.rows = problem.in_channels;
  p.row_second = problem.w_in_stride;
  p.row_result = problem.x_channel_stride;
  p.column[p.column_depth++] = {problem.batch, problem.y_batch_stride, problem.x_batch_stride};
  p.steps = problem.out_channels;
  p.step_first = problem.y_channel_stride;
  p.step_second = problem.w_out_stride;
  finish_product(p);
  return p;
}

}  // namespace unshared::cuda
