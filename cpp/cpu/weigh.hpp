// Kernel "weigh": grad_weight as small products over the batch, from operands staged close together.
//
// A strip of neighbouring places along the last axis reads a window of x and its places of dy; both
// are staged as panels, for each pixel samples by channels, whatever their memory order. The rows
// of the window stay while the strip moves on along the axis before; where they do not all find room
// for several places, a row at a time is staged, or the pixels of one tap. For each place and tap, rows
// and columns of a product are the channels of x and dy, or of dy and x, its steps the samples: all of
// them, or, of many, some after the others.
// Accumulator: float32 for half types, else the element type. Order: n ascending. Deterministic:
// each dw[o, k, a, b] is one chain of one worker. Taps in padding get an empty chain.
#pragma once

#include "weigh_plan.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
class Weigh {
 public:
  using Plan = WeighPlan<T>;
  using Real = typename Plan::Real;
  using L = typename Plan::L;

  UNSHARED_INLINE Weigh(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem),
        call_(call),
        plan_(plan),
        z_(problem.axis_count - 1),
        signs_(call.conjugate_first, call.conjugate_second),
        around_(plan.direct && !call.accumulate && beyond_caches<T>(problem, most_samples_around)),
        copies_around_(!call.accumulate && plan.copies) {
    for (int s = 0; s < p.axis_count; ++s) {
      const Spacing spacing = spacing_of(p.axes[s], false);
      tap_step_[s] = spacing.tap;
      partner_step_[s] = spacing.partner;
    }
    x_step_ = p.x_batch_stride * int64_t{sizeof(T)};
    y_step_ = p.y_batch_stride * int64_t{sizeof(T)};
    idle_ = reinterpret_cast<const char*>(arena_);
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
    if (around_ || copies_around_) written_around();
  }

 private:
  static constexpr bool plain = Plan::plain, complex = Scalar<T>::parts == 2;
  using Part = typename Scalar<T>::Real;
  static constexpr int longest_strip = Plan::longest_strip, most_tap_rows = Plan::most_tap_rows;
  static constexpr int most_fed = 512;
  static constexpr int64_t arena_reals = Plan::arena_reals, sums_reals = Plan::sums_reals;

  static UNSHARED_INLINE int64_t columns_of(const Problem& p, const Plan& plan) {
    return plan.over_input ? p.in_channels : p.out_channels;
  }

  struct Range {
    int64_t begin, end;
    UNSHARED_INLINE int64_t count() const { return end - begin; }
  };
  static UNSHARED_INLINE Range block(int64_t channels, int64_t part, int64_t parts) {
    const int64_t vectors = ceil_div(channels, L::count);
    return {part * vectors / parts * L::count,
            lesser((part + 1) * vectors / parts * L::count, channels)};
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
    const int64_t groups_of_rows = Plan::groups(p, plan_, call_), shares = Plan::y_shares(p, plan_);
    const int64_t group = next(groups_of_rows), share = next(shares), part = next(plan_.x_parts),
                  strip = next(plan_.strips);
    for (int d = z_ - 2; d >= 0; --d) s.index[d] = next(p.axes[d].output);
    s.x = block(p.in_channels, part, plan_.x_parts);
    s.y_parts = {share * plan_.y_parts / shares, (share + 1) * plan_.y_parts / shares};
    s.first_row = group * Plan::rows_of(p) / groups_of_rows;
    s.last_row = (group + 1) * Plan::rows_of(p) / groups_of_rows;
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
    list_places(*next);
  }
  UNSHARED_INLINE void list_places(const Strip& s) {
    const int64_t begin = block(p.out_channels, s.y_parts.begin, plan_.y_parts).begin,
                  end = block(p.out_channels, s.y_parts.end - 1, plan_.y_parts).end;
    list(static_cast<const T*>(call_.second) + y_of(s) + begin * p.y_channel_stride, end - begin,
         p.y_channel_stride, s.places, p.axes[z_].y_stride);
  }
  // The same of a row by itself, and of the places where it is the first.
  UNSHARED_INLINE void feed_row(const Strip* s, int64_t q) {
    fed_ = feed_x_ = feed_end_ = 0;
    if (s == nullptr || q >= s->taps) return;
    list(static_cast<const T*>(call_.first) + tap_row(*s, q).x, s->x.count(), p.x_channel_stride,
         s->window, s->unit * p.axes[z_].x_stride);
    feed_x_ = feed_end_;
    if (q == 0) list_places(*s);
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
        if (here_.taps == 0 || !inside(j)) clear(result + j * last.w_place_stride, j);
    k_ = {0, last.kernel};
    if (plan_.kept == Kept::window) {
      q_ = {0, here_.taps};
      stage_window();
      feed(next, entering);
      return all_places(result, y, next, true);
    }
    for (int64_t q = 0; q < here_.taps; ++q) {
      q_ = {q, q + 1};
      if (plan_.kept == Kept::row) {
        stage_row(q, 0, here_.window);
        feed_row(q + 1 < here_.taps ? &here_ : next, q + 1 < here_.taps ? q + 1 : 0);
        all_places(result, y, next, q == 0);
      } else {
        for (int64_t k = 0; k < here_.at[0].count; ++k) {
          k_ = {k, k + 1};
          stage_row(q, k, 1);
          all_places(result, y, next, q == 0 && k == 0);
        }
      }
    }
  }

