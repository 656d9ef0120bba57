// Kernel "patch": grad_weight place by place, for few samples and weights whose taps lie side by side
// in memory.
//
// There the gradients of one place and output channel are one run of memory, [input channels][taps].
// What a place sees of x is put into that order in scratch, one sample after the other, and each run
// is a small matrix product over the samples, whose lanes run along memory. Putting a patch together
// costs the less the more output channels use it.
// Accumulator: float32 for half types, else the element type. Order: n ascending. Deterministic:
// each dw[o, k, a, b] is one chain of one worker. Taps in padding get an empty chain.
#pragma once

#include "micro.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
struct PatchPlan {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  static constexpr int64_t line = 64 / sizeof(Real);
  static constexpr int most_samples = 64, longest_strip = 16;
  static constexpr int64_t window_reals = 72 * 1024 / sizeof(Real);
  static constexpr int64_t patch_reals = 64 * 1024 / sizeof(Real);
  static constexpr int64_t dy_reals = 32 * 1024 / sizeof(Real);

  int64_t taps = 1;
  int64_t width = 0, parts = 1;  // input channels of a patch; 0: it does not fit
  int64_t strips = 1;  // of places along the last axis
  int64_t channels = 1;  // of dy, staged together
  int64_t items = 0;

  explicit UNSHARED_INLINE PatchPlan(const Problem& p) {
    const Axis& last = p.axes[p.axis_count - 1];
    taps = taps_of(p);
    const int64_t n = greater(1, p.batch), a = greater(1, p.in_channels);
    if (n > most_samples || taps > max_extent / most_samples) return;
    const int64_t most =
        lesser((patch_reals / n - 2 * line) / taps, window_reals / n / taps / L::count * L::count);
    if (most < lesser(a, L::count)) return;
    const int64_t whole = most < L::count ? most : most / L::count * L::count;
    width = ceil_div(a, ceil_div(a, whole));
    if (width > L::count) width = ceil_div(width, L::count) * L::count;
    parts = ceil_div(a, width);
    const int64_t pixel = n * padded<Real>(width) * (taps / last.kernel);
    int64_t places = 1;
    while (places < lesser(last.output, longest_strip) &&
           window_of(last, false, places + 1) * pixel <= window_reals)
      ++places;
    strips = greater(1, ceil_div(last.output, places));
    channels = lesser(greater(1, p.out_channels), dy_reals / n / line * line - line);
    items = parts * strips * Cell::count(p, Face::grad_weight) / greater(1, last.output);
  }
};

// Why it cannot, or nullptr.
template <class T>
UNSHARED_INLINE const char* patch_unable(const Problem& p) {
  if (Scalar<T>::parts == 2) return "complex samples must be made pairs of";
  if (p.batch == 0) return "there is no sample";
  if (!taps_lie_side_by_side(p)) return "the taps of a place do not lie side by side";
  if (PatchPlan<T>(p).width == 0) return "a patch does not fit into scratch";
  return nullptr;
}
template <class T>
bool patch_able(const Problem& p) noexcept {
  return patch_unable<T>(p) == nullptr;
}
template <class T>
const char* patch_declines(const Problem& p) noexcept {
  if (const char* why = patch_unable<T>(p)) return why;
  if (PatchPlan<T>(p).taps == 1) return "there is one tap";
  const int64_t least = beyond_caches<T>(p) && p.batch <= 2 ? 16 : greater(48, 2 * p.batch);
  if (p.out_channels < least || (p.batch > 1 && p.in_channels < 8))
    return "few channels of dy would use a patch";
  return nullptr;
}

template <class T>
class Patch {
  using Plan = PatchPlan<T>;
  using Real = typename Plan::Real;
  using L = typename Plan::L;
  using S = Stored<T>;

