// forward as tiles. Cell: an output place o. Rows n, columns b, steps a and then the taps k inside
// the input.
// Accumulator: float32 for half types, else the element type.
// Order: a ascending, within each k ascending.
// Deterministic: each y[n, o, b] is computed by one worker as one chain.
#pragma once

#include "tile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
struct ForwardTiles {
  const Problem& p;
  const Call& call;
  int64_t parts;
  Tiler<T> tiler;

  UNSHARED_INLINE ForwardTiles(const Problem& problem, const Call& c, int64_t n)
      : p(problem), call(c), parts(n), tiler(c) {}

  UNSHARED_INLINE void compute(const Cell& cell, int64_t part) {
    Product<T> product{};
    int64_t x = 0, w = 0, y = 0;
    product.steps.add(p.in_channels, p.x_channel_stride, p.w_in_stride);
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const Reach& reach = cell.reach[s];
      const int64_t o = cell.index.at[s];
      x += reach.partner * axis.x_stride;
      w += o * axis.w_place_stride + reach.tap * axis.w_tap_stride;
      y += o * axis.y_stride;
      product.steps.add(reach.count, cell.partner_step[s] * axis.x_stride,
                        cell.tap_step[s] * axis.w_tap_stride);
    }
    product.a = static_cast<const T*>(call.first) + x;
    product.b = static_cast<const T*>(call.second) + w;
    product.c = static_cast<T*>(call.result) + y;
    product.rows.add(p.batch, p.x_batch_stride, p.y_batch_stride);
    product.columns = p.out_channels;
    product.b_column = p.w_out_stride;
    product.c_column = p.y_channel_stride;
    compute_part(tiler, product, part, parts);
  }
};

}  // namespace
}  // namespace unshared

#endif
