// Kernel "along", one block: a strip of cells along the lanes' axis at one place of all others, or
// a company of such; the taps it has, and which of its lanes see each.
#pragma once

#include "along_plan.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
class AlongBlock {
 protected:
  using Plan = AlongPlan<T, face>;
  using Real = typename Plan::Real;
  using L = Lanes<Real>;
  using Mask = typename L::Mask;
  static constexpr bool by_input = face == Face::grad_input;
  // Whether scratch holds what memory does, so that operands can be read in place.
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int64_t stage_reals = along_bytes / sizeof(Real),
                           panel_reals = along_bytes / sizeof(Real),
                           sum_reals = along_sum_bytes / sizeof(Real);

  UNSHARED_INLINE AlongBlock(const Call& call, const Plan& plan)
      : products_(call.conjugate_first, call.conjugate_second),
        plan_(plan),
        p(plan_.p),
        axis_(plan_.axis),
        along_(p.axes[axis_]),
        accumulate_(call.accumulate),
        first_(static_cast<const T*>(call.first)),
        second_(static_cast<const T*>(call.second)),
        result_(static_cast<T*>(call.result)),
        in_place_(plan_.inner == 1 ? along_.w_place_stride == 1 : plan_.w_inner == 1) {}

  // Stands at a block; false if it has no cells.
  UNSHARED_INLINE bool enter(int64_t block) {
    if (plan_.phases > 1) {
      const int64_t each = plan_.blocks_of_phase();
      plan_.enter(block / each);
      block %= each;
    }
    // Row-major over the axes, the one along which lanes run counted in strips.
    for (int s = p.axis_count - 1; s >= 0; --s) {
      const int64_t n = s == axis_                ? plan_.strips
                        : s == plan_.company_axis ? plan_.companies
                        : s == plan_.rows_axis    ? plan_.floors
                                                  : Plan::cells(p.axes[s]);
      at_[s] = block % n;
      block /= n;
    }
    const int64_t all = Plan::cells(along_), unit = plan_.unit(), units = ceil_div(all, unit);
    begin_ = at_[axis_] * units / plan_.strips * unit;
    lanes_ = lesser((at_[axis_] + 1) * units / plan_.strips * unit, all) - begin_;
    if (plan_.company_axis >= 0) {
      int64_t& member = at_[plan_.company_axis];
      member *= plan_.company;
      members_ = lesser(plan_.company, Plan::cells(p.axes[plan_.company_axis]) - member);
    }
    if (plan_.rows_axis >= 0) {
      int64_t& row = at_[plan_.rows_axis];
      const int64_t rows = Plan::cells(p.axes[plan_.rows_axis]),
                    end = (row + 1) * rows / plan_.floors;
      row = row * rows / plan_.floors;
      high_ = end - row;
    }
    if (lanes_ <= 0) return false;
    find_window();
    return true;
  }

  // What the lanes see of the partners' axis through some taps, as scratch. At a border it is
  // staged from the middle of a vector on, and so ends up to a vector later.
  UNSHARED_INLINE int64_t window(int64_t taps) const {
    return padded<Real>((taps - 1) * along_.dilation + row_) + (border_ ? L::count : 0);
  }

  // How far the next member of a company is, by a stride of groups.
  UNSHARED_INLINE int64_t member_step(int64_t Axis::* stride) const {
    return plan_.company_axis < 0 ? 0 : p.axes[plan_.company_axis].*stride;
  }

  // The reach of the block along an axis where all its cells stand at the same place.
  UNSHARED_INLINE Reach reach(int s, int64_t& tap_step, int64_t& partner_step) const {
    const Axis& axis = p.axes[s];
    const Spacing spacing = spacing_of(axis, by_input);
    tap_step = spacing.tap;
    partner_step = spacing.partner;
    return reach_of(axis, by_input, at_[s], tap_step);
  }

  struct Span {
    int64_t first, last;
  };
  // The lanes of the block that take part in a tap.
  UNSHARED_INLINE Span span_of(int64_t tap) const {
    const int64_t at = partner_ + tap * along_.dilation;
    return {greater(0, -at), lesser(lanes_, partners_ - at)};
  }

  // What the vector at l sees of the taps: all of them with all its lanes, or masks of lanes.
  UNSHARED_INLINE bool sees_all(int64_t l) {
    const int64_t end = lesser(L::count, lanes_ - l), first = partner_ + l;
    last_ = static_cast<int>(end);
    if (end == L::count && first >= 0 &&
        first + (taps_ - 1) * along_.dilation + L::count <= partners_)
      return true;
    whole_ = end == L::count;
    for (int64_t q = 0; q < taps_; ++q) {
      const int64_t at = first + q * along_.dilation;
      const int64_t low = lesser(greater(0, -at), end);
      const int64_t high = greater(low, lesser(end, partners_ - at));
      mask_[q] = L::span(static_cast<int>(low), static_cast<int>(high));
      seen_[q] = high > low;
      whole_ = whole_ && (high == low || high - low == L::count);
    }
    return false;
  }

  // Where the weights of the cell (or place) lie that stands `cell` along the axis, whole inner
  // runs apart from the block's first.
  UNSHARED_INLINE int64_t w_along(int64_t cell) const {
    return plan_.inner == 1 ? cell * along_.w_place_stride
                            : cell / plan_.inner * along_.w_place_stride;
  }
  // Loops over weights and the strides they get in scratch: there loops are nested as they are in
  // memory, so that what is contiguous there is moved as one. Innermost are rows of `row` lanes.
  //
  // At a border, each tap along the axis is moved by itself, and is the outermost loop: from the
  // first of its lanes on, in whole vectors. These end in the next row, but not beyond the lanes
  // before its first, which nobody reads; or in the next tap, which is moved later.
  struct Layout {
    struct Loop {
      int64_t count, memory, scratch;
      int what;  // whose it is
      int64_t order;
    };
    int depth = 0;
    Loop loop[max_axes + 3];