 public:
  UNSHARED_INLINE Patch(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem),
        call_(call),
        plan_(plan),
        z_(problem.axis_count - 1),
        around_(!call.accumulate && beyond_caches<T>(problem)) {
    for (int s = 0; s <= z_; ++s) spacing_[s] = spacing_of(p.axes[s], false);
    for (int64_t n = 0; n < p.batch; ++n)
      patch_step_[n] = n * spaced<Real>(plan_.width * plan_.taps);
  }

  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t rest = item / plan_.parts;
      const int64_t part = item % plan_.parts, strip = rest % plan_.strips;
      rest /= plan_.strips;
      for (int s = z_ - 1; s >= 0; --s) {
        at_[s] = rest % p.axes[s].output;
        rest /= p.axes[s].output;
        reach_[s] = reach_of(p.axes[s], false, at_[s], spacing_[s].tap);
      }
      column_ = part * plan_.width;
      columns_ = lesser(plan_.width, p.in_channels - column_);
      compute(strip * p.axes[z_].output / plan_.strips,
              (strip + 1) * p.axes[z_].output / plan_.strips);
    }
    if (around_) written_around();
  }

 private:
  static constexpr bool plain = sizeof(T) == sizeof(Real);

  // The places [begin, end) of a row.
  void compute(int64_t begin, int64_t end) {
    stage_window(begin, end);
    T* dw = static_cast<T*>(call_.result) + column_ * p.w_in_stride;
    const T* dy = static_cast<const T*>(call_.second);
    for (int s = 0; s < z_; ++s) {
      dw += at_[s] * p.axes[s].w_place_stride;
      dy += at_[s] * p.axes[s].y_stride;
    }
    const Axis& last = p.axes[z_];
    for (at_[z_] = begin; at_[z_] < end; ++at_[z_]) {
      reach_[z_] = reach_of(last, false, at_[z_], spacing_[z_].tap);
      T* const to = dw + at_[z_] * last.w_place_stride;
      if (put_together()) multiply(dy + at_[z_] * last.y_stride, to);
      if (!call_.accumulate) clear_padding(to);
    }
  }

  // What all places of the strip see: [first axes][pixels][samples][channels].
  void stage_window(int64_t begin, int64_t end) {
    const Axis& last = p.axes[z_];
    int64_t high = low_ = -1;
    for (int64_t o = begin; o < end; ++o) {
      const Reach r = reach_of(last, false, o, spacing_[z_].tap);
      if (r.count == 0) continue;
      if (low_ < 0 || r.partner < low_) low_ = r.partner;
      high = greater(high, r.partner + (r.count - 1) * spacing_[z_].partner);
    }
    if (low_ < 0) return;
    unit_ = end - begin == 1 ? spacing_[z_].partner : 1;
    const int64_t row = padded<Real>(plan_.width);
    pixel_[z_] = p.batch * row;
    int64_t size = ((high - low_) / unit_ + 1) * pixel_[z_];
    for (int s = z_ - 1; s >= 0; --s) {
      pixel_[s] = size;
      size *= reach_[s].count;
    }
    if (size == 0) return;
    Box box;
    const T* x =
        static_cast<const T*>(call_.first) + column_ * p.x_channel_stride + low_ * last.x_stride;
    for (int s = 0; s < z_; ++s) {
      x += reach_[s].partner * p.axes[s].x_stride;
      box.add(reach_[s].count, spacing_[s].partner * p.axes[s].x_stride, pixel_[s]);
    }
    box.add((high - low_) / unit_ + 1, unit_ * last.x_stride, pixel_[z_]);
    box.add(p.batch, p.x_batch_stride, row);
    box.lanes = columns_;
    box.lane_memory = p.x_channel_stride;
    stage(box, x, window_);
  }

  // The patch of the place at hand, as its weights lie; false if it is all padding.
  bool put_together() {
    int64_t from = 0, to = 0;
    Box box;
    box.add(p.batch, spaced<Real>(plan_.width * plan_.taps), padded<Real>(plan_.width));
    for (int s = 0; s <= z_; ++s) {
      if (reach_[s].count == 0) return false;
      box.add(reach_[s].count, spacing_[s].tap * p.axes[s].w_tap_stride,
              s == z_ ? spacing_[s].partner / unit_ * pixel_[s] : pixel_[s]);
      to += reach_[s].tap * p.axes[s].w_tap_stride;
    }
    from = (reach_[z_].partner - low_) / unit_ * pixel_[z_];
    box.lanes = columns_;
    box.lane_memory = plan_.taps;
    unstage(box, patch_ + to, window_ + from);
    return true;
  }

  void multiply(const T* y, T* dw) {
    const int64_t joint = columns_ * plan_.taps, whole = joint / L::count;
    for (int64_t b = 0; b < p.out_channels; b += plan_.channels) {
      const int64_t rows = lesser(plan_.channels, p.out_channels - b);
      const int64_t y_row = spaced<Real>(rows);
      Box box;
      box.add(p.batch, p.y_batch_stride, y_row);
      box.lanes = rows;
      box.lane_memory = p.y_channel_stride;
      stage(box, y + b * p.y_channel_stride, dy_);
      for (int64_t n = 0; n < p.batch; ++n) dy_step_[n] = n * y_row;
      T* const to = dw + b * p.w_out_stride;
      int64_t done = 0;
      if constexpr (plain)
        for (int64_t wide; done < whole; done += wide) {
          wide = lesser(whole - done, most_vectors);
          tiles(to + done * L::count, p.w_out_stride, done, wide, rows, 0, !call_.accumulate);
        }
      for (; done * L::count < joint; ++done)
        by_parts(to + done * L::count, done, rows,
                 static_cast<int>(lesser(L::count, joint - done * L::count)));
    }
  }
  UNSHARED_INLINE void tiles(Real* c, int64_t c_row, int64_t vector, int64_t wide, int64_t rows,
                             int64_t first, bool from_zero) {
    Micro<Real> t{
        dy_ + first, patch_ + vector * L::count, c, 1, c_row, p.batch, dy_step_, patch_step_,
        from_zero};
    t.around = around_ && c != sums_ && aligned(c, c_row);
    micro_rows<false>(t, rows, wide, ahead_, nullptr);
  }
  // Vectors of which only some lanes are dw's, or whose elements must be rounded.
  void by_parts(T* dw, int64_t vector, int64_t rows, int lanes) {
    for (int64_t first = 0; first < rows; first += most_rows(1)) {
      const int64_t here = lesser(most_rows(1), rows - first);
      T* const to = dw + first * p.w_out_stride;
      if (call_.accumulate)
        for (int64_t m = 0; m < here; ++m)
          L::store(sums_ + m * L::count, S::load_part(to + m * p.w_out_stride, lanes));
      tiles(sums_, L::count, vector, 1, here, first, !call_.accumulate);
      for (int64_t m = 0; m < here; ++m)
        S::store_part(to + m * p.w_out_stride, L::load(sums_ + m * L::count), lanes);
    }
  }

  void clear_padding(T* dw) const {
    each_tap_in_padding(p, at_, [&](int64_t w) {
      for (int64_t b = 0; b < p.out_channels; ++b)
        for (int64_t a = 0; a < columns_; ++a) dw[w + b * p.w_out_stride + a * p.w_in_stride] = T{};
    });
  }

  const Problem& p;
  const Call& call_;
  const Plan& plan_;
  const int z_;  // the last axis
  const bool around_;
  Spacing spacing_[max_axes];
  Reach reach_[max_axes];
  int64_t at_[max_axes];  // the place at hand
  int64_t column_ = 0, columns_ = 0;
  int64_t low_ = -1, unit_ = 1, pixel_[max_axes];  // of the window
  Lines ahead_[2];
  int64_t dy_step_[Plan::most_samples], patch_step_[Plan::most_samples];
  alignas(64) Real window_[Plan::window_reals + L::count];
  alignas(64) Real patch_[Plan::patch_reals + L::count] = {};
  alignas(64) Real dy_[Plan::dy_reals + L::count];
  alignas(64) Real sums_[most_rows(1) * L::count];
};

static_assert(sizeof(Patch<float>) <= most_scratch && sizeof(Patch<double>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
