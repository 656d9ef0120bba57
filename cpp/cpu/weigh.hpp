// Kernel "weigh": grad_weight as small products over the batch, from operands staged close together.
//
// A strip of neighbouring places along the last axis reads a window of x and its places of dy; both
// are staged as panels, for each pixel samples by channels, whatever their memory order. The rows
// of the window stay while the strip moves on along the axis before. For each place and tap, rows
// and columns of a product are the channels of x and dy, or of dy and x, its steps the samples.
// Accumulator: float32 for half types, else the element type. Order: n ascending. Deterministic:
// each dw[o, k, a, b] is one chain of one worker. Taps in padding get an empty chain.
#pragma once

#include <utility>

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Columns of a tile, in vectors, and rows: few sums, so that a tile begins while the one before
// ends.
inline constexpr int weighed_vectors = vector_registers == 16 ? 3 : 4;
inline constexpr int weighed_rows_of[] = {0, vector_registers == 16 ? 10 : 14,
                                          vector_registers == 16 ? 5 : 8,
                                          vector_registers == 16 ? 4 : 6, 6};

// c[row, lane] = chain over steps of a[step, row] * b[step, lane], and lines that will be needed
// soon: of dw, those of as many rows, and of x or dy one for each step.
template <class Real>
struct Weighed {
  const Real* a;
  const Real* b;
  Real* c;
  int64_t a_step, b_step, c_row, steps;
  bool from_zero;
  const char* out_ahead;
  int64_t out_row;  // bytes
  const char* in_ahead;
  int64_t in_step;  // bytes
};

template <class Real, int V, int M>
void weighed_tile(const Weighed<Real>& t) {
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sum[m][v] = t.from_zero ? L::zero() : L::load(t.c + m * t.c_row + v * L::count);
  const Real* a = t.a;
  const Real* b = t.b;
  const char* in_ahead = t.in_ahead;
  const int64_t a_step = t.a_step, b_step = t.b_step, in_step = t.in_step;
  // The first steps ask for the lines of dw: one vector's of each row, or two.
  constexpr int asked = (V + 1) / 2;
  int64_t left = t.steps, out_row = t.out_row;
  const char* out = t.out_ahead;
  for (int v = 0; left > 0; ++v) {
    const char* out_ahead = out;
    int64_t here = left < M ? left : M;
    if (v * asked >= V || out_row == 0) {
      out_row = 0;
      here = left;
    } else
      out += asked * L::count * sizeof(Real);
    left -= here;
#pragma GCC unroll 1
    for (; here > 0; --here) {
#pragma GCC unroll 2
      for (int i = 0; i < asked; ++i) __builtin_prefetch(out_ahead + i * L::count * sizeof(Real));
      __builtin_prefetch(in_ahead);
      out_ahead += out_row;
      in_ahead += in_step;
      typename L::Vector line[V];
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) line[i] = L::load(b + i * L::count);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const typename L::Vector one = L::broadcast(a + m);
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) sum[m][i] = L::chain(one, line[i], sum[m][i]);
      }
      a += a_step;
      b += b_step;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) L::store(t.c + m * t.c_row + v * L::count, sum[m][v]);
}

template <class Real, int V>
struct WeighedTiles {
  using Function = void (*)(const Weighed<Real>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {weighed_tile<Real, V, m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, weighed_rows_of[V]>{}));
};

// How a problem is cut.
struct Weighing {
  bool over_input = false;  // columns are input channels, rows output channels; else the other way
  bool direct = false;  // sums are kept in dw itself
  int64_t x_block = 0, x_parts = 0, y_block = 0, y_parts = 0;  // channels staged together
  int64_t strips = 0;  // of places along the last axis; 0: it does not fit
  int64_t window = 0, window_reals = 0;  // pixels of a row; room for all rows
};

template <class T>
class Weigh {
 public:
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;

