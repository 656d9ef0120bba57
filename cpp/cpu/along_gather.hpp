// Kernel "along", forward and grad_input: chains over places and channels, on tiles of samples by
// result channels.
//
// Operands whose memory runs along the lanes are read and written in place; others, and half types,
// pass through scratch: weights once for all samples of a block, the small tensor (x or dy) and the
// sums a few samples at a time.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face. Deterministic: each result element is one chain in one worker.
#pragma once

#include "along_block.hpp"
#include "gathering.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
class AlongGather : public AlongBlock<T, face> {
  using Base = AlongBlock<T, face>;
  using Base::accumulate_, Base::along_, Base::at_, Base::axis_, Base::begin_, Base::border_,
      Base::by_input, Base::in_place_, Base::lanes_, Base::members_, Base::p, Base::panel_reals,
      Base::partner_, Base::partners_, Base::plain, Base::plan_, Base::row_, Base::stage_reals,
      Base::sum_reals, Base::tap_, Base::taps_;
  using typename Base::L;
  using typename Base::Layout;
  using typename Base::Mask;
  using typename Base::Real;
  using typename Base::Span;

 public:
  UNSHARED_INLINE AlongGather(const Problem&, const Call& call, const typename Base::Plan& plan)
      : Base(call, plan), g(gathering<face>(p)) {}

