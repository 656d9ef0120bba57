// Kernel "scatter": grad_input place by place, for weights whose taps lie side by side in memory.
//
// There a pixel's own weights are single elements, one or two of a line, but a place's are whole
// lines. So the sums of a box of pixels stay in scratch while the places that reach it go by, in
// ascending order: each takes its lines once and continues the chain of every pixel it reaches by its
// channels of dy, as a small matrix product. Lanes run over samples, weights broadcast from where
// they are, or, with few samples, over columns and taps, as they lie in memory.
// Accumulator: float32 for half types, else the element type. Order: places ascending, for each b
// ascending, as the nest of a pixel has it. Deterministic: one chain, one worker.
#pragma once

#include "lines.hpp"
#include "scatter_plan.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Why it cannot, or nullptr.
template <class T>
UNSHARED_INLINE const char* scatter_unable(const Problem& p) {
  if (Scalar<T>::parts == 2) return "complex weights must be made pairs of";
  const int64_t taps = taps_of(p);
  if (taps == 1) return "there is one tap";
  if (!taps_lie_side_by_side(p)) return "the taps of a place do not lie side by side";
  if (taps > ScatterPlan<T>::most_taps) return "too many taps";
  return nullptr;
}
template <class T>
bool scatter_able(const Problem& p) noexcept {
  return scatter_unable<T>(p) == nullptr;
}
template <class T>
const char* scatter_declines(const Problem& p) noexcept {
  if (const char* why = scatter_unable<T>(p)) return why;
  // What a place adds to a pixel must be worth bringing its sums.
  if (p.out_channels < (ScatterPlan<T>::over_lanes_of_samples(p) ? 12 : 4))
    return "few channels of dy: the weights of several places stay in a cache";
  return nullptr;
}

template <class T>
class Scatter {
  using Plan = ScatterPlan<T>;
  using Real = typename Plan::Real;
  using L = typename Plan::L;

