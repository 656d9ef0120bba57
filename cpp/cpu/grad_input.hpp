// grad_input over strips of input pixels i. Rows n, columns a, steps the places o that reach i and
// then b.
// Accumulator: float32 for half types, else the element type.
// Order: o ascending, within each b ascending.
// Deterministic: each dx[n, i, a] is gathered by one worker as one chain; nothing is scattered.
#pragma once

#include "strip.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

struct GradInput {
  static constexpr Face face = Face::grad_input;
  static constexpr bool channels_outermost = false;

  static UNSHARED_INLINE Gathering gathering(const Problem& p) {
    return {p.out_channels,   p.in_channels,      p.y_batch_stride, p.y_channel_stride,
            p.x_batch_stride, p.x_channel_stride, p.w_out_stride,   p.w_in_stride,
            &Axis::y_stride,  &Axis::x_stride};
  }
  static UNSHARED_INLINE int64_t w_offset(const Axis& axis, int64_t, const Reach& reach) {
    return reach.partner * axis.w_place_stride + reach.tap * axis.w_tap_stride;
  }
  static UNSHARED_INLINE int64_t w_step(const Axis& axis, int64_t tap_step, int64_t partner_step) {
    return partner_step * axis.w_place_stride + tap_step * axis.w_tap_stride;
  }
  static UNSHARED_INLINE int64_t partners(const Axis& axis) { return axis.output; }
  // The outputs that `count` neighbouring inputs reach.
  static UNSHARED_INLINE int64_t window(const Axis& axis, int64_t count) {
    return ((count - 1) * axis.input_dilation + (axis.kernel - 1) * axis.dilation) / axis.stride +
           1;
  }
};

template <class T>
using GradInputStrips = Strips<T, GradInput>;

}  // namespace
}  // namespace unshared

#endif