  // Blocks [begin, end).
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (; begin < end; ++begin)
      if (this->enter(begin)) gather();
  }

 private:
  struct Loop {
    int64_t count, small, w;  // strides of the two operands
    bool along;
  };
  struct Loops {
    int depth = 0;
    Loop loop[max_axes + 1];

    UNSHARED_INLINE int64_t steps() const {
      int64_t n = 1;
      for (int d = 0; d < depth; ++d) n *= loop[d].count;
      return n;
    }
  };
  // A part of the chain: a box of its loops, with scratch laid out for it. The small tensor stands
  // there as [loops but the lanes' own][window].
  struct Pass {
    Loops loops;
    int64_t first_tap = 0, taps = 1;  // along the lanes' axis
    int64_t small[max_axes + 1];  // strides in scratch
    int64_t small_size = 0, steps = 0;
    Layout w;
  };

  void gather() {
    small_lane_ = by_input ? along_.y_stride : along_.x_stride;
    result_lane_ = by_input ? along_.x_stride : along_.y_stride;
    small_here_ = plain && small_lane_ == 1;
    result_here_ = plain && result_lane_ == 1;
    w_here_ = plain && in_place_;

    Loops loops;
    small_ = this->first_;
    w_ = this->second_ + plan_.w_offset;
    T* result = this->result_ + plan_.x_offset;
    if (!by_input) loops.loop[loops.depth++] = {g.summed, g.small_channel, g.w_summed, false};
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t stride = by_input ? axis.y_stride : axis.x_stride;
      result += (s == axis_ ? begin_ : at_[s]) * (by_input ? axis.x_stride : axis.y_stride);
      if (s == axis_) {
        loops.loop[loops.depth++] = {
            taps_, along_.dilation * stride,
            by_input ? this->w_along(along_.dilation) - axis.w_tap_stride : axis.w_tap_stride,
            true};
        small_ += partner_ * stride;
        w_ += this->w_along(by_input ? partner_ : begin_) + tap_ * axis.w_tap_stride;
        continue;
      }
      int64_t tap_step = 0, partner_step = 0;
      const Reach r = this->reach(s, tap_step, partner_step);
      small_ += r.partner * stride;
      w_ += (by_input ? r.partner : at_[s]) * axis.w_place_stride + r.tap * axis.w_tap_stride;
      loops.loop[loops.depth++] = {
          r.count, partner_step * stride,
          tap_step * axis.w_tap_stride + (by_input ? partner_step * axis.w_place_stride : 0),
          false};
    }
    if (by_input) loops.loop[loops.depth++] = {g.summed, g.small_channel, g.w_summed, false};

    look_ahead(result);
    const int64_t wide = lesser(lesser(g.columns, along_wide),
                                result_here_ ? along_wide : greater(1, sum_reals / row_));
    const int64_t tall =
        result_here_ ? p.batch : lesser(p.batch, greater(1, sum_reals / (wide * row_)));
    const int64_t steps = loops.steps();
    for (int64_t column = 0; column < g.columns; column += wide) {
      const int64_t width = lesser(wide, g.columns - column);
      prepared_ = false;
      for (int64_t member = 0; member < members_; ++member) {
        const Axis* of = plan_.company_axis < 0 ? nullptr : &p.axes[plan_.company_axis];
        const int64_t small = of == nullptr ? 0 : member * (by_input ? of->y_stride : of->x_stride);
        T* to = result + column * g.result_channel;
        if (of != nullptr) to += member * (by_input ? of->x_stride : of->y_stride);
        for (int64_t n = 0; n < p.batch; n += tall)
          rows(loops, steps, member, small + n * g.small_batch, column, width,
               to + n * g.result_batch, lesser(tall, p.batch - n));
      }
    }
  }

  // Some samples of some columns: through all passes.
  UNSHARED_INLINE void rows(const Loops& loops, int64_t steps, int64_t member, int64_t small,
                            int64_t column, int64_t width, T* result, int64_t count) {
    c_ = result_here_ ? reinterpret_cast<Real*>(result) : sums_;
    c_row_ = result_here_ ? g.result_batch : width * row_;
    c_column_ = result_here_ ? g.result_channel : row_;
    Box out;
    out.add(count, g.result_batch, width * row_);
    out.add(width, g.result_channel, row_);
    out.lanes = lanes_;
    out.lane_memory = result_lane_;
    if (!result_here_ && accumulate_) stage(out, result, sums_);
    if (steps > 0) {
      passes(loops, steps, member, small, column, width, count);
    } else if (!accumulate_) {
      for (int64_t m = 0; m < count; ++m)
        for (int64_t v = 0; v < width; ++v)
          for (int64_t l = 0; l < lanes_; ++l) c_[m * c_row_ + v * c_column_ + l] = Real{};
    }
    if (!result_here_) unstage(out, result, sums_);
  }

  // Cuts the chain into boxes that fit into scratch, in order, and runs each.
  UNSHARED_INLINE void passes(const Loops& loops, int64_t steps, int64_t member, int64_t small,
                              int64_t column, int64_t width, int64_t count) {
    int64_t most = greater(1, lesser(along_steps, panel_reals / (row_ * width)));
    for (;;) {
      int cut = 0;
      int64_t inner = steps;
      while (cut < loops.depth) {
        inner /= loops.loop[cut].count;
        if (inner <= most) break;
        ++cut;
      }
      const int64_t run = lesser(greater(most / inner, 1), loops.loop[cut].count);
      const bool single = cut == 0 && run == loops.loop[0].count;
      if (!(prepared_ && single_)) {
        pass_.loops = loops;
        for (int d = 0; d <= cut; ++d) pass_.loops.loop[d].count = d < cut ? 1 : run;
        lay_out(single ? members_ : 1, width);
        if (!small_here_ && pass_.small_size > stage_reals && most > 1) {
          most = most / 2;
          continue;
        }
      }
      single_ = single;
      int64_t begin[max_axes + 1] = {};
      bool from_zero = !accumulate_;
      for (;;) {
        int64_t s = small, w = column * g.w_column, first_tap = 0;
        for (int d = 0; d <= cut; ++d) {
          s += begin[d] * loops.loop[d].small;
          w += begin[d] * loops.loop[d].w;
          if (loops.loop[d].along) first_tap = begin[d];
        }
        if (!single) {
          pass_.loops.loop[cut].count = lesser(run, loops.loop[cut].count - begin[cut]);
          lay_out(1, width);
        }
        pass_.first_tap = first_tap;
        pass(small_ + s, w_ + w, member, width, count, from_zero);
        from_zero = false;
        int d = cut;
        for (; d >= 0; --d) {
          begin[d] += d == cut ? run : 1;
          if (begin[d] < loops.loop[d].count) break;
          begin[d] = 0;
        }
        if (d < 0) return;
      }
    }
  }

  UNSHARED_INLINE void lay_out(int64_t members, int64_t width) {
    Pass& o = pass_;
    o.taps = 1;
    for (int d = 0; d < o.loops.depth; ++d)
      if (o.loops.loop[d].along) o.taps = o.loops.loop[d].count;
    o.small_size = this->window(o.taps);
    o.w.depth = 0;
    if (plan_.company_axis >= 0)
      o.w.add(members, p.axes[plan_.company_axis].w_place_stride, Base::of_members);
    o.w.add(width, g.w_column, Base::of_columns);
    for (int d = o.loops.depth - 1; d >= 0; --d) {
      const Loop& loop = o.loops.loop[d];
      o.small[d] = loop.along ? along_.dilation : o.small_size;
      if (!loop.along) o.small_size *= loop.count;
      o.w.add(loop.count, loop.w, d, loop.along && border_ && by_input);
    }
    o.w.nest(row_);
    o.steps = o.loops.steps();
  }

  UNSHARED_INLINE void pass(const T* small, const T* w, int64_t member, int64_t width,
                            int64_t count, bool from_zero) {
    const Loops& loops = pass_.loops;
    const bool apart = plan_.company_axis >= 0;
    const int64_t w_member = apart ? p.axes[plan_.company_axis].w_place_stride : 0;
    if (!(prepared_ && single_)) {
      prepared_ = true;
      tabulate();
      if (!w_here_) stage_weights(w + (single_ ? 0 : member) * w_member);
    }
    AlongTile<Real> tile{};
    tile.products = &this->products_;
    b_ = w_here_   ? reinterpret_cast<const Real*>(w + member * w_member)
         : single_ ? panel_ + member * pass_.w.stride(Base::of_members)
                   : panel_;
    tile.b_column = w_here_ ? g.w_column : pass_.w.stride(Base::of_columns);
    tile.b_fetch = w_here_ ? w_ahead_ : 0;
    tile.c_row = c_row_;
    tile.c_column = c_column_;
    tile.c_fetch = result_here_ ? result_ahead_ : 0;
    tile.from_zero = from_zero;
    if (small_here_) {
      tile.a = reinterpret_cast<const Real*>(small);
      tile.a_row = g.small_batch;
      tile.c = c_;
      tile.fetch = fetch_;
      tile.fetches = fetches_;
      strip(tile, count, width);
      return;
    }
    const int64_t few = greater(4, lesser(along_rows(1), few_reals / pass_.small_size));
    const int64_t fits = greater(1, lesser(few, stage_reals / pass_.small_size));
    const int64_t at = partner_ + pass_.first_tap * along_.dilation;
    const int64_t low = greater(0, -at);
    const int64_t high = lesser((pass_.taps - 1) * along_.dilation + lanes_, partners_ - at);
    for (int64_t m = 0; m < count; m += fits) {
      const int64_t these = lesser(fits, count - m);
      Box in;
      in.add(these, g.small_batch, pass_.small_size);
      for (int d = 0; d < loops.depth; ++d)
        if (!loops.loop[d].along) in.add(loops.loop[d].count, loops.loop[d].small, pass_.small[d]);
      in.lanes = high - low;
      in.lane_memory = small_lane_;
      if (high > low)
        stage(in, small + m * g.small_batch + low * small_lane_, stage_ + low, small_ahead_);
      tile.a = stage_;
      tile.a_row = pass_.small_size;
      tile.c = c_ + m * c_row_;
      strip(tile, these, width);
    }
  }

  // Where the operands of every step are, and what of the small tensor following tiles see first:
  // the last tap of every channel.
  UNSHARED_INLINE void tabulate() {
    const Loops& loops = pass_.loops;
    int64_t at[max_axes + 1] = {}, w[max_axes + 1];
    for (int d = 0; d < loops.depth; ++d) w[d] = w_here_ ? loops.loop[d].w : pass_.w.stride(d);
    for (int64_t t = 0; t < pass_.steps; ++t) {
      int64_t s = 0, v = 0, tap = pass_.first_tap;
      for (int d = 0; d < loops.depth; ++d) {
        s += at[d] * (small_here_ ? loops.loop[d].small : pass_.small[d]);
        v += at[d] * w[d];
        if (loops.loop[d].along) tap += at[d];
      }
      a_step_[t] = s;
      b_step_[t] = v;
      tap_of_[t] = static_cast<std::int16_t>(tap);
      for (int d = loops.depth - 1; d >= 0 && ++at[d] == loops.loop[d].count; --d) at[d] = 0;
    }
    const int64_t channels = loops.loop[by_input ? loops.depth - 1 : 0].count;
    const int64_t taps = pass_.steps / channels;
    fetches_ = small_here_ ? channels : 0;
    for (int64_t f = 0; f < fetches_; ++f)
      fetch_[f] =
          a_step_[by_input ? (taps - 1) * channels + f : f * taps + taps - 1] + small_ahead_;
  }

  // A tile for every vector of the strip and a few samples after the other. A long strip is run
  // through for each few samples, as it lies in memory; of a short one each vector for all samples,
  // since what a vector sees is then found but once, unless that would have samples collide.
  UNSHARED_INLINE void strip(AlongTile<Real>& t, int64_t count, int64_t width) {
    const int64_t columns = along_width(width), fetches = t.fetches;
    const Heights heights(count,
                          lesser(along_rows(static_cast<int>(columns)), rows_at_once(count)));
    const bool apart = lanes_ <= short_strip * L::count && rows_at_once(count) >= count;
    const int64_t run = apart ? L::count : lanes_;
    const Real* a = t.a;
    const Real* b = b_;
    Real* c = t.c;
    for (int64_t begin = 0; begin < lanes_; begin += run) {
      const Real* next = b;
      int64_t row = 0;
      for (int64_t tile = 0; tile < heights.tiles; ++tile) {
        const int64_t height = heights.of(tile);
        next = b;
        for (int64_t l = begin; l < lesser(begin + run, lanes_); l += L::count) {
          if (!apart || tile == 0) see(t, l);
          t.a = a + row * t.a_row + l;
          t.b = next;
          t.c = c + row * t.c_row + l;
          t.fetches = fetches;
          for (int64_t v = 0, some; v < width; v += some) {
            some = lesser(columns, width - v);
            run_tile(t, height, some);
            t.b += some * t.b_column;
            t.c += some * t.c_column;
            t.fetches = 0;
          }
          next += w_here_ ? this->w_next(l) : L::count;
        }
        row += height;
      }
      b = next;
    }
  }
  // The steps of the vector at l: those that any of its lanes takes part in.
  UNSHARED_INLINE void see(AlongTile<Real>& t, int64_t l) {
    t.mask = nullptr;
    t.steps = pass_.steps;
    t.a_step = a_step_;
    t.b_step = b_step_;
    t.tap = tap_of_;
    if (this->sees_all(l)) return;
    t.steps = 0;
    for (int64_t s = 0; s < pass_.steps; ++s) {
      if (!this->seen_[tap_of_[s]]) continue;
      a_some_[t.steps] = a_step_[s];
      b_some_[t.steps] = b_step_[s];
      tap_some_[t.steps++] = tap_of_[s];
    }
    t.a_step = a_some_;
    t.b_step = b_some_;
    t.tap = tap_some_;
    t.last = this->last_;
    if (!this->whole_) t.mask = this->mask_;
  }
  // Samples that lie in the same sets of the first cache are taken few at a time: as many as leave
  // room there for a line of all that a tile of them reads.
  UNSHARED_INLINE int64_t rows_at_once(int64_t count) const {
    if (!small_here_ || !samples_collide<T>(p, g.small_batch)) return count;
    int64_t lines = g.summed;
    for (int s = 0; s < p.axis_count; ++s)
      if (s != axis_) lines = lesser(lines * p.axes[s].kernel, max_extent);
    return greater(2, 12 / greater(lines, 1));
  }

  UNSHARED_INLINE void stage_weights(const T* w) {
    // The weights of taps in padding lie in memory, too; but places beyond the last do not.
    const bool apart = border_ && by_input;
    for (int64_t q = 0; q < (apart ? pass_.taps : 1); ++q) {
      Box in;
      const T* from = w;
      Real* to = panel_;
      Span lanes{0, lanes_};
      for (int d = 0; d < pass_.w.depth; ++d) {
        const auto& loop = pass_.w.loop[d];
        if (apart && loop.what >= 0 && pass_.loops.loop[loop.what].along) {
          lanes = this->span_of(pass_.first_tap + q);
          from += q * loop.memory + this->w_along(lanes.first);
          to += q * loop.scratch + lanes.first;
        } else {
          in.add(loop.count, loop.memory, loop.scratch);
        }
      }
      if (lanes.last <= lanes.first) continue;
      this->add_lanes(in, lanes);
      stage(in, from, to, w_ahead_);
    }
  }

  // How far this block lies from the last one: likely as far from the next one.
  UNSHARED_INLINE void look_ahead(const T* result) {
    if (last_small_ != nullptr) {
      small_ahead_ = small_ - last_small_;
      w_ahead_ = w_ - last_w_;
      result_ahead_ = result - last_result_;
    }
    last_small_ = small_;
    last_w_ = w_;
    last_result_ = result;
  }

  static constexpr int64_t short_strip = 4;  // vectors
  static constexpr int64_t few_reals = 16 * 1024 / sizeof(Real);  // a part of the first cache

  // What the two faces call differently.
  const Gathering g;
  const T* small_ = nullptr;
  const T* w_ = nullptr;
  const T* last_small_ = nullptr;
  const T* last_w_ = nullptr;
  const T* last_result_ = nullptr;
  int64_t small_ahead_ = 0, w_ahead_ = 0, result_ahead_ = 0, small_lane_ = 1, result_lane_ = 1;
  bool small_here_ = false, w_here_ = false, result_here_ = false;
  bool prepared_ = false, single_ = false;  // tables and panel; whether they are for all the chain
  Pass pass_;
  const Real* b_ = nullptr;
  Real* c_ = nullptr;
  int64_t c_row_ = 0, c_column_ = 0;

  int64_t a_step_[along_steps], b_step_[along_steps], fetch_[along_steps], fetches_ = 0;
  int64_t a_some_[along_steps], b_some_[along_steps];  // of a vector that does not see all
  std::int16_t tap_of_[along_steps], tap_some_[along_steps];
  alignas(64) Real stage_[stage_reals + L::count];
  alignas(64) Real panel_[panel_reals + L::count];
  alignas(64) Real sums_[sum_reals + L::count];
};

}  // namespace
}  // namespace unshared

#endif
