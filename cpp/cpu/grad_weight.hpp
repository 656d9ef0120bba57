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
  if (Scalar<T>::parts == 2) return false;  // the order inside a complex product would change
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
  using Real = typename Scalar<T>::Real;
  const Problem& p;
  const Call& call;
  int64_t parts;
  bool over_input;
  Tiler<T> tiler;

  UNSHARED_INLINE GradWeightTiles(const Problem& problem, const Call& c, int64_t, int64_t n)
      : p(problem), call(c), parts(n), over_input(lanes_over_input<T>(problem)), tiler(c) {}

  UNSHARED_INLINE void compute(Cell& cell, int64_t, int64_t part) {
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
    if (part == 0 && !call.accumulate) clear_padding(cell, result);
    result += w;
    const int64_t ahead = first - last_;
    last_ = first;

    Product<T> product{};
    product.pack = true;
    if (!over_input) {
      // Rows: what the place sees of x, staged, all samples of as many rows as there is room for.
      Nest rows = taps;
      rows.add(p.in_channels, p.x_channel_stride, p.w_in_stride);
      product.columns = p.out_channels;
      product.b_column = p.y_channel_stride;
      product.c_column = p.w_out_stride;
      product.b_next = p.axes[p.axis_count - 1].y_stride;
      in_blocks(product, rows, first, p.x_batch_stride, ahead, second, p.y_batch_stride, result,
                part);
      return;
    }
    Nest rows;
    rows.add(p.out_channels, p.y_channel_stride, p.w_out_stride);
    product.columns = p.in_channels;
    product.b_column = p.x_channel_stride;
    product.c_column = p.w_in_stride;
    const int64_t count = taps.total();
    for (int64_t tap = 0; tap < count; ++tap) {
      int64_t flat = tap, from = 0, to = 0;
      for (int d = taps.depth - 1; d >= 0; --d) {
        const int64_t at = flat % taps.loop[d].count;
        flat /= taps.loop[d].count;
        from += at * taps.loop[d].first;
        to += at * taps.loop[d].second;
      }
      in_blocks(product, rows, second, p.y_batch_stride, 0, first + from, p.x_batch_stride,
                result + to, part);
    }
  }

 private:
  // Samples and rows in blocks that fit into scratch: A staged, or read in place if complex.
  UNSHARED_INLINE void in_blocks(Product<T>& product, const Nest& rows, const T* a, int64_t a_batch,
                                 int64_t ahead, const T* b, int64_t b_batch, T* c, int64_t part) {
    // Half types must not be rounded between blocks of samples.
    constexpr int64_t most_samples = 512;
    if constexpr (!Tiler<T>::plain) {
      if (p.batch > most_samples) {
        in_rows(product, rows, a, a_batch, b, b_batch, c, part);
        return;
      }
    }
    const int64_t samples = lesser(p.batch, Tiler<T>::plain ? 256 : most_samples);
    for (int64_t n = 0; n == 0 || n < p.batch; n += samples) {
      const int64_t count = lesser(samples, p.batch - n);
      product.accumulate = call.accumulate || n > 0;
      product.b = b + n * b_batch;
      product.steps.depth = 0;
      if constexpr (Scalar<T>::parts == 2) {
        product.a = reinterpret_cast<const Real*>(a + n * a_batch);
        product.steps.add(count, 2 * a_batch, b_batch);
        product.rows = rows;
        for (int d = 0; d < rows.depth; ++d) product.rows.loop[d].first *= 2;
        product.c = c;
        compute_part(tiler, product, part, parts);
      } else if (Tiler<T>::plain && rows.loop[rows.depth - 1].first == 1) {
        // A step's rows are neighbours in memory: a line or two, wherever the next step's lie.
        product.a = reinterpret_cast<const Real*>(a + n * a_batch);
        product.steps.add(count, a_batch, b_batch);
        product.rows = rows;
        product.c = c;
        compute_part(tiler, product, part, parts);
      } else {
        const int64_t most =
            greater(Tiler<T>::near_reals / greater(count, 1),
                    lesser(32, Tiler<T>::stage_reals / greater(count, 1) - 2 * Lanes<Real>::count));
        for (Pieces pieces(rows, most); pieces.more(); pieces.next()) {
          product.rows = pieces.part;
          const int64_t row = Tiler<T>::stage_nest(
              product.rows, a_batch, count, a + n * a_batch + pieces.first, tiler.stage_, ahead);
          product.a = tiler.stage_;
          product.c = c + pieces.second;
          product.steps.depth = 0;
          product.steps.add(count, row, b_batch);
          compute_part(tiler, product, part, parts);
        }
      }
      if (count == 0) break;
    }
  }

  // All samples in one chain, staged piece by piece.
  UNSHARED_INLINE void in_rows(Product<T>& product, const Nest& rows, const T* a, int64_t a_batch,
                               const T* b, int64_t b_batch, T* c, int64_t part) {
    const Nest::Loop& inner = rows.loop[rows.depth - 1];
    const int64_t outer = inner.count == 0 ? 0 : rows.total() / inner.count;
    product.accumulate = call.accumulate;
    product.b = b;
    product.steps.depth = product.rows.depth = 0;
    product.steps.add(p.batch, a_batch, b_batch);
    product.rows.add(inner.count, inner.first, inner.second);
    for (int64_t o = 0; o < outer; ++o) {
      product.unstaged = a;
      product.c = c;
      int64_t flat = o;
      for (int d = rows.depth - 2; d >= 0; --d) {
        const int64_t at = flat % rows.loop[d].count;
        flat /= rows.loop[d].count;
        product.unstaged += at * rows.loop[d].first;
        product.c += at * rows.loop[d].second;
      }
      compute_part(tiler, product, part, parts);
    }
    product.unstaged = nullptr;
  }

  // Zero for every tap of this place that falls into padding.
  UNSHARED_INLINE void clear_padding(const Cell& cell, T* result) const {
    bool inside = true;
    for (int s = 0; s < p.axis_count; ++s)
      inside = inside && cell.reach[s].count == p.axes[s].kernel;
    if (inside) return;
    reference::Index k{};
    do {
      int64_t w = 0;
      bool in_chain = true;
      for (int s = 0; s < p.axis_count; ++s) {
        in_chain = in_chain && p.axes[s].source(cell.index.at[s], k.at[s]) >= 0;
        w += k.at[s] * p.axes[s].w_tap_stride;
      }
      if (in_chain) continue;
      for (int64_t a = 0; a < p.in_channels; ++a)
        for (int64_t b = 0; b < p.out_channels; ++b)
          result[w + a * p.w_in_stride + b * p.w_out_stride] = T{};
    } while (reference::next(p, k));
  }

  const T* last_ = nullptr;
};

}  // namespace
}  // namespace unshared

#endif
