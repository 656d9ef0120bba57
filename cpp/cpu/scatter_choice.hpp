// Kernel "scatter", when it is chosen: what it cannot, and where gather or along take less time, as measured.
#pragma once

#include "along_plan.hpp"
#include "scatter_plan.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Why it cannot, or nullptr.
template <class T>
UNSHARED_INLINE const char* scatter_unable(const Problem& p) {
  if (!has_lanes<T>) return without_lanes;
  if (Scalar<T>::parts == 2 && p.w_out_stride != 1 && !taps_lie_side_by_side(p) &&
      p.in_channels * int64_t{sizeof(T)} >= 64)
    return "a pixel's complex weights are whole lines as well";
  const int64_t taps = taps_of(p);
  if (taps == 1) return "there is one tap";
  if (p.w_out_stride != 1 && p.w_in_stride != 1 && !taps_lie_side_by_side(p))
    return "weights of a place do not lie side by side";
  if (taps > ScatterPlan<T>::most_taps) return "too many taps";
  return nullptr;
}
template <class T>
bool scatter_able(const Problem& p) noexcept {
  return scatter_unable<T>(p) == nullptr;
}
// Whether gather, which goes pixel by pixel, has lost a place's weights from a second-level cache when
// the next row or plane of pixels needs them again.
template <class T>
UNSHARED_INLINE bool weights_return_late(const Problem& p) {
  constexpr double second_cache = (few_registers ? 384 : 1024) * 1024;
  auto places =
      static_cast<double>(p.in_channels * p.out_channels * taps_of(p) * int64_t{sizeof(T)});
  double bytes = 0;
  for (int s = p.axis_count - 1; s >= 0; --s) {
    const Axis& axis = p.axes[s];
    bytes += places * static_cast<double>((axis.kernel - 1) * axis.dilation / axis.stride);
    places *= static_cast<double>(axis.output);
  }
  return bytes > second_cache;
}

