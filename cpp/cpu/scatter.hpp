// Kernel "scatter": grad_input place by place.
//
// A pixel's weights lie with all the places that reach it, apart from each other: a line of each, or
// a single element of a line. A place's own are whole lines, read one after the other. So the sums of
// a box of pixels stay in scratch, or in dx, while the places that reach it go by, in ascending order:
// each takes its weights once and continues the chain of every pixel it reaches by its channels of dy,
// as small matrix products. Lanes run over samples, weights broadcast from where they are (or, of half
// types, from where they are widened); or, with few samples or where a tap's weights are long runs, over
// the columns of a tap, or, if those are few, over columns and taps, read in place or from a panel.
// Accumulator: float32 for half types, else the element type. Order: places ascending, for each b
// ascending, as the nest of a pixel has it. Deterministic: one chain, one worker.
#pragma once

#include "lines.hpp"
#include "parts.hpp"
#include "scatter_choice.hpp"
#include "turned.hpp"
#include "widened.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
class Scatter {
  using Plan = ScatterPlan<T>;
  using Real = typename Plan::Real;
  using L = typename Plan::L;
  using Over = typename Plan::Over;
  static constexpr int reals = Plan::reals;
  using Boxes = Boxed<T>;
  using Element = Moved<T>;  // in scratch, over columns

