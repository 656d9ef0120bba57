// Strips of neighbouring cells for the two faces that gather, forward and grad_input: what a strip
// reads of the small tensor (x or dy) is staged once for a block of samples, and then each cell is
// one product with the weights, which are read where they lie.
//
// Staging turns every memory order into one that suits the tiles: rows (samples) close together
// instead of pages apart, each element fetched once for all cells and taps that use it. Where a
// cell is too large for that (thousands of terms), or its weights have to be packed, cells stand
// alone and the rows are staged piece by piece with the steps.
#pragma once

#include "tile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// A gathering face: rows n, columns the result's channels, steps the summed channels and taps.
struct Gathering {
  int64_t summed, columns;  // channels
  int64_t small_batch, small_channel, result_batch, result_channel, w_summed, w_column;
  int64_t Axis::* small_stride;
  int64_t Axis::* result_stride;
};

template <class T, class Face_>
class Strips {
 public:
  using Real = typename Scalar<T>::Real;

  UNSHARED_INLINE Strips(const Problem& problem, const Call& call, int64_t strips, int64_t parts)
      : p(problem),
        g(Face_::gathering(problem)),
        call_(call),
        parts_(parts),
        rows_(rows_of_block(problem)),
        whole_(fits(problem, strips)),
        tiler_(call) {}

  // How many strips to cut a row of cells into.
  static UNSHARED_INLINE int64_t strips(const Problem& p, const Call& call) {
    const Gathering g = Face_::gathering(p);
    const int64_t row = Walk<Strips>::row_of(p, Face_::face);
    const int64_t rows = Cell::count(p, Face_::face) / row;
    if (!fits(p, row)) return row;
    int64_t terms = g.summed;
    for (int s = 0; s < p.axis_count; ++s) terms *= p.axes[s].kernel;
    // Weights of one strip stay in a cache while blocks of samples pass; and every thread finds work.
    int64_t longest = lesser(row, 16);
    if (p.batch > rows_of_block(p))
      longest = lesser(
          longest, greater(1, cache_bytes / int64_t{sizeof(T)} / greater(1, terms * g.columns)));
    if (call.threads != 1) longest = lesser(longest, greater(1, row * rows / 32));
    const bool here = Tiler<T>::in_place(g.w_column);
    const int64_t room = here ? Tiler<T>::near_reals : Tiler<T>::stage_reals;
    while (longest > 1 && !fits(p, ceil_div(row, longest), room)) --longest;
    return ceil_div(row, longest);
  }

