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

#include "along_plan.hpp"
#include "stage.hpp"
#include "weigh_tile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
struct PatchPlan {
  using Real = Moved<T>;
  using L = Lanes<Real>;
  static constexpr int factors = Scalar<T>::parts;  // in scratch, of an element of dy
  static constexpr int64_t line = 64 / sizeof(Real);
  static constexpr int most_samples = 64, longest_strip = 16;
  static constexpr int64_t window_reals = 240 * 1024 / sizeof(Real);
  static constexpr int64_t patch_reals = 96 * 1024 / sizeof(Real);
  static constexpr int64_t dy_reals = 96 * 1024 / sizeof(Real);

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
    channels = lesser(greater(1, p.out_channels), dy_reals / factors / n / line * line - line);
    items = parts * strips * Cell::count(p, Face::grad_weight) / greater(1, last.output);
  }
};

// Why it cannot, or nullptr.
template <class T>
UNSHARED_INLINE const char* patch_unable(const Problem& p) {
  if (!has_lanes<T>) return without_lanes;
  if (p.batch == 0) return "there is no sample";
  if (!taps_lie_side_by_side(p)) return "the taps of a place do not lie side by side";
  if (PatchPlan<T>(p).width == 0) return "a patch does not fit into scratch";
  return nullptr;
}
template <class T>
bool patch_able(const Problem& p) noexcept {
  return patch_unable<T>(p) == nullptr;
}
// What it takes to make a patch is shared by the channels of dy. Fewer are enough where there are few
// samples, or where a place has so many weights that those of weigh would be scattered over memory.
template <class T>
const char* patch_declines(const Problem& p) noexcept {
  constexpr int64_t lanes = PatchPlan<T>::L::count;
  if (const char* why = patch_unable<T>(p)) return why;
  if (taps_of(p) == 1) return "there is one tap";
  const int64_t n = p.batch, a = p.in_channels, b = p.out_channels, columns = a * taps_of(p);
  const bool few = Scalar<T>::parts == 2
                       ? columns < 8 * lanes
                       : few_weights<T>(p) && lesser(a * b, max_extent) <= (1 + n) * lanes;
  if (few && along_declines<T, Face::grad_weight>(p) == nullptr)
    return "few pairs of channels: lanes run along places";
  if (columns < 64 && n > 2 && p.y_channel_stride != 1)
    return "dy of a place, far apart, would be fetched for few weights";
  const bool filled = 2 * greater(a, b) > lanes;  // by channels: kernel along mostly declines
  const int64_t least = n <= 2            ? (filled ? 6 : 32)
                        : columns >= 1000 ? greater(16, n)
                        : columns >= 250  ? greater(32, 2 * n)
                        : columns >= 64   ? greater(32, lesser(8 * n, 48 + n))
                                          : greater(64, 16 * n);
  return b < least ? "few channels of dy would use a patch" : nullptr;
}

template <class T>
class Patch {
  using Plan = PatchPlan<T>;
  using Real = typename Plan::Real;
  using L = typename Plan::L;
  using Part = typename Scalar<T>::Real;
  static constexpr bool complex = Scalar<T>::parts == 2;

