// Kernel "scatter", its plan: how a call is cut into boxes of pixels whose sums fit into scratch,
// blocks of samples and parts of columns.
#pragma once

#include "micro.hpp"
#include "stage.hpp"
#include "turned.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
struct ScatterPlan {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  static constexpr int reals = Scalar<T>::parts;  // of an element
  static constexpr bool plain = sizeof(T) == reals * sizeof(Real);
  static constexpr int64_t line = 64 / sizeof(Real);
  // Scratch: of sums, behind them a tile of joint lanes and a panel, if there are such; and of dy.
  static constexpr int64_t scratch_reals = 416 * 1024 / sizeof(Real);
  static constexpr int64_t tile_reals = 24 * 1024 / sizeof(Real);
  static constexpr int64_t least_stage_reals = 80 * 1024 / sizeof(Real),
                           most_stage_reals = 216 * 1024 / sizeof(Real);
  static constexpr int64_t panel_reals = 16 * 1024 / sizeof(Real);
  // Of weights of half types, over samples; whole vectors are written, so one more must have room.
  static constexpr int64_t widened_reals = 48 * 1024 / sizeof(Real),
                           widened_room = widened_reals + L::count;
  static constexpr int most_steps = panel_reals / L::count < 256 ? panel_reals / L::count : 256;
  static constexpr int most_taps = 512;

  enum class Over {
    samples,  // weights are broadcast
    columns,  // of one tap after the other, read in place or from a panel
    joint,  // columns and taps as they lie in memory, read in place or from a panel
  };

  Over over = Over::joint;  // what lanes run over
  int64_t unit = 1;  // joint: how far apart columns and taps lie in memory
  bool packed = false;  // whether w passes through a panel, since its channels of y are innermost
  bool direct = false;  // whether sums are kept in the result
  int64_t rows = 1;  // samples of a block
  int64_t width = 1, parts = 1;  // columns done together; how many times
  int64_t cuts[max_axes];  // boxes along each axis of pixels
  int64_t taps = 1;
  int64_t steps = 1;  // channels of dy in one go: those weights stay in a first-level cache
  int64_t channels = 1, places = 1;  // of dy, staged together
  double reached = 1;  // places for each pixel: more than one if several boxes reach some
  bool beyond = false;  // whether weights come from memory, not from a cache
  int64_t items = 0;
  int64_t stage_reals = least_stage_reals;

  UNSHARED_INLINE ScatterPlan(const Problem& p, const Call& call) {
    cut_up(p, call);
    // Channels that lie apart in memory are read in runs of places: longer ones, if the sums' boxes need
    // not be much smaller for it.
    if (p.y_channel_stride == 1 || channels < p.out_channels ||
        (over == Over::samples && places >= line))
      return;
    const ScatterPlan before = *this;
    stage_reals = most_stage_reals;
    cut_up(p, call);
    if (reached > 1.2 * before.reached || rows < before.rows) *this = before;
  }

  // Room for sums, and for what stands behind them.
  UNSHARED_INLINE int64_t arena_reals() const { return scratch_reals - stage_reals; }

  // Whether the result is laid out as sums are, with lanes over columns.
  static UNSHARED_INLINE bool keeps_sums(const Problem& p) {
    return plain && reals == 1 && p.x_channel_stride == 1;
  }
  static UNSHARED_INLINE Over lanes_of(const Problem& p) {
    if (samples_fill_lanes(p) && !runs_of_columns(p) && !turns_pairs(p)) return Over::samples;
    if (taps_lie_side_by_side(p)) return Over::joint;
    const bool filled = 2 * p.in_channels >= padded<Real>(p.in_channels);
    const bool dense = p.w_out_stride == 1 ? taps_lie_side_by_side(p, p.out_channels)
                                           : columns_lie_between_taps(p);
    return filled || !dense ? Over::columns : Over::joint;
  }

