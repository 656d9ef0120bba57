// Kernels whose lanes run along an axis of places or groups: for few channels (depthwise, a scale
// for every pixel, one filter along a line), where lanes over channels would stay empty.
//
// Neighbouring cells have weights of their own, so both factors are vectors and nothing is
// broadcast: result[lane] = chain over steps of small[lane] * w[lane], on a tile of samples by
// channels (grad_weight: taps or input channels by output channels). Operands are read in place
// where their memory runs along the lanes, else staged; lanes that fall into padding are masked, so
// that their chain skips the tap.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face. Deterministic: each result element is one chain in one worker.
#pragma once

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

inline constexpr int along_rows = 8, along_columns = 2;
inline constexpr int64_t along_bytes =
    64 * 1024;  // of the small tensor, and of weights, as scratch

struct Span {
  std::int16_t first, last;  // the lanes that take part in a step
};

template <class Real>
struct AlongTile {
  const Real* a;
  const Real* b;
  Real* c;
  int64_t a_row, b_column, c_row, c_column, steps;
  const int64_t* a_step;
  const int64_t* b_step;
  const Span* span;  // nullptr: all lanes in every step
  bool from_zero;
};

template <class Real, int M, int V, bool masked>
void along_tile(const AlongTile<Real>& t) {
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      sum[m][v] = t.from_zero ? L::zero() : L::load(t.c + m * t.c_row + v * t.c_column);
  for (int64_t s = 0; s < t.steps; ++s) {
    const Real* row = t.a + t.a_step[s];
    const Real* column = t.b + t.b_step[s];
    typename L::Vector w[V];
    const auto mask = masked ? L::span(t.span[s].first, t.span[s].last) : typename L::Mask{};
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) w[v] = L::load(column + v * t.b_column);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const typename L::Vector one = L::load(row + m * t.a_row);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        sum[m][v] =
            masked ? L::chain_where(mask, one, w[v], sum[m][v]) : L::chain(one, w[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) L::store(t.c + m * t.c_row + v * t.c_column, sum[m][v]);
}

template <class Real, bool masked>
struct AlongTiles {
  using Function = void (*)(const AlongTile<Real>&);
  template <int... m>
  static UNSHARED_INLINE Function of(int64_t rows, int64_t columns,
                                     std::integer_sequence<int, m...>) {
    static constexpr Function table[2][along_rows] = {{along_tile<Real, m + 1, 1, masked>...},
                                                      {along_tile<Real, m + 1, 2, masked>...}};
    return table[columns - 1][rows - 1];
  }
};

// A tile of any height and width, in as many pieces as it takes.
template <class Real>
UNSHARED_INLINE void run_along(const AlongTile<Real>& whole, int64_t rows, int64_t columns) {
  constexpr auto heights = std::make_integer_sequence<int, along_rows>{};
  for (int64_t m = 0; m < rows; m += along_rows)
    for (int64_t v = 0; v < columns; v += along_columns) {
      AlongTile<Real> t = whole;
      t.a += m * t.a_row;
      t.b += v * t.b_column;
      t.c += m * t.c_row + v * t.c_column;
      const int64_t height = lesser(along_rows, rows - m);
      const int64_t width = lesser(along_columns, columns - v);
      if (t.span != nullptr)
        AlongTiles<Real, true>::of(height, width, heights)(t);
      else
        AlongTiles<Real, false>::of(height, width, heights)(t);
    }
}

// The axis lanes run along: one whose neighbours shift by one, best one that memory follows.
template <class T>
UNSHARED_INLINE int along_axis(const Problem& p, Face face) {
  constexpr int lanes = Lanes<typename Scalar<T>::Real>::count;
  int best = -1, best_score = -1;
  for (int s = 0; s < p.axis_count; ++s) {
    const Axis& axis = p.axes[s];
    const int64_t cells = face == Face::grad_input ? axis.input : axis.output;
    if (axis.stride != 1 || axis.input_dilation != 1 || 2 * cells < lanes) continue;
    const int score = (axis.x_stride == 1 ? 4 : 0) + (axis.y_stride == 1 ? 4 : 0) +
                      (axis.w_place_stride == 1 ? 3 : 0) + (s == p.axis_count - 1 ? 1 : 0);
    if (score > best_score) {
      best = s;
      best_score = score;
    }
  }
  return best;
}

template <class T, Face face>
const char* along_declines(const Problem& p) noexcept {
  if constexpr (Scalar<T>::parts == 2) {
    return "complex products do not fit lanes of single reals";
  } else {
    using Real = typename Scalar<T>::Real;
    constexpr int lanes = Lanes<Real>::count;
    const int64_t columns = face == Face::forward      ? p.out_channels
                            : face == Face::grad_input ? p.in_channels
                                                       : greater(p.in_channels, p.out_channels);
    if (2 * columns > lanes) return "there are channels enough to fill lanes with";
    const int axis = along_axis<T>(p, face);
    if (axis < 0) return "no axis of at least half a vector of places or groups with stride 1";
    int64_t others = 1;  // taps along the other axes
    for (int s = 0; s < p.axis_count; ++s)
      if (s != axis) others = lesser(others * p.axes[s].kernel, max_extent);
    const int64_t kernel = p.axes[axis].kernel, reach = (kernel - 1) * p.axes[axis].dilation;
    if (reach > 64 || others * (reach + 3 * lanes) * int64_t{sizeof(Real)} > along_bytes ||
        others * kernel * lanes * int64_t{sizeof(Real)} > along_bytes)
      return "the kernel is too large for the scratch of lanes over places";
    return nullptr;
  }
}

template <class T, Face face>
class Along {
 public:
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;

  UNSHARED_INLINE Along(const Problem& problem, const Call& call)
      : p(problem),
        accumulate_(call.accumulate),
        axis_(along_axis<T>(problem, face)),
        along_(problem.axes[axis_]),
        first_(static_cast<const T*>(call.first)),
        second_(static_cast<const T*>(call.second)),
        result_(static_cast<T*>(call.result)) {}

  static UNSHARED_INLINE int64_t cells(const Axis& axis) {
    return face == Face::grad_input ? axis.input : axis.output;
  }
  // Blocks of cells: those of all other axes, times the vectors along this one.
  static UNSHARED_INLINE int64_t blocks(const Problem& p) {
    const Axis& along = p.axes[along_axis<T>(p, face)];
    return Cell::count(p, face) / cells(along) * strips(p, along);
  }
  // Strips of cells along the lanes' axis: as many vectors as scratch has room for.
  static UNSHARED_INLINE int64_t strips(const Problem& p, const Axis& along) {
    int64_t taps = 1;
    for (int s = 0; s < p.axis_count; ++s) taps *= p.axes[s].kernel;
    const int64_t rows =
        face == Face::grad_weight
            ? taps * p.in_channels * p.out_channels
            : lesser(taps * (face == Face::forward ? p.in_channels : p.out_channels), most_steps) *
                  (face == Face::forward ? p.out_channels : p.in_channels);
    const int64_t vectors = ceil_div(cells(along), L::count);
    const int64_t fit =
        greater(1, lesser(most_vectors_along, panel_reals / L::count / greater(rows, 1) - 1));
    return ceil_div(vectors, fit);
  }

  UNSHARED_INLINE void compute(int64_t block) {
    const int64_t count = strips(p, along_), vectors = ceil_div(cells(along_), L::count);
    // Row-major over the axes, the one along which lanes run counted in strips.
    for (int s = p.axis_count - 1; s >= 0; --s) {
      const int64_t n = s == axis_ ? count : cells(p.axes[s]);
      at_[s] = block % n;
      block /= n;
    }
    begin_ = at_[axis_] * vectors / count * L::count;
    lanes_ = lesser((at_[axis_] + 1) * vectors / count * L::count, cells(along_)) - begin_;
    row_ = padded(lanes_);
    if constexpr (face == Face::grad_weight)
      weights();
    else
      gather();
  }

 private:
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int most_steps = 192;
  static constexpr int64_t stage_reals = along_bytes / sizeof(Real),
                           panel_reals = along_bytes / sizeof(Real);
  static constexpr int64_t sum_reals = 16 * 1024 / sizeof(Real), y_reals = 16 * 1024 / sizeof(Real);
  static constexpr int64_t most_vectors_along = 8;

  static UNSHARED_INLINE int64_t padded(int64_t n) { return ceil_div(n, L::count) * L::count; }

  // The taps along the lanes' axis that any lane of the block takes part in, in chain order: tap
  // number q joins lane j to partner first + q * dilation + j.
  UNSHARED_INLINE void find_window() {
    const int64_t sign = face == Face::grad_input ? -1 : 1;
    const int64_t top = face == Face::grad_input ? along_.output : along_.input;
    tap_ = face == Face::grad_input ? along_.kernel - 1 : 0;
    partner_ = begin_ + (face == Face::grad_input ? along_.padding_low - tap_ * along_.dilation
                                                  : -along_.padding_low);
    tap_sign_ = sign;
    partners_ = top;
    taps_ = along_.kernel;
    const int64_t skip =
        partner_ + lanes_ > 0 ? 0 : ceil_div(1 - lanes_ - partner_, along_.dilation);
    taps_ -= skip;
    tap_ += sign * skip;
    partner_ += skip * along_.dilation;
    taps_ = partner_ >= top ? 0 : lesser(taps_, ceil_div(top - partner_, along_.dilation));
    taps_ = greater(taps_, 0);  // there may be more padding than all taps reach across
    border_ =
        taps_ > 0 && (partner_ < 0 || partner_ + (taps_ - 1) * along_.dilation + lanes_ > top);
    if (border_) row_ += L::count;  // what is staged from the middle of a vector on ends beyond
    whole_ = !border_ && lanes_ % L::count == 0;
  }
  UNSHARED_INLINE Span span_of(int64_t q) const {
    const int64_t at = partner_ + q * along_.dilation;
    return {static_cast<std::int16_t>(greater(0, -at)),
            static_cast<std::int16_t>(lesser(lanes_, partners_ - at))};
  }

  struct Loop {
    int64_t count, small, w;  // strides of the two operands
    bool along;
  };
  struct Loops {
    int depth = 0;
    Loop loop[max_axes + 1];
  };

  // The reach of the block along an axis where all its cells stand at the same place.
  UNSHARED_INLINE Reach reach(int s, int64_t& tap_step, int64_t& partner_step) const {
    const Axis& axis = p.axes[s];
    const bool by_input = face == Face::grad_input;
    const int64_t rate = by_input ? axis.stride : axis.input_dilation;
    const int64_t common = greatest_divisor(rate, axis.dilation);
    tap_step = (by_input ? -rate : rate) / common;
    partner_step = axis.dilation / common;
    return reach_of(axis, by_input, at_[s], tap_step);
  }

  // ---- forward and grad_input: chains over places and channels ----

  void gather() {
    constexpr bool forward = face == Face::forward;
    const int64_t summed = forward ? p.in_channels : p.out_channels;
    const int64_t columns = forward ? p.out_channels : p.in_channels;
    const int64_t s_batch = forward ? p.x_batch_stride : p.y_batch_stride;
    const int64_t s_channel = forward ? p.x_channel_stride : p.y_channel_stride;
    const int64_t r_batch = forward ? p.y_batch_stride : p.x_batch_stride;
    const int64_t r_channel = forward ? p.y_channel_stride : p.x_channel_stride;
    const int64_t w_summed = forward ? p.w_in_stride : p.w_out_stride;
    const int64_t w_column = forward ? p.w_out_stride : p.w_in_stride;
    const int64_t s_lane = forward ? along_.x_stride : along_.y_stride;
    const int64_t r_lane = forward ? along_.y_stride : along_.x_stride;

    find_window();
    Loops loops;
    const T* small = first_;
    const T* w = second_;
    T* result = result_;
    if (forward) loops.loop[loops.depth++] = {summed, s_channel, w_summed, false};
    int64_t steps = summed;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t s_stride = forward ? axis.x_stride : axis.y_stride;
      result += (s == axis_ ? begin_ : at_[s]) * (forward ? axis.y_stride : axis.x_stride);
      if (s == axis_) {
        loops.loop[loops.depth++] = {
            taps_, along_.dilation * s_stride,
            tap_sign_ * axis.w_tap_stride + (forward ? 0 : along_.dilation * axis.w_place_stride),
            true};
        small += partner_ * s_stride;
        w += (forward ? begin_ : partner_) * axis.w_place_stride + tap_ * axis.w_tap_stride;
        steps *= taps_;
        continue;
      }
      int64_t tap_step = 0, partner_step = 0;
      const Reach r = reach(s, tap_step, partner_step);
      steps *= r.count;
      small += r.partner * s_stride;
      w += (forward ? at_[s] : r.partner) * axis.w_place_stride + r.tap * axis.w_tap_stride;
      loops.loop[loops.depth++] = {
          r.count, partner_step * s_stride,
          tap_step * axis.w_tap_stride + (forward ? 0 : partner_step * axis.w_place_stride), false};
    }
    if (!forward) loops.loop[loops.depth++] = {summed, s_channel, w_summed, false};

    look_ahead(small, w);
    const bool small_here = plain && s_lane == 1 && whole_;
    const bool w_here = plain && along_.w_place_stride == 1 && whole_;
    const bool result_here = plain && r_lane == 1 && lanes_ % L::count == 0;

    const int64_t wide = lesser(columns, 8);
    const int64_t tall =
        result_here ? p.batch : greater(1, lesser(p.batch, sum_reals / (wide * row_)));
    for (int64_t column = 0; column < columns; column += wide) {
      const int64_t width = lesser(wide, columns - column);
      prepared_ = false;
      for (int64_t n = 0; n < p.batch; n += tall) {
        const int64_t rows = lesser(tall, p.batch - n);
        T* to = result + n * r_batch + column * r_channel;
        Real* c = result_here ? reinterpret_cast<Real*>(to) : sums_;
        const int64_t c_row = result_here ? r_batch : width * row_;
        const int64_t c_column = result_here ? r_channel : row_;
        Box out;
        out.add(rows, r_batch, width * row_);
        out.add(width, r_channel, row_);
        out.lanes = lanes_;
        out.lane_memory = r_lane;
        if (!result_here && accumulate_) stage(out, to, sums_);
        if (steps == 0 && !accumulate_)
          for (int64_t m = 0; m < rows; ++m)
            for (int64_t v = 0; v < width; ++v)
              for (int64_t l = 0; l < lanes_; l += L::count)
                L::store(c + m * c_row + v * c_column + l, L::zero());
        if (steps > 0)
          chunks(loops, small + n * s_batch, s_batch, s_lane, small_here, w + column * w_column,
                 w_column, w_here, rows, width, steps, c, c_row, c_column);
        if (!result_here) unstage(out, to, sums_);
      }
    }
  }

  // Cuts the nest into boxes of at most most_steps steps, in chain order, and runs each.
  UNSHARED_INLINE void chunks(const Loops& loops, const T* small, int64_t s_batch, int64_t s_lane,
                              bool small_here, const T* w, int64_t w_column, bool w_here,
                              int64_t rows, int64_t width, int64_t steps, Real* c, int64_t c_row,
                              int64_t c_column) {
    const int64_t most = greater(1, lesser(most_steps, panel_reals / (row_ * width)));
    int cut = 0;
    int64_t inner = steps;
    while (cut < loops.depth) {
      inner /= loops.loop[cut].count;
      if (inner <= most) break;
      ++cut;
    }
    const int64_t run = lesser(greater(most / inner, 1), loops.loop[cut].count);
    const bool single = cut == 0 && run == loops.loop[0].count;
    int64_t begin[max_axes + 1] = {};
    bool from_zero = !accumulate_;
    for (;;) {
      Loops part = loops;
      const T* s = small;
      const T* weight = w;
      int64_t first_tap = 0;
      for (int d = 0; d <= cut; ++d) {
        s += begin[d] * loops.loop[d].small;
        weight += begin[d] * loops.loop[d].w;
        if (loops.loop[d].along) first_tap = begin[d];
        part.loop[d].count = d < cut ? 1 : lesser(run, loops.loop[d].count - begin[d]);
      }
      chunk(part, first_tap, s, s_batch, s_lane, small_here, weight, w_column, w_here, rows, width,
            c, c_row, c_column, from_zero, single);
      from_zero = false;
      int d = cut;
      for (; d >= 0; --d) {
        begin[d] += d == cut ? run : 1;
        if (begin[d] < loops.loop[d].count) break;
        begin[d] = 0;
      }
      if (d < 0) return;
    }
  }

  UNSHARED_INLINE void chunk(const Loops& loops, int64_t first_tap, const T* small, int64_t s_batch,
                             int64_t s_lane, bool small_here, const T* w, int64_t w_column,
                             bool w_here, int64_t rows, int64_t width, Real* c, int64_t c_row,
                             int64_t c_column, bool from_zero, bool single) {
    // Scratch: the small tensor as [loops but the lanes' own][window], w as
    // [columns][steps][lanes].
    int64_t s_scratch[max_axes + 1], w_scratch[max_axes + 1];
    int64_t taps = 1, window = row_, w_size = row_;
    for (int d = 0; d < loops.depth; ++d)
      if (loops.loop[d].along) {
        taps = loops.loop[d].count;
        window = (taps - 1) * along_.dilation + row_;
      }
    int64_t s_size = padded(window);
    for (int d = loops.depth - 1; d >= 0; --d) {
      s_scratch[d] = loops.loop[d].along ? along_.dilation : s_size;
      if (!loops.loop[d].along) s_size *= loops.loop[d].count;
      w_scratch[d] = w_size;
      w_size *= loops.loop[d].count;
    }
    const int64_t steps = w_size / row_;

    if (!(prepared_ && single)) {
      prepared_ = true;
      int64_t at[max_axes + 1] = {};
      for (int64_t t = 0; t < steps; ++t) {
        int64_t s = 0, v = 0;
        for (int d = 0; d < loops.depth; ++d) {
          s += at[d] * (small_here ? loops.loop[d].small : s_scratch[d]);
          v += at[d] * (w_here ? loops.loop[d].w : w_scratch[d]);
        }
        a_step_[t] = s;
        b_step_[t] = v;
        tap_of_[t] = static_cast<std::int16_t>(at_along(loops, at) + first_tap);
        for (int d = loops.depth - 1; d >= 0 && ++at[d] == loops.loop[d].count; --d) at[d] = 0;
      }
      if (!w_here) stage_weights(loops, first_tap, w, w_column, width, w_scratch, w_size, taps);
    }

    AlongTile<Real> tile{};
    tile.b = w_here ? reinterpret_cast<const Real*>(w) : panel_;
    tile.b_column = w_here ? w_column : w_size;
    tile.c_row = c_row;
    tile.c_column = c_column;
    tile.steps = steps;
    tile.a_step = a_step_;
    tile.b_step = b_step_;
    tile.from_zero = from_zero;
    if (small_here) {
      tile.a = reinterpret_cast<const Real*>(small);
      tile.a_row = s_batch;
      tile.c = c;
      run_strip(tile, rows, width);
      return;
    }
    const int64_t height = greater(1, lesser(along_rows, stage_reals / s_size));
    const int64_t at = partner_ + first_tap * along_.dilation;
    const int64_t low = greater(0, -at);
    const int64_t high = lesser((taps - 1) * along_.dilation + lanes_, partners_ - at);
    for (int64_t m = 0; m < rows; m += height) {
      Box in;
      in.add(lesser(height, rows - m), s_batch, s_size);
      for (int d = 0; d < loops.depth; ++d)
        if (!loops.loop[d].along) in.add(loops.loop[d].count, loops.loop[d].small, s_scratch[d]);
      in.lanes = high - low;
      in.lane_memory = s_lane;
      stage(in, small + m * s_batch + low * s_lane, stage_ + low, small_ahead_);
      tile.a = stage_;
      tile.a_row = s_size;
      tile.c = c + m * c_row;
      run_strip(tile, lesser(height, rows - m), width);
    }
  }

  static UNSHARED_INLINE int64_t at_along(const Loops& loops, const int64_t* at) {
    for (int d = 0; d < loops.depth; ++d)
      if (loops.loop[d].along) return at[d];
    return 0;
  }

  // A tile for every vector of the strip; where not all its lanes take part in every tap, masked.
  UNSHARED_INLINE void run_strip(AlongTile<Real> tile, int64_t rows, int64_t width) {
    for (int64_t l = 0; l < lanes_; l += L::count) {
      tile.span = nullptr;
      const int64_t end = lesser(l + L::count, lanes_);
      if (border_ &&
          (partner_ + l < 0 || partner_ + (taps_ - 1) * along_.dilation + end > partners_)) {
        for (int64_t t = 0; t < tile.steps; ++t) {
          const Span all = span_of(tap_of_[t]);
          const int64_t first = greater(0, lesser(L::count, all.first - l));
          span_[t] = {static_cast<std::int16_t>(first),
                      static_cast<std::int16_t>(greater(first, lesser(L::count, all.last - l)))};
        }
        tile.span = span_;
      }
      run_along(tile, rows, width);
      tile.a += L::count;
      tile.b += L::count;
      tile.c += L::count;
    }
  }

  UNSHARED_INLINE void stage_weights(const Loops& loops, int64_t first_tap, const T* w,
                                     int64_t w_column, int64_t width, const int64_t* w_scratch,
                                     int64_t w_size, int64_t taps) {
    // The weights of taps in padding lie in memory, too; but places beyond the last do not.
    const bool apart = border_ && face == Face::grad_input;
    const int64_t times = apart ? taps : 1;
    for (int64_t q = 0; q < times; ++q) {
      Box in;
      in.add(width, w_column, w_size);
      const T* from = w;
      Real* to = panel_;
      Span lanes{0, static_cast<std::int16_t>(lanes_)};
      for (int d = 0; d < loops.depth; ++d) {
        const Loop& loop = loops.loop[d];
        if (apart && loop.along) {
          lanes = span_of(first_tap + q);
          from += q * loop.w + lanes.first * along_.w_place_stride;
          to += q * w_scratch[d] + lanes.first;
        } else {
          in.add(loop.count, loop.w, w_scratch[d]);
        }
      }
      in.lanes = lanes.last - lanes.first;
      in.lane_memory = along_.w_place_stride;
      stage(in, from, to, w_ahead_);
    }
  }

  // How far the operands of this strip lie from the last one's: likely as far from the next one's.
  UNSHARED_INLINE void look_ahead(const T* small, const T* w) {
    if (last_small_ != nullptr) {
      small_ahead_ = small - last_small_;
      w_ahead_ = w - last_w_;
    }
    last_small_ = small;
    last_w_ = w;
  }

  // ---- grad_weight: chains over the batch ----

  void weights() {
    find_window();
    const T* x = first_ + partner_ * along_.x_stride;
    const T* y = second_ + begin_ * along_.y_stride;
    T* w = result_ + begin_ * along_.w_place_stride;
    T* first = w + tap_ * along_.w_tap_stride;
    Loops taps;  // small: x
    int64_t all = taps_;
    bool missing = border_ || taps_ != along_.kernel;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      if (s == axis_) {
        taps.loop[taps.depth++] = {taps_, along_.dilation * axis.x_stride, axis.w_tap_stride, true};
        continue;
      }
      int64_t tap_step = 0, partner_step = 0;
      const Reach r = reach(s, tap_step, partner_step);
      missing = missing || r.count != axis.kernel;
      all *= r.count;
      x += r.partner * axis.x_stride;
      y += at_[s] * axis.y_stride;
      w += at_[s] * axis.w_place_stride;
      first += at_[s] * axis.w_place_stride + r.tap * axis.w_tap_stride;
      taps.loop[taps.depth++] = {r.count, partner_step * axis.x_stride,
                                 tap_step * axis.w_tap_stride, false};
    }
    if (missing && !accumulate_) clear(w);
    if (all == 0) return;

    look_ahead(x, y);
    const bool x_here = plain && along_.x_stride == 1 && whole_;
    const bool y_here = plain && along_.y_stride == 1 && lanes_ % L::count == 0;
    const bool result_here = plain && along_.w_place_stride == 1 && whole_;
    // Columns and input channels at a time: what the sums have room for.
    int64_t wide = p.out_channels, deep = p.in_channels;
    if (!result_here) wide = greater(1, lesser(wide, panel_reals / (row_ * all)));
    if (!y_here) wide = greater(1, lesser(wide, y_reals / row_));
    if (!result_here) deep = greater(1, lesser(deep, panel_reals / (row_ * all * wide)));
    const int64_t window = padded((taps_ - 1) * along_.dilation + row_);
    if (!x_here) deep = greater(1, lesser(deep, stage_reals / (all / taps_ * window)));
    for (int64_t a = 0; a < p.in_channels; a += deep)
      for (int64_t b = 0; b < p.out_channels; b += wide)
        weights_of(taps, lesser(deep, p.in_channels - a), lesser(wide, p.out_channels - b),
                   x + a * p.x_channel_stride, x_here, y + b * p.y_channel_stride, y_here,
                   first + a * p.w_in_stride + b * p.w_out_stride, result_here);
  }

  UNSHARED_INLINE void weights_of(const Loops& taps, int64_t deep, int64_t wide, const T* x,
                                  bool x_here, const T* y, bool y_here, T* result,
                                  bool result_here) {
    // Sums: [input channel][tap][column][lanes].
    const int64_t c_column = result_here ? p.w_out_stride : row_;
    int64_t c_tap[max_axes + 1], x_tap[max_axes + 1];
    int64_t c_size = wide * row_, window = 0;
    for (int d = taps.depth - 1; d >= 0; --d) {
      c_tap[d] = result_here ? taps.loop[d].w : c_size;
      c_size *= taps.loop[d].count;
      if (taps.loop[d].along) window = (taps.loop[d].count - 1) * along_.dilation + row_;
    }
    int64_t x_size = padded(window);
    for (int d = taps.depth - 1; d >= 0; --d) {
      x_tap[d] = x_here ? taps.loop[d].small : taps.loop[d].along ? along_.dilation : x_size;
      if (!taps.loop[d].along) x_size *= taps.loop[d].count;
    }
    const int64_t x_channel = x_here ? p.x_channel_stride : x_size;
    const int64_t c_channel = result_here ? p.w_in_stride : c_size;
    x_size *= deep;
    if (!result_here && accumulate_) move_sums<true>(taps, deep, wide, c_tap, c_size, result);

    Real* c = result_here ? reinterpret_cast<Real*>(result) : panel_;
    const int64_t y_size = wide * row_;
    int64_t run = most_steps;
    if (!x_here) run = lesser(run, greater(1, stage_reals / x_size));
    if (!y_here) run = lesser(run, greater(1, y_reals / y_size));
    const int64_t low = greater(0, -partner_);
    const int64_t high = lesser((taps_ - 1) * along_.dilation + lanes_, partners_ - partner_);
    for (int64_t n = 0; n == 0 || n < p.batch; n += run) {
      const int64_t count = lesser(run, p.batch - n);
      if (!x_here && count > 0) {
        Box in;
        in.add(count, p.x_batch_stride, x_size);
        in.add(deep, p.x_channel_stride, x_channel);
        for (int d = 0; d < taps.depth; ++d)
          if (!taps.loop[d].along) in.add(taps.loop[d].count, taps.loop[d].small, x_tap[d]);
        in.lanes = high - low;
        in.lane_memory = along_.x_stride;
        stage(in, x + n * p.x_batch_stride + low * along_.x_stride, stage_ + low, small_ahead_);
      }
      if (!y_here && count > 0) {
        Box in;
        in.add(count, p.y_batch_stride, y_size);
        in.add(wide, p.y_channel_stride, row_);
        in.lanes = lanes_;
        in.lane_memory = along_.y_stride;
        stage(in, y + n * p.y_batch_stride, y_stage_, w_ahead_);
      }
      AlongTile<Real> tile{};
      const Real* first = x_here ? reinterpret_cast<const Real*>(x + n * p.x_batch_stride) : stage_;
      tile.b = y_here ? reinterpret_cast<const Real*>(y + n * p.y_batch_stride) : y_stage_;
      tile.b_column = y_here ? p.y_channel_stride : row_;
      tile.c_column = c_column;
      tile.steps = count;
      tile.a_step = a_step_;
      tile.b_step = b_step_;
      tile.from_zero = n == 0 && !accumulate_;
      for (int64_t t = 0; t < count; ++t) {
        a_step_[t] = t * (x_here ? p.x_batch_stride : x_size);
        b_step_[t] = t * (y_here ? p.y_batch_stride : y_size);
      }
      // Rows: the longest of the loops over taps and input channels.
      int inner = -1;
      int64_t longest = deep;
      for (int d = 0; d < taps.depth; ++d)
        if (taps.loop[d].count > longest) {
          inner = d;
          longest = taps.loop[d].count;
        }
      tile.a_row = inner < 0 ? x_channel : x_tap[inner];
      tile.c_row = inner < 0 ? c_channel : c_tap[inner];
      int64_t at[max_axes + 1] = {}, channel = 0;
      for (;;) {
        int64_t from = channel * x_channel, to = channel * c_channel;
        for (int d = 0; d < taps.depth; ++d) {
          from += at[d] * x_tap[d];
          to += at[d] * c_tap[d];
        }
        tile.a = first + from;
        tile.c = c + to;
        AlongTile<Real> vector = tile;
        for (int64_t l = 0; l < lanes_; l += L::count) {
          run_along(vector, longest, wide);
          vector.a += L::count;
          vector.b += L::count;
          vector.c += L::count;
        }
        int d = taps.depth - 1;
        for (; d >= 0; --d) {
          if (d == inner) continue;
          if (++at[d] < taps.loop[d].count) break;
          at[d] = 0;
        }
        if (d < 0 && (inner < 0 || ++channel == deep)) break;
      }
      if (p.batch == 0) break;
    }
    if (!result_here) move_sums<false>(taps, deep, wide, c_tap, c_size, result);
  }

  // Sums between memory and scratch; at a border only of the lanes that a tap has.
  template <bool in>
  UNSHARED_INLINE void move_sums(const Loops& taps, int64_t deep, int64_t wide,
                                 const int64_t* c_tap, int64_t c_size, T* result) {
    const int64_t times = border_ ? taps_ : 1;
    for (int64_t q = 0; q < times; ++q) {
      Box box;
      Span lanes{0, static_cast<std::int16_t>(lanes_)};
      T* to = result;
      Real* sums = panel_;
      box.add(deep, p.w_in_stride, c_size);
      for (int d = 0; d < taps.depth; ++d) {
        if (border_ && taps.loop[d].along) {
          lanes = span_of(q);
          to += q * taps.loop[d].w + lanes.first * along_.w_place_stride;
          sums += q * c_tap[d] + lanes.first;
        } else {
          box.add(taps.loop[d].count, taps.loop[d].w, c_tap[d]);
        }
      }
      box.add(wide, p.w_out_stride, row_);
      box.lanes = lanes.last - lanes.first;
      box.lane_memory = along_.w_place_stride;
      if constexpr (in) {
        stage(box, to, sums);
      } else {
        unstage(box, to, sums);
      }
    }
  }

  // Zero for every tap of these places that falls into padding.
  UNSHARED_INLINE void clear(T* result) const {
    reference::Index k{};
    do {
      int64_t w = 0;
      bool in_chain = true;
      for (int s = 0; s < p.axis_count; ++s) {
        w += k.at[s] * p.axes[s].w_tap_stride;
        if (s != axis_) in_chain = in_chain && p.axes[s].source(at_[s], k.at[s]) >= 0;
      }
      for (int64_t l = 0; l < lanes_; ++l) {
        if (in_chain && along_.source(begin_ + l, k.at[axis_]) >= 0) continue;
        for (int64_t a = 0; a < p.in_channels; ++a)
          for (int64_t b = 0; b < p.out_channels; ++b)
            result[w + l * along_.w_place_stride + a * p.w_in_stride + b * p.w_out_stride] = T{};
      }
    } while (reference::next(p, k));
  }

  const Problem& p;
  const bool accumulate_;
  const int axis_;
  const Axis& along_;
  const T* const first_;
  const T* const second_;
  T* const result_;
  int64_t at_[max_axes] = {}, begin_ = 0, lanes_ = 0;
  int64_t tap_ = 0, tap_sign_ = 1, partner_ = 0, partners_ = 0, taps_ = 0, row_ = 0;
  const T* last_small_ = nullptr;
  const T* last_w_ = nullptr;
  int64_t small_ahead_ = 0, w_ahead_ = 0;
  bool border_ = false, whole_ = false, prepared_ = false;

  int64_t a_step_[most_steps], b_step_[most_steps];
  std::int16_t tap_of_[most_steps];
  Span span_[most_steps];
  alignas(64) Real stage_[stage_reals + L::count];
  alignas(64) Real panel_[panel_reals + L::count];
  alignas(64) Real y_stage_[y_reals + L::count];
  alignas(64) Real sums_[sum_reals + L::count];
};

static_assert(sizeof(Along<float, Face::forward>) <= most_scratch &&
              sizeof(Along<double, Face::grad_input>) <= most_scratch &&
              sizeof(Along<Half, Face::grad_weight>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
