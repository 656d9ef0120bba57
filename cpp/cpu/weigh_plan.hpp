// Kernel "weigh", its plan: which channels lanes run over, and how a call is cut into strips of
// places and blocks of channels, so that what a strip reads of all samples fits into scratch. A small
// model of what these cost decides; its constants were measured on Zen 4 and on a Xeon of two AVX-512
// units.
#pragma once

#include "stage.hpp"
#include "weigh_tile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// What of x stands in scratch at a time, for all samples: what a strip of places sees, where rows that
// the next strip sees too stay; or a row of it; or, for a place alone, what one tap sees.
enum class Kept { window, row, tap };

// How a problem is cut.
struct Weighing {
  Kept kept = Kept::window;
  bool over_input = false;  // columns are input channels, rows output channels; else the other way
  bool direct = false;  // sums lie side by side in dw, and may be kept there
  bool copies = false;  // sums in scratch are copied to dw around the caches
  int64_t x_block = 0, x_parts = 0, y_block = 0, y_parts = 0;  // channels staged together
  int64_t x_pixel = 0, y_pixel = 0;  // how far a pixel of all samples is from the next one
  int64_t strips = 0;  // of places along the last axis; 0: it does not fit
  int64_t window = 0, window_reals = 0;  // pixels of a row; room for all rows
};

template <class T>
struct WeighPlan : Weighing {
  using Real = Moved<T>;
  using L = Lanes<Real>;
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int longest_strip = 32, most_tap_rows = 256;
  static constexpr int64_t arena_reals = 424 * 1024 / sizeof(Real);
  static constexpr int64_t sums_reals = 42 * 1024 / sizeof(Real);

  explicit UNSHARED_INLINE WeighPlan(const Problem& p) : Weighing(plan(p)) {}

  // The problem with as many samples as are best computed together: of fewer, longer strips find room,
  // which is worth that sums are read and written again. Not if that would round them.
  static UNSHARED_INLINE Problem some_samples(const Problem& p) {
    if (!plain || p.batch < 2 * least_samples) return p;
    // Cycles: a vector of dw read and written again, a line of x or dy.
    const double again = weights_beyond_caches<T>(p) ? 64 : 16, line = 12;
    const auto vectors = static_cast<double>(taps_of(p) * p.in_channels *
                                             ceil_div(p.out_channels, int64_t{L::count}));
    Problem best = p;
    double least = 0;
    for (int64_t times = 1; p.batch >= times * least_samples; times *= 2) {
      Problem part = p;
      part.batch = ceil_div(p.batch, times);
      const Weighing w = plan(part);
      if (w.strips == 0) continue;
      const double cost =
          cost_of(part, w) + line * lines_of(part, w) +
          again * vectors * static_cast<double>(times) / static_cast<double>(p.batch);
      if (least > 0 && cost >= least) continue;
      least = cost;
      best = part;
    }
    return best;
  }

  // Items: (places of the first axes, strip, channels of x, channels of y, rows of places).
  static UNSHARED_INLINE int64_t items(const Problem& p, const Weighing& w, const Call& call) {
    return outer(p) * w.strips * w.x_parts * y_shares(p, w) * groups(p, w, call);
  }
  static UNSHARED_INLINE int64_t rows_of(const Problem& p) {
    return p.axis_count > 1 ? p.axes[p.axis_count - 2].output : 1;
  }
  static UNSHARED_INLINE int64_t outer(const Problem& p) {
    return Cell::count(p, Face::grad_weight) / rows_of(p) / p.axes[p.axis_count - 1].output;
  }
  static UNSHARED_INLINE int64_t y_shares(const Problem& p, const Weighing& w) {
    const int64_t others = outer(p) * w.strips * w.x_parts * rows_of(p);
    return greater(1, lesser(w.y_parts, ceil_div(int64_t{64}, others)));
  }
  static UNSHARED_INLINE int64_t groups(const Problem& p, const Weighing& w, const Call& call) {
    const int64_t others = outer(p) * w.strips * w.x_parts * y_shares(p, w);
    return threads_of(p, call) == 1 ? 1 : lesser(rows_of(p), ceil_div(int64_t{64}, others));
  }

  // How many there are in scratch of an element of dy: two factors of a complex one that is broadcast.
  static UNSHARED_INLINE int64_t y_factors(const Weighing& w) {
    return Scalar<T>::parts == 2 && w.over_input ? 2 : 1;
  }

  // Whether most of what is staged of x are lanes without a channel.
  static UNSHARED_INLINE bool half_empty(const Problem& p, const Weighing& w) {
    return 2 * p.in_channels < w.x_block * w.x_parts;
  }

 private:
  // In a part: more than those whose sums are written around the caches, since these are read again.
  static constexpr int64_t least_samples = 96;
  static constexpr int64_t widest = 4;  // vectors of rows staged together; of columns twice as many

