// forward over strips of output places o. Rows n, columns b, steps a and then the taps k inside the
// input.
// Accumulator: float32 for half types, else the element type.
// Order: a ascending, within each k ascending.
// Deterministic: each y[n, o, b] is computed by one worker as one chain.
#pragma once

#include "strip.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

struct Forward {
  static constexpr Face face = Face::forward;
  static constexpr bool channels_outermost = true;

  static UNSHARED_INLINE Gathering gathering(const Problem& p) {
    return {p.in_channels,    p.out_channels,     p.x_batch_stride, p.x_channel_stride,
            p.y_batch_stride, p.y_channel_stride, p.w_in_stride,    p.w_out_stride,
            &Axis::x_stride,  &Axis::y_stride};
  }
  static UNSHARED_INLINE int64_t w_offset(const Axis& axis, int64_t o, const Reach& reach) {
    return o * axis.w_place_stride + reach.tap * axis.w_tap_stride;
  }
  static UNSHARED_INLINE int64_t w_step(const Axis& axis, int64_t tap_step, int64_t) {
    return tap_step * axis.w_tap_stride;
  }
  static UNSHARED_INLINE int64_t partners(const Axis& axis) { return axis.input; }
  // The inputs that `count` neighbouring outputs span.
  static UNSHARED_INLINE int64_t window(const Axis& axis, int64_t count) {
    return ((count - 1) * axis.stride + (axis.kernel - 1) * axis.dilation) / axis.input_dilation +
           1;
  }
};

template <class T>
using ForwardStrips = Strips<T, Forward>;

}  // namespace
}  // namespace unshared

#endif