 public:
  UNSHARED_INLINE Patch(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem),
        call_(call),
        plan_(plan),
        z_(problem.axis_count - 1),
        signs_(call.conjugate_first, call.conjugate_second),
        around_(!call.accumulate && beyond_caches<T>(problem, most_samples_around)) {
    for (int s = 0; s <= z_; ++s) spacing_[s] = spacing_of(p.axes[s], false);
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
  static constexpr int64_t rows_at_a_time = 24;

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
      const bool any = put_together();
      finite_ = true;
      if (any) multiply(dy + at_[z_] * last.y_stride, to);
      // Zeros in the patch leave zeros, unless multiplied with what is not finite.
      if (!call_.accumulate && !whole_ && !(any && finite_))
        clear_padding(p, at_, to, columns_, p.out_channels);
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

  // The patch of the place at hand, as its weights lie, with zeros for taps in padding; false if it
  // is all padding.
  bool put_together() {
    const int64_t row = spaced<Real>(plan_.width * plan_.taps);
    whole_ = true;
    for (int s = 0; s <= z_; ++s) whole_ = whole_ && reach_[s].count == p.axes[s].kernel;
    if (!whole_)
      for (int64_t j = 0; j < p.batch * row; j += L::count) L::store(patch_ + j, L::zero());
    else  // the last vector of a row may have lanes that are no one's, and are multiplied
      for (int64_t n = 0; n < p.batch; ++n)
        L::store(patch_ + n * row + (columns_ * plan_.taps - 1) / L::count * L::count, L::zero());
    int64_t from = 0, to = 0;
    Box box;
    box.add(p.batch, row, padded<Real>(plan_.width));
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
    const int64_t joint = columns_ * plan_.taps, vectors = ceil_div(joint, L::count);
    for (int64_t b = 0; b < p.out_channels; b += plan_.channels) {
      const int64_t rows = lesser(plan_.channels, p.out_channels - b);
      const int64_t y_row = spaced<Real>(rows);
      Box box;
      box.add(p.batch, p.y_batch_stride, y_row);
      box.lanes = rows;
      box.lane_memory = p.y_channel_stride;
      stage(box, y + b * p.y_channel_stride, dy_);
      if (!whole_)
        for (int64_t n = 0; n < p.batch; ++n)
          finite_ =
              all_finite(reinterpret_cast<const Part*>(dy_ + n * y_row), Scalar<T>::parts * rows) &&
              finite_;
      if constexpr (complex)
        make_factors(reinterpret_cast<Part*>(dy_), 2 * p.batch * y_row, signs_);
      // Some rows at a time, each from end to end: memory takes long runs better.
      for (int64_t first = 0; first < rows; first += rows_at_a_time) {
        const int64_t here = lesser(rows_at_a_time, rows - first);
        T* const to = dw + (b + first) * p.w_out_stride;
        const int64_t unit = around_ ? vectors_together(to, p.w_out_stride) : 1;
        for (int64_t done = 0, wide; done < vectors; done += wide) {
          wide = lesser(vectors - done, weighed_vectors / unit * unit);
          const int64_t lanes = lesser(wide * L::count, joint - done * L::count);
          tiles(to + done * L::count, done, wide, lanes - (wide - 1) * L::count, first, here,
                y_row);
        }
      }
    }
  }
  static UNSHARED_INLINE bool all_finite(const Part* v, int64_t count) {
    int finite = 1;
    for (int64_t j = 0; j < count; ++j) finite &= v[j] - v[j] == 0;
    return finite != 0;
  }
  // Rows: channels of dy from `first` on; vectors: of the patch; of the last one so many lanes.
  UNSHARED_INLINE void tiles(T* c, int64_t vector, int64_t wide, int64_t last, int64_t first,
                             int64_t rows, int64_t y_row) {
    switch (wide) {
      case 1: return tiles<1>(c, vector, last, first, rows, y_row);
      case 2: return tiles<2>(c, vector, last, first, rows, y_row);
      case 3: return tiles<3>(c, vector, last, first, rows, y_row);
      default: return tiles<weighed_vectors>(c, vector, last, first, rows, y_row);
    }
  }
  template <int V>
  UNSHARED_INLINE void tiles(T* c, int64_t vector, int64_t last, int64_t first, int64_t rows,
                             int64_t y_row) {
    const int64_t c_row = p.w_out_stride;
    Weighed<T> t{};
    t.a = dy_ + first;
    t.b = patch_ + vector * L::count;
    t.c = c;
    t.a_step = y_row;
    t.b_step = spaced<Real>(plan_.width * plan_.taps);
    t.c_row = c_row;
    t.steps = p.batch;
    t.second = p.batch * y_row;
    t.last = static_cast<int>(last);
    t.from_zero = !call_.accumulate;
    t.in_ahead = reinterpret_cast<const char*>(patch_);
    int64_t count = ceil_div(rows, weighed_rows_of[V]);
    for (int64_t row = 0; row < rows; --count) {
      const int64_t height = ceil_div(rows - row, count);
      t.around = around_ && last == L::count && whole_lines(t.c, c_row, V);
      t.out_row = t.around ? 0 : c_row * int64_t{sizeof(T)};
      t.out_ahead = reinterpret_cast<const char*>(t.c + height * c_row);
      WeighedTiles<T, complex, V>::All::of_rows[height - 1](t);
      t.a += height;
      t.c += height * c_row;
      row += height;
    }
  }
  const Problem& p;
  const Call& call_;
  const Plan& plan_;
  const int z_;  // the last axis
  const Signs<Part> signs_;
  const bool around_;
  Spacing spacing_[max_axes];
  Reach reach_[max_axes];
  int64_t at_[max_axes];  // the place at hand
  bool whole_ = true, finite_ = true;  // whether it has no taps in padding; its channels of dy
  int64_t column_ = 0, columns_ = 0;
  int64_t low_ = -1, unit_ = 1, pixel_[max_axes];  // of the window
  alignas(64) Real window_[Plan::window_reals + L::count];
  alignas(64) Real patch_[Plan::patch_reals + L::count];
  alignas(64) Real dy_[Plan::dy_reals + L::count];
};

static_assert(sizeof(Patch<float>) <= most_scratch && sizeof(Patch<double>) <= most_scratch &&
              sizeof(Patch<Complex<float>>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