 public:
  UNSHARED_INLINE Scatter(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem),
        call_(call),
        plan_(plan),
        z_(problem.axis_count - 1),
        parts_(call),
        signs_(call.conjugate_first, call.conjugate_second) {
    for (int s = 0; s <= z_; ++s) spacing_[s] = spacing_of(p.axes[s], false);
    if (plan.over == Over::joint)
      for (int64_t j = 0; j < Plan::tile_reals + L::count; j += L::count)
        L::store(tile_ + j, L::zero());
    cell_ = (over_samples() ? plan.width * reals : plan.rows) * lanes();
    parts_.lanes = lanes();
    parts_.turned = plan.channels * reals * lanes();
    for (int64_t t = 0; t < most_steps; ++t) {
      w_step_[t] = t * p.w_out_stride;
      if constexpr (reals == 2)
        if (over_samples()) {
          parts_.step(t, 2 * t * lanes(), w_step_[t], dy_step_, w_part_step_[0], im_step_,
                      w_part_step_[1]);
          continue;
        }
      turned_step_[t] = t * reals;
      for (int64_t q = reals * t; q < reals * (t + 1); ++q)
        dy_step_[q] = q * (over_samples() ? lanes() : 1);
    }
  }

  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t rest = item / plan_.parts;
      int64_t cell = cell_;
      for (int s = z_; s >= 0; --s) {
        const int64_t cut = rest % plan_.cuts[s];
        rest /= plan_.cuts[s];
        enter(s, cut);
        box_[s].cell = plan_.direct ? p.axes[s].x_stride : cell;
        cell *= box_[s].end - box_[s].begin;
      }
      column_ = item % plan_.parts * plan_.width;
      columns_ = lesser(plan_.width, p.in_channels - column_);
      for (int64_t n = 0; n < p.batch; n += plan_.rows) compute(n);
    }
  }

 private:
  // Weights are asked for again so many steps before their use, if they come from memory; those of the next
  // place with this one's, if a second-level cache holds both.
  static constexpr int most_steps = Plan::most_steps, soon = 16;
  static constexpr int64_t place_bytes = 1024 * 1024;

  // Pixels [begin, end) of an axis, the places [low, high] that reach them, and the distance of two
  // pixels in scratch.
  struct Range {
    int64_t begin, end, low, high, cell;
  };
  UNSHARED_INLINE void enter(int s, int64_t cut) {
    const Axis& axis = p.axes[s];
    const Spacing by_input = spacing_of(axis, true);
    Range& r = box_[s];
    r = {cut * axis.input / plan_.cuts[s], (cut + 1) * axis.input / plan_.cuts[s], axis.output, -1,
         0};
    for (int64_t i = r.begin; i < r.end; ++i) {
      const Reach reach = reach_of(axis, true, i, by_input.tap);
      if (reach.count == 0) continue;
      r.low = lesser(r.low, reach.partner);
      r.high = greater(r.high, reach.partner + (reach.count - 1) * by_input.partner);
    }
  }
  // The pixels of the box that a place reaches along an axis.
  UNSHARED_INLINE Reach within(int s, int64_t place) const {
    Reach r = reach_of(p.axes[s], false, place, spacing_[s].tap);
    while (r.count > 0 && r.partner < box_[s].begin) {
      r.tap += spacing_[s].tap;
      r.partner += spacing_[s].partner;
      --r.count;
    }
    while (r.count > 0 && r.partner + (r.count - 1) * spacing_[s].partner >= box_[s].end) --r.count;
    return r;
  }

  UNSHARED_INLINE bool over_samples() const { return plan_.over == Over::samples; }
  // The lanes of a row of scratch.
  UNSHARED_INLINE int64_t lanes() const {
    return over_samples() ? plan_.rows : padded<Real>(plan_.width * reals);
  }

  // The box at hand, samples from n on.
  void compute(int64_t n) {
    rows_ = lesser(plan_.rows, p.batch - n);
    const T* const y = static_cast<const T*>(call_.first) + n * p.y_batch_stride;
    const T* const w = static_cast<const T*>(call_.second) + column_ * p.w_in_stride;
    T* dx = static_cast<T*>(call_.result) + n * p.x_batch_stride + column_ * p.x_channel_stride;
    int64_t all = cell_;
    Box sums;
    for (int s = 0; s <= z_; ++s) {
      const int64_t count = box_[s].end - box_[s].begin;
      sums.add(count, p.axes[s].x_stride * memory_unit(),
               plan_.direct ? 0 : box_[s].cell / scratch_unit());
      dx += box_[s].begin * p.axes[s].x_stride;
      all *= count;
    }
    if (over_samples())
      lay_samples(sums, columns_, p.x_channel_stride, p.x_batch_stride);
    else
      lay_columns(sums, p.x_batch_stride, plan_.direct ? 0 : lanes(), columns_, p.x_channel_stride);
    if (plan_.direct) {
      c_ = reinterpret_cast<Real*>(dx);
      c_row_ = p.x_batch_stride;
      for (int64_t j = 0; j < lanes(); j += L::count) L::store(sums_ + j, L::zero());
      if (!call_.accumulate) Boxes::template move<false>(over_samples(), sums, dx, sums_);
      return all_places(y, w);
    }
    c_ = sums_;
    c_row_ = lanes();
    if (call_.accumulate)
      Boxes::template move<true>(over_samples(), sums, dx, sums_);
    else
      for (int64_t j = 0; j < all; j += L::count) L::store(sums_ + j, L::zero());
    all_places(y, w);
    Boxes::template move<false>(over_samples(), sums, dx, sums_);
  }
  // What boxes count in: in memory, and in scratch.
  UNSHARED_INLINE int64_t memory_unit() const { return over_samples() ? reals : 1; }
  UNSHARED_INLINE int64_t scratch_unit() const { return over_samples() ? 1 : reals; }
  // `count` channels `apart` in memory, of the samples at hand.
  UNSHARED_INLINE void lay_samples(Box& box, int64_t count, int64_t apart, int64_t batch) const {
    box.add(count, apart * reals, reals * lanes());
    box.add(reals, 1, lanes());
    box.lanes = rows_;
    box.lane_memory = batch * reals;
  }
  UNSHARED_INLINE void lay_columns(Box& box, int64_t batch, int64_t row, int64_t count,
                                   int64_t apart) const {
    box.add(rows_, batch, row / reals);
    box.lanes = count;
    box.lane_memory = apart;
  }
  // The places that reach the box, row by row; dy and w of the samples and columns at hand.
  void all_places(const T* const y, const T* const w) {
    int64_t place[max_axes];
    for (int s = 0; s < z_; ++s) place[s] = box_[s].low;
    for (int s = 0; s <= z_; ++s)
      if (box_[s].low > box_[s].high) return;
    for (;;) {
      const T* y_row = y;
      const T* w_row = w;
      bool any = true;
      for (int s = 0; s < z_; ++s) {
        at_[s] = within(s, place[s]);
        any = any && at_[s].count > 0;
        y_row += place[s] * p.axes[s].y_stride;
        w_row += place[s] * p.axes[s].w_place_stride;
      }
      if (any)
        for (int64_t o = box_[z_].low; o <= box_[z_].high; o += plan_.places)
          places(o, lesser(plan_.places, box_[z_].high + 1 - o), y_row, w_row);
      int s = z_ - 1;
      for (; s >= 0 && ++place[s] > box_[s].high; --s) place[s] = box_[s].low;
      if (s < 0) return;
    }
  }

  // Some neighbouring places.
  void places(int64_t begin, int64_t count, const T* y, const T* w) {
    const Axis& last = p.axes[z_];
    for (int64_t b = 0; b < p.out_channels; b += plan_.channels) {
      const int64_t channels = lesser(plan_.channels, p.out_channels - b);
      Box dy;
      int64_t place;
      if (over_samples())
        place = reals * parts_.turned;
      else
        place = plan_.rows * (y_row_ = spaced<Real>(channels * reals));
      dy.add(count, last.y_stride * memory_unit(), place / scratch_unit());
      if (over_samples())
        lay_samples(dy, channels, p.y_channel_stride, p.y_batch_stride);
      else
        lay_columns(dy, p.y_batch_stride, y_row_, channels, p.y_channel_stride);
      Boxes::with(over_samples(), y + begin * last.y_stride + b * p.y_channel_stride, staged_,
                  [&](const auto* memory, auto* scratch) { stage(dy, memory, scratch); });
      if (reals == 2 && over_samples())
        for (int64_t o = 0; o < count; ++o)
          parts_.turn_over(staged_ + o * place, channels * reals * lanes());
      for (int64_t o = begin; o < begin + count; ++o) {
        at_[z_] = within(z_, o);
        if (at_[z_].count > 0)
          one_place(staged_ + (o - begin) * place, channels,
                    w + o * last.w_place_stride + b * p.w_out_stride,
                    b + channels < p.out_channels ? channels * p.w_out_stride
                                                  : last.w_place_stride - b * p.w_out_stride);
      }
    }
  }

  // The chains of all pixels that one place reaches, by `channels` of dy. `next`: how much further on
  // the weights lie that are needed after these.
  UNSHARED_INLINE void one_place(const Real* dy, int64_t channels, const T* w, int64_t next) {
    if (plan_.over == Over::joint) return all_taps(dy, channels, w, next);
    find_taps();
    for (int64_t b = 0; b < channels; b += plan_.steps) {
      const int64_t steps = lesser(plan_.steps, channels - b);
      const T* const from = w + b * p.w_out_stride;
      const int64_t after =
          b + steps < channels ? steps * p.w_out_stride : next - b * p.w_out_stride;
      if (over_samples()) {
        fetch(from + after, steps);
        rows_of_columns(dy + b * reals * lanes(), from, steps);
      } else {
        look_beyond(steps, after);
        for (int q = 0; q < taps_here_; ++q)
          rows_of_samples(
              dy + b * reals, from + taps_[q].w, p.w_in_stride, columns_, steps,
              q + 1 < taps_here_ ? taps_[q + 1].w - taps_[q].w : after + taps_[0].w - taps_[q].w,
              c_ + taps_[q].cell, c_row_);
      }
    }
  }
  UNSHARED_INLINE void find_taps() {
    reference::Index at{};
    taps_here_ = 0;
    do {
      Tap& tap = taps_[taps_here_++] = {0, 0};
      for (int s = 0; s <= z_; ++s) {
        tap.cell +=
            (at_[s].partner - box_[s].begin + at.at[s] * spacing_[s].partner) * box_[s].cell;
        tap.w += (at_[s].tap + at.at[s] * spacing_[s].tap) * p.axes[s].w_tap_stride;
      }
    } while (advance(at));
  }
  // As many channels of the weights, needed next.
  UNSHARED_INLINE void fetch(const T* next, int64_t steps) {
    Box box;
    for (int s = 0; s <= z_; ++s)
      box.add(p.axes[s].kernel, p.axes[s].w_tap_stride, p.axes[s].w_tap_stride);
    box.add(columns_, p.w_in_stride, p.w_in_stride);
    box.add(steps, p.w_out_stride, p.w_out_stride);
    ahead_[1] = lines_.of(box, next);
  }
  // The steps that follow those at hand, for streams to ask for. Their place in the table does not
  // depend on how many there are now: the last ones may be fewer.
  UNSHARED_INLINE void look_beyond(int64_t steps, int64_t after) {
    for (int64_t s = 0; s < steps; ++s) w_step_[most_steps + s] = w_step_[s] + after;
  }

  // Vectors: samples; rows: columns of one tap after the other; of complex sums, either part.
  UNSHARED_INLINE void rows_of_columns(const Real* dy, const T* w, int64_t steps) {
    Micro<Real> t{nullptr, dy,       nullptr, p.w_in_stride * reals, reals * lanes(), steps * reals,
                  w_step_, dy_step_, false};
    if constexpr (!Plan::plain) {
      t.a_row = widen_taps(w + taps_[0].w, steps);
      t.a_step = panel_step_;
    }
    for (int q = 0; q < taps_here_; ++q)
      for (int part = 0; part < reals; ++part) {
        if constexpr (Plan::plain)
          t.a = reinterpret_cast<const Real*>(w + taps_[q].w);
        else
          t.a = panel_ + widened_at_[q];
        if constexpr (reals == 2) {
          t.a_step = w_part_step_[part];
          t.b_step = part == 0 ? dy_step_ : im_step_;
        }
        t.c = sums_ + taps_[q].cell + part * lanes();
        micro_rows<false>(t, columns_, ceil_div(rows_, L::count), ahead_, nullptr);
      }
  }

  // The weights of all taps at hand into the panel; returns the distance of columns there.
  UNSHARED_INLINE int64_t widen_taps(const T* w, int64_t steps) {
    Box box;
    for (int s = 0; s <= z_; ++s)
      box.add(at_[s].count, spacing_[s].tap * p.axes[s].w_tap_stride, 0);
    const int depth = box.depth;
    box.add(steps, p.w_out_stride, 0);
    box.lanes = columns_;
    box.lane_memory = p.w_in_stride;
    if (widened_.find(box, Plan::widened_reals)) {
      const Box& packed = widened_.packed();
      for (int64_t t = 0; t < steps; ++t)
        panel_step_[t] = steps > 1 ? t * packed.loop[depth].memory : 0;
      Nest taps;
      for (int d = 0; d < depth; ++d) taps.add(packed.loop[d].count, packed.loop[d].memory, 0);
      taps.walk([&, q = 0](int64_t at, int64_t) mutable { widened_at_[q++] = at; });
    }
    widened_.bring(w, panel_);
    return widened_.packed().lane_memory;
  }

  // Rows: samples; vectors: `count` weights `apart` in memory, of columns or of columns and taps.
  UNSHARED_INLINE void rows_of_samples(const Real* dy, const T* w, int64_t apart, int64_t count,
                                       int64_t steps, int64_t next, Real* c, int64_t c_row) {
    if (plan_.packed && rows_ <= most_rows_turned)
      return columns_turned(dy, w, apart, count, steps, next, c, c_row);
    const int64_t lanes_of_w = count * reals;
    const int64_t vectors = ceil_div(lanes_of_w, L::count);
    int64_t most = deepest(rows_, vectors);
    if (plan_.packed) most = greater(1, lesser(most, Plan::panel_reals / (steps * L::count)));
    for (int64_t v = 0, wide; v < vectors; v += wide) {
      wide = ceil_div(vectors - v, ceil_div(vectors - v, most));
      const int64_t first = v * L::count, here = lesser(wide * L::count, lanes_of_w - first);
      const auto last = static_cast<int>(here - (wide - 1) * L::count);
      if (plan_.packed) {
        if constexpr (reals == 1) {
          const int64_t width = wide * L::count;
          const auto place = [&](int64_t j) __attribute__((always_inline)) { return j * width; };
          Mover<T, true>::square(w + first * apart, apart, here, panel_, place, steps,
                                 v + wide < vectors ? width * apart : next - first * apart);
          for (int64_t s = width == panel_width_ ? most_steps : 0; s < most_steps; ++s)
            panel_step_[s] = s * width;
          panel_width_ = width;
          Micro<Real> t{dy, panel_, c + first, y_row_, c_row, steps, dy_step_, panel_step_, false};
          if (plan_.direct) t.c_last = last;
          micro_rows<false>(t, rows_, wide, ahead_, nullptr);
        }
      } else {
        Micro<T> t{dy,    w + first / reals, c + first, y_row_, c_row,
                   steps, dy_step_,          w_step_,   false};
        if constexpr (reals == 2) t.signs = &signs_;
        t.ahead = most_steps;
        t.again = plan_.beyond ? soon : 0;
        t.last = last;
        if (plan_.direct) t.c_last = last;
        micro_rows<true>(t, rows_, wide, ahead_, nullptr);
      }
    }
  }

  // The same without a panel.
  UNSHARED_INLINE void columns_turned(const Real* dy, const T* w, int64_t apart, int64_t count,
                                      int64_t steps, int64_t next, Real* c, int64_t c_row) {
    Turned<T> t{dy, w, c, y_row_, c_row, apart, steps, turned_step_, false, false};
    if constexpr (reals == 2) t.signs = &signs_;
    constexpr int64_t lanes_of_w = Turned<T>::lanes_of_w;
    const int64_t place = p.axes[z_].w_place_stride;
    const bool small = magnitude(place) * int64_t{sizeof(T)} <= place_bytes;
    for (int64_t first = 0; first < count; first += lanes_of_w) {
      const bool more = first + lanes_of_w < count;
      t.ahead = small ? place : more ? lanes_of_w * apart : next - first * apart;
      t.lanes = static_cast<int>(lesser(lanes_of_w, count - first));
      if (plan_.direct) t.c_last = t.lanes;
      turned_rows(t, rows_);
      t.w += lanes_of_w * apart;
      t.c += L::count;
    }
  }

  // Vectors: all taps of some columns, as they lie in memory. The sums are brought into that order and
  // back.
  void all_taps(const Real* dy, int64_t channels, const T* w, int64_t next) {
    const int64_t joint = columns_ * plan_.taps, row = spaced<Real>(joint * reals);
    Element* const tile = reinterpret_cast<Element*>(tile_);
    Element* const all = reinterpret_cast<Element*>(sums_);
    Box sums;
    int64_t cell = 0, first = 0;
    sums.add(rows_, row / reals, lanes() / reals);
    for (int s = 0; s <= z_; ++s) {
      const int64_t tap = p.axes[s].w_tap_stride / plan_.unit;
      sums.add(at_[s].count, spacing_[s].tap * tap, spacing_[s].partner * box_[s].cell / reals);
      cell += (at_[s].partner - box_[s].begin) * box_[s].cell;
      first += at_[s].tap * tap;
    }
    sums.lanes = columns_;
    sums.lane_memory = p.w_in_stride / plan_.unit;
    // A place that sees all of its taps moves them as one run.
    find_taps();
    const bool run = taps_here_ == plan_.taps && sums.lane_memory == plan_.taps;
    const auto place = [&](int64_t q)
                           __attribute__((always_inline)) { return taps_[q].cell / reals; };
    if (run)
      for (int64_t m = 0; m < rows_; ++m)
        Mover<Element, false>::square(tile + m * row / reals, plan_.taps, columns_,
                                      all + m * lanes() / reals, place, plan_.taps, 0);
    else
      unstage(sums, tile + first, all + cell / reals);
    for (int64_t b = 0; b < channels; b += plan_.steps) {
      const int64_t steps = lesser(plan_.steps, channels - b);
      const T* const from = w + b * p.w_out_stride;
      const int64_t after =
          b + steps < channels ? steps * p.w_out_stride : next - b * p.w_out_stride;
      look_beyond(steps, after);
      rows_of_samples(dy + b * reals, from, plan_.unit, joint, steps, after, tile_, row);
    }
    if (run)
      for (int64_t m = 0; m < rows_; ++m)
        Mover<Element, true>::square(tile + m * row / reals, plan_.taps, columns_,
                                     all + m * lanes() / reals, place, plan_.taps, 0);
    else
      stage(sums, tile + first, all + cell / reals);
  }
  UNSHARED_INLINE bool advance(reference::Index& at) const {
    for (int s = z_; s >= 0; --s) {
      if (++at.at[s] < at_[s].count) return true;
      at.at[s] = 0;
    }
    return false;
  }

  struct Tap {
    int64_t cell, w;  // where its sums are, and its weights
  };

  const Problem& p;
  const Call& call_;
  const Plan& plan_;
  const int z_;  // the last axis
  Spacing spacing_[max_axes];
  Range box_[max_axes];
  Reach at_[max_axes];  // of the place at hand, within the box
  int64_t column_ = 0, columns_ = 0, rows_ = 0;
  int64_t cell_ = 0, y_row_ = 0, panel_width_ = 0;
  Real* c_ = nullptr;  // sums of the box
  int64_t c_row_ = 0;  // their rows
  Lines ahead_[2];
  LineList<768, most_steps> lines_;
  int taps_here_ = 0;  // that join the place at hand to the box
  Tap taps_[Plan::most_taps];
  Widened<T> widened_;
  int64_t widened_at_[Plan::most_taps];  // the taps at hand, in the panel
  int64_t turned_step_[most_steps];
  int64_t w_step_[2 * most_steps], dy_step_[reals * most_steps], panel_step_[most_steps];
  // Over samples, of complex elements: the steps of w for either part of the sums, of dy for the imaginary one.
  static constexpr int part_steps = reals == 2 ? 2 * most_steps : 1;
  int64_t w_part_step_[2][part_steps], im_step_[part_steps];
  SampleParts<Real> parts_;
  const Signs<Real> signs_;
  Real* const tile_ = sums_ + plan_.sums_reals();
  Real* const panel_ =
      sums_ + plan_.arena_reals() - (over_samples() ? Plan::widened_room : Plan::panel_reals);
  Real* const staged_ = sums_ + plan_.arena_reals();
  alignas(64) Real sums_[Plan::scratch_reals];
};

static_assert(sizeof(Scatter<float>) <= most_scratch && sizeof(Scatter<double>) <= most_scratch &&
              sizeof(Scatter<Half>) <= most_scratch &&
              sizeof(Scatter<Complex<float>>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