  // Whether complex weights have their channels of y innermost: no panel is made of those, they are turned
  // in registers for a tile of samples after the other.
  static UNSHARED_INLINE bool turns_pairs(const Problem& p) {
    return reals == 2 && p.w_out_stride == 1 && !taps_lie_side_by_side(p);
  }

  // Whether samples fill lanes better than columns or taps do: a vector of them, or half of one, if channels
  // are few. Measured with 6 to 16 samples; half types take longer to be brought to where they are broadcast.
  static UNSHARED_INLINE bool samples_fill_lanes(const Problem& p) {
    constexpr bool twice = sizeof(Real) == 8;
    if (p.batch > L::count) return true;
    if (!plain) return p.batch == L::count;
    const bool full = p.batch == L::count;
    if (full && (!twice || few_registers) && !taps_lie_side_by_side(p)) return true;
    return p.batch > L::count / 2 &&
           p.in_channels < (full ? 8 : 4) * int64_t{L::count} / (twice ? 2 : 1);
  }

  // Whether a tap's weights are runs of vectors.
  static UNSHARED_INLINE bool runs_of_columns(const Problem& p) {
    return plain && p.w_in_stride == 1 && !taps_lie_side_by_side(p) &&
           p.in_channels >= 2 * L::count && (keeps_sums(p) || p.in_channels % L::count == 0);
  }
  // Room for sums.
  UNSHARED_INLINE int64_t sums_reals() const {
    return arena_reals() - (over == Over::joint ? tile_reals + L::count : 0) -
           (packed ? panel_reals : 0) - (!plain && over == Over::samples ? widened_room : 0);
  }