  // All places and channels of y, for the taps at hand; `first`: for the first of them.
  UNSHARED_INLINE void all_places(T* result, const T* y, const Strip* next, bool first) {
    const Axis& last = p.axes[z_];
    for (int64_t part = here_.y_parts.begin; part < here_.y_parts.end; ++part) {
      y_ = block(p.out_channels, part, plan_.y_parts);
      if (first || here_.y_parts.count() > 1) stage_places(y);
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
    for (int64_t q = 0; q < here_.taps; ++q) {
      const TapRow row = tap_row(here_, q);
      w_[q] = row.w;
      slot_[q] = row.slot * plan_.window * plan_.x_pixel;
      if (staged_[row.slot] == row.row) continue;
      staged_[row.slot] = row.row;
      stage_pixels(row, 0, here_.window, arena_ + slot_[q]);
    }
  }
  // Some pixels of a row, by themselves.
  UNSHARED_INLINE void stage_row(int64_t q, int64_t first, int64_t count) {
    const TapRow row = tap_row(here_, q);
    w_[q] = row.w;
    slot_[q] = 0;
    stage_pixels(row, first, count, arena_);
  }
  UNSHARED_INLINE void stage_pixels(const TapRow& row, int64_t first, int64_t count, Real* to) {
    const int64_t step = here_.unit * p.axes[z_].x_stride;
    Box box;
    box.add(p.batch, p.x_batch_stride, plan_.x_block);
    box.add(count, step, plan_.x_pixel);
    box.lanes = here_.x.count();
    box.lane_memory = p.x_channel_stride;
    box.lengthen();
    stage(box, static_cast<const T*>(call_.first) + row.x + first * step, to);
  }

  UNSHARED_INLINE void stage_places(const T* y) {
    Box box;
    box.add(p.batch, p.y_batch_stride, plan_.y_block);
    box.add(here_.places, p.axes[z_].y_stride, plan_.y_pixel);
    box.lanes = y_.count();
    box.lane_memory = p.y_channel_stride;
    box.lengthen();
    Real* const to = arena_ + plan_.window_reals;
    stage(box, y + y_.begin * p.y_channel_stride, to);
    if constexpr (complex)
      if (plan_.over_input) make_factors(reinterpret_cast<Part*>(to), 2 * second(), signs_);
  }
  // How far behind the first factors of complex elements of dy the second ones are.
  UNSHARED_INLINE int64_t second() const { return here_.places * plan_.y_pixel; }

  // One place, all taps staged, one block of channels each.
  struct Place {
    T* result;
    const Real *x, *y;  // where they are staged
    Range rows, columns, taps;  // taps along the last axis
    int64_t w_row, w_column, w_tap;  // strides in dw
    int64_t step;  // from tap to tap in what is staged of x
  };
  UNSHARED_INLINE void weigh(T* result, int64_t j) {
    const Axis& last = p.axes[z_];
    const Reach& reach = here_.at[j];
    const bool over = plan_.over_input;
    Place place;
    place.x = arena_ + (reach.partner - here_.low) / here_.unit * plan_.x_pixel;
    place.y = arena_ + plan_.window_reals + j * plan_.y_pixel;
    place.rows = over ? y_ : here_.x;
    place.columns = over ? here_.x : y_;
    place.taps = {k_.begin, lesser(k_.end, reach.count)};
    place.w_row = over ? p.w_out_stride : p.w_in_stride;
    place.w_column = over ? p.w_in_stride : p.w_out_stride;
    place.w_tap = tap_step_[z_] * last.w_tap_stride;
    place.step = partner_step_[z_] / here_.unit * plan_.x_pixel;
    place.result = result + place.rows.begin * place.w_row + place.columns.begin * place.w_column +
                   reach.tap * last.w_tap_stride;
    if (!plan_.direct) return through_scratch<Real>(place);
    const int64_t columns = place.columns.count();
    // Tiles write whole lines around the caches themselves; less than a vector is not worth a copy.
    in_place_ =
        !copies_around_ || columns < L::count ||
        (columns % L::count == 0 && whole_lines(place.result, place.w_row, columns / L::count));
    if (in_place_)
      in_place(place);
    else
      through_scratch<T>(place);
  }
  template <class Out>
  UNSHARED_INLINE Weighed<Out> tile_of() const {
    Weighed<Out> t{};
    t.a_step = plan_.over_input ? plan_.y_block : plan_.x_block;
    t.b_step = plan_.over_input ? plan_.x_block : plan_.y_block;
    t.steps = p.batch;
    t.last = L::count;
    t.from_zero = !call_.accumulate;
    t.signs = &signs_;
    t.second = second();
    return t;
  }

  // Sums kept in dw.
  UNSHARED_INLINE void in_place(const Place& place) {
    const auto& [result, x, y, rows, columns, taps, w_row, w_column, w_tap, step] = place;
    const bool over = plan_.over_input;
    Weighed<T> t = tile_of<T>();
    t.c_row = w_row;
    // Rows of x that share a line, so that all taps of the place find them in a cache.
    for (int64_t row = 0; row < rows.count(); row += L::count) {
      const int64_t height = lesser(L::count, rows.count() - row);
      for (int64_t q = q_.begin; q < q_.end; ++q)
        for (int64_t k = taps.begin; k < taps.end; ++k) {
          const Real* const at = x + slot_[q] + (k - taps.begin) * step;
          t.a = (over ? y : at) + row;
          t.b = over ? at : y;
          t.c = result + row * w_row + w_[q] + k * w_tap;
          const T* const next =
              k + 1 < taps.end ? t.c + w_tap
              : q + 1 < q_.end
                  ? t.c + w_[q + 1] - w_[q] - (k - taps.begin) * w_tap
                  : t.c + L::count * w_row + w_[q_.begin] - w_[q] - (k - taps.begin) * w_tap;
          multiply(t, height, columns.count(), next);
        }
    }
  }

  // Sums in scratch: of all taps, of a row of taps or of one, so that columns and rows find room; and as
  // much again where they are put in order, if tiles of two vectors and more do not suffer. Those of
  // columns that lie side by side in dw stand in scratch as they will there.
  template <class Out>
  UNSHARED_INLINE void through_scratch(const Place& place) {
    const auto& [result, x, y, rows, columns, taps, w_row, w_column, w_tap, step] = place;
    const bool over = plan_.over_input, dense = plan_.direct;
    const int64_t tap_counts[] = {here_.taps * taps.count(), taps.count(), 1};
    const int64_t most = dense ? columns.count() : padded<Real>(columns.count());
    const int64_t all = tap_counts[0] * lesser(most, 2 * L::count);
    const bool halves = !dense && copies_around_ && sums_reals / 2 / all >= lesser(rows.count(), 6);
    const int64_t room = halves ? sums_reals / 2 : sums_reals;
    int64_t high = 0, wide = 0;
    int level = q_.count() == here_.taps ? 0 : 1;
    for (bool found = false; !found; level += !found)
      for (int64_t width = most; !found && width > 0;
           width = width > L::count && !dense ? padded<Real>(width / 2) : 0) {
        wide = width;
        high = lesser(room / (tap_counts[level] * width), rows.count());
        found = high >= lesser(rows.count(), dense ? 4 : halves ? 6 : 8);
      }
    high = ceil_div(rows.count(), ceil_div(rows.count(), high));
    const int64_t q_unit = level == 0 ? here_.taps : 1, k_unit = level == 2 ? 1 : taps.count();
    Out* const sums = reinterpret_cast<Out*>(arena_ + arena_reals - sums_reals);
    Weighed<Out> t = tile_of<Out>();
    for (int64_t q = q_.begin; q < q_.end; q += q_unit)
      for (int64_t k = taps.begin; k < taps.end; k += k_unit)
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
            if constexpr (std::is_same_v<Out, Real>)
              if (call_.accumulate) stage(box, const_cast<const T*>(to), sums);
            t.c_row = loop[z_ + 1].second;
            int64_t c = 0, at[max_axes] = {};
            for (int64_t r = q; r < q + q_unit; ++r) {
              for (int64_t h = k; h < k + k_unit; ++h) {
                const Real* const pixels = x + slot_[r] + (h - taps.begin) * step;
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
            if (dense)
              copy_dense(box, to, sums);
            else if constexpr (std::is_same_v<Out, Real>) {
              if (copies_around_)
                unstage_around(box, to, sums, scratch);
              else
                unstage(box, to, sums);
            }
          }
  }

  // Sums that go to whole lines of dw, which nobody reads soon, are put in order in scratch, behind
  // those `used`, and written around the caches. Calls of their own: compute() is long enough.
  __attribute__((noinline)) void unstage_around(const Box& box, T* to, Real* sums, int64_t used) {
    constexpr int64_t least_run = 256, line = 64 / sizeof(Real);
    Box packed;
    const Runs runs(box, packed);
    if (runs.run * int64_t{sizeof(T)} < least_run || 2 * used > sums_reals)
      return unstage(box, to, sums);
    T* const buffer = reinterpret_cast<T*>(sums + ceil_div(used, line) * line);
    unstage(packed, buffer, sums);
    copy_runs(runs, to, reinterpret_cast<const char*>(buffer));
  }
  UNSHARED_INLINE void copy_runs(const Runs& runs, T* to, const char* from) {
    const int64_t bytes = runs.run * int64_t{sizeof(T)};
    walk_runs(runs.loop, runs.depth, to, [&](T* run) __attribute__((always_inline)) {
      copy_around(reinterpret_cast<char*>(run), from, bytes);
      from += bytes;
    });
  }
  // The same of sums that stand in the order of dw.
  __attribute__((noinline)) void copy_dense(const Box& box, T* to, const void* sums) {
    Box packed;
    copy_runs(Runs(box, packed), to, static_cast<const char*>(sums));
  }

  // Rows by columns; `next`: where the sums of the next call will stand. Tiles take turns with `t`, which
  // it would take longer to copy than small ones to compute.
  template <class Out>
  UNSHARED_INLINE void multiply(Weighed<Out>& t, int64_t rows, int64_t columns, const Out* next) {
    const int64_t unit = in_place_ && around_ ? vectors_together(t.c, t.c_row) : 1;
    int64_t vectors = ceil_div(columns, L::count);
    const Real* const a = t.a;
    Out* c = t.c;
    t.last = L::count;
    while (vectors > 0) {
      const int64_t units = ceil_div(vectors, unit);
      const int64_t wide =
          lesser(vectors, ceil_div(units, ceil_div(units, weighed_vectors / unit)) * unit);
      vectors -= wide;
      if (vectors == 0 && plan_.direct) t.last = static_cast<int>(columns - (wide - 1) * L::count);
      columns -= wide * L::count;
      const Out* const beside = vectors > 0 ? c + wide * L::count : next;
      t.a = a;
      t.c = c;
      if (complex && plan_.over_input)
        tiles_of<complex>(t, wide, rows, beside);
      else
        tiles_of<false>(t, wide, rows, beside);
      t.b += wide * L::count;
      c += wide * L::count;
    }
  }
  template <bool by_b, class Out>
  UNSHARED_INLINE void tiles_of(Weighed<Out>& t, int64_t wide, int64_t rows, const Out* next) {
    if (wide == 1) tiles<by_b, 1>(t, rows, next);
    if (wide == 2) tiles<by_b, 2>(t, rows, next);
    if (wide == 3) tiles<by_b, 3>(t, rows, next);
    if constexpr (weighed_vectors == 4)
      if (wide == 4) tiles<by_b, 4>(t, rows, next);
  }
  template <bool by_b, int V, class Out>
  UNSHARED_INLINE void tiles(Weighed<Out>& t, int64_t rows, const Out* next) {
    int64_t count = ceil_div(rows, weighed_rows_of[V]);
    for (int64_t row = 0; row < rows; --count) {
      const int64_t height = ceil_div(rows - row, count);
      // Lines of dw are asked for a tile ahead, or a place if tiles are small; by the last byte of
      // a vector: if it crosses lines, the first is its neighbour's, too.
      const Out* const out = V == 1 ? t.c + out_ahead_ : count > 1 ? t.c + height * t.c_row : next;
      t.around = in_place_ && around_ && t.last == L::count && whole_lines(t.c, t.c_row, V);
      t.out_row = in_place_ && !t.around ? t.c_row * int64_t{sizeof(Out)} : 0;
      t.out_ahead = reinterpret_cast<const char*>(out + L::count) - 1;
      t.in_ahead = idle_;
      t.in_step = 0;
      if (fed_ < feed_end_) {
        t.in_step = fed_ < feed_x_ ? x_step_ : y_step_;
        t.in_ahead = feed_[fed_++];
      }
      WeighedTiles<Out, by_b, V>::All::of_rows[height - 1](t);
      t.a += height;
      t.c += height * t.c_row;
      row += height;
    }
  }

  // Zero for every tap of place j that falls into padding.
  UNSHARED_INLINE void clear(T* result, int64_t j) const {
    const int64_t y_begin = block(p.out_channels, here_.y_parts.begin, plan_.y_parts).begin,
                  y_end = block(p.out_channels, here_.y_parts.end - 1, plan_.y_parts).end;
    int64_t place[max_axes];
    for (int s = 0; s < z_; ++s) place[s] = here_.index[s];
    place[z_] = here_.begin + j;
    result += here_.x.begin * p.w_in_stride + y_begin * p.w_out_stride;
    clear_padding(p, place, result, here_.x.count(), y_end - y_begin);
  }

  const Problem& p;
  const Call& call_;
  const Plan& plan_;
  const int z_;  // the last axis
  const Signs<Part> signs_;
  const bool around_;  // whether tiles write around the caches
  const bool copies_around_;  // whether sums that pass through scratch do
  bool in_place_ = false;  // whether those of the place at hand are kept in dw
  int64_t tap_step_[max_axes], partner_step_[max_axes];
  Strip here_;
  Range y_;
  Range q_, k_;  // taps at hand: rows of the window, and along the last axis
  int64_t out_ahead_;
  int64_t staged_[most_tap_rows], slot_[most_tap_rows], w_[most_tap_rows];
  const char* idle_;
  const char* feed_[most_fed];
  int64_t fed_ = 0, feed_x_ = 0, feed_end_ = 0, x_step_, y_step_;
  alignas(64) Real arena_[arena_reals + L::count];
};

static_assert(sizeof(Weigh<float>) <= most_scratch && sizeof(Weigh<double>) <= most_scratch &&
              sizeof(Weigh<Half>) <= most_scratch && sizeof(Weigh<Complex<float>>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
