// The gathering faces, forward and grad_input, in one vocabulary: a small tensor (x or dy) is summed
// over, the result has columns.
#pragma once

#include "../cells.hpp"

namespace unshared {
namespace {

struct Gathering {
  int64_t summed, columns;  // channels
  int64_t small_batch, small_channel, result_batch, result_channel, w_summed, w_column;
  int64_t Axis::* small_stride;
  int64_t Axis::* result_stride;
};

template <Face face>
UNSHARED_INLINE Gathering gathering(const Problem& p) {
  if constexpr (face == Face::forward)
    return {p.in_channels,    p.out_channels,     p.x_batch_stride, p.x_channel_stride,
            p.y_batch_stride, p.y_channel_stride, p.w_in_stride,    p.w_out_stride,
            &Axis::x_stride,  &Axis::y_stride};
  else
    return {p.out_channels,   p.in_channels,      p.y_batch_stride, p.y_channel_stride,
            p.x_batch_stride, p.x_channel_stride, p.w_out_stride,   p.w_in_stride,
            &Axis::y_stride,  &Axis::x_stride};
}

}  // namespace
}  // namespace unshared
