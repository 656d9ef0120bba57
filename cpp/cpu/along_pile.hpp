// Kernel "along", several rows of cells at once: what a few samples have under all of them is staged
// together, so that it is read once and lies close, and so are the weights of all their chains.
//
// Padding is staged, too, as zeros, so that all lanes of all rows take the same steps, unmasked. The
// faces that sum over it give its weights as -0: the product is -0, and to add that changes no sum, not
// even a zero's sign.
#pragma once

#include "along_block.hpp"
#include "gathering.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
class AlongPile : public AlongBlock<T, face> {
  using Base = AlongBlock<T, face>;

 protected:
  using Base::accumulate_, Base::along_, Base::at_, Base::axis_, Base::begin_, Base::border_,
      Base::by_input, Base::high_, Base::lanes_, Base::members_, Base::p, Base::partner_,
      Base::partners_, Base::plain, Base::plan_, Base::row_, Base::tap_, Base::taps_;
  using typename Base::L;
  using typename Base::Layout;
  using typename Base::Plan;
  using typename Base::Real;
  using typename Base::Span;

  UNSHARED_INLINE AlongPile(const Call& call, const Plan& plan)
      : Base(call, plan), g(gathering<by_input ? Face::grad_input : Face::forward>(p)) {}

  // Stands at a block; false if it has no cells.
  UNSHARED_INLINE bool enter(int64_t block) {
    if (!Base::enter(block)) return false;
    look();
    lay_out();
    tabulate();
    return true;
  }

  // How many samples can be staged together.
  UNSHARED_INLINE int64_t most_samples() const {
    return greater(1, lesser(p.batch, Plan::pile_stage_reals / greater(1, size_)));
  }
  // each(member, first sample, samples, what is staged next) for all samples of all members of the
  // block, some at a time, which are staged before; `small`: what the block reads.
  template <class Each>
  UNSHARED_INLINE void each_part(const Heights& heights, const T* small, Each each) {
    const int64_t step = this->member_step(by_input ? &Axis::y_stride : &Axis::x_stride);
    const int64_t after =
        last_ == nullptr ? 0 : small - last_;  // likely so far to the next block's
    last_ = small;
    for (int64_t j = 0; j < heights.of(0) * size_; j += L::count) L::store(stage_ + j, L::zero());
    for (int64_t member = 0; member < members_; ++member)
      for (int64_t part = 0, n = 0; part < heights.tiles; n += heights.of(part++)) {
        const int64_t at = member * step + n * g.small_batch, count = heights.of(part);
        const int64_t next = part + 1 < heights.tiles ? at + count * g.small_batch
                             : member + 1 < members_  ? (member + 1) * step
                                                      : after;
        stage_small(small + at, count);
        // Its first rows are likely in a cache still.
        const T* const ahead = small + next + (rows_ - high_) * small_row() + low_ * small_lane();
        each(member, n, count, reinterpret_cast<const Real*>(ahead));
      }
  }

  UNSHARED_INLINE const Axis& across() const { return p.axes[plan_.rows_axis]; }
  static UNSHARED_INLINE int64_t stride_of(const Axis& axis) {  // of the small tensor
    return by_input ? axis.y_stride : axis.x_stride;
  }
  static UNSHARED_INLINE int64_t other_stride_of(const Axis& axis) {  // of the third one
    return by_input ? axis.x_stride : axis.y_stride;
  }
  UNSHARED_INLINE int64_t small_lane() const { return stride_of(along_); }
  UNSHARED_INLINE int64_t small_row() const { return stride_of(across()); }
  // Whether the third tensor can be read or written where it is.
  UNSHARED_INLINE bool other_here() const { return plain && other_stride_of(along_) == 1; }
  // What row r of cells sees, staged, from its first lane on.
  UNSHARED_INLINE const Real* staged(int64_t r) const {
    return stage_ + r * (by_input ? 1 : across().stride) * pitch_ + lead_ - low_;
  }

  // ---- weights: [tap of the lanes, if some are left out][the rest as it lies in memory]

  // The rows of cells whose partner through a tap is there.
  UNSHARED_INLINE Span rows_of(int64_t tap) const {
    const int64_t at = low_row_ + tap * across().dilation, step = by_input ? 1 : across().stride;
    return {at < 0 ? lesser(ceil_div(-at, step), high_) : 0,
            at >= extent_ ? 0 : lesser(high_, (extent_ - 1 - at) / step + 1)};
  }
  UNSHARED_INLINE bool rows_in_padding() const {
    return low_row_ < 0 || low_row_ + rows_ > extent_;
  }

