// grad_input as tiles. Cell: an input pixel i. Rows n, columns a, steps the places o that reach i
// and then b.
// Accumulator: float32 for half types, else the element type.
// Order: o ascending, within each b ascending.
// Deterministic: each dx[n, i, a] is gathered by one worker as one chain; nothing is scattered.
#pragma once

#include "tile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
struct GradInputTiles {
  const Problem& p;
  const Call& call;
  int64_t parts;
  Tiler<T> tiler;

  UNSHARED_INLINE GradInputTiles(const Problem& problem, const Call& c, int64_t n)
      : p(problem), call(c), parts(n), tiler(c) {}

  UNSHARED_INLINE void compute(const Cell& cell, int64_t part) {
    Product<T> product{};
    int64_t x = 0, w = 0, y = 0;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const Reach& reach = cell.reach[s];
      x += cell.index.at[s] * axis.x_stride;
      w += reach.partner * axis.w_place_stride + reach.tap * axis.w_tap_stride;
      y += reach.partner * axis.y_stride;
      product.steps.add(
          reach.count, cell.partner_step[s] * axis.y_stride,
          cell.partner_step[s] * axis.w_place_stride + cell.tap_step[s] * axis.w_tap_stride);
    }
    product.steps.add(p.out_channels, p.y_channel_stride, p.w_out_stride);
    product.a = static_cast<const T*>(call.first) + y;
    product.b = static_cast<const T*>(call.second) + w;
    product.c = static_cast<T*>(call.result) + x;
    product.rows.add(p.batch, p.y_batch_stride, p.x_batch_stride);
    product.columns = p.in_channels;
    product.b_column = p.w_in_stride;
    product.c_column = p.x_channel_stride;
    compute_part(tiler, product, part, parts);
  }
};

}  // namespace
}  // namespace unshared

#endif
