// grad_weight as tiles. Cell: an output place o. Steps n; the rows and columns of the cell's dw[k,
// a, b] in one of two ways: rows (k, a) and columns b, or - for real types, one product per tap -
// rows b and columns a, whichever reads and writes in longer runs.
// Accumulator: float32 for half types, else the element type.
// Order: n ascending.
// Deterministic: each dw[o, k, a, b] is computed by one worker as one chain. Taps in padding get an
// empty chain.
#pragma once

#include "tile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Whether lanes should run over input channels, from what either way costs per place and tap:
// vector multiplications, and elements moved one by one (packed once per place if columns are b,
// once per tap if they are a).
template <class T>
UNSHARED_INLINE bool lanes_over_input(const Problem& p) {
  if (Scalar<T>::parts == 2) return false;  // steps are of the rows' parts: x's
  constexpr int64_t lanes = Tiler<T>::lanes;
  int64_t taps = 1;
  for (int s = 0; s < p.axis_count; ++s) taps *= p.axes[s].kernel;
  const int64_t n = p.batch, a = p.in_channels, b = p.out_channels;
  const auto cost = [&](int64_t rows, int64_t columns, int64_t b_column, int64_t c_column,
                        int64_t packs) {
    const bool full = Tiler<T>::plain && columns % lanes == 0;
    const int64_t moved = (full && b_column == 1 ? 0 : n * columns / packs) +
                          (full && c_column == 1 ? 0 : rows * columns);
    return n * rows * ceil_div(columns, lanes) + moved + moved / 2;
  };
  return cost(b, a, p.x_channel_stride, p.w_in_stride, 1) <
         cost(a, b, p.y_channel_stride, p.w_out_stride, taps);
}

template <class T>
struct GradWeightTiles {
  const Problem& p;
  const Call& call;
  int64_t parts;
  bool over_input;
  Tiler<T> tiler;

  UNSHARED_INLINE GradWeightTiles(const Problem& problem, const Call& c, int64_t n)
      : p(problem), call(c), parts(n), over_input(lanes_over_input<T>(problem)), tiler(c) {}

  UNSHARED_INLINE void compute(const Cell& cell, int64_t part) {
    Product<T> product{};
    Nest taps;
    int64_t x = 0, w = 0, y = 0, place = 0;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const Reach& reach = cell.reach[s];
      const int64_t o = cell.index.at[s];
      x += reach.partner * axis.x_stride;
      place += o * axis.w_place_stride;
      w += reach.tap * axis.w_tap_stride;
      y += o * axis.y_stride;
      taps.add(reach.count, cell.partner_step[s] * axis.x_stride,
               cell.tap_step[s] * axis.w_tap_stride);
    }
    const T* first = static_cast<const T*>(call.first) + x;
    const T* second = static_cast<const T*>(call.second) + y;
    T* result = static_cast<T*>(call.result) + place;
    if (part == 0 && !call.accumulate)
      clear_padding(p, cell.index.at, result, p.in_channels, p.out_channels);
    result += w;

    if (!over_input) {
      product.a = first;
      product.b = second;
      product.c = result;
      product.steps = p.batch;
      product.a_step = p.x_batch_stride;
      product.b_step = p.y_batch_stride;
      product.rows = taps;
      product.rows.add(p.in_channels, p.x_channel_stride, p.w_in_stride);
      product.columns = p.out_channels;
      product.b_column = p.y_channel_stride;
      product.c_column = p.w_out_stride;
      compute_part(tiler, product, part, parts);
      return;
    }
    product.a = second;
    product.steps = p.batch;
    product.a_step = p.y_batch_stride;
    product.b_step = p.x_batch_stride;
    product.rows.add(p.out_channels, p.y_channel_stride, p.w_out_stride);
    product.columns = p.in_channels;
    product.b_column = p.x_channel_stride;
    product.c_column = p.w_in_stride;
    const int64_t count = taps.total();
    for (int64_t tap = 0; tap < count; ++tap) {
      int64_t flat = tap;
      product.b = first;
      product.c = result;
      for (int d = taps.depth - 1; d >= 0; --d) {
        const int64_t at = flat % taps.loop[d].count;
        flat /= taps.loop[d].count;
        product.b += at * taps.loop[d].first;
        product.c += at * taps.loop[d].second;
      }
      compute_part(tiler, product, part, parts);
    }
  }
};

}  // namespace
}  // namespace unshared

#endif
