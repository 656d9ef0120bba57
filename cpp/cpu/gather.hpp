// Kernel "gather": forward and grad_input by strips of neighbouring cells, one or two axes wide.
//
// What a strip reads of the small tensor (x or dy) is staged once for a block of samples: close
// together instead of pages apart, whatever its memory order. Each cell is then a small matrix
// product (gather_cell.hpp). Sums stay in the result if it is laid out like a tile, else in scratch
// until a row of cells is done. gather_plan.hpp says how a call is cut.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face. Deterministic: one chain, one worker.
#pragma once

#include "gather_cell.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
class Gather : GatherCell<T, face> {
  using Base = GatherCell<T, face>;
  using Base::ahead_, Base::call_, Base::columns_, Base::g, Base::p, Base::panel_, Base::parts_,
      Base::plan_, Base::reals, Base::rows_, Base::stage_, Base::table_steps;
  using typename Base::L;
  using typename Base::Plan;
  using typename Base::Real;

 public:
  UNSHARED_INLINE Gather(const Problem& problem, const Call& call, const Plan& plan)
      : Base(problem, call, plan) {
    for (int s = 0; s < p.axis_count; ++s) spacing_[s] = spacing_of(p.axes[s], by_input);
  }

  // The items [begin, end): strips, and for each its parts of columns.
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t rest = item / plan_.parts;
      const int z = p.axis_count - 1;
      set(along_, z, rest % plan_.wide, plan_.wide);
      rest /= plan_.wide;
      if (z > 0) {
        set(across_, z - 1, rest % plan_.high, plan_.high);
        rest /= plan_.high;
      }
      for (int s = z - 2; s >= 0; --s) {
        const int64_t cells = Plan::cells_of(p.axes[s]);
        at_[s] = rest % cells;
        rest /= cells;
      }
      compute(item % plan_.parts * plan_.width);
    }
  }

 private:
  static constexpr bool by_input = Plan::by_input;
  static constexpr int64_t line = Plan::line;
  using Boxes = Boxed<T>;
  static constexpr int64_t in_memory = Boxes::in_memory, in_scratch = Boxes::in_scratch;

  static UNSHARED_INLINE int64_t padded(int64_t columns) {
    return Plan::vectors_of(columns) * L::count;
  }
  static UNSHARED_INLINE int64_t w_offset(const Axis& axis, int64_t index, const Reach& reach) {
    return (by_input ? reach.partner : index) * axis.w_place_stride + reach.tap * axis.w_tap_stride;
  }
  UNSHARED_INLINE int64_t w_step(int s) const {
    return spacing_[s].tap * p.axes[s].w_tap_stride +
           (by_input ? spacing_[s].partner * p.axes[s].w_place_stride : 0);
  }
  UNSHARED_INLINE Reach reach(int s, int64_t index) const {
    return reach_of(p.axes[s], by_input, index, spacing_[s].tap);
  }

  // The cells of a strip along one axis, and what they read along it: `window` partners from `low`
  // on, `unit` apart.
  struct Line {
    int64_t count = 1, first = 0, low = 0, window = 1, unit = 1;
    Reach reach[Plan::longest_strip];
  };
  UNSHARED_INLINE void set(Line& l, int s, int64_t strip, int64_t strips) const {
    const int64_t cells = Plan::cells_of(p.axes[s]);
    l.first = strip * cells / strips;
    l.count = (strip + 1) * cells / strips - l.first;
    int64_t low = max_extent, high = -1;
    for (int64_t j = 0; j < l.count; ++j) {
      const Reach r = l.reach[j] = reach(s, l.first + j);
      if (r.count == 0) continue;
      low = lesser(low, r.partner);
      high = greater(high, r.partner + (r.count - 1) * spacing_[s].partner);
    }
    l.unit = l.count == 1 ? spacing_[s].partner : 1;
    l.window = high < 0 ? 0 : (high - low) / l.unit + 1;
    l.low = high < 0 ? 0 : low;
  }
  // Cuts the loop of a strip's window down to one cell's part; returns where that begins.
  static UNSHARED_INLINE int64_t narrow(Nest::Loop& loop, const Line& l, const Reach& r,
                                        int64_t partner_step) {
    const int64_t stride = loop.first;
    loop.count = r.count;
    loop.first = stride * (partner_step / l.unit);
    return (r.partner - l.low) / l.unit * stride;
  }

  // The strip at hand, columns from `column` on.
  void compute(int64_t column) {
    const int z = p.axis_count - 1;
    // The steps in the order of the chain; strides of the small tensor and of w. Along the axes of
    // the strip all that it reads; for each cell a part of it.
    Nest nest;
    const T* small = static_cast<const T*>(call_.first);
    const T* w = static_cast<const T*>(call_.second) + column * g.w_column;
    T* result = static_cast<T*>(call_.result) + column * g.result_channel;
    if (!by_input) nest.add(g.summed, g.small_channel, g.w_summed);
    const int loop = nest.depth;  // of axis 0
    for (int s = 0; s <= z; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t stride = axis.*g.small_stride;
      if (s < z - 1) {
        const Reach r = reach(s, at_[s]);
        small += r.partner * stride;
        result += at_[s] * axis.*g.result_stride;
        w += w_offset(axis, at_[s], r);
        nest.add(r.count, spacing_[s].partner * stride, w_step(s));
      } else {
        const Line& l = s == z ? along_ : across_;
        small += l.low * stride;
        result += l.first * axis.*g.result_stride;
        nest.add(l.window, l.unit * stride, w_step(s));
      }
    }
    if (by_input) nest.add(g.summed, g.small_channel, g.w_summed);
    const int64_t cells = along_.count * across_.count;
    const bool empty = nest.total() == 0;
    const int64_t ahead = last_ == nullptr ? 0 : small - last_;
    last_ = small;

    const Axis& last = p.axes[z];
    const int64_t result_along = last.*g.result_stride;
    const int64_t result_across = z > 0 ? p.axes[z - 1].*g.result_stride : 0;
    columns_ = lesser(plan_.width, g.columns - column);
    for (int64_t n = 0; n < p.batch; n += plan_.rows) {
      rows_ = lesser(plan_.rows, p.batch - n);
      const int64_t next =
          n + plan_.rows < p.batch ? plan_.rows * g.small_batch : ahead - n * g.small_batch;
      const Sums sums = sums_of(along_.count, result_along);
      // A cell by itself may read more than there is room for: it is staged in pieces of its chain. A
      // strip is staged some channels at a time, or some of its places along an axis across it.
      const int64_t room = plan_.stage_reals / plan_.rows;  // of a sample
      int64_t piece = nest.total();
      const int64_t outer = by_input ? nest.loop[loop + plan_.cut].count : g.summed;
      if (cells > 1 && plan_.outer < plan_.outermost && outer > 0)
        piece = piece / outer * plan_.outer;
      else if (cells == 1 && plan_.staged)
        piece = greater(1, (room - 2 * line) / (plan_.over_samples ? Plan::planes : reals));
      Pieces pieces(nest, piece);
      bool from_zero = !call_.accumulate, first = true;
      do {
        Nest staged = pieces.part;
        const int64_t w_piece = pieces.second;
        const T* const from_small = small + n * g.small_batch + pieces.first;
        if (!empty) pieces.next();
        const bool more = pieces.more();
        const int64_t w_next = more && cells == 1
                                   ? pieces.second - w_piece
                                   : last.w_place_stride - (cells == 1 ? w_piece : 0);
        int64_t row = g.small_batch * reals;
        if (plan_.staged && !empty) row = stage_small(staged, from_small, next);
        const Real* const base = plan_.staged ? stage_ : reinterpret_cast<const Real*>(from_small);
        for (int64_t i = 0; i < across_.count; ++i) {
          T* const to = result + n * g.result_batch + i * result_across;
          if (!plan_.direct && call_.accumulate && first)
            Boxes::template move<true>(plan_.over_samples, sums.box, to, sums_);
          for (int64_t j = 0; j < along_.count; ++j) {
            Real* const c = plan_.direct ? reinterpret_cast<Real*>(to + j * result_along)
                                         : sums_ + j * sums.cell;
            if (empty || along_.reach[j].count == 0 || (z > 0 && across_.reach[i].count == 0)) {
              if (from_zero) zero(c, sums.row);
              continue;
            }
            Nest steps = staged;
            const Real* a = base;
            const T* from = w + w_piece + w_offset(last, along_.first + j, along_.reach[j]);
            if (z > 0) from += w_offset(p.axes[z - 1], across_.first + i, across_.reach[i]);
            if (cells > 1) {
              a += narrow(steps.loop[loop + z], along_, along_.reach[j], spacing_[z].partner);
              if (across_.count > 1)
                a += narrow(steps.loop[loop + z - 1], across_, across_.reach[i],
                            spacing_[z - 1].partner);
            }
            if (plan_.over_samples)
              this->over_samples(steps, a, from, w_next, c, sums.row, from_zero);
            else
              this->over_columns(steps, a, row, from, w_next, c, sums.row, from_zero, n == 0);
          }
          if (!plan_.direct && !more)
            Boxes::template move<false>(plan_.over_samples, sums.box, to, sums_);
        }
        from_zero = first = false;
      } while (pieces.more());
    }
  }

  // ---- sums of a row of cells: [cell][row][columns] in scratch; over samples [cell][column][samples]

  struct Sums {
    int64_t cell, row;  // strides in scratch (row: in the result, if sums are kept there)
    Box box;
  };
  UNSHARED_INLINE Sums sums_of(int64_t count, int64_t result_cell) const {
    Sums sums{};
    if (plan_.direct) {
      sums.row = g.result_batch * reals;
    } else if (plan_.over_samples) {
      sums.row = ceil_div(rows_, L::count) * L::count;
      sums.cell = columns_ * reals * sums.row;
      sums.box.add(count, result_cell * reals, sums.cell);
      sums.box.add(columns_, g.result_channel * reals, reals * sums.row);
      sums.box.add(reals, 1, sums.row);
      sums.box.lanes = rows_;
      sums.box.lane_memory = g.result_batch * reals;
    } else {
      sums.row = padded(columns_);
      sums.cell = rows_ * sums.row;
      sums.box.add(count, result_cell * in_memory, sums.cell / in_scratch);
      sums.box.add(rows_, g.result_batch * in_memory, sums.row / in_scratch);
      sums.box.lanes = columns_;
      sums.box.lane_memory = g.result_channel;
      Boxes::pairs(sums.box);
    }
    return sums;
  }
  UNSHARED_INLINE void zero(Real* c, int64_t c_row) const {
    const int64_t rows = plan_.over_samples ? columns_ * reals : rows_;
    const int64_t width = plan_.over_samples ? c_row : padded(columns_);
    const int last = this->lanes_of_c(width / L::count);
    for (int64_t m = 0; m < rows; ++m) {
      Real* const row = c + m * c_row;
      for (int64_t v = 0; v + L::count < width; v += L::count) L::store(row + v, L::zero());
      if (width > 0) L::store_part(row + width - L::count, L::zero(), last);
    }
  }

  // ---- the small tensor

  // Stages the loops of a nest's first operand for the samples of the block, and turns its strides
  // into those of scratch; returns the distance of two samples there. What lies `next` further on is
  // fetched while this is computed with.
  UNSHARED_INLINE int64_t stage_small(Nest& nest, const T* from, int64_t next) {
    const bool over_samples = plan_.over_samples;
    const bool by_channel = plan_.by_channel && along_.count * across_.count > 1;
    int fast = -1;  // innermost in scratch: the loop that runs along memory, or the last one
    for (int d = 0; d < nest.depth; ++d)
      if (nest.loop[d].count > 1 && (fast < 0 || by_channel || nest.loop[d].first == 1)) fast = d;
    const int64_t lanes = ceil_div(rows_, L::count) * L::count;
    int64_t size = over_samples ? reals * lanes : int64_t{reals};
    int64_t strides[max_axes + 1] = {};
    const auto place = [&](int d) {
      strides[d] = size;
      size *= nest.loop[d].count;
    };
    if (fast >= 0) place(fast);
    if (by_channel) size = ceil_div(size, L::count) * L::count;  // squares are moved
    for (int d = nest.depth - 1; d >= 0; --d)
      if (d != fast) place(d);
    const int64_t row = spaced<Real>(size);
    Box box;
    const int64_t unit = over_samples ? int64_t{reals} : in_memory,
                  scale = over_samples ? 1 : in_scratch;
    if (!over_samples) box.add(rows_, g.small_batch * unit, row / scale);
    for (int d = 0; d < nest.depth; ++d)
      if (d != fast) box.add(nest.loop[d].count, nest.loop[d].first * unit, strides[d] / scale);
    if (over_samples) {
      if (fast >= 0) box.add(nest.loop[fast].count, nest.loop[fast].first * unit, strides[fast]);
      box.add(reals, 1, lanes);
      box.lanes = rows_;
      box.lane_memory = g.small_batch * unit;
      panel_ = stage_ + size;
    } else {
      box.dense = !by_channel;
      if (fast >= 0) {
        box.lanes = nest.loop[fast].count;
        box.lane_memory = nest.loop[fast].first;
      }
      Boxes::pairs(box);
      panel_ = stage_ + rows_ * row;
    }
    Boxes::with(over_samples, from, stage_, [&](const auto* memory, auto* scratch) {
      stage(box, memory, scratch);
      if (plan_.fetches) ahead_[Base::of_small] = lines_.of(box, memory + next * unit);
    });
    if (reals == 2 && over_samples) {
      parts_.lanes = lanes;
      parts_.turned = size;
      parts_.turn_over(stage_, size);
      panel_ += size;
    }
    for (int d = 0; d < nest.depth; ++d) nest.loop[d].first = strides[d];
    return row;
  }

  Spacing spacing_[max_axes];
  int64_t at_[max_axes] = {};  // where the strip stands along the other axes
  Line along_, across_;
  const T* last_ = nullptr;  // what the strip before read
  LineList<1024, table_steps * reals> lines_;
  alignas(64) Real sums_[Plan::sums_reals + L::count];
};

static_assert(sizeof(Gather<float, Face::forward>) <= most_scratch &&
              sizeof(Gather<double, Face::grad_input>) <= most_scratch &&
              sizeof(Gather<Half, Face::forward>) <= most_scratch &&
              sizeof(Gather<Complex<double>, Face::forward>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