 public:
  UNSHARED_INLINE Scatter(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem), call_(call), plan_(plan), z_(problem.axis_count - 1) {
    for (int s = 0; s <= z_; ++s) spacing_[s] = spacing_of(p.axes[s], false);
    cell_ = (plan.over_samples ? plan.width : plan.rows) * lanes();
    for (int64_t t = 0; t < most_steps; ++t) {
      w_step_[t] = t * p.w_out_stride;
      dy_step_[t] = t * (plan.over_samples ? lanes() : 1);
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
        box_[s].cell = cell;
        cell *= box_[s].end - box_[s].begin;
      }
      column_ = item % plan_.parts * plan_.width;
      columns_ = lesser(plan_.width, p.in_channels - column_);
      for (int64_t n = 0; n < p.batch; n += plan_.rows) compute(n);
    }
  }

 private:
  static constexpr int most_steps = Plan::most_steps;

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

  // The lanes of a row of scratch.
  UNSHARED_INLINE int64_t lanes() const {
    return plan_.over_samples ? plan_.rows : padded<Real>(plan_.width);
  }

  // The box at hand, samples from n on.
  void compute(int64_t n) {
    rows_ = lesser(plan_.rows, p.batch - n);
    T* dx = static_cast<T*>(call_.result) + n * p.x_batch_stride + column_ * p.x_channel_stride;
    int64_t reals = cell_;
    Box sums;
    for (int s = 0; s <= z_; ++s) {
      const int64_t count = box_[s].end - box_[s].begin;
      sums.add(count, p.axes[s].x_stride, box_[s].cell);
      dx += box_[s].begin * p.axes[s].x_stride;
      reals *= count;
    }
    if (plan_.over_samples)
      lay(sums, columns_, p.x_channel_stride, rows_, p.x_batch_stride);
    else
      lay(sums, rows_, p.x_batch_stride, columns_, p.x_channel_stride);
    if (call_.accumulate)
      stage(sums, dx, sums_);
    else
      for (int64_t j = 0; j < reals; j += L::count) L::store(sums_ + j, L::zero());
    all_places(static_cast<const T*>(call_.first) + n * p.y_batch_stride,
               static_cast<const T*>(call_.second) + column_ * p.w_in_stride);
    unstage(sums, dx, sums_);
  }
  UNSHARED_INLINE void lay(Box& box, int64_t rows, int64_t row, int64_t count, int64_t lane) const {
    box.add(rows, row, lanes());
    box.lanes = count;
    box.lane_memory = lane;
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
      if (plan_.over_samples) {
        place = channels * lanes();
        dy.add(count, last.y_stride, place);
        lay(dy, channels, p.y_channel_stride, rows_, p.y_batch_stride);
      } else {
        y_row_ = spaced<Real>(channels);
        place = plan_.rows * y_row_;
        dy.add(count, last.y_stride, place);
        dy.add(rows_, p.y_batch_stride, y_row_);
        dy.lanes = channels;
        dy.lane_memory = p.y_channel_stride;
      }
      stage(dy, y + begin * last.y_stride + b * p.y_channel_stride, staged_);
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
    if (plan_.over_samples) {
      if constexpr (Plan::plain) tap_by_tap(dy, channels, w, next);
    } else {
      all_taps(dy, channels, w, next);
    }
  }

  // Rows: columns of one tap; vectors: samples.
  void tap_by_tap(const Real* dy, int64_t channels, const T* w, int64_t next) {
    reference::Index at{};
    int taps = 0;
    do {
      Tap& tap = taps_[taps++] = {0, 0};
      for (int s = 0; s <= z_; ++s) {
        tap.cell +=
            (at_[s].partner - box_[s].begin + at.at[s] * spacing_[s].partner) * box_[s].cell;
        tap.w += (at_[s].tap + at.at[s] * spacing_[s].tap) * p.axes[s].w_tap_stride;
      }
    } while (advance(at));
    for (int64_t b = 0; b < channels; b += plan_.steps) {
      const int64_t steps = lesser(plan_.steps, channels - b);
      const T* const from = w + b * p.w_out_stride;
      fetch(from + (b + steps < channels ? steps * p.w_out_stride : next - b * p.w_out_stride),
            steps);
      for (int q = 0; q < taps; ++q) {
        const Micro<Real> t{from + taps_[q].w, dy + b * lanes(), sums_ + taps_[q].cell,
                            p.w_in_stride,     lanes(),          steps,
                            w_step_,           dy_step_,         false};
        micro_rows<false>(t, columns_, ceil_div(rows_, L::count), ahead_, nullptr);
      }
    }
  }
  // So many channels of the weights, needed next.
  UNSHARED_INLINE void fetch(const T* next, int64_t steps) {
    Box box;
    box.add(steps, p.w_out_stride, p.w_out_stride);
    box.lanes = columns_ * plan_.taps;
    ahead_[1] = lines_.of(box, next);
  }

  // Rows: samples; vectors: all taps of some columns, as they lie in memory. The sums are brought
  // into that order and back.
  void all_taps(const Real* dy, int64_t channels, const T* w, int64_t next) {
    const int64_t joint = columns_ * plan_.taps, row = spaced<Real>(joint);
    const int64_t vectors = ceil_div(joint, L::count);
    Box sums;
    int64_t cell = 0, first = 0;
    sums.add(rows_, row, lanes());
    for (int s = 0; s <= z_; ++s) {
      sums.add(at_[s].count, spacing_[s].tap * p.axes[s].w_tap_stride,
               spacing_[s].partner * box_[s].cell);
      cell += (at_[s].partner - box_[s].begin) * box_[s].cell;
      first += at_[s].tap * p.axes[s].w_tap_stride;
    }
    sums.lanes = columns_;
    sums.lane_memory = plan_.taps;
    unstage(sums, tile_ + first, sums_ + cell);
    const int most = rows_ <= tallest_rows(4) ? 4 : rows_ <= tallest_rows(3) ? 3 : 2;
    for (int64_t b = 0; b < channels; b += plan_.steps) {
      Micro<T> t{};
      t.steps = lesser(plan_.steps, channels - b);
      const T* const from = w + b * p.w_out_stride;
      const int64_t after =
          b + t.steps < channels ? t.steps * p.w_out_stride : next - b * p.w_out_stride;
      for (int64_t s = 0; s < t.steps; ++s) w_step_[t.steps + s] = w_step_[s] + after;
      t.ahead = t.steps;
      t.a = dy + b;
      t.a_row = y_row_;
      t.c_row = row;
      t.a_step = dy_step_;
      t.b_step = w_step_;
      for (int64_t v = 0, wide; v < vectors; v += wide) {
        wide = ceil_div(vectors - v, ceil_div(vectors - v, most));
        t.b = from + v * L::count;
        t.c = tile_ + v * L::count;
        t.last = static_cast<int>(lesser(L::count, joint - (v + wide - 1) * L::count));
        micro_rows<true>(t, rows_, wide, ahead_, nullptr);
      }
    }
    stage(sums, tile_ + first, sums_ + cell);
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
  int64_t cell_ = 0, y_row_ = 0;
  Lines ahead_[2];
  LineList<768, most_steps> lines_;
  Tap taps_[Plan::most_taps];
  int64_t w_step_[2 * most_steps], dy_step_[most_steps];
  alignas(64) Real sums_[Plan::sums_reals];
  alignas(64) Real staged_[Plan::stage_reals];
  alignas(64) Real tile_[Plan::tile_reals + L::count] = {};
};

static_assert(sizeof(Scatter<float>) <= most_scratch && sizeof(Scatter<double>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