  UNSHARED_INLINE Weigh(const Problem& problem, const Call& call)
      : p(problem), call_(call), plan_(plan(problem)), z_(problem.axis_count - 1) {
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t common = greatest_divisor(axis.input_dilation, axis.dilation);
      tap_step_[s] = axis.input_dilation / common;
      partner_step_[s] = axis.dilation / common;
    }
    x_step_ = p.x_batch_stride * int64_t{sizeof(T)};
    y_step_ = p.y_batch_stride * int64_t{sizeof(T)};
    idle_ = reinterpret_cast<const char*>(arena_);
  }

  static UNSHARED_INLINE const char* declines(const Problem& p) {
    const Weighing w = plan(p);
    if (w.strips == 0) return "what a place sees of all samples is too large to be staged";
    if (taps_of(p) * lesser(p.in_channels, p.out_channels) < 8)
      return "what is staged would be used too few times";
    return nullptr;
  }

  // Items: (places of the first axes, strip, channels of x, channels of y, rows of places).
  static UNSHARED_INLINE int64_t items(const Problem& p, const Call& call) {
    const Weighing w = plan(p);
    return outer(p) * w.strips * w.x_parts * y_shares(p, w) * groups(p, w, call);
  }

  void run(int64_t begin, int64_t end) {
    Strip next;
    enter(next, begin);
    for (int64_t item = begin; item < end;) {
      here_ = next;
      if (here_.row == here_.first_row) forget();
      const bool same = here_.row + 1 < here_.last_row;
      if (same)
        to_row(next, here_.row + 1);
      else if (++item < end)
        enter(next, item);
      compute(item < end ? &next : nullptr, !same);
    }
  }

 private:
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int longest_strip = 32, most_tap_rows = 256, most_fed = 512;
  static constexpr int64_t arena_reals = 180 * 1024 / sizeof(Real);
  static constexpr int64_t sums_reals = 42 * 1024 / sizeof(Real);
  static constexpr int64_t widest = 4;  // vectors of channels staged together

  struct Range {
    int64_t begin, end;
    UNSHARED_INLINE int64_t count() const { return end - begin; }
  };
  static UNSHARED_INLINE int64_t padded(int64_t n) { return ceil_div(n, L::count) * L::count; }
  static UNSHARED_INLINE Range block(int64_t channels, int64_t part, int64_t parts) {
    const int64_t vectors = ceil_div(channels, L::count);
    return {part * vectors / parts * L::count,
            lesser((part + 1) * vectors / parts * L::count, channels)};
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
    return call.threads == 1 ? 1 : lesser(rows_of(p), ceil_div(int64_t{64}, others));
  }

  // Pixels that `places` neighbouring places see along the last axis.
  static UNSHARED_INLINE int64_t window_of(const Axis& axis, int64_t places) {
    if (places == 1) return axis.kernel;
    const int64_t reach = (places - 1) * axis.stride + (axis.kernel - 1) * axis.dilation;
    return greater(1, lesser(reach / axis.input_dilation + 1, axis.input));
  }

  // Whether columns should be input channels, from what either way costs per place and tap:
  // multiplications of vectors, and sums that do not leave as whole vectors.
  static UNSHARED_INLINE bool over_input(const Problem& p) {
    const auto cost = [&](int64_t rows, int64_t columns, int64_t w_column) {
      const bool whole = plain && columns % L::count == 0;
      const int64_t vectors = rows * ceil_div(columns, L::count);
      return vectors * p.batch + (w_column != 1 ? 6 * vectors : whole ? 0 : 3 * vectors);
    };
    return cost(p.out_channels, p.in_channels, p.w_in_stride) <
           cost(p.in_channels, p.out_channels, p.w_out_stride);
  }

  static UNSHARED_INLINE Weighing plan(const Problem& p) {
    Weighing w;
    w.over_input = over_input(p);
    w.direct = plain && (w.over_input ? p.w_in_stride == 1 && p.in_channels % L::count == 0
                                      : p.w_out_stride == 1 && p.out_channels % L::count == 0);
    const Axis& last = p.axes[p.axis_count - 1];
    const int64_t samples = greater(p.batch, 1), rows = taps_of(p) / last.kernel;  // of the window
    if (rows > most_tap_rows) return {};
    const int64_t x_vectors = greater(1, ceil_div(p.in_channels, L::count)),
                  y_vectors = greater(1, ceil_div(p.out_channels, L::count));
    const int64_t room = arena_reals - (w.direct ? 0 : sums_reals);
    const auto fits = [&](int64_t places) {
      w.x_block = ceil_div(x_vectors, w.x_parts) * L::count;
      w.y_block = ceil_div(y_vectors, w.y_parts) * L::count;
      const int64_t pixel = lesser(samples * w.x_block, max_extent);
      w.window = window_of(last, places);
      w.window_reals = rows * lesser(w.window * pixel, max_extent);
      return w.window_reals + places * samples * w.y_block <= room;
    };
    // Vectors of channels staged together, and places: what takes the least time for each place.
    Weighing best;
    double least = 0;
    for (int64_t x_wide = widest; x_wide > 0; --x_wide)
      for (int64_t y_wide = widest; y_wide > 0; --y_wide) {
        w.x_parts = ceil_div(x_vectors, x_wide);
        w.y_parts = ceil_div(y_vectors, y_wide);
        if (!fits(1)) continue;
        w.strips = greater(1, ceil_div(last.output, longest_strip));
        while (!fits(greater(1, ceil_div(last.output, w.strips)))) ++w.strips;
        const double cost = cost_of(p, w);
        if (least > 0 && cost >= least) continue;
        least = cost;
        best = w;
      }
    return best;
  }
  static UNSHARED_INLINE int64_t taps_of(const Problem& p) {
    int64_t taps = 1;
    for (int s = 0; s < p.axis_count; ++s) taps = lesser(taps * p.axes[s].kernel, max_extent);
    return taps;
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
    int64_t fresh = taps_of(p) / last.kernel;  // rows of the window
    if (p.axis_count > 1) {
      const Axis& axis = p.axes[p.axis_count - 2];
      fresh = fresh / axis.kernel * lesser(axis.kernel, axis.stride);
    }
    const int64_t x = fresh * staging(w.window, p.x_channel_stride, last.x_stride) * w.x_parts *
                      w.x_block,
                  y = staging(places, p.y_channel_stride, last.y_stride) * w.x_parts * w.y_parts *
                      w.y_block;
    const int64_t tile_rows = w.over_input ? w.y_block : w.x_block,
                  tile_columns = (w.over_input ? w.x_block : w.y_block) / L::count,
                  wide = lesser(tile_columns, weighed_vectors);
    const int64_t tiles = ceil_div(tile_columns, wide) * ceil_div(tile_rows, weighed_rows_of[wide]);
    return static_cast<double>(x + y) / static_cast<double>(L::count * places) +
           30.0 * static_cast<double>(tiles * w.x_parts * w.y_parts * taps_of(p)) /
               static_cast<double>(greater(p.batch, 1));
  }

  // A strip of places, and what it sees.
  struct Strip {
    int64_t index[max_axes];  // of all axes but the last
    Reach reach[max_axes], at[longest_strip];
    int64_t begin, places;  // along the last axis
    int64_t low, unit, window;  // its pixels
    int64_t row, first_row, last_row;  // along the axis before
    int64_t taps;  // rows of the window
    Range x, y_parts;  // channels of x; blocks of channels of y
  };

  void enter(Strip& s, int64_t item) const {
    int64_t flat = item;
    const auto next = [&](int64_t count) __attribute__((always_inline)) {
      const int64_t at = flat % count;
      flat /= count;
      return at;
    };
    const int64_t groups_of_rows = groups(p, plan_, call_), shares = y_shares(p, plan_);
    const int64_t group = next(groups_of_rows), share = next(shares), part = next(plan_.x_parts),
                  strip = next(plan_.strips);
    for (int d = z_ - 2; d >= 0; --d) s.index[d] = next(p.axes[d].output);
    s.x = block(p.in_channels, part, plan_.x_parts);
    s.y_parts = {share * plan_.y_parts / shares, (share + 1) * plan_.y_parts / shares};
    s.first_row = group * rows_of(p) / groups_of_rows;
    s.last_row = (group + 1) * rows_of(p) / groups_of_rows;
    const Axis& last = p.axes[z_];
    s.begin = strip * last.output / plan_.strips;
    s.places = (strip + 1) * last.output / plan_.strips - s.begin;
    int64_t high = s.low = -1;
    s.unit = s.places == 1 ? partner_step_[z_] : 1;
    for (int64_t j = 0; j < s.places; ++j) {
      const Reach reach = s.at[j] = reach_of(last, false, s.begin + j, tap_step_[z_]);
      if (reach.count == 0) continue;
      if (s.low < 0 || reach.partner < s.low) s.low = reach.partner;
      high = greater(high, reach.partner + (reach.count - 1) * partner_step_[z_]);
    }
    s.window = s.low < 0 ? 0 : (high - s.low) / s.unit + 1;
    to_row(s, s.first_row);
  }
  UNSHARED_INLINE void to_row(Strip& s, int64_t row) const {
    s.row = row;
    if (z_ > 0) s.index[z_ - 1] = row;
    s.taps = s.window == 0 ? 0 : 1;
    for (int d = 0; d < z_; ++d) {
      s.reach[d] = reach_of(p.axes[d], false, s.index[d], tap_step_[d]);
      s.taps *= s.reach[d].count;
    }
  }
  UNSHARED_INLINE void forget() {
    for (int64_t q = 0; q < most_tap_rows; ++q) staged_[q] = -1;
  }

  // Row q of a strip's window: where it is in x and dw, and which place in scratch it may keep.
  struct TapRow {
    int64_t x, w, slot, row;
  };
  UNSHARED_INLINE TapRow tap_row(const Strip& s, int64_t q) const {
    TapRow found{s.x.begin * p.x_channel_stride + s.low * p.axes[z_].x_stride, 0, 0, 0};
    int64_t step = 1;
    for (int d = z_ - 1; d >= 0; --d) {
      const Axis& axis = p.axes[d];
      const int64_t at = q % s.reach[d].count;
      q /= s.reach[d].count;
      const int64_t partner = s.reach[d].partner + at * partner_step_[d];
      found.x += partner * axis.x_stride;
      found.w += (s.reach[d].tap + at * tap_step_[d]) * axis.w_tap_stride;
      found.slot += step * (d == z_ - 1 ? partner / partner_step_[d] % axis.kernel : at);
      step *= axis.kernel;
      if (d == z_ - 1) found.row = partner;
    }
    return found;
  }

  // Lists what the next strip will read, one line of all samples each.
  UNSHARED_INLINE void feed(const Strip* next, bool entering) {
    fed_ = feed_x_ = feed_end_ = 0;
    if (next == nullptr) return;
    const T* const x = static_cast<const T*>(call_.first);
    for (int64_t q = 0; q < next->taps && feed_end_ < most_fed; ++q) {
      const TapRow row = tap_row(*next, q);
      if (entering || staged_[row.slot] != row.row)
        list(x + row.x, next->x.count(), p.x_channel_stride, next->window,
             next->unit * p.axes[z_].x_stride);
    }
    feed_x_ = feed_end_;
    const int64_t begin = block(p.out_channels, next->y_parts.begin, plan_.y_parts).begin,
                  end = block(p.out_channels, next->y_parts.end - 1, plan_.y_parts).end;
    list(static_cast<const T*>(call_.second) + y_of(*next) + begin * p.y_channel_stride,
         end - begin, p.y_channel_stride, next->places, p.axes[z_].y_stride);
  }
  UNSHARED_INLINE int64_t w_of(const Strip& s) const {
    int64_t w = s.begin * p.axes[z_].w_place_stride;
    for (int d = 0; d < z_; ++d) w += s.index[d] * p.axes[d].w_place_stride;
    return w;
  }
  UNSHARED_INLINE int64_t y_of(const Strip& s) const {
    int64_t y = s.begin * p.axes[z_].y_stride;
    for (int d = 0; d < z_; ++d) y += s.index[d] * p.axes[d].y_stride;
    return y;
  }
  UNSHARED_INLINE void list(const T* from, int64_t channels, int64_t channel, int64_t pixels,
                            int64_t pixel) {
    const bool along = magnitude(channel) <= magnitude(pixel);  // memory runs along channels
    const int64_t inner = along ? channels : pixels, inner_step = along ? channel : pixel,
                  outer = along ? pixels : channels, outer_step = along ? pixel : channel;
    const int64_t bytes = inner * inner_step * int64_t{sizeof(T)};
    if (inner_step < 0 || bytes > 4096) return;
    for (int64_t i = 0; i < outer; ++i) {
      const char* const line = reinterpret_cast<const char*>(from + i * outer_step);
      // A run that the next one continues is asked for by beginnings alone.
      const int64_t lines = outer_step == inner * inner_step && i + 1 < outer
                                ? ceil_div(bytes, 64)
                                : ceil_div(bytes - int64_t{sizeof(T)}, 64) + 1;
      for (int64_t l = 0; l < lines && feed_end_ < most_fed; ++l)
        feed_[feed_end_++] = line + lesser(64 * l, bytes - 1);
    }
  }

  void compute(const Strip* next, bool entering) {
    const Axis& last = p.axes[z_];
    T* const result = static_cast<T*>(call_.result) + w_of(here_);
    const T* const y = static_cast<const T*>(call_.second) + y_of(here_);
    if (!call_.accumulate)
      for (int64_t j = 0; j < here_.places; ++j)
        if (here_.taps == 0 || !inside(j)) clear_padding(result + j * last.w_place_stride, j);
    stage_window();
    feed(next, entering);
    for (int64_t part = here_.y_parts.begin; part < here_.y_parts.end; ++part) {
      y_ = block(p.out_channels, part, plan_.y_parts);
      stage_places(y);
      for (int64_t j = 0; j < here_.places; ++j) {
        T* const place = result + j * last.w_place_stride;
        out_ahead_ = j + 1 < here_.places ? last.w_place_stride
                     : next != nullptr    ? w_of(*next) - w_of(here_) - j * last.w_place_stride
                                          : 0;
        if (here_.taps > 0 && here_.at[j].count > 0) weigh(place, j);
      }
    }
  }

  UNSHARED_INLINE bool inside(int64_t j) const {
    bool all = here_.at[j].count == p.axes[z_].kernel;
    for (int d = 0; d < z_; ++d) all = all && here_.reach[d].count == p.axes[d].kernel;
    return all;
  }

  // The rows of the window, as far as they do not stand there already.
  UNSHARED_INLINE void stage_window() {
    const int64_t pixel = p.batch * plan_.x_block;
    for (int64_t q = 0; q < here_.taps; ++q) {
      const TapRow row = tap_row(here_, q);
      w_[q] = row.w;
      slot_[q] = row.slot * plan_.window * pixel;
      if (staged_[row.slot] == row.row) continue;
      staged_[row.slot] = row.row;
      Box box;
      box.add(p.batch, p.x_batch_stride, plan_.x_block);
      box.add(here_.window, here_.unit * p.axes[z_].x_stride, pixel);
      box.lanes = here_.x.count();
      box.lane_memory = p.x_channel_stride;
      stage(box, static_cast<const T*>(call_.first) + row.x, arena_ + slot_[q]);
    }
  }

  UNSHARED_INLINE void stage_places(const T* y) {
    Box box;
    box.add(p.batch, p.y_batch_stride, plan_.y_block);
    box.add(here_.places, p.axes[z_].y_stride, p.batch * plan_.y_block);
    box.lanes = y_.count();
    box.lane_memory = p.y_channel_stride;
    stage(box, y + y_.begin * p.y_channel_stride, arena_ + plan_.window_reals);
  }

  // One place, all taps of the rows staged, one block of channels each.
  UNSHARED_INLINE void weigh(T* result, int64_t j) {
    const Axis& last = p.axes[z_];
    const Reach& reach = here_.at[j];
    const bool over = plan_.over_input;
    const Range rows = over ? y_ : here_.x, columns = over ? here_.x : y_;
    const int64_t w_row = over ? p.w_out_stride : p.w_in_stride,
                  w_column = over ? p.w_in_stride : p.w_out_stride,
                  w_tap = tap_step_[z_] * last.w_tap_stride;
    result += rows.begin * w_row + columns.begin * w_column + reach.tap * last.w_tap_stride;

    const int64_t pixel = p.batch * plan_.x_block, step = partner_step_[z_] / here_.unit * pixel;
    const Real* const x = arena_ + (reach.partner - here_.low) / here_.unit * pixel;
    const Real* const y = arena_ + plan_.window_reals + j * p.batch * plan_.y_block;
    Weighed<Real> t{};
    t.a_step = over ? plan_.y_block : plan_.x_block;
    t.b_step = over ? plan_.x_block : plan_.y_block;
    t.steps = p.batch;
    t.from_zero = !call_.accumulate;
    t.out_row = w_row * int64_t{sizeof(T)};
    if constexpr (plain)
      if (plan_.direct) {
        t.c_row = w_row;
        // Rows of x that share a line, so that all taps of the place find them in a cache.
        for (int64_t row = 0; row < rows.count(); row += L::count) {
          const int64_t height = lesser(L::count, rows.count() - row);
          for (int64_t q = 0; q < here_.taps; ++q)
            for (int64_t k = 0; k < reach.count; ++k) {
              const Real* const at = x + slot_[q] + k * step;
              t.a = (over ? y : at) + row;
              t.b = over ? at : y;
              t.c = result + row * w_row + w_[q] + k * w_tap;
              const Real* const next = k + 1 < reach.count ? t.c + w_tap
                                       : q + 1 < here_.taps
                                           ? t.c + w_[q + 1] - w_[q] - k * w_tap
                                           : t.c + L::count * w_row + w_[0] - w_[q] - k * w_tap;
              multiply(t, height, columns.count(), next);
            }
        }
        return;
      }

    // Sums in scratch: of all taps, of a row of taps or of one, so that columns and rows find room.
    const int64_t tap_counts[] = {here_.taps * reach.count, reach.count, 1};
    int64_t high = 0, wide = 0;
    int level = 0;
    for (bool found = false; !found; level += !found)
      for (const int64_t width : {padded(columns.count()), int64_t{L::count}}) {
        if (found) continue;
        wide = width;
        high = lesser(sums_reals / (tap_counts[level] * width), rows.count());
        found = high >= lesser(rows.count(), 8);
      }
    high = ceil_div(rows.count(), ceil_div(rows.count(), high));
    const int64_t q_unit = level == 0 ? here_.taps : 1, k_unit = level == 2 ? 1 : reach.count;
    Real* const sums = arena_ + arena_reals - sums_reals;
    t.out_row = 0;
    for (int64_t q = 0; q < here_.taps; q += q_unit)
      for (int64_t k = 0; k < reach.count; k += k_unit)
        for (int64_t column = 0; column < columns.count(); column += wide)
          for (int64_t row = 0; row < rows.count(); row += high) {
            const int64_t height = lesser(high, rows.count() - row);
            // Loops in the order of memory; axis s is loop s, the rows are the last.
            Nest::Loop loop[max_axes + 1];
            int order[max_axes + 1];
            for (int s = 0; s <= z_ + 1; ++s) {
              if (s < z_)
                loop[s] = {level == 0 ? here_.reach[s].count : 1,
                           tap_step_[s] * p.axes[s].w_tap_stride, 0};
              else if (s == z_)
                loop[s] = {k_unit, w_tap, 0};
              else
                loop[s] = {height, w_row, 0};
              int at = s;
              for (; at > 0 && magnitude(loop[order[at - 1]].first) < magnitude(loop[s].first);
                   --at)
                order[at] = order[at - 1];
              order[at] = s;
            }
            Box box;
            int64_t scratch = wide;
            for (int d = z_ + 1; d >= 0; --d) {
              loop[order[d]].second = scratch;
              scratch *= loop[order[d]].count;
            }
            for (int d = 0; d <= z_ + 1; ++d)
              box.add(loop[order[d]].count, loop[order[d]].first, loop[order[d]].second);
            box.lanes = lesser(wide, columns.count() - column);
            box.lane_memory = w_column;
            T* const to = result + w_[q] + k * w_tap + row * w_row + column * w_column;
            if (call_.accumulate) stage(box, const_cast<const T*>(to), sums);
            t.c_row = loop[z_ + 1].second;
            int64_t c = 0, at[max_axes] = {};
            for (int64_t r = q; r < q + q_unit; ++r) {
              for (int64_t h = k; h < k + k_unit; ++h) {
                const Real* const pixels = x + slot_[r] + h * step;
                t.a = (over ? y : pixels) + row;
                t.b = (over ? pixels : y) + column;
                t.c = sums + c + (h - k) * loop[z_].second;
                multiply(t, height, box.lanes, t.c);
              }
              for (int s = z_ - 1; s >= 0; --s) {
                c += loop[s].second;
                if (++at[s] < loop[s].count) break;
                c -= at[s] * loop[s].second;
                at[s] = 0;
              }
            }
            unstage(box, to, sums);
          }
  }
  static UNSHARED_INLINE int64_t magnitude(int64_t n) { return n < 0 ? -n : n; }

  // Rows by columns; `next`: where the sums of the next call will stand.
  UNSHARED_INLINE void multiply(Weighed<Real> t, int64_t rows, int64_t columns, const Real* next) {
    int64_t vectors = ceil_div(columns, L::count);
    while (vectors > 0) {
      const int64_t wide = ceil_div(vectors, ceil_div(vectors, weighed_vectors));
      vectors -= wide;
      const Real* const beside = vectors > 0 ? t.c + wide * L::count : next;
      if (wide == 1) tiles<1>(t, rows, beside);
      if (wide == 2) tiles<2>(t, rows, beside);
      if (wide == 3) tiles<3>(t, rows, beside);
      if constexpr (weighed_vectors == 4)
        if (wide == 4) tiles<4>(t, rows, beside);
      t.b += wide * L::count;
      t.c += wide * L::count;
    }
  }
  template <int V>
  UNSHARED_INLINE void tiles(Weighed<Real> t, int64_t rows, const Real* next) {
    int64_t count = ceil_div(rows, weighed_rows_of[V]);
    for (int64_t row = 0; row < rows; --count) {
      const int64_t height = ceil_div(rows - row, count);
      // Lines of dw are asked for a tile ahead, or a place if tiles are small; by the last byte of
      // a vector: if it crosses lines, the first is its neighbour's, too.
      const Real* const out = V == 1 ? t.c + out_ahead_ : count > 1 ? t.c + height * t.c_row : next;
      t.out_ahead = reinterpret_cast<const char*>(out + L::count) - 1;
      t.in_ahead = idle_;
      t.in_step = 0;
      if (fed_ < feed_end_) {
        t.in_step = fed_ < feed_x_ ? x_step_ : y_step_;
        t.in_ahead = feed_[fed_++];
      }
      WeighedTiles<Real, V>::All::of_rows[height - 1](t);
      t.a += height;
      t.c += height * t.c_row;
      row += height;
    }
  }

  // Zero for every tap of place j that falls into padding.
  UNSHARED_INLINE void clear_padding(T* result, int64_t j) const {
    const int64_t y_begin = block(p.out_channels, here_.y_parts.begin, plan_.y_parts).begin,
                  y_end = block(p.out_channels, here_.y_parts.end - 1, plan_.y_parts).end;
    reference::Index k{};
    do {
      int64_t w = 0;
      bool in_chain = true;
      for (int s = 0; s <= z_; ++s) {
        const int64_t o = s == z_ ? here_.begin + j : here_.index[s];
        in_chain = in_chain && p.axes[s].source(o, k.at[s]) >= 0;
        w += k.at[s] * p.axes[s].w_tap_stride;
      }
      if (in_chain) continue;
      if (p.w_out_stride == 1)
        for (int64_t a = here_.x.begin; a < here_.x.end; ++a)
          __builtin_memset(result + w + a * p.w_in_stride + y_begin, 0,
                           (y_end - y_begin) * sizeof(T));
      else if (p.w_in_stride == 1)
        for (int64_t b = y_begin; b < y_end; ++b)
          __builtin_memset(result + w + here_.x.begin + b * p.w_out_stride, 0,
                           here_.x.count() * sizeof(T));
      else
        for (int64_t a = here_.x.begin; a < here_.x.end; ++a)
          for (int64_t b = y_begin; b < y_end; ++b)
            result[w + a * p.w_in_stride + b * p.w_out_stride] = T{};
    } while (reference::next(p, k));
  }

  const Problem& p;
  const Call& call_;
  const Weighing plan_;
  const int z_;  // the last axis
  int64_t tap_step_[max_axes], partner_step_[max_axes];
  Strip here_;
  Range y_;
  int64_t out_ahead_;
  int64_t staged_[most_tap_rows], slot_[most_tap_rows], w_[most_tap_rows];
  const char* idle_;
  const char* feed_[most_fed];
  int64_t fed_ = 0, feed_x_ = 0, feed_end_ = 0, x_step_, y_step_;
  alignas(64) Real arena_[arena_reals + L::count];
};

template <class T>
const char* weigh_declines(const Problem& p) noexcept {
  if constexpr (Scalar<T>::parts == 2)
    return "complex products take two steps each";
  else
    return p.batch == 0 ? "there are no samples to stage" : Weigh<T>::declines(p);
}

static_assert(sizeof(Weigh<float>) <= most_scratch && sizeof(Weigh<double>) <= most_scratch &&
              sizeof(Weigh<Half>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