 private:
  void cut_up(const Problem& p, const Call& call) {
    const int64_t n = greater(p.batch, 1), b = greater(1, p.out_channels);
    const bool side_by_side = taps_lie_side_by_side(p);
    taps = taps_of(p);
    beyond = weights_beyond_caches<T>(p);
    over = lanes_of(p);
    packed = over != Over::samples && p.w_out_stride == 1 && !side_by_side;
    unit = packed ? b : 1;
    direct = over == Over::columns && keeps_sums(p);
    const bool whole = over == Over::joint && !side_by_side && !packed;  // columns in between
    const auto cut = [&](int64_t most_width) {
      width = over != Over::columns
                  ? even(p.in_channels, most_width)
                  : lesser(p.in_channels, L::count * even(ceil_div(p.in_channels, L::count),
                                                          ceil_div(most_width, L::count)));
      parts = greater(1, ceil_div(p.in_channels, width));
      const int64_t cell =
          rows * (over == Over::samples ? width * reals : padded<Real>(width * reals));
      const int64_t cells = direct ? pixels(p) : greater(1, sums_reals() / cell);
      // Boxes for threads: as few as will do, where places at their borders are all they cost.
      const int64_t least = least_items_of(p, call), boxes = least == 1 || direct ? least : 64;
      cut_boxes(p, lesser(cells, greater(1, pixels(p) * parts / boxes)));
    };
    // Wide parts are long runs in memory, narrow ones larger boxes, but not less than a vector of columns.
    // Returns how much is read, about.
    const auto choose = [&](int64_t widest, int64_t narrowest) {
      // What it costs to begin a run, in bytes; of what a panel is made of, an average. Measured on Zen 4.
      const bool in_place = over == Over::columns && !packed;
      const bool lines = p.in_channels * int64_t{sizeof(T)} % 64 == 0;
      const double broken = !in_place ? 512.0 / static_cast<double>(taps) : lines ? 64 : 96;
      int64_t best = greater(1, lesser(widest, over == Over::columns ? padded<Real>(p.in_channels)
                                                                     : p.in_channels)),
              last = 0;
      double least = 0;
      for (int64_t most = best; most > 0 && (most >= narrowest || least == 0);
           most = over == Over::columns ? most - L::count : most / 2) {
        cut(last = most);
        const double cost =
            reached * (1 + broken / static_cast<double>(width * int64_t{sizeof(T)}));
        if (least > 0 && cost >= least) continue;
        least = cost;
        best = most;
      }
      if (last != best) cut(best);
      return least;
    };
    if (over == Over::samples) {
      const int64_t narrow = taps <= line || !side_by_side ? line : line / 2;
      const int64_t widest = taps <= line && side_by_side ? 4 * line : narrow;
      // Tiles of some 16 sums; or more samples, if weights are then read fewer times.
      const int64_t vectors = ceil_div(n, L::count);
      int64_t best = 0;
      double least = 0;
      for (int64_t wide = lesser(most_vectors, greater(2, line / even(p.in_channels, narrow)));
           wide <= most_vectors; ++wide) {
        const int64_t here = even(vectors, wide) * L::count;
        if (here == best) continue;
        rows = here;
        const double cost = choose(widest, narrow) * static_cast<double>(ceil_div(n, rows));
        if (least > 0 && cost > 0.8 * least) continue;
        least = cost;
        best = rows;
      }
      if (rows != best) {
        rows = best;
        choose(widest, narrow);
      }
    } else {
      const int64_t joint = over == Over::columns ? 1 : taps * (whole ? p.in_channels : 1);
      const int64_t tallest = turns_pairs(p) ? most_rows_turned : 32;
      rows = even(n, lesser(tallest, greater(1, tile_reals / spaced<Real>(joint * reals))));
      if (direct)
        choose(widest_direct(p), widest_direct(p));
      else if (whole)
        choose(p.in_channels, p.in_channels);
      else
        choose(over == Over::columns ? most_vectors * L::count
                                     : (tile_reals / rows - 2 * line) / reals / taps,
               over == Over::columns ? L::count : 1);
    }
    const auto steps_in = [&](int64_t cache, int64_t least) {
      return lesser(greater(least, cache / int64_t{sizeof(T)} / (taps * width)), 64);
    };
    steps = even(b, packed                  ? int64_t{most_steps}
                    : over != Over::samples ? steps_in(96 * 1024, 8)
                    : !plain                ? lesser(greater(1, widened_reals / (taps * width)), 64)
                    : side_by_side          ? steps_in(48 * 1024, 4)
                                            : int64_t{64});
    const int64_t room_of_row = stage_reals / rows - (over == Over::samples ? 0 : 2 * line);
    // Of complex elements over samples, both parts, and both with their signs turned over.
    const int64_t staged = over == Over::samples ? reals * reals : reals;
    channels = lesser(b, greater(steps, room_of_row / staged / steps * steps));
    places = channels < b ? 1
                          : lesser(stage_reals > least_stage_reals ? 2 * line : line,
                                   greater(1, stage_reals / (rows * spaced<Real>(b * staged))));
  }

  // Whether w is laid out as [...][taps][input channels], all of one place and channel of y side by
  // side, and few enough for a row of the tile.
  static UNSHARED_INLINE bool columns_lie_between_taps(const Problem& p) {
    const int64_t joint = end_of_taps(p, p.in_channels);
    return p.w_in_stride == 1 && joint != 0 && joint + 2 * line <= tile_reals;
  }
  // At most `most` of `all` at a time, in parts of like size.
  static UNSHARED_INLINE int64_t even(int64_t all, int64_t most) {
    return ceil_div(greater(all, 1), ceil_div(greater(all, 1), most));
  }
  // Columns together of sums kept in dx: those that a row of places reaches should stay in a second-level
  // cache, if many samples use each weight, and parts should be whole vectors.
  UNSHARED_INLINE int64_t widest_direct(const Problem& p) const {
    int64_t column = rows * int64_t{sizeof(T)};
    for (int s = 0; s < p.axis_count; ++s)
      column *= s + 1 == p.axis_count ? p.axes[s].input : window_of(p.axes[s], false, 1);
    const int64_t most = 100 * 1024 / greater(1, column) / L::count * L::count;
    return p.in_channels % L::count != 0 || p.batch < L::count
               ? p.in_channels
               : lesser(p.in_channels, greater(int64_t{256 / sizeof(T)}, most));
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
