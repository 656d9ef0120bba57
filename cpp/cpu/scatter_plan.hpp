// Kernel "scatter", its plan: how a call is cut into boxes of pixels whose sums fit into scratch,
// blocks of samples and parts of columns.
#pragma once

#include "micro.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
struct ScatterPlan {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int64_t line = 64 / sizeof(Real);
  static constexpr int64_t sums_reals = 104 * 1024 / sizeof(Real);
  static constexpr int64_t tile_reals = 24 * 1024 / sizeof(Real);
  static constexpr int64_t stage_reals = 36 * 1024 / sizeof(Real);
  static constexpr int most_taps = 512, most_steps = 64;

  bool over_samples = false;  // lanes; else over columns and taps
  int64_t rows = 1;  // samples of a block
  int64_t width = 1, parts = 1;  // columns done together; how many times
  int64_t cuts[max_axes];  // boxes along each axis of pixels
  int64_t taps = 1;
  int64_t steps = 1;  // channels of dy in one go: those weights stay in a first-level cache
  int64_t channels = 1, places = 1;  // of dy, staged together
  double reached = 1;  // places for each pixel: more than one if several boxes reach some
  int64_t items = 0;

  UNSHARED_INLINE ScatterPlan(const Problem& p, const Call& call) {
    const int64_t n = greater(p.batch, 1), b = greater(1, p.out_channels);
    taps = taps_of(p);
    over_samples = over_lanes_of_samples(p);
    const auto cut = [&](int64_t most_width) {
      width = even(p.in_channels, most_width);
      parts = greater(1, ceil_div(p.in_channels, width));
      const int64_t cells = greater(1, sums_reals / (rows * padded<Real>(width)));
      cut_boxes(p, call.threads == 1 ? cells : lesser(cells, greater(1, pixels(p) * parts / 64)));
    };
    if (over_samples) {
      const int64_t most = taps <= line ? line : line / 2;
      const int64_t wide = greater(2, line / even(p.in_channels, most));  // tiles of some 16 sums
      rows = even(ceil_div(n, L::count), lesser(most_vectors, wide)) * L::count;
      cut(most);
    } else {
      rows = even(n, lesser(32, tile_reals / spaced<Real>(taps)));
      // Wide parts are long runs in memory, narrow ones larger boxes.
      int64_t best = 1;
      double least = 0;
      for (int64_t most = greater(1, (tile_reals / rows - 2 * line) / taps); most > 0; most /= 2) {
        cut(most);
        const double cost =
            reached * (1 + 512.0 / static_cast<double>(width * taps * int64_t{sizeof(T)}));
        if (least > 0 && cost >= least) continue;
        least = cost;
        best = most;
      }
      cut(best);
    }
    const int64_t most = (over_samples ? 24 : 96) * 1024 / int64_t{sizeof(T)} / (taps * width);
    steps = even(b, lesser(greater(over_samples ? 4 : 8, most), most_steps));
    const int64_t room_of_row = stage_reals / rows - (over_samples ? 0 : 2 * line);
    channels = lesser(b, greater(steps, room_of_row / steps * steps));
    places = channels < b ? 1 : lesser(line, greater(1, stage_reals / (rows * spaced<Real>(b))));
  }

  static UNSHARED_INLINE bool over_lanes_of_samples(const Problem& p) {
    return plain && p.batch > L::count / 2;
  }

 private:
  // At most `most` of `all` at a time, in parts of like size.
  static UNSHARED_INLINE int64_t even(int64_t all, int64_t most) {
    return ceil_div(greater(all, 1), ceil_div(greater(all, 1), most));
  }
  static UNSHARED_INLINE int64_t pixels(const Problem& p) {
    return Cell::count(p, Face::grad_input);
  }
  // Boxes of at most `most` pixels that few places reach from outside: grown along the axis where
  // that saves most.
  UNSHARED_INLINE void cut_boxes(const Problem& p, int64_t most) {
    int64_t length[max_axes], cells = 1;
    for (int s = 0; s < p.axis_count; ++s) length[s] = 1;
    for (;;) {
      int grown = -1;
      double best = 1;
      for (int s = 0; s < p.axis_count; ++s) {
        const Axis& axis = p.axes[s];
        if (length[s] >= axis.input || cells / length[s] * (length[s] + 1) > most) continue;
        const auto reach = [&](int64_t pixels) {  // places for each pixel
          const auto span = static_cast<double>((axis.kernel - 1) * axis.dilation);
          return (static_cast<double>(pixels * axis.input_dilation) + span) /
                 static_cast<double>(pixels);
        };
        const double ratio = reach(length[s] + 1) / reach(length[s]);
        if (grown >= 0 && ratio >= best) continue;
        best = ratio;
        grown = s;
      }
      if (grown < 0) break;
      cells = cells / length[grown] * (length[grown] + 1);
      ++length[grown];
    }
    items = parts;
    reached = 1;
    for (int s = 0; s < p.axis_count; ++s) {
      cuts[s] = ceil_div(p.axes[s].input, length[s]);
      items *= cuts[s];
      const int64_t span = (p.axes[s].kernel - 1) * p.axes[s].dilation;
      reached *= 1 + static_cast<double>((cuts[s] - 1) * span) /
                         static_cast<double>(greater(1, p.axes[s].input));
    }
  }
};

}  // namespace
}  // namespace unshared

#endif
