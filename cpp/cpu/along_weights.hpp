// Kernel "along", grad_weight: chains over the batch, on tiles of taps and input channels by output
// channels.
//
// Operands and sums whose memory runs along the lanes are read and written in place; others, and
// half types, pass through scratch, x and dy some samples at a time.
// Accumulator: float32 for half types, else the element type. Order: the batch ascending.
// Deterministic: each result element is one chain in one worker.
#pragma once

#include "along_block.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
class AlongWeights : public AlongBlock<T, Face::grad_weight> {
  using Base = AlongBlock<T, Face::grad_weight>;
  using Base::accumulate_, Base::along_, Base::at_, Base::axis_, Base::begin_, Base::border_,
      Base::in_place_, Base::lanes_, Base::members_, Base::p, Base::panel_reals, Base::partner_,
      Base::partners_, Base::plain, Base::plan_, Base::row_, Base::stage_reals, Base::tap_,
      Base::taps_;
  using typename Base::L;
  using typename Base::Layout;
  using typename Base::Real;
  using typename Base::Span;

 public:
  UNSHARED_INLINE AlongWeights(const Problem&, const Call& call, const typename Base::Plan& plan)
      : Base(call, plan) {}

  // Blocks [begin, end).
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (; begin < end; ++begin)
      if (this->enter(begin)) weights();
  }

 private:
  static constexpr int64_t most_samples = 32;  // at a time: each is a page or more of its own
  static constexpr int64_t y_reals = along_sum_bytes / sizeof(Real);
  // A row of a tile for every tap and input channel: no more than the panel has room for.
  static constexpr int64_t most_rows = AlongPlan<T, Face::grad_weight>::most_rows;

  // Taps along an axis.
  struct Loop {
    int64_t count, x, w;
    bool along;
  };

  void weights() {
    const T* x = this->first_ + partner_ * along_.x_stride;
    const T* y = this->second_ + begin_ * along_.y_stride;
    T* w = this->result_ + this->w_along(begin_);
    T* first = w + tap_ * along_.w_tap_stride;
    depth_ = 0;
    int64_t all = taps_;
    bool missing = border_ || taps_ != along_.kernel;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      if (s == axis_) {
        loop_[depth_++] = {taps_, along_.dilation * axis.x_stride, axis.w_tap_stride, true};
        continue;
      }
      int64_t tap_step = 0, partner_step = 0;
      const Reach r = this->reach(s, tap_step, partner_step);
      missing = missing || r.count != axis.kernel;
      all *= r.count;
      x += r.partner * axis.x_stride;
      y += at_[s] * axis.y_stride;
      w += at_[s] * axis.w_place_stride;
      first += at_[s] * axis.w_place_stride + r.tap * axis.w_tap_stride;
      loop_[depth_++] = {r.count, partner_step * axis.x_stride, tap_step * axis.w_tap_stride,
                         false};
    }
    const Axis* of = plan_.company_axis < 0 ? nullptr : &p.axes[plan_.company_axis];
    const int64_t w_member = of == nullptr ? 0 : of->w_place_stride;
    if (missing && !accumulate_)
      for (int64_t member = 0; member < members_; ++member) this->clear(w + member * w_member);
    if (all == 0) return;

    look_ahead(x, y);
    x_here_ = plain && along_.x_stride == 1 &&
              !samples_collide<T>(p, p.x_batch_stride, second_cache_repeats);
    y_here_ = plain && along_.y_stride == 1;
    w_here_ = plain && in_place_;
    // Columns and input channels at a time: what scratch has room for.
    int64_t wide = p.out_channels, deep = lesser(p.in_channels, greater(1, most_rows / all));
    if (!w_here_) wide = greater(1, lesser(wide, panel_reals / (row_ * all)));
    if (!y_here_) wide = greater(1, lesser(wide, y_reals / row_));
    if (!w_here_) deep = greater(1, lesser(deep, panel_reals / (row_ * all * wide)));
    const int64_t window = this->window(taps_);
    if (!x_here_) deep = greater(1, lesser(deep, stage_reals / (all / taps_ * window)));
    // A company has one channel each, and its sums share the panel.
    for (int64_t a = 0; a < p.in_channels; a += deep)
      for (int64_t b = 0; b < p.out_channels; b += wide) {
        deep_ = lesser(deep, p.in_channels - a);
        wide_ = lesser(wide, p.out_channels - b);
        lay_out();
        T* result = first + a * p.w_in_stride + b * p.w_out_stride;
        const T* from_x = x + a * p.x_channel_stride;
        const T* from_y = y + b * p.y_channel_stride;
        if (!w_here_ && accumulate_) move_sums<true>(result);
        for (int64_t member = 0; member < members_; ++member)
          samples(from_x + (of == nullptr ? 0 : member * of->x_stride),
                  from_y + (of == nullptr ? 0 : member * of->y_stride),
                  w_here_ ? reinterpret_cast<Real*>(result + member * w_member)
                          : panel_ + member * sums_.stride(Base::of_members));
        if (!w_here_) move_sums<false>(result);
      }
  }

  // Where rows find x and their sums. In scratch x stands as [channel][loops but the lanes'
  // own][window].
  UNSHARED_INLINE void lay_out() {
    sums_.depth = 0;
    if (plan_.company_axis >= 0)
      sums_.add(members_, p.axes[plan_.company_axis].w_place_stride, Base::of_members);
    sums_.add(deep_, p.w_in_stride, Base::of_channels);
    sums_.add(wide_, p.w_out_stride, Base::of_columns);
    for (int d = 0; d < depth_; ++d)
      sums_.add(loop_[d].count, loop_[d].w, d, loop_[d].along && border_);
    sums_.nest(row_);
    c_column_ = w_here_ ? p.w_out_stride : sums_.stride(Base::of_columns);
    c_channel_ = w_here_ ? p.w_in_stride : sums_.stride(Base::of_channels);
    for (int d = 0; d < depth_; ++d) c_loop_[d] = w_here_ ? loop_[d].w : sums_.stride(d);
    x_size_ = this->window(taps_);
    for (int d = depth_ - 1; d >= 0; --d) {
      x_loop_[d] = x_here_ ? loop_[d].x : loop_[d].along ? along_.dilation : x_size_;
      if (!loop_[d].along) x_size_ *= loop_[d].count;
    }
    x_channel_ = x_here_ ? p.x_channel_stride : x_size_;
    // Where rows lie stays, as long as there are as many of everything.
    bool same = rows_ > 0 && rows_ == deep_ * known_taps_ && known_wide_ == wide_ &&
                known_row_ == row_ && known_border_ == border_ && known_members_ == members_;
    int64_t taps = 1;
    for (int d = 0; d < depth_; ++d) {
      same = same && known_[d].count == loop_[d].count && known_[d].x == loop_[d].x &&
             known_[d].w == loop_[d].w;
      known_[d] = loop_[d];
      taps *= loop_[d].count;
    }
    known_wide_ = wide_;
    known_row_ = row_;
    known_border_ = border_;
    known_members_ = members_;
    known_taps_ = taps;
    if (!same) find_rows();
    x_size_ *= deep_;
  }
  UNSHARED_INLINE void find_rows() {
    rows_ = 0;
    for (int64_t a = 0; a < deep_; ++a) {
      int64_t at[max_axes] = {};
      for (int d = 0; d >= 0;) {
        int64_t from = a * x_channel_, to = a * c_channel_, tap = 0;
        for (d = 0; d < depth_; ++d) {
          from += at[d] * x_loop_[d];
          to += at[d] * c_loop_[d];
          if (loop_[d].along) tap = at[d];
        }
        x_row_[rows_] = from;
        c_row_[rows_] = to;
        tap_of_[rows_++] = static_cast<std::int16_t>(tap);
        for (d = depth_ - 1; d >= 0 && ++at[d] == loop_[d].count; --d) at[d] = 0;
      }
    }
  }

  // All samples: staged, if need be, and summed, as many at a time as scratch has room for.
  UNSHARED_INLINE void samples(const T* x, const T* y, Real* sums) {
    const int64_t y_size = wide_ * row_;
    int64_t run = lesser(greater(p.batch, 1), most_samples);
    if (!x_here_) run = lesser(run, greater(1, stage_reals / x_size_));
    if (!y_here_) run = lesser(run, greater(1, y_reals / y_size));
    const int64_t low = greater(0, -partner_);
    const int64_t high = lesser((taps_ - 1) * along_.dilation + lanes_, partners_ - partner_);
    for (int64_t n = 0; n == 0 || n < p.batch; n += run) {
      const int64_t count = lesser(run, p.batch - n);
      const T* from_x = x + n * p.x_batch_stride;
      const T* from_y = y + n * p.y_batch_stride;
      if (!x_here_ && count > 0) {
        Box in;
        in.add(count, p.x_batch_stride, x_size_);
        in.add(deep_, p.x_channel_stride, x_channel_);
        for (int d = 0; d < depth_; ++d)
          if (!loop_[d].along) in.add(loop_[d].count, loop_[d].x, x_loop_[d]);
        in.lanes = high - low;
        in.lane_memory = along_.x_stride;
        stage(in, from_x + low * along_.x_stride, stage_ + low, x_ahead_);
      }
      if (!y_here_ && count > 0) {
        Box in;
        in.add(count, p.y_batch_stride, y_size);
        in.add(wide_, p.y_channel_stride, row_);
        in.lanes = lanes_;
        in.lane_memory = along_.y_stride;
        stage(in, from_y, y_stage_, y_ahead_);
      }
      BatchTile<Real> tile{};
      tile.products = &this->products_;
      tile.a = x_here_ ? reinterpret_cast<const Real*>(from_x) : stage_;
      tile.b = y_here_ ? reinterpret_cast<const Real*>(from_y) : y_stage_;
      tile.c = sums;
      tile.b_column = y_here_ ? p.y_channel_stride : row_;
      tile.c_column = c_column_;
      tile.steps = count;
      tile.a_step = x_here_ ? p.x_batch_stride : x_size_;
      tile.b_step = y_here_ ? p.y_batch_stride : y_size;
      tile.from_zero = n == 0 && !accumulate_;
      strip(tile);
    }
  }

  UNSHARED_INLINE void strip(BatchTile<Real>& t) {
    const int64_t columns = along_width(wide_);
    const int64_t most = along_rows(static_cast<int>(columns));
    const Heights whole(rows_, most);
    const Real* a = t.a;
    const Real* b = t.b;
    Real* c = t.c;
    for (int64_t l = 0; l < lanes_; l += L::count) {
      const int64_t rows = see(t, l);
      t.a = a + l;
      const Heights heights = rows == rows_ ? whole : Heights(rows, most);
      for (int64_t tile = 0; tile < heights.tiles; ++tile) {
        const int64_t height = heights.of(tile);
        t.b = b + l;
        t.c = c;
        t.a_fetch = x_here_ ? t.a_row[height - 1] + x_ahead_ : 0;
        t.b_fetch = y_here_ ? y_ahead_ : 0;
        for (int64_t v = 0, some; v < wide_; v += some) {
          some = lesser(columns, wide_ - v);
          run_tile(t, height, some);
          t.b += some * t.b_column;
          t.c += some * t.c_column;
        }
        t.a_row += height;
        t.c_row += height;
        t.tap += height;
      }
      c += w_here_ ? this->w_next(l) : L::count;
    }
  }
  // The rows of the vector at l: those that any of its lanes takes part in.
  UNSHARED_INLINE int64_t see(BatchTile<Real>& t, int64_t l) {
    t.mask = nullptr;
    t.a_row = x_row_;
    t.c_row = c_row_;
    t.tap = tap_of_;
    if (this->sees_all(l)) return rows_;
    int64_t rows = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      if (!this->seen_[tap_of_[r]]) continue;
      x_some_[rows] = x_row_[r];
      c_some_[rows] = c_row_[r];
      tap_some_[rows++] = tap_of_[r];
    }
    t.a_row = x_some_;
    t.c_row = c_some_;
    t.tap = tap_some_;
    t.last = this->last_;
    if (!this->whole_) t.mask = this->mask_;
    return rows;
  }

  // Sums between memory and scratch; at a border only of the lanes that a tap has.
  template <bool in>
  UNSHARED_INLINE void move_sums(T* result) {
    for (int64_t q = 0; q < (border_ ? taps_ : 1); ++q) {
      Box box;
      Span lanes{0, lanes_};
      T* to = result;
      Real* sums = panel_;
      for (int d = 0; d < sums_.depth; ++d) {
        const auto& loop = sums_.loop[d];
        if (border_ && loop.what >= 0 && loop_[loop.what].along) {
          lanes = this->span_of(q);
          to += q * loop.memory + this->w_along(lanes.first);
          sums += q * loop.scratch + lanes.first;
        } else {
          box.add(loop.count, loop.memory, loop.scratch);
        }
      }
      if (lanes.last <= lanes.first) continue;
      this->add_lanes(box, lanes);
      if constexpr (in)
        stage(box, to, sums);
      else
        unstage(box, to, sums);
    }
  }

  UNSHARED_INLINE void look_ahead(const T* x, const T* y) {
    if (last_x_ != nullptr) {
      x_ahead_ = x - last_x_;
      y_ahead_ = y - last_y_;
    }
    last_x_ = x;
    last_y_ = y;
  }

  Layout sums_;  // in scratch
  int depth_ = 0;
  Loop loop_[max_axes], known_[max_axes];  // of this block, and those that rows are known of
  bool known_border_ = false;
  int64_t known_wide_ = 0, known_row_ = 0, known_members_ = 0, known_taps_ = 0;
  bool x_here_ = false, y_here_ = false, w_here_ = false;
  int64_t deep_ = 0, wide_ = 0;  // input and output channels at a time
  int64_t x_loop_[max_axes], c_loop_[max_axes];
  int64_t x_channel_ = 0, x_size_ = 0, c_channel_ = 0, c_column_ = 0, rows_ = 0;
  const T* last_x_ = nullptr;
  const T* last_y_ = nullptr;
  int64_t x_ahead_ = 0, y_ahead_ = 0;

  int64_t x_row_[most_rows], c_row_[most_rows];
  int64_t x_some_[most_rows], c_some_[most_rows];  // of a vector that does not see all
  std::int16_t tap_of_[most_rows], tap_some_[most_rows];
  alignas(64) Real stage_[stage_reals + L::count];
  alignas(64) Real panel_[panel_reals + L::count];
  alignas(64) Real y_stage_[y_reals + L::count];
};

}  // namespace
}  // namespace unshared

#endif