  UNSHARED_INLINE void compute(Cell& cell, int64_t count, int64_t part) {
    const int z = p.axis_count - 1;
    const Axis& last = p.axes[z];
    struct {
      Reach reach;
      int64_t index;
    } at[16];
    int64_t low = max_extent, high = -1;
    for (int64_t j = 0; j < count; ++j) {
      if (j > 0) cell.advance();
      at[j] = {cell.reach[z], cell.index.at[z]};
      if (at[j].reach.count == 0) continue;
      low = lesser(low, at[j].reach.partner);
      high = greater(high, at[j].reach.partner + (at[j].reach.count - 1) * cell.partner_step[z]);
    }

    // All but the last axis: the same for every cell of the strip.
    Nest others;  // strides of the small tensor and of w
    const T* small = static_cast<const T*>(call_.first);
    const T* w = static_cast<const T*>(call_.second);
    T* result = static_cast<T*>(call_.result);
    for (int s = 0; s < z; ++s) {
      const Axis& axis = p.axes[s];
      const Reach& reach = cell.reach[s];
      small += reach.partner * axis.*g.small_stride;
      result += cell.index.at[s] * axis.*g.result_stride;
      w += Face_::w_offset(axis, cell.index.at[s], reach);
      others.add(reach.count, cell.partner_step[s] * axis.*g.small_stride,
                 Face_::w_step(axis, cell.tap_step[s], cell.partner_step[s]));
    }

    const int64_t w_last = Face_::w_step(last, cell.tap_step[z], cell.partner_step[z]);
    const auto steps = [&](const Nest& outer, int64_t channel, int64_t z_step, int64_t taps) {
      Nest nest;
      if (Face_::channels_outermost) nest.add(g.summed, channel, g.w_summed);
      for (int d = 0; d < outer.depth; ++d)
        nest.add(outer.loop[d].count, outer.loop[d].first, outer.loop[d].second);
      nest.add(taps, z_step, w_last);
      if (!Face_::channels_outermost) nest.add(g.summed, channel, g.w_summed);
      return nest;
    };
    Product<T> product{};
    product.columns = g.columns;
    product.b_column = g.w_column;
    product.c_column = g.result_channel;
    product.accumulate = call_.accumulate;
    product.b_next = last.w_place_stride;
    const auto run = [&](int64_t j, T* to) {
      product.b = w + Face_::w_offset(last, at[j].index, at[j].reach);
      product.c = to + at[j].index * last.*g.result_stride;
      compute_part(tiler_, product, part, parts_);
    };

    if (!whole_ || high < 0) {
      const int64_t scale = Scalar<T>::parts;
      for (int64_t j = 0; j < count; ++j) {
        const T* from = small + at[j].reach.partner * last.*g.small_stride;
        product.steps = steps(others, g.small_channel, cell.partner_step[z] * last.*g.small_stride,
                              at[j].reach.count);
        product.rows.depth = 0;
        product.rows.add(p.batch, g.small_batch, g.result_batch);
        if constexpr (Scalar<T>::parts == 2) {
          product.a = reinterpret_cast<const Real*>(from);
          product.rows.loop[0].first *= scale;
          for (int d = 0; d < product.steps.depth; ++d) product.steps.loop[d].first *= scale;
        } else {
          product.unstaged = from;
        }
        run(j, result);
      }
      return;
    }

    // Scratch: samples, then the other axes, the window along the last one, and the channels.
    const int64_t unit = count == 1 ? cell.partner_step[z] : 1;
    const int64_t window = (high - low) / unit + 1;
    small += low * last.*g.small_stride;
    if constexpr (Scalar<T>::parts == 1) {
      const int64_t ahead = small - last_;
      last_ = small;
      for (int64_t n = 0; n < p.batch; n += rows_) {
        const int64_t rows = lesser(rows_, p.batch - n);
        Nest box = others;
        box.add(window, unit * last.*g.small_stride, 0);
        box.add(g.summed, g.small_channel, 0);
        // Channels innermost if memory is, else outermost, as it is there.
        const int64_t row = Tiler<T>::stage_nest(box, g.small_batch, rows,
                                                 small + n * g.small_batch, tiler_.stage_, ahead);
        const int64_t z_scratch = box.loop[others.depth].first;
        const int64_t channel = box.loop[others.depth + 1].first;
        Nest staged = others;
        for (int d = 0; d < others.depth; ++d) staged.loop[d].first = box.loop[d].first;
        for (int64_t j = 0; j < count; ++j) {
          const int64_t skip = (at[j].reach.partner - low) / unit;
          product.a = tiler_.stage_ + (at[j].reach.count == 0 ? 0 : skip * z_scratch);
          product.steps =
              steps(staged, channel, cell.partner_step[z] / unit * z_scratch, at[j].reach.count);
          product.rows.depth = 0;
          product.rows.add(rows, row, g.result_batch);
          run(j, result + n * g.result_batch);
        }
      }
    }
  }

 private:
  static constexpr int64_t cache_bytes = 512 * 1024;  // about half a second-level cache

  // Samples staged together, evenly split: two tiles' worth, so that they stay in the nearest cache;
  // where weights are packed, as many as possible, since a panel serves one block.
  static UNSHARED_INLINE int64_t rows_of_block(const Problem& p) {
    const bool here = Tiler<T>::in_place(Face_::gathering(p).w_column);
    return ceil_div(p.batch, ceil_div(greater(p.batch, 1), here ? 16 : 112));
  }

  // Whether what a strip reads of the small tensor fits into scratch.
  static UNSHARED_INLINE bool fits(const Problem& p, int64_t strips,
                                   int64_t room = Tiler<T>::stage_reals) {
    if (Scalar<T>::parts == 2) return false;
    const Gathering g = Face_::gathering(p);
    const int z = p.axis_count - 1;
    const int64_t count = ceil_div(Walk<Strips>::row_of(p, Face_::face), strips);
    int64_t reals = g.summed;
    for (int s = 0; s <= z; ++s) {
      const Axis& axis = p.axes[s];
      int64_t most = axis.kernel;
      if (s == z && count > 1) most = Face_::window(axis, count);
      reals *= greater(1, lesser(most, Face_::partners(axis)));
      if (reals > Tiler<T>::stage_reals) return false;
    }
    return Tiler<T>::spaced(reals) * rows_of_block(p) <= room;
  }

  const Problem& p;
  const Gathering g;
  const Call& call_;
  const int64_t parts_, rows_;
  const bool whole_;
  const T* last_ = nullptr;
  Tiler<T> tiler_;
};

}  // namespace
}  // namespace unshared

#endif