  // Between memory and scratch. Forward may read the weights of taps in padding, which lie in memory, too;
  // but grad_input would read places beyond the last, and grad_weight must not write such taps.
  template <bool in, class Memory>
  UNSHARED_INLINE void move_weights(Memory* w) {
    int of_rows = 0;
    while (loop_[of_rows].of != Of::rows) ++of_rows;
    const bool rows_apart = face != Face::forward && rows_in_padding();
    for (int64_t q = 0; q < (apart() ? taps_ : 1); ++q)
      for (int64_t u = 0; u < (rows_apart ? loop_[of_rows].count : 1); ++u) {
        Box box;
        Span lanes{0, lanes_}, rows{0, high_};
        if (apart()) lanes = this->span_of(q);
        if (rows_apart) rows = rows_of(u);
        if (lanes.last <= lanes.first || rows.last <= rows.first) continue;
        Memory* memory = w + this->w_along(lanes.first);
        Real* scratch = panel_ + lanes.first;
        for (int d = 0; d < w_.depth; ++d) {
          const auto& loop = w_.loop[d];
          const bool of_lanes = loop.what >= 0 && loop_[loop.what].of == Of::lanes;
          const int64_t at = loop.what == Base::of_rows           ? rows.first
                             : apart() && of_lanes                ? q
                             : rows_apart && loop.what == of_rows ? u
                                                                  : -1;
          if (at >= 0) {
            memory += at * loop.memory;
            scratch += at * loop.scratch;
          }
          if (loop.what == Base::of_rows)
            box.add(rows.last - rows.first, loop.memory, loop.scratch);
          else if (at < 0)
            box.add(loop.count, loop.memory, loop.scratch);
        }
        this->add_lanes(box, lanes);
        box.distant = true;
        if constexpr (in)
          stage(box, memory, scratch);
        else
          unstage(box, memory, scratch);
      }
  }

  const Gathering g;
  int64_t small_at_ = 0, w_at_ = 0, place_at_ = 0, other_at_ = 0;  // the block's first elements
  bool missing_ = false;  // whether some cell lacks some tap
  // Steps: where they are in the staged tensor and in scratch of weights, and of which taps.
  int64_t steps_ = 0, a_step_[along_steps], b_step_[along_steps];
  std::int16_t tap_of_[along_steps], row_of_[along_steps];
  int64_t size_ = 0;  // of a sample
  Layout w_;
  alignas(64) Real stage_[Plan::pile_stage_reals + L::count];
  alignas(64) Real panel_[Plan::pile_reals + L::count];

 private:
  enum class Of { neither, lanes, rows };  // the axis of a loop's taps
  struct Loop {
    int64_t count, small, w;  // strides of the two operands
    Of of;
    int64_t staged;  // of the small tensor, in scratch
  };
  UNSHARED_INLINE bool apart() const { return face != Face::forward && border_; }