    UNSHARED_INLINE void add(int64_t count, int64_t memory, int what, bool outermost = false) {
      const int64_t order = outermost ? INT64_MAX : memory < 0 ? -memory : memory;
      int at = depth++;
      for (; at > 0 && loop[at - 1].order < order; --at) loop[at] = loop[at - 1];
      loop[at] = {count, memory, 0, what, order};
    }
    // Returns the size of all.
    UNSHARED_INLINE int64_t nest(int64_t row) {
      for (int d = depth - 1; d >= 0; --d) {
        loop[d].scratch = row;
        row *= loop[d].count;
      }
      return row;
    }
    UNSHARED_INLINE int64_t stride(int what) const {
      for (int d = 0; d < depth; ++d)
        if (loop[d].what == what) return loop[d].scratch;
      return 0;
    }
  };
  static constexpr int of_members = -1, of_columns = -2, of_channels = -3,
                       of_rows = -4;  // or a loop's number

  // How far it is from those of the vector at l to the next one's, if they are read in place.
  UNSHARED_INLINE int64_t w_next(int64_t l) const {
    const bool ends = plan_.inner != 1 && (l + L::count) % plan_.inner == 0;
    return L::count + (ends ? along_.w_place_stride - plan_.inner : 0);
  }
  // Where those of lane l lie, seen from the first.
  UNSHARED_INLINE int64_t w_lane(int64_t l) const {
    if (plan_.inner == 1) return l * along_.w_place_stride;
    return l / plan_.inner * along_.w_place_stride + l % plan_.inner * plan_.w_inner;
  }
  // The weights of some lanes, all in one box or, inner runs, in one more loop.
  UNSHARED_INLINE void add_lanes(Box& box, Span lanes) const {
    const int64_t count = lanes.last - lanes.first;
    if (plan_.inner == 1) {
      box.lanes = count;
      box.lane_memory = along_.w_place_stride;
    } else {
      box.add(count / plan_.inner, along_.w_place_stride, plan_.inner);
      box.lanes = plan_.inner;
      box.lane_memory = plan_.w_inner;
    }
  }

  // Zero for every tap of these places that falls into padding.
  UNSHARED_INLINE void clear(T* result) const {
    reference::Index k{};
    do {
      int64_t w = 0;
      bool in_chain = true;
      for (int s = 0; s < p.axis_count; ++s) {
        w += k.at[s] * p.axes[s].w_tap_stride;
        if (s != axis_) in_chain = in_chain && p.axes[s].source(at_[s], k.at[s]) >= 0;
      }
      // Lanes that see the tap are side by side.
      Span seen{lanes_, lanes_};
      if (in_chain) {
        const int64_t at = begin_ + k.at[axis_] * along_.dilation - along_.padding_low;
        seen.first = lesser(greater(0, -at), lanes_);
        seen.last = greater(seen.first, lesser(lanes_, along_.input - at));
      }
      for (int64_t l = 0; l < lanes_; ++l) {
        if (l == seen.first) l = seen.last;
        if (l >= lanes_) break;
        for (int64_t a = 0; a < p.in_channels; ++a)
          for (int64_t b = 0; b < p.out_channels; ++b)
            result[w + this->w_lane(l) + a * p.w_in_stride + b * p.w_out_stride] = T{};
      }
    } while (reference::next(p, k));
  }

  [[no_unique_address]] const Products<Real> products_;
  Plan plan_;
  const Problem& p;
  const int axis_;
  const Axis& along_;
  const bool accumulate_;
  const T* const first_;
  const T* const second_;
  T* const result_;
  const bool in_place_;  // whether weights lie side by side along the lanes
  int64_t at_[max_axes] = {}, begin_ = 0, lanes_ = 0, members_ = 1, high_ = 1;
  // Tap number q along the axis joins lane j to partner partner_ + q * dilation + j of partners_.
  int64_t tap_ = 0, partner_ = 0, partners_ = 0, taps_ = 0;
  int64_t row_ = 0;  // lanes in scratch
  bool border_ = false;  // whether some lanes do not see all taps
  // Of a vector that does not see all: the lanes that take part in each tap, whether there are any,
  // and whether there are never but some.
  alignas(64) Mask mask_[along_reach + 1];
  bool seen_[along_reach + 1], whole_ = false;
  int last_ = 0;  // lanes it has

 private:
  // The taps along the lanes' axis that any lane of the block takes part in, in chain order.
  UNSHARED_INLINE void find_window() {
    const int64_t sign = by_input ? -1 : 1;
    partners_ = by_input ? along_.output : along_.input;
    tap_ = by_input ? along_.kernel - 1 : 0;
    partner_ =
        begin_ + (by_input ? along_.padding_low - tap_ * along_.dilation : -along_.padding_low);
    const int64_t skip =
        partner_ + lanes_ > 0 ? 0 : ceil_div(1 - lanes_ - partner_, along_.dilation);
    tap_ += sign * skip;
    partner_ += skip * along_.dilation;
    taps_ = partner_ >= partners_
                ? 0
                : lesser(along_.kernel - skip, ceil_div(partners_ - partner_, along_.dilation));
    taps_ = greater(taps_, 0);  // there may be more padding than all taps reach across
    border_ = taps_ > 0 &&
              (partner_ < 0 || partner_ + (taps_ - 1) * along_.dilation + lanes_ > partners_);
    row_ = padded<Real>(lanes_);
  }
};

}  // namespace
}  // namespace unshared

#endif