// Where gather is as fast: what a place adds to a pixel must be worth bringing the pixel's sums, and
// few enough samples must share what it takes gather to bring a pixel's weights together.
template <class T>
const char* scatter_declines(const Problem& p) noexcept {
  using Plan = ScatterPlan<T>;
  using Over = typename Plan::Over;
  constexpr int64_t lanes = Plan::L::count;
  constexpr const char* near_by =
      "few channels of dy: the weights of several places stay in a cache";
  constexpr const char* brief =
      "few products for what it takes to bring the sums of a place together";
  constexpr const char* again = "many samples use a pixel's weights again";
  if (const char* why = scatter_unable<T>(p)) return why;
  const int64_t n = p.batch, a = p.in_channels, b = p.out_channels;
  const Over over = Plan::lanes_of(p);
  const bool inward = p.w_out_stride == 1, few = 2 * a <= lanes;
  const int64_t taps = taps_of(p);
  const bool in_line = p.axes[p.axis_count - 1].stride == 1;
  if (Plan::turns_pairs(p)) {
    // Measured on Zen 4, with v3 and v4: 1 to 64 samples, 1 to 128 and 2 to 512 channels, kernels of 2x2 to
    // 7x7.
    const bool one_tile = n <= most_rows_turned;
    if (few && b * taps < (in_line ? 256 : 128) * (one_tile ? 1 : 4)) return brief;
    if (b == 1 || b * taps < 12) return near_by;
    if (one_tile) return nullptr;
    const bool last = p.y_channel_stride == 1;
    const int64_t tall = last ? 128 : lesser(n, 64) * (few_registers ? 2 : 1);
    return b < tall || a > (last ? 24 : 128) ? again : nullptr;
  }
  if (Scalar<T>::parts == 2 && !inward && !taps_lie_side_by_side(p)) {
    // Measured on Zen 4: 1 to 64 samples, 1 to 7 and 2 to 128 channels.
    if (b * taps < 144 || b < 2 * a) return brief;
    return p.y_channel_stride != 1 && n > 16 && a <= 3 ? again : nullptr;
  }
  if (2 * n <= lanes && in_line && (b == 1 || (a == 1 && inward)) &&
      along_declines<T, Face::grad_input>(p) == nullptr)
    return "one channel: lanes run along pixels";
  const bool filled = 3 * n >= 2 * padded<typename Plan::Real>(n);
  const bool far = over == Over::samples && filled && weights_return_late<T>(p);
  const int64_t least = far && n <= 2 * lanes ? 4 : 12;  // channels of dy, over samples
  if (taps_lie_side_by_side(p)) {
    const bool small = taps * a * b * int64_t{sizeof(T)} <= 16 * 1024;
    if (n > 4 * (p.x_channel_stride == 1 ? Plan::line : lanes) && small &&
        (Plan::plain || taps < 16))
      return again;
    if (over == Over::samples) return b < least ? near_by : nullptr;
    // Over columns and taps, measured with 1 to 8 samples.
    const bool little = few ? a * b * taps * Plan::line <= (130 + 70 * n) * lanes
                            : b < 8 && taps < 16 && n > Plan::line * 3 / 8 && a % lanes == 0;
    return b < 4 ? near_by : Plan::plain && little ? brief : nullptr;
  }
  if (over == Over::samples) {
    const bool last = p.y_channel_stride == 1, narrow = a <= 2 * Plan::line, tall = b >= 4 * a;
    if (b < (inward ? least : Plan::plain ? 12 : 8)) return near_by;
    if (few && (n <= 2 * lanes || last)) return nullptr;
    // Samples that gather fills lanes with find a pixel's weights at many places, but asked for ahead; what
    // scatter saves is worth more where dy has more channels than x has, and of few samples. Measured on
    // Zen 4, with v3 and v4: 16 to 128 samples, 16 to 64 channels, kernels of 3x3 to 9x9.
    constexpr int64_t few_samples = 16;
    if (inward) {
      if (tall && (taps > 9 || few || n <= 2 * lanes)) return nullptr;
      if (narrow) return a > Plan::line && taps > 9 && n <= few_samples ? nullptr : again;
      return a <= 8 * (b < 8 ? lanes : Plan::line) &&
                     n <= (last ? lanes : lesser(2 * lanes, few_samples))
                 ? nullptr
                 : again;
    }
    if (!far || !narrow) return again;
    if (n > lanes && (tall ? !last || taps > 9 || n < 4 * Plan::line : n <= 2 * lanes))
      return nullptr;
    const bool wide = b >= 2 * Plan::line && (a > Plan::line || !last);
    return wide && n <= Plan::line && taps <= 25 ? nullptr : again;
  }
  // Over columns, measured with 1 to 8 samples, 4 to 128 channels and kernels of 3x3 to 7x7, too.
  const bool joint = over == Over::joint, widened = !Plan::plain && few;
  if (b < (inward ? 4 : widened || (joint && taps > 9 && n <= 4) ? 8 : 16)) return near_by;
  if (inward && few && b * taps <= 80 + 15 * n) return brief;
  if (!inward && !joint && !widened && b < 32 &&
      (taps < 16 ? a <= lanes : n >= 4 && a >= 2 * lanes))
    return near_by;
  if (Plan::keeps_sums(p) && !inward && a >= 6 * lanes && a % lanes == 0 && 2 * n >= Plan::line &&
      n < Plan::line)
    return "whole vectors of weights go by as well pixel by pixel";
  if (n > lanes / 2 && Plan::runs_of_columns(p))
    return (Plan::keeps_sums(p) ? n <= 64 : b >= 2 * lanes) ? nullptr : again;
  if (n > lanes && (over == Over::columns || (inward && b < 4 * lanes))) return again;
  const bool large = n > Plan::line / 4 && taps > 25 && a >= 2 * Plan::line;
  if (!inward && !Plan::keeps_sums(p) && (large || a > most_vectors * lanes))
    return "sums of many channels leave room for few pixels";
  return nullptr;
}

}  // namespace
}  // namespace unshared

#endif