  // Loops in the order of the chain, and where they begin.
  UNSHARED_INLINE void look() {
    const int64_t first = at_[plan_.rows_axis];
    low_row_ = by_input ? first + across().padding_low - (across().kernel - 1) * across().dilation
                        : first * across().stride - across().padding_low;
    extent_ = by_input ? across().output : across().input;
    rows_ = plan_.window_of_cells(across(), high_);
    missing_ = border_ || taps_ != along_.kernel || rows_in_padding();
    small_at_ = w_at_ = place_at_ = other_at_ = depth_ = 0;
    if (!by_input) add(g.summed, g.small_channel, g.w_summed, Of::neither);
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t stride = stride_of(axis);
      other_at_ += (s == axis_ ? begin_ : at_[s]) * other_stride_of(axis);
      place_at_ += s == axis_ ? this->w_along(begin_) : at_[s] * axis.w_place_stride;
      if (s == axis_) {
        add(taps_, along_.dilation * stride,
            by_input ? this->w_along(along_.dilation) - axis.w_tap_stride : axis.w_tap_stride,
            Of::lanes);
        small_at_ += partner_ * stride;
        w_at_ += this->w_along(by_input ? partner_ : begin_) + tap_ * axis.w_tap_stride;
      } else if (s == plan_.rows_axis) {
        add(axis.kernel, axis.dilation * stride,
            by_input ? axis.dilation * axis.w_place_stride - axis.w_tap_stride : axis.w_tap_stride,
            Of::rows);
        small_at_ += low_row_ * stride;
        w_at_ += by_input ? low_row_ * axis.w_place_stride + (axis.kernel - 1) * axis.w_tap_stride
                          : first * axis.w_place_stride;
      } else {
        int64_t tap_step = 0, partner_step = 0;
        const Reach r = this->reach(s, tap_step, partner_step);
        missing_ = missing_ || r.count != axis.kernel;
        small_at_ += r.partner * stride;
        w_at_ += (by_input ? r.partner : at_[s]) * axis.w_place_stride + r.tap * axis.w_tap_stride;
        add(r.count, partner_step * stride,
            tap_step * axis.w_tap_stride + (by_input ? partner_step * axis.w_place_stride : 0),
            Of::neither);
      }
    }
    if (by_input) add(g.summed, g.small_channel, g.w_summed, Of::neither);
  }
  UNSHARED_INLINE void add(int64_t count, int64_t small, int64_t w, Of of) {
    loop_[depth_++] = {count, small, w, of, 0};
  }

  // The small tensor: [sample][loops but those of rows and lanes][row][pixels], these with zeros ahead, as
  // many whole vectors as hold the padding that lanes see.
  UNSHARED_INLINE void lay_out() {
    const int64_t window = (taps_ - 1) * along_.dilation + lanes_;
    low_ = greater(0, -partner_);
    seen_ = greater(0, lesser(window, partners_ - partner_) - low_);
    lead_ = padded<Real>(low_);
    pitch_ = padded<Real>(lead_ - low_ + window);
    size_ = rows_ * pitch_;
    for (int d = depth_ - 1; d >= 0; --d) {
      Loop& l = loop_[d];
      l.staged = l.of == Of::lanes  ? along_.dilation
                 : l.of == Of::rows ? across().dilation * pitch_
                                    : size_;
      if (l.of == Of::neither) size_ *= l.count;
    }
    w_.depth = 0;
    if (plan_.company_axis >= 0)
      w_.add(members_, p.axes[plan_.company_axis].w_place_stride, Base::of_members);
    w_.add(g.columns, g.w_column, Base::of_columns);
    w_.add(high_, across().w_place_stride, Base::of_rows);
    for (int d = 0; d < depth_; ++d)
      w_.add(loop_[d].count, loop_[d].w, d, loop_[d].of == Of::lanes && apart());
    w_.nest(row_);
  }
  UNSHARED_INLINE void tabulate() {
    int64_t at[max_axes + 1] = {};
    steps_ = 1;
    for (int d = 0; d < depth_; ++d) steps_ *= loop_[d].count;
    for (int64_t t = 0; t < steps_; ++t) {
      a_step_[t] = b_step_[t] = 0;
      for (int d = 0; d < depth_; ++d) {
        a_step_[t] += at[d] * loop_[d].staged;
        b_step_[t] += at[d] * w_.stride(d);
        if (loop_[d].of == Of::lanes) tap_of_[t] = static_cast<std::int16_t>(at[d]);
        if (loop_[d].of == Of::rows) row_of_[t] = static_cast<std::int16_t>(at[d]);
      }
      for (int d = depth_ - 1; d >= 0 && ++at[d] == loop_[d].count; --d) at[d] = 0;
    }
  }

  UNSHARED_INLINE void stage_small(const T* from, int64_t count) {
    const int64_t skipped = greater(0, -low_row_);
    const int64_t rows = lesser(rows_, extent_ - low_row_) - skipped;
    if (rows <= 0 || seen_ <= 0 || steps_ == 0) return;
    Box in;
    in.add(count, g.small_batch, size_);
    for (int d = 0; d < depth_; ++d)
      if (loop_[d].of == Of::neither) in.add(loop_[d].count, loop_[d].small, loop_[d].staged);
    in.add(rows, small_row(), pitch_);
    in.lanes = seen_;
    in.lane_memory = small_lane();
    stage(in, from + skipped * small_row() + low_ * small_lane(),
          stage_ + skipped * pitch_ + lead_);
  }

  int depth_ = 0;
  Loop loop_[max_axes + 1];
  // Rows of partners: the first, how many there are, and how many are staged.
  int64_t low_row_ = 0, extent_ = 0, rows_ = 0;
  // Of such a row: padding ahead, pixels, where they begin in scratch, room.
  int64_t low_ = 0, seen_ = 0, lead_ = 0, pitch_ = 0;
  const T* last_ = nullptr;  // what the block before read
};

}  // namespace
}  // namespace unshared

#endif