  // Whether columns should be input channels, from what either way costs per place and tap:
  // multiplications of vectors, and sums that do not leave as whole vectors.
  static UNSHARED_INLINE bool over_inputs(const Problem& p) {
    const auto cost = [&](int64_t rows, int64_t columns, int64_t w_column) {
      const bool whole = columns % L::count == 0;
      const int64_t vectors = rows * ceil_div(columns, L::count);
      return vectors * p.batch + (w_column != 1 ? 24 * vectors
                                  : whole       ? 0
                                                : (columns < L::count ? 20 : 6) * vectors);
    };
    return cost(p.out_channels, p.in_channels, p.w_in_stride) <
           cost(p.in_channels, p.out_channels, p.w_out_stride);
  }

  // The channels of x or dy, and how far they and samples are apart in memory.
  struct Side {
    int64_t channels, channel, sample;
    // Whether those of the next sample go on where those of one end: squares of them do so, too.
    UNSHARED_INLINE bool goes_on(int64_t block) const {
      return channel != 1 && sample == block * channel;
    }
    // How far samples are apart in scratch if all channels are staged together: whole vectors, if there
    // is no reason for less.
    UNSHARED_INLINE int64_t block(bool rows) const {
      if (channels >= L::count)
        return rows && goes_on(channels) ? channels : padded<Real>(channels);
      int64_t apart = channel == 1 ? 1 : greater(channels, 1);
      while (apart < channels) apart *= 2;  // stores that cross lines take longer
      return apart;
    }
    // Lanes that are staged for each sample.
    UNSHARED_INLINE int64_t lanes(int64_t block) const {
      return goes_on(block) ? block : padded<Real>(block);
    }
  };
  static UNSHARED_INLINE Side x_of(const Problem& p) {
    return {p.in_channels, p.x_channel_stride, p.x_batch_stride};
  }
  static UNSHARED_INLINE Side y_of(const Problem& p) {
    return {p.out_channels, p.y_channel_stride, p.y_batch_stride};
  }
  // All samples of a pixel, the last one in whole vectors.
  static UNSHARED_INLINE int64_t pixel_of(int64_t samples, int64_t block) {
    return spaced<Real>(lesser((samples - 1) * block, max_extent) + padded<Real>(block));
  }

