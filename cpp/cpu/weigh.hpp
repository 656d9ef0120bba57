// Kernel "weigh": grad_weight as small products over the batch, from operands staged close together.
//
// A strip of neighbouring places along the last axis reads a window of x and its places of dy; both
// are staged as panels, for each pixel samples by channels, whatever their memory order. The rows
// of the window stay while the strip moves on along the axis before. For each place and tap, rows
// and columns of a product are the channels of x and dy, or of dy and x, its steps the samples.
// Accumulator: float32 for half types, else the element type. Order: n ascending. Deterministic:
// each dw[o, k, a, b] is one chain of one worker. Taps in padding get an empty chain.
#pragma once

#include "micro.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// How a problem is cut.
struct Weighing {
  bool over_input = false;  // columns are input channels, rows output channels; else the other way
  bool direct = false;  // sums are kept in dw itself
  int64_t samples = 0;  // staged together
  int64_t tap_rows = 0;  // rows of the window (taps of all axes but the last) staged together
  int64_t x_block = 0, x_parts = 0, y_block = 0, y_parts = 0;  // channels staged together
  int64_t strip = 0, strips = 0;  // places along the last axis
  int64_t window = 0, window_reals = 0, y_reals = 0;  // pixels of a row; room
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
    const int64_t row = plan_.over_input ? plan_.y_block : plan_.x_block;
    const int64_t column = plan_.over_input ? plan_.x_block : plan_.y_block;
    for (int64_t n = 0; n < table_steps; ++n) {
      row_step_[n] = n * row;
      column_step_[n] = n * column;
    }
  }

  static UNSHARED_INLINE const char* declines(const Problem& p) {
    const Weighing w = plan(p);
    if (w.samples == 0) return "a row of taps is too long to be staged";
    if (!plain && p.batch > w.samples)
      return "sums of half precision cannot be kept in the result, and the batch does not fit";
    return nullptr;
  }

  // Items: (places of the first axes, strip, channels of x, channels of y, rows of places).
  static UNSHARED_INLINE int64_t items(const Problem& p, const Call& call) {
    const Weighing w = plan(p);
    return outer(p) * w.strips * w.x_parts * y_shares(p, w) * groups(p, w, call);
  }

  void run(int64_t begin, int64_t end) {
    const int64_t shares = y_shares(p, plan_), groups_of_rows = groups(p, plan_, call_);
    for (int64_t item = begin; item < end; ++item) {
      int64_t flat = item;
      const auto next = [&](int64_t count) __attribute__((always_inline)) {
        const int64_t at = flat % count;
        flat /= count;
        return at;
      };
      const int64_t group = next(groups_of_rows), share = next(shares), part = next(plan_.x_parts),
                    strip = next(plan_.strips), length = p.axes[z_].output;
      for (int s = z_ - 2; s >= 0; --s) index_[s] = next(p.axes[s].output);
      for (int s = 0; s < z_ - 1; ++s) find(s);
      x_ = block(p.in_channels, part, plan_.x_parts);
      y_begin_ = share * plan_.y_parts / shares;
      y_end_ = (share + 1) * plan_.y_parts / shares;
      take(strip * length / plan_.strips, (strip + 1) * length / plan_.strips);
      forget();
      const int64_t rows = rows_of(p);
      for (int64_t row = group * rows / groups_of_rows; row < (group + 1) * rows / groups_of_rows;
           ++row) {
        if (z_ > 0) {
          index_[z_ - 1] = row;
          find(z_ - 1);
        }
        compute();
      }
    }
  }

 private:
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int table_steps = 256, longest_strip = 32, most_tap_rows = 256;
  static constexpr int64_t arena_reals = 180 * 1024 / sizeof(Real);
  static constexpr int64_t sums_reals = 42 * 1024 / sizeof(Real);
  static constexpr int64_t widest = 64;  // channels staged together

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
  static UNSHARED_INLINE int64_t block_of(int64_t channels, int64_t parts) {
    return greater(1, ceil_div(ceil_div(channels, L::count), parts)) * L::count;
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
    int64_t rows = 1;  // of the window
    for (int s = 0; s + 1 < p.axis_count; ++s) rows = lesser(rows * p.axes[s].kernel, max_extent);
    w.tap_rows = lesser(rows, most_tap_rows);
    w.samples = greater(p.batch, 1);
    w.y_parts = greater(1, ceil_div(p.out_channels, widest));
    w.x_parts = greater(1, ceil_div(p.in_channels, widest));
    const int64_t room = arena_reals - (w.direct ? 0 : sums_reals);
    const auto fits = [&](int64_t places) {
      w.x_block = block_of(p.in_channels, w.x_parts);
      w.y_block = block_of(p.out_channels, w.y_parts);
      const int64_t pixel = lesser(w.samples * w.x_block, max_extent);
      w.window = window_of(last, places);
      w.window_reals = w.tap_rows * lesser(w.window * pixel, max_extent);
      w.y_reals = places * w.samples * w.y_block;
      return w.window_reals + w.y_reals <= room;
    };
    const auto shrink = [&](int64_t& parts, int64_t channels) {
      if (block_of(channels, parts) == L::count) return false;
      while (block_of(channels, parts) == block_of(channels, parts + 1)) ++parts;
      ++parts;
      return true;
    };
    // What helps least to have together is given up first.
    while (!fits(1)) {
      if (w.y_block > w.x_block && shrink(w.y_parts, p.out_channels)) continue;
      if (shrink(w.x_parts, p.in_channels) || shrink(w.y_parts, p.out_channels)) continue;
      if (w.tap_rows > 1)
        w.tap_rows = ceil_div(rows, ceil_div(rows, w.tap_rows) + 1);
      else if (w.samples > 1)
        w.samples = ceil_div(p.batch, ceil_div(p.batch, w.samples) + 1);
      else
        return {};
    }
    w.strip = 1;
    while (w.strip < lesser(last.output, longest_strip) && fits(w.strip + 1)) ++w.strip;
    w.strips = greater(1, ceil_div(last.output, w.strip));
    w.strip = ceil_div(last.output, w.strips);
    fits(w.strip);
    return w;
  }

  UNSHARED_INLINE void find(int s) {
    reach_[s] = reach_of(p.axes[s], false, index_[s], tap_step_[s]);
  }
  UNSHARED_INLINE void forget() {
    for (int64_t q = 0; q < plan_.tap_rows; ++q) staged_[q] = -1;
  }

  // The places [begin, end) of the last axis, and what they see.
  UNSHARED_INLINE void take(int64_t begin, int64_t end) {
    int64_t high = low_ = -1;
    places_ = end - begin;
    begin_ = begin;
    unit_ = places_ == 1 ? partner_step_[z_] : 1;
    for (int64_t j = 0; j < places_; ++j) {
      const Reach reach = at_[j] = reach_of(p.axes[z_], false, begin + j, tap_step_[z_]);
      if (reach.count == 0) continue;
      if (low_ < 0 || reach.partner < low_) low_ = reach.partner;
      high = greater(high, reach.partner + (reach.count - 1) * partner_step_[z_]);
    }
    window_ = low_ < 0 ? 0 : (high - low_) / unit_ + 1;
  }

  // A strip of places.
  void compute() {
    const Axis& last = p.axes[z_];
    int64_t rows = window_ == 0 ? 0 : 1;
    for (int s = 0; s < z_; ++s) rows *= reach_[s].count;
    T* const result = static_cast<T*>(call_.result);
    const T* y = static_cast<const T*>(call_.second) + begin_ * last.y_stride;
    int64_t place = begin_ * last.w_place_stride;
    for (int s = 0; s < z_; ++s) {
      y += index_[s] * p.axes[s].y_stride;
      place += index_[s] * p.axes[s].w_place_stride;
    }
    if (!call_.accumulate)
      for (int64_t j = 0; j < places_; ++j)
        if (rows == 0 || !inside(j)) clear_padding(result + place + j * last.w_place_stride, j);
    for (int64_t n = 0; n == 0 || n < p.batch; n += plan_.samples) {
      samples_ = lesser(plan_.samples, p.batch - n);
      holds_ = call_.accumulate || n > 0;
      if (plan_.samples < p.batch) forget();
      for (int64_t q = 0; q < rows; q += plan_.tap_rows) {
        tap_rows_ = lesser(plan_.tap_rows, rows - q);
        whole_ = tap_rows_ == rows;
        stage_window(q, n);
        for (int64_t part = y_begin_; part < y_end_; ++part) {
          y_ = block(p.out_channels, part, plan_.y_parts);
          stage_places(y + n * p.y_batch_stride);
          for (int64_t j = 0; j < places_; ++j)
            if (at_[j].count > 0) weigh(result + place + j * last.w_place_stride, j);
        }
      }
    }
  }

  UNSHARED_INLINE bool inside(int64_t j) const {
    bool all = at_[j].count == p.axes[z_].kernel;
    for (int s = 0; s < z_; ++s) all = all && reach_[s].count == p.axes[s].kernel;
    return all;
  }

  // Rows [first, first + tap_rows_) of the window, as far as they do not stand there already.
  UNSHARED_INLINE void stage_window(int64_t first, int64_t n) {
    const int64_t pixel = plan_.samples * plan_.x_block;
    const bool moving = plan_.samples >= p.batch && plan_.tap_rows >= tap_rows_of_all();
    for (int64_t q = 0; q < tap_rows_; ++q) {
      int64_t flat = first + q, slot = 0, step = 1, row = 0;
      const T* x = static_cast<const T*>(call_.first) + n * p.x_batch_stride +
                   x_.begin * p.x_channel_stride + low_ * p.axes[z_].x_stride;
      w_[q] = 0;
      for (int s = z_ - 1; s >= 0; --s) {
        const Axis& axis = p.axes[s];
        const int64_t at = flat % reach_[s].count;
        flat /= reach_[s].count;
        const int64_t partner = reach_[s].partner + at * partner_step_[s];
        x += partner * axis.x_stride;
        w_[q] += (reach_[s].tap + at * tap_step_[s]) * axis.w_tap_stride;
        slot += step * (s == z_ - 1 ? partner / partner_step_[s] % axis.kernel : at);
        step *= axis.kernel;
        if (s == z_ - 1) row = partner;
      }
      if (!moving) slot = q;
      slot_[q] = slot * plan_.window * pixel;
      if (moving && staged_[slot] == row) continue;
      staged_[slot] = row;
      Box box;
      box.add(samples_, p.x_batch_stride, plan_.x_block);
      box.add(window_, unit_ * p.axes[z_].x_stride, pixel);
      box.lanes = x_.count();
      box.lane_memory = p.x_channel_stride;
      stage(box, x, arena_ + slot_[q]);
    }
  }
  UNSHARED_INLINE int64_t tap_rows_of_all() const {
    int64_t rows = 1;
    for (int s = 0; s < z_; ++s) rows *= p.axes[s].kernel;
    return rows;
  }

  UNSHARED_INLINE void stage_places(const T* y) {
    Box box;
    box.add(samples_, p.y_batch_stride, plan_.y_block);
    box.add(places_, p.axes[z_].y_stride, plan_.samples * plan_.y_block);
    box.lanes = y_.count();
    box.lane_memory = p.y_channel_stride;
    stage(box, y + y_.begin * p.y_channel_stride, arena_ + plan_.window_reals);
  }

  // One place, all taps of the rows staged, one block of channels each.
  UNSHARED_INLINE void weigh(T* result, int64_t j) {
    const Axis& last = p.axes[z_];
    const Reach& reach = at_[j];
    const bool over = plan_.over_input;
    const Range rows = over ? y_ : x_, columns = over ? x_ : y_;
    const int64_t w_row = over ? p.w_out_stride : p.w_in_stride,
                  w_column = over ? p.w_in_stride : p.w_out_stride,
                  w_tap = tap_step_[z_] * last.w_tap_stride;
    result += rows.begin * w_row + columns.begin * w_column + reach.tap * last.w_tap_stride;

    const int64_t pixel = plan_.samples * plan_.x_block, step = partner_step_[z_] / unit_ * pixel;
    const Real* const x = arena_ + (reach.partner - low_) / unit_ * pixel;
    const Real* const y = arena_ + plan_.window_reals + j * plan_.samples * plan_.y_block;
    Micro<Real> t{};
    t.a_row = 1;
    t.a_step = row_step_;
    t.b_step = column_step_;
    t.from_zero = !holds_;
    t.last = L::count;
    t.ahead = reinterpret_cast<const char*>(y);
    if constexpr (plain)
      if (plan_.direct) {
        t.c_row = w_row;
        for (int64_t q = 0; q < tap_rows_; ++q)
          for (int64_t k = 0; k < reach.count; ++k) {
            const Real* const at = x + slot_[q] + k * step;
            t.a = over ? y : at;
            t.b = over ? at : y;
            t.c = result + w_[q] + k * w_tap;
            multiply(t, rows.count(), columns.count());
          }
        return;
      }

    // Sums in scratch: of all taps, of a row of taps or of one, so that columns and rows find room.
    const int64_t tap_counts[] = {whole_ ? tap_rows_ * reach.count : 0, reach.count, 1};
    int64_t high = 0, wide = 0;
    int level = 0;
    for (bool found = false; !found; level += !found)
      for (const int64_t width : {padded(columns.count()), int64_t{L::count}}) {
        if (found || tap_counts[level] == 0) continue;
        wide = width;
        high = lesser(sums_reals / (tap_counts[level] * width), rows.count());
        found = high >= lesser(rows.count(), 8);
      }
    high = ceil_div(rows.count(), ceil_div(rows.count(), high));
    const int64_t q_unit = level == 0 ? tap_rows_ : 1, k_unit = level == 2 ? 1 : reach.count;
    Real* const sums = arena_ + arena_reals - sums_reals;
    for (int64_t q = 0; q < tap_rows_; q += q_unit)
      for (int64_t k = 0; k < reach.count; k += k_unit)
        for (int64_t column = 0; column < columns.count(); column += wide)
          for (int64_t row = 0; row < rows.count(); row += high) {
            const int64_t height = lesser(high, rows.count() - row);
            // Loops in the order of memory; axis s is loop s, the rows are the last.
            Nest::Loop loop[max_axes + 1];
            int order[max_axes + 1];
            for (int s = 0; s <= z_ + 1; ++s) {
              if (s < z_)
                loop[s] = {level == 0 ? reach_[s].count : 1,
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
            if (holds_) stage(box, const_cast<const T*>(to), sums);
            t.c_row = loop[z_ + 1].second;
            int64_t c = 0, at[max_axes] = {};
            for (int64_t r = q; r < q + q_unit; ++r) {
              for (int64_t h = k; h < k + k_unit; ++h) {
                const Real* const pixels = x + slot_[r] + h * step;
                t.a = (over ? y : pixels) + row;
                t.b = (over ? pixels : y) + column;
                t.c = sums + c + (h - k) * loop[z_].second;
                multiply(t, height, box.lanes);
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

  UNSHARED_INLINE void multiply(Micro<Real> t, int64_t rows, int64_t columns) {
    constexpr int64_t most = vector_registers == 16 ? 3 : 4;
    int64_t vectors = ceil_div(columns, L::count);
    const Real* const a = t.a;
    while (vectors > 0) {
      const int64_t wide = ceil_div(vectors, ceil_div(vectors, most));
      Micro<Real> here = t;
      for (int64_t n = 0; n == 0 || n < samples_; n += table_steps) {
        here.steps = lesser(table_steps, samples_ - n);
        micro_rows(here, rows, wide);
        here.a += table_steps * row_step_[1];
        here.b += table_steps * column_step_[1];
        here.from_zero = false;
      }
      t.a = a;
      t.b += wide * L::count;
      t.c += wide * L::count;
      vectors -= wide;
    }
  }

  // Zero for every tap of place j that falls into padding.
  UNSHARED_INLINE void clear_padding(T* result, int64_t j) const {
    const int64_t y_begin = block(p.out_channels, y_begin_, plan_.y_parts).begin,
                  y_end = block(p.out_channels, y_end_ - 1, plan_.y_parts).end;
    reference::Index k{};
    do {
      int64_t w = 0;
      bool in_chain = true;
      for (int s = 0; s <= z_; ++s) {
        const int64_t o = s == z_ ? begin_ + j : index_[s];
        in_chain = in_chain && p.axes[s].source(o, k.at[s]) >= 0;
        w += k.at[s] * p.axes[s].w_tap_stride;
      }
      if (in_chain) continue;
      for (int64_t a = x_.begin; a < x_.end; ++a)
        for (int64_t b = y_begin; b < y_end; ++b)
          result[w + a * p.w_in_stride + b * p.w_out_stride] = T{};
    } while (reference::next(p, k));
  }

  const Problem& p;
  const Call& call_;
  const Weighing plan_;
  const int z_;  // the last axis
  int64_t tap_step_[max_axes], partner_step_[max_axes], index_[max_axes];
  Reach reach_[max_axes], at_[longest_strip];
  Range x_, y_;
  int64_t y_begin_, y_end_, begin_, places_, low_, unit_, window_, samples_, tap_rows_;
  bool holds_, whole_;
  int64_t staged_[most_tap_rows], slot_[most_tap_rows], w_[most_tap_rows];
  int64_t row_step_[table_steps], column_step_[table_steps];
  alignas(64) Real arena_[arena_reals + L::count];
};

template <class T>
const char* weigh_declines(const Problem& p) noexcept {
  if constexpr (Scalar<T>::parts == 2)
    return "complex products take two steps each";
  else
    return Weigh<T>::declines(p);
}

static_assert(sizeof(Weigh<float>) <= most_scratch && sizeof(Weigh<double>) <= most_scratch &&
              sizeof(Weigh<Half>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
