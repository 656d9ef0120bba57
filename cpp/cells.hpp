// How the faces are cut into cells of work: one output place (forward, grad_weight) or one input
// pixel (grad_input).
//
// Along an axis, the taps that join a cell to its partners (inputs of an output, outputs of an
// input) form an arithmetic progression; so the sum of one result element is a nest of a few loops
// with constant strides, whose order is the canonical order. This file finds those progressions;
// the kernels do the arithmetic. Host and device text in one.
#pragma once

#include "reference.hpp"

namespace unshared {

using std::int64_t;

UNSHARED_INLINE int64_t lesser(int64_t p, int64_t q) { return p < q ? p : q; }
UNSHARED_INLINE int64_t greater(int64_t p, int64_t q) { return p < q ? q : p; }
UNSHARED_INLINE int64_t ceil_div(int64_t p, int64_t q) { return (p + q - 1) / q; }
UNSHARED_INLINE int64_t greatest_divisor(int64_t p, int64_t q) {
  while (q != 0) {
    const int64_t r = p % q;
    p = q;
    q = r;
  }
  return p;
}

// The pairs (tap, partner) of one cell along one axis: `count` of them from the first, in chain
// order.
struct Reach {
  int64_t count = 0, tap = 0, partner = 0;
};

// The reach of cell `index` (an output, or an input) along an axis; tap_step is how far apart its
// taps lie, with the sign of the chain's order.
UNSHARED_INLINE Reach reach_of(const Axis& axis, bool by_input, int64_t index, int64_t tap_step) {
  const auto partner = [&](int64_t k) {
    return by_input ? axis.reached(index, k) : axis.source(index, k);
  };
  const int64_t from = by_input ? axis.kernel - 1 : 0, step = by_input ? -1 : 1;
  int64_t k = from;
  Reach found;
  for (; k >= 0 && k < axis.kernel; k += step) {
    found.partner = partner(k);
    if (found.partner >= 0) break;
  }
  found.tap = k;
  for (; k >= 0 && k < axis.kernel && partner(k) >= 0; k += tap_step) ++found.count;
  return found.count == 0 ? Reach{} : found;
}

// How far apart the taps of a cell lie along an axis, with the sign of the chain's order, and their
// partners.
struct Spacing {
  int64_t tap, partner;
};
UNSHARED_INLINE Spacing spacing_of(const Axis& axis, bool by_input) {
  const int64_t rate = by_input ? axis.stride : axis.input_dilation;
  const int64_t common = greatest_divisor(rate, axis.dilation);
  return {(by_input ? -rate : rate) / common, axis.dilation / common};
}

// Nested loops, outermost first; each moves two operands by a constant stride.
struct Nest {
  struct Loop {
    int64_t count, first, second;
    bool operator==(const Loop&) const = default;
  };
  int depth = 0;
  Loop loop[max_axes + 1];

  UNSHARED_INLINE void add(int64_t count, int64_t first, int64_t second) {
    loop[depth++] = {count, first, second};
  }
  UNSHARED_INLINE int64_t total() const {
    int64_t n = 1;
    for (int d = 0; d < depth; ++d) n *= loop[d].count;
    return n;
  }
  // step(first, second) for each of its steps, in their order: where they are in the two operands.
  template <class Step>
  UNSHARED_INLINE void walk(Step step) const {
    if (total() == 0) return;
    int64_t at[max_axes + 1] = {}, first = 0, second = 0;
    for (int d = 0; d >= 0;) {
      step(first, second);
      for (d = depth - 1; d >= 0; --d) {
        first += loop[d].first;
        second += loop[d].second;
        if (++at[d] < loop[d].count) break;
        first -= at[d] * loop[d].first;
        second -= at[d] * loop[d].second;
        at[d] = 0;
      }
    }
  }
  UNSHARED_INLINE bool same(const Nest& other) const {
    if (depth != other.depth) return false;
    for (int d = 0; d < depth; ++d)
      if (!(loop[d] == other.loop[d])) return false;
    return true;
  }
};

// A cell and its reach along every axis. Cells are walked in row-major order; only what changed is
// found anew.
class Cell {
 public:
  UNSHARED_INLINE Cell(const Problem& problem, Face face, int64_t flat)
      : problem_(problem), by_input_(face == Face::grad_input) {
    reference::unravel(problem, flat, index, by_input_ ? &Axis::input : &Axis::output);
    for (int s = 0; s < problem.axis_count; ++s) {
      const Spacing spacing = spacing_of(problem.axes[s], by_input_);
      tap_step[s] = spacing.tap;
      partner_step[s] = spacing.partner;
      find(s);
    }
  }

  UNSHARED_INLINE void advance() {
    for (int s = problem_.axis_count - 1; s >= 0; --s) {
      const bool carried =
          ++index.at[s] == (by_input_ ? problem_.axes[s].input : problem_.axes[s].output);
      if (carried) index.at[s] = 0;
      find(s);
      if (!carried) break;
    }
  }

  static UNSHARED_INLINE int64_t count(const Problem& problem, Face face) {
    int64_t cells = 1;
    for (int s = 0; s < problem.axis_count; ++s)
      cells *= face == Face::grad_input ? problem.axes[s].input : problem.axes[s].output;
    return cells;
  }

  reference::Index index;
  Reach reach[max_axes];
  int64_t tap_step[max_axes], partner_step[max_axes];

 private:
  UNSHARED_INLINE void find(int s) {
    reach[s] = reach_of(problem_.axes[s], by_input_, index.at[s], tap_step[s]);
  }

  const Problem& problem_;
  const bool by_input_;
};

// The taps of a place.
UNSHARED_INLINE int64_t taps_of(const Problem& p) {
  int64_t taps = 1;
  for (int s = 0; s < p.axis_count; ++s) taps = lesser(taps * p.axes[s].kernel, max_extent);
  return taps;
}

// How far so many neighbouring cells reach along an axis, at most.
UNSHARED_INLINE int64_t window_of(const Axis& axis, bool by_input, int64_t cells) {
  int64_t most = axis.kernel;
  if (cells > 1)
    most = ((cells - 1) * (by_input ? axis.input_dilation : axis.stride) +
            (axis.kernel - 1) * axis.dilation) /
               (by_input ? axis.stride : axis.input_dilation) +
           1;
  return greater(1, lesser(most, by_input ? axis.output : axis.input));
}

// Where the taps of a place end, if they lie dense and row-major, `unit` elements apart; 0 if not.
UNSHARED_INLINE int64_t end_of_taps(const Problem& p, int64_t unit) {
  for (int s = p.axis_count - 1; s >= 0; --s) {
    if (p.axes[s].kernel != 1 && p.axes[s].w_tap_stride != unit) return 0;
    unit *= p.axes[s].kernel;
  }
  return unit;
}

// Whether w is laid out as [...][input channels][taps], the taps of a place and channel side by side,
// `unit` elements apart.
UNSHARED_INLINE bool taps_lie_side_by_side(const Problem& p, int64_t unit = 1) {
  const int64_t end = end_of_taps(p, unit);
  return end != 0 && (p.w_in_stride == end || p.in_channels == 1);
}

// Whether some place has a tap in padding, or between dilated inputs.
UNSHARED_INLINE bool any_tap_in_padding(const Problem& p) {
  for (int s = 0; s < p.axis_count; ++s)
    for (int64_t o = 0; o < p.axes[s].output; ++o)
      for (int64_t k = 0; k < p.axes[s].kernel; ++k)
        if (p.axes[s].source(o, k) < 0) return true;
  return false;
}

}  // namespace unshared