  static UNSHARED_INLINE Weighing plan(const Problem& p) {
    Weighing w;
    w.over_input = over_inputs(p);
    w.direct = (w.over_input ? p.w_in_stride : p.w_out_stride) == 1;
    const int64_t x_all = x_of(p).block(!w.over_input), y_all = y_of(p).block(w.over_input);
    const Axis& last = p.axes[p.axis_count - 1];
    const int64_t samples = greater(p.batch, 1), rows = taps_of(p) / last.kernel;  // of the window
    if (rows > most_tap_rows) return {};
    const int64_t x_vectors = greater(1, ceil_div(p.in_channels, L::count)),
                  y_vectors = greater(1, ceil_div(p.out_channels, L::count));
    w.copies =
        beyond_caches<T>(p, w.direct ? most_samples_copied_dense : most_samples_copied_around);
    const int64_t room = arena_reals - (w.direct && !w.copies ? 0 : sums_reals);
    const auto fits = [&](int64_t places) {
      w.x_block = w.x_parts == 1 ? x_all : ceil_div(x_vectors, w.x_parts) * L::count;
      w.y_block = w.y_parts == 1 ? y_all : ceil_div(y_vectors, w.y_parts) * L::count;
      w.x_pixel = pixel_of(samples, w.x_block);
      w.y_pixel = pixel_of(samples, w.y_block);
      w.window = w.kept == Kept::tap ? 1 : window_of(last, false, places);
      w.window_reals =
          (w.kept == Kept::window ? rows : 1) * lesser(w.window * w.x_pixel, max_extent);
      return w.window_reals + places * y_factors(w) * w.y_pixel <= room;
    };
    // Vectors of channels staged together, and places: what takes the least time for each place.
    Weighing best;
    double least = 0;
    for (const Kept kept : {Kept::window, Kept::row, Kept::tap}) {
      // Less of x is kept only where more finds no room, or has room for but one place.
      const bool alone = best.strips != 0;
      if (alone && (best.strips < last.output || last.output == 1 || kept == Kept::tap)) break;
      least = 0;
      for (int64_t x_wide = lesser(w.over_input ? 2 * widest : widest, x_vectors); x_wide > 0;
           --x_wide)
        for (int64_t y_wide = lesser(w.over_input ? widest : 2 * widest, y_vectors); y_wide > 0;
             --y_wide) {
          w.kept = kept;
          w.x_parts = ceil_div(x_vectors, x_wide);
          w.y_parts = ceil_div(y_vectors, y_wide);
          if (!fits(1)) continue;
          w.strips =
              kept == Kept::tap ? last.output : greater(1, ceil_div(last.output, longest_strip));
          while (!fits(greater(1, ceil_div(last.output, w.strips)))) ++w.strips;
          if (alone && (w.strips >= last.output || half_empty(p, w))) continue;
          const double cost = cost_of(p, w);
          if (least > 0 && cost >= least) continue;
          least = cost;
          best = w;
        }
    }
    return best;
  }
  // Rows of the window, or pixels, that are staged for a strip.
  static UNSHARED_INLINE int64_t fresh_rows(const Problem& p, const Weighing& w) {
    const int64_t last = p.axes[p.axis_count - 1].kernel, rows = taps_of(p) / last;
    if (w.kept == Kept::tap) return rows * last;
    if (w.kept == Kept::row || p.axis_count == 1) return rows;
    const Axis& axis = p.axes[p.axis_count - 2];
    return rows / axis.kernel * lesser(axis.kernel, axis.stride);
  }
  // About how many lines of x and dy a place reads of each sample: those of a strip do not stay for the next.
  static UNSHARED_INLINE double lines_of(const Problem& p, const Weighing& w) {
    const Axis& last = p.axes[p.axis_count - 1];
    const int64_t places = greater(1, ceil_div(last.output, w.strips));
    const auto lines = [](int64_t pixels, int64_t channels, int64_t channel, int64_t pixel) {
      const auto run = [](int64_t n) { return static_cast<double>(n * int64_t{sizeof(T)}) / 64; };
      const auto all = static_cast<double>(channel == 1 ? pixels : channels);
      if (channel == 1)
        return pixel == channels ? run(pixels * channels) + 1 : all * (run(channels) + 1);
      return all * (pixel == 1 ? run(pixels) + 1 : static_cast<double>(pixels));
    };
    const double x = lines(w.window, p.in_channels, p.x_channel_stride, last.x_stride),
                 y = lines(places, p.out_channels, p.y_channel_stride, last.y_stride);
    return (static_cast<double>(fresh_rows(p, w)) * x + y) / static_cast<double>(places);
  }
  // About how many cycles a place takes for each sample, beyond multiplications.
  static UNSHARED_INLINE double cost_of(const Problem& p, const Weighing& w) {
    const Axis& last = p.axes[p.axis_count - 1];
    const int64_t places = greater(1, ceil_div(last.output, w.strips));
    const auto staging = [](int64_t pixels, int64_t channel, int64_t pixel) {
      if (channel == 1) return 5 * pixels;
      if (pixel != 1) return 2 * pixels * L::count;
      return plain && 2 * pixels <= L::count ? 3 * int64_t{L::count}
                                             : 6 * ceil_div(pixels, L::count) * L::count;
    };
    const int64_t fresh = fresh_rows(p, w);
    const int64_t again = w.y_parts == 1 || w.kept == Kept::window ? 1 : fresh;
    const int64_t x = fresh * staging(w.window, p.x_channel_stride, last.x_stride) * w.x_parts *
                      x_of(p).lanes(w.x_block),
                  y = staging(places, p.y_channel_stride, last.y_stride) * again * w.x_parts *
                      w.y_parts * y_of(p).lanes(w.y_block);
    const int64_t tile_rows = w.over_input ? w.y_block : w.x_block,
                  tile_columns = ceil_div(w.over_input ? w.x_block : w.y_block, L::count),
                  wide = lesser(tile_columns, weighed_vectors);
    const int64_t tiles = ceil_div(tile_columns, wide) * ceil_div(tile_rows, weighed_rows_of[wide]);
    // A tile of one vector has more to load than to multiply.
    const double tile = 30.0 / static_cast<double>(greater(p.batch, 1)) + (wide == 1 ? 2 : 0);
    // Parts of columns that end within lines of dw, where those are copied around the caches.
    const int64_t columns = w.over_input ? p.in_channels : p.out_channels,
                  parts = w.over_input ? w.x_parts : w.y_parts;
    const bool broken = w.copies && w.direct && parts > 1 && columns % L::count != 0;
    const double end = broken ? 60.0 / static_cast<double>(greater(p.batch, 1)) : 0;
    return static_cast<double>(x + y) / static_cast<double>(L::count * places) +
           tile * static_cast<double>(tiles * w.x_parts * w.y_parts * taps_of(p)) +
           end * static_cast<double>(parts * (w.over_input ? p.out_channels : p.in_channels) *
                                     taps_of(p));
  }
};

// When it is not chosen.
template <class T>
const char* weigh_declines(const Problem& problem) noexcept {
  if constexpr (!has_lanes<T>) {
    return without_lanes;
  } else {
    if (problem.batch == 0) return "there are no samples to stage";
    const Problem p = WeighPlan<T>::some_samples(problem);
    const WeighPlan<T> plan(p);
    if (plan.strips == 0) return "what a place sees of all samples is too large to be staged";
    if (taps_of(p) * lesser(p.in_channels, p.out_channels) < 8 ||
        (plan.kept != Kept::window && WeighPlan<T>::half_empty(p, plan)) ||
        (plan.kept == Kept::tap && plan.x_parts * plan.y_parts > 2))
      return "what is staged would be used too few times";
    return nullptr;
  }
}

}  // namespace
}  // namespace unshared

#endif
