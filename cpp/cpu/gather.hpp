// forward and grad_input: strips of neighbouring cells, each a small matrix product.
//
// What a strip reads of the small tensor (x or dy) is staged once for a block of samples: close
// together instead of pages apart, whatever its memory order. Lanes run over the result's channels,
// with the weights as vectors (in place, or rearranged as a panel) and the small tensor broadcast; or,
// where that fills vectors better, over samples, with the weights broadcast from where they are.
// Sums stay in the result if it is laid out like a tile, else in scratch until the strip is done.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face. Deterministic: one chain, one worker.
#pragma once

#include "micro.hpp"
#include "panel.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// The two faces in one vocabulary: the small tensor is summed over, the result has columns.
struct Gathering {
  int64_t summed, columns;  // channels
  int64_t small_batch, small_channel, result_batch, result_channel, w_summed, w_column;
  int64_t Axis::* small_stride;
  int64_t Axis::* result_stride;
};

template <Face face>
UNSHARED_INLINE Gathering gathering(const Problem& p) {
  if constexpr (face == Face::forward)
    return {p.in_channels,    p.out_channels,     p.x_batch_stride, p.x_channel_stride,
            p.y_batch_stride, p.y_channel_stride, p.w_in_stride,    p.w_out_stride,
            &Axis::x_stride,  &Axis::y_stride};
  else
    return {p.out_channels,   p.in_channels,      p.y_batch_stride, p.y_channel_stride,
            p.x_batch_stride, p.x_channel_stride, p.w_out_stride,   p.w_in_stride,
            &Axis::y_stride,  &Axis::x_stride};
}

template <class T, Face face>
class Gather {
 public:
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;

  // How a call is cut up.
  struct Plan {
    bool over_samples, direct;  // lanes; whether sums are kept in the result
    bool staged;  // whether the small tensor is
    int64_t rows;  // samples of a block
    int64_t wide, high;  // strips: of a row of cells, and of a column of them
    int64_t width, parts;  // columns done together; how many times
    int64_t items;  // strips, times parts
  };

  UNSHARED_INLINE Gather(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem), g(gathering<face>(problem)), call_(call), plan_(plan) {
    if constexpr (parts == 2)
      panels_.conjugate_operands(call.conjugate_first, call.conjugate_second);
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t rate = by_input ? axis.stride : axis.input_dilation;
      const int64_t common = greatest_divisor(rate, axis.dilation);
      tap_step_[s] = (by_input ? -rate : rate) / common;
      partner_step_[s] = axis.dilation / common;
    }
  }

  static Plan plan(const Problem& p, const Call& call) {
    const Gathering g = gathering<face>(p);
    const int64_t n = greater(p.batch, 1), vectors = vectors_of(g.columns);
    const int z = p.axis_count - 1;
    const int64_t row = cells_of(p.axes[z]), column = z > 0 ? cells_of(p.axes[z - 1]) : 1;
    const int64_t cells = Cell::count(p, face);
    int64_t terms = g.summed;
    for (int s = 0; s < p.axis_count; ++s) terms *= p.axes[s].kernel;
    Plan plan{};
    // What either way takes for a cell, in multiplications of vectors.
    const bool in_place = parts == 1 && g.w_column == 1;
    const int64_t sample_vectors = ceil_div(n, L::count);
    const int64_t over_columns = terms * vectors * (n + (in_place ? 0 : 8 * ceil_div(n, 128)));
    const bool in_cache = terms * g.columns * int64_t{sizeof(T)} <= 32 * 1024;
    // Weights are broadcast one by one: well if the chain follows them in memory.
    const bool follows = by_input ? g.w_summed == 1 || g.summed == 1 : p.axes[z].w_tap_stride == 1;
    const int64_t over_samples = sample_vectors * (terms * greater(g.columns, 4) + 8 * g.columns +
                                                   8 * terms / p.axes[z].kernel) +
                                 (follows || in_cache ? 0 : sample_vectors * terms * g.columns);
    plan.over_samples = plain && parts == 1 && n > L::count / 2 && over_samples < over_columns;
    plan.direct =
        plain && !plan.over_samples && g.result_channel == 1 && g.columns * parts % L::count == 0;

    // Strips, and samples of a block: the least time for a cell, in multiplications of vectors.
    const bool threads = call.threads != 1;
    const int64_t most_cells = greater(1, threads ? cells / 32 : cells);
    const int64_t most_samples = plan.over_samples ? most_vectors * L::count : n;
    const int64_t w_bytes = terms * g.columns * int64_t{sizeof(T)};
    double best = 0;
    for (int64_t wide = ceil_div(row, longest_strip), last = 0; wide > last;
         last = wide, wide = lesser(row, wide + 1 + wide / 2)) {
      for (int64_t height = lesser(column, highest_strip); height > 0; height -= 1 + height / 4) {
        const int64_t high = ceil_div(column, height);
        const int64_t w = ceil_div(row, wide), h = ceil_div(column, high);
        if (w * h > most_cells && w * h > 1) continue;
        const int64_t reals = greater(1, reach_of_strip(p, w, h) * parts);
        int64_t rows = stage_reals / (plan.over_samples ? reals : spaced(reals));
        if (!plan.direct) rows = lesser(rows, sums_reals / (w * L::count));
        if (plan.over_samples) rows = rows / L::count * L::count;
        if (rows < 1 && w * h > 1) continue;
        if (w * h == 1) rows = greater(rows, lesser(n, 128));
        rows = greater(1, lesser(rows, most_samples));
        const int64_t blocks = ceil_div(n, rows);
        rows =
            plan.over_samples ? ceil_div(sample_vectors, blocks) * L::count : ceil_div(n, blocks);
        // Multiplications; copies of the small tensor; and, block by block, of the weights.
        const int64_t run = lesser(run_of_strip(p, g, w, h), reals);
        const double stage =
            static_cast<double>(n * (reals / run) * (ceil_div(run, L::count) + 2)) /
            static_cast<double>(w * h);
        const double again = w * h * w_bytes <= cache_bytes || blocks == 1 ? 1 : 5;
        const double weights = static_cast<double>(blocks * terms * vectors);
        const double cost = static_cast<double>(n * terms * vectors) +
                            stage * (plan.over_samples ? 8 : 14) +
                            (plan.over_samples ? 0 : weights * ((in_place ? 0 : 8) + again)) +
                            200.0 * static_cast<double>(blocks) / static_cast<double>(w * h);
        if (best != 0 && cost >= best) continue;
        best = cost;
        plan.rows = rows;
        plan.wide = wide;
        plan.high = high;
      }
    }

    // Or no strips, and the small tensor read where it is, if whole lines of it serve a cell.
    plan.staged = true;
    if (plain && !plan.over_samples && g.small_channel == 1 && g.summed * parts % line == 0 &&
        terms <= 1536) {
      const int64_t rows = plan.direct ? n : lesser(n, greater(1, sums_reals / L::count));
      const double blocks = static_cast<double>(ceil_div(n, rows));
      const double cost = static_cast<double>(n * terms * vectors) +
                          static_cast<double>(n * terms * parts / line) * 4 +
                          blocks * static_cast<double>(terms * vectors) * (in_place ? 1 : 9) +
                          200 * blocks;
      if (cost < best) {
        plan.staged = false;
        plan.rows = rows;
        plan.wide = row;
        plan.high = column;
      }
    }

    // Columns together: what the sums have room for; less if there are few cells for many threads.
    constexpr int64_t whole = L::count / parts;
    plan.width = g.columns;
    if (!plan.direct)
      plan.width = lesser(
          plan.width,
          greater(1, sums_reals / plan.rows / ceil_div(row, plan.wide) / whole / parts) * whole);
    if (threads && cells < 64)
      plan.width = lesser(plan.width, ceil_div(g.columns, ceil_div(int64_t{64}, cells)));
    plan.width = greater(1, plan.width);
    if (plan.width < g.columns) plan.width = ceil_div(plan.width, whole) * whole;
    plan.parts = greater(1, ceil_div(g.columns, plan.width));
    plan.items = cells / (row * column) * plan.wide * plan.high * plan.parts;
    return plan;
  }

  // The items [begin, end): strips, and for each its parts of columns.
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t rest = item / plan_.parts;
      const int z = p.axis_count - 1;
      set(along_, z, rest % plan_.wide, plan_.wide);
      rest /= plan_.wide;
      if (z > 0) {
        set(across_, z - 1, rest % plan_.high, plan_.high);
        rest /= plan_.high;
      }
      for (int s = z - 2; s >= 0; --s) {
        const int64_t cells = cells_of(p.axes[s]);
        at_[s] = rest % cells;
        rest /= cells;
      }
      compute(item % plan_.parts * plan_.width);
    }
  }

 private:
  static constexpr int parts = Scalar<T>::parts;
  static constexpr bool by_input = face == Face::grad_input;
  static constexpr int64_t line = 64 / sizeof(Real);
  static constexpr bool plain = sizeof(T) == parts * sizeof(Real);
  static constexpr int table_steps = PanelPlan<T>::most_steps, steps_ahead = 64;
  static constexpr int most_lines = 1024, most_w_lines = 1024, widest_group = 2;
  static constexpr int longest_strip = 32, highest_strip = 8;
  // Scratch: what is staged, and behind it a panel, which should stay in a first-level cache if it is
  // used by more than one tile.
  static constexpr int64_t panel_reals = 16 * 1024 / sizeof(Real);
  static constexpr int64_t scratch_reals = 104 * 1024 / sizeof(Real);
  static constexpr int64_t stage_reals = scratch_reals - panel_reals;
  static constexpr int64_t sums_reals = 32 * 1024 / sizeof(Real);
  static constexpr int64_t cache_bytes = 512 * 1024;  // about half a second-level cache

  static UNSHARED_INLINE int64_t vectors_of(int64_t columns) {
    return ceil_div(columns * parts, L::count);
  }
  static UNSHARED_INLINE int64_t padded(int64_t columns) { return vectors_of(columns) * L::count; }
  // Rows of scratch at a distance that does not put them all into one set of a cache.
  static UNSHARED_INLINE int64_t spaced(int64_t reals) {
    return (ceil_div(reals, line) | 1) * line;
  }
  static UNSHARED_INLINE int64_t cells_of(const Axis& axis) {
    return by_input ? axis.input : axis.output;
  }

  // How far so many cells reach along an axis of the small tensor, at most.
  static UNSHARED_INLINE int64_t window_of(const Axis& axis, int64_t count) {
    int64_t most = axis.kernel;
    if (count > 1)
      most = ((count - 1) * (by_input ? axis.input_dilation : axis.stride) +
              (axis.kernel - 1) * axis.dilation) /
                 (by_input ? axis.stride : axis.input_dilation) +
             1;
    return greater(1, lesser(most, by_input ? axis.output : axis.input));
  }
  // How many elements of one sample a strip of so many cells reads of the small tensor, at most.
  static UNSHARED_INLINE int64_t reach_of_strip(const Problem& p, int64_t wide, int64_t high) {
    int64_t elements = gathering<face>(p).summed;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t count = s == p.axis_count - 1 ? wide : s == p.axis_count - 2 ? high : 1;
      elements = lesser(elements * window_of(axis, count), max_extent);
    }
    return elements;
  }

  // How many of them lie side by side in memory.
  static UNSHARED_INLINE int64_t run_of_strip(const Problem& p, const Gathering& g, int64_t wide,
                                              int64_t high) {
    const int z = p.axis_count - 1;
    int64_t run = 1;
    if (g.small_channel == 1) run = g.summed * parts;
    for (int s = z; s >= 0 && s >= z - 1; --s) {
      const Axis& axis = p.axes[s];
      if (axis.*g.small_stride * parts != run) break;
      const int64_t here = window_of(axis, s == z ? wide : high);
      run *= here;
      if (here != (by_input ? axis.output : axis.input)) break;
    }
    return greater(run, 1);
  }

  static UNSHARED_INLINE int64_t w_offset(const Axis& axis, int64_t index, const Reach& reach) {
    return (by_input ? reach.partner : index) * axis.w_place_stride + reach.tap * axis.w_tap_stride;
  }
  UNSHARED_INLINE int64_t w_step(int s) const {
    return tap_step_[s] * p.axes[s].w_tap_stride +
           (by_input ? partner_step_[s] * p.axes[s].w_place_stride : 0);
  }
  UNSHARED_INLINE Reach reach(int s, int64_t index) const {
    return reach_of(p.axes[s], by_input, index, tap_step_[s]);
  }

  // The cells of a strip along one axis, and what they read along it: `window` partners from `low`
  // on, `unit` apart.
  struct Line {
    int64_t count = 1, first = 0, low = 0, window = 1, unit = 1;
    Reach reach[longest_strip];
  };
  UNSHARED_INLINE void set(Line& l, int s, int64_t strip, int64_t strips) const {
    const int64_t cells = cells_of(p.axes[s]);
    l.first = strip * cells / strips;
    l.count = (strip + 1) * cells / strips - l.first;
    int64_t low = max_extent, high = -1;
    for (int64_t j = 0; j < l.count; ++j) {
      const Reach r = l.reach[j] = reach(s, l.first + j);
      if (r.count == 0) continue;
      low = lesser(low, r.partner);
      high = greater(high, r.partner + (r.count - 1) * partner_step_[s]);
    }
    l.unit = l.count == 1 ? partner_step_[s] : 1;
    l.window = high < 0 ? 0 : (high - low) / l.unit + 1;
    l.low = high < 0 ? 0 : low;
  }

  // The strip at hand, columns from `column` on.
  void compute(int64_t column) {
    const int z = p.axis_count - 1;
    // The steps in the order of the chain; strides of the small tensor and of w. Along the axes of the
    // strip all that it reads; for each cell a part of it.
    Nest nest;
    const T* small = static_cast<const T*>(call_.first);
    const T* w = static_cast<const T*>(call_.second) + column * g.w_column;
    T* result = static_cast<T*>(call_.result) + column * g.result_channel;
    if (!by_input) nest.add(g.summed, g.small_channel, g.w_summed);
    const int loop = nest.depth;  // of axis 0
    for (int s = 0; s <= z; ++s) {
      const Axis& axis = p.axes[s];
      const int64_t stride = axis.*g.small_stride;
      if (s < z - 1) {
        const Reach r = reach(s, at_[s]);
        small += r.partner * stride;
        result += at_[s] * axis.*g.result_stride;
        w += w_offset(axis, at_[s], r);
        nest.add(r.count, partner_step_[s] * stride, w_step(s));
      } else {
        const Line& l = s == z ? along_ : across_;
        small += l.low * stride;
        result += l.first * axis.*g.result_stride;
        nest.add(l.window, l.unit * stride, w_step(s));
      }
    }
    if (by_input) nest.add(g.summed, g.small_channel, g.w_summed);
    const int64_t cells = along_.count * across_.count;
    const bool empty = nest.total() == 0;
    const int64_t ahead = last_ == nullptr ? 0 : small - last_;
    last_ = small;

    const Axis& last = p.axes[z];
    const int64_t result_along = last.*g.result_stride;
    const int64_t result_across = z > 0 ? p.axes[z - 1].*g.result_stride : 0;
    columns_ = lesser(plan_.width, g.columns - column);
    for (int64_t n = 0; n < p.batch; n += plan_.rows) {
      rows_ = lesser(plan_.rows, p.batch - n);
      const int64_t next =
          n + plan_.rows < p.batch ? plan_.rows * g.small_batch : ahead - n * g.small_batch;
      const Sums sums = sums_of(along_.count, result_along);
      const int64_t room = stage_reals / plan_.rows;  // of a sample
      Pieces pieces(
          nest, cells > 1 || !plan_.staged ? nest.total() : greater(1, (room - 2 * line) / parts));
      bool from_zero = !call_.accumulate, first = true;
      do {
        Nest staged = pieces.part;
        Pieces following = pieces;
        following.next();
        const bool more = following.more();
        const int64_t ahead_second = following.second;
        int64_t row = g.small_batch * parts;
        if (plan_.staged && !empty)
          row = stage_small(staged, small + n * g.small_batch + pieces.first, next);
        for (int64_t i = 0; i < across_.count; ++i) {
          T* const to = result + n * g.result_batch + i * result_across;
          if (!plan_.direct && call_.accumulate && first) move_sums<true>(sums, to);
          for (int64_t j = 0; j < along_.count; ++j) {
            Real* const c = plan_.direct ? reinterpret_cast<Real*>(to + j * result_along)
                                         : sums_ + j * sums.cell;
            const Reach& r = along_.reach[j];
            const T* from = w + pieces.second + w_offset(last, along_.first + j, r);
            const Real* a =
                plan_.staged ? stage_ : reinterpret_cast<const Real*>(small + n * g.small_batch);
            Nest steps = staged;
            bool none = empty || r.count == 0;
            if (!none && cells > 1) {
              a += narrow(steps.loop[loop + z], along_, r, partner_step_[z]);
              if (z > 0) {
                a += narrow(steps.loop[loop + z - 1], across_, across_.reach[i],
                            partner_step_[z - 1]);
                none = across_.reach[i].count == 0;
              }
            }
            if (none) {
              if (from_zero) zero(c, sums.row);
              continue;
            }
            if (z > 0) from += w_offset(p.axes[z - 1], across_.first + i, across_.reach[i]);
            const int64_t w_next = (more ? ahead_second : last.w_place_stride) - pieces.second;
            if (plan_.over_samples)
              over_samples(steps, a, from, c, sums.row, from_zero);
            else
              over_columns(steps, a, row, from, w_next, c, sums.row, from_zero, n == 0);
          }
          if (!plan_.direct && (empty || !more)) move_sums<false>(sums, to);
        }
        from_zero = first = false;
        if (empty) break;
        pieces.next();
      } while (pieces.more());
    }
  }
  // Cuts the loop of a strip's window down to one cell's part; returns where that begins.
  static UNSHARED_INLINE int64_t narrow(Nest::Loop& loop, const Line& l, const Reach& r,
                                        int64_t partner_step) {
    const int64_t stride = loop.first;
    loop.count = r.count;
    loop.first = stride * (partner_step / l.unit);
    return (r.partner - l.low) / l.unit * stride;
  }

  // ---- sums: of a strip in scratch, [cell][row][columns], or over samples [cell][column][samples]

  struct Sums {
    int64_t cell, row;  // strides in scratch (row: in the result, if sums are kept there)
    Box box;
  };
  UNSHARED_INLINE Sums sums_of(int64_t count, int64_t result_cell) const {
    Sums sums{};
    if (plan_.direct) {
      sums.row = g.result_batch * parts;
    } else if (plan_.over_samples) {
      sums.row = ceil_div(rows_, L::count) * L::count;
      sums.cell = columns_ * sums.row;
      sums.box.add(count, result_cell, sums.cell);
      sums.box.add(columns_, g.result_channel, sums.row);
      sums.box.lanes = rows_;
      sums.box.lane_memory = g.result_batch;
    } else {
      sums.row = padded(columns_);
      sums.cell = rows_ * sums.row;
      sums.box.add(count, result_cell * parts, sums.cell);
      sums.box.add(rows_, g.result_batch * parts, sums.row);
      sums.box.lanes = columns_;
      sums.box.lane_memory = g.result_channel;
      pairs(sums.box);
    }
    return sums;
  }
  // Complex elements are two reals: where the lanes of a box do not lie side by side, the two parts
  // do, and the lanes are one more loop.
  static UNSHARED_INLINE void pairs(Box& box) {
    if constexpr (parts == 2) {
      if (box.lanes == 1 || box.lane_memory == 1) {
        box.lanes *= 2;
      } else {
        box.add(box.lanes, 2 * box.lane_memory, 2);
        box.lanes = 2;
      }
      box.lane_memory = 1;
      box.dense = true;
    }
  }
  using Memory = std::conditional_t<parts == 2, Real, T>;  // what a box counts in
  template <bool in>
  UNSHARED_INLINE void move_sums(const Sums& sums, T* to) {
    if constexpr (in)
      stage(sums.box, reinterpret_cast<const Memory*>(to), sums_);
    else
      unstage(sums.box, reinterpret_cast<Memory*>(to), sums_);
  }
  UNSHARED_INLINE void zero(Real* c, int64_t c_row) const {
    const int64_t rows = plan_.over_samples ? columns_ : rows_;
    const int64_t reals = plan_.over_samples ? c_row : padded(columns_);
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t v = 0; v < reals; v += L::count) L::store(c + m * c_row + v, L::zero());
  }

  // ---- the small tensor, staged

  // Stages the loops of a nest's first operand for the rows of the block, and turns its strides into
  // those of scratch; returns the distance of two rows.
  UNSHARED_INLINE int64_t stage_small(Nest& nest, const T* from, int64_t next) {
    int fast = -1;  // the loop that runs along memory
    for (int d = 0; d < nest.depth; ++d)
      if (nest.loop[d].count > 1 && (fast < 0 || nest.loop[d].first == 1)) fast = d;
    const int64_t element =
        plan_.over_samples ? ceil_div(rows_, L::count) * L::count : int64_t{parts};
    int64_t scratch = element, strides[max_axes + 1] = {};
    if (fast >= 0) {
      strides[fast] = scratch;
      scratch *= nest.loop[fast].count;
    }
    for (int d = nest.depth - 1; d >= 0; --d) {
      if (d == fast || nest.loop[d].count == 1) continue;
      strides[d] = scratch;
      scratch *= nest.loop[d].count;
    }
    const int64_t row = spaced(scratch);
    panel_ = stage_ + (plan_.over_samples ? 0 : (rows_ * row + line - 1) / line * line);
    Box box;
    if (plan_.over_samples) {
      for (int d = 0; d < nest.depth; ++d)
        if (d != fast) box.add(nest.loop[d].count, nest.loop[d].first, strides[d]);
      if (fast >= 0) box.add(nest.loop[fast].count, nest.loop[fast].first, strides[fast]);
      box.lanes = rows_;
      box.lane_memory = g.small_batch;
    } else {
      box.dense = true;
      box.add(rows_, g.small_batch * parts, row);
      for (int d = 0; d < nest.depth; ++d)
        if (d != fast) box.add(nest.loop[d].count, nest.loop[d].first * parts, strides[d]);
      if (fast >= 0) {
        box.lanes = nest.loop[fast].count;
        box.lane_memory = nest.loop[fast].first;
      }
      pairs(box);
    }
    stage(box, reinterpret_cast<const Memory*>(from), stage_);
    // While this is computed with, what is staged next is fetched.
    if (!(box == fetched_)) {
      fetched_ = box;
      lines_count_ = lines_of<Memory>(box, lines_, most_lines);
      pad(lines_, lines_count_);
    }
    lines_ahead_[0] = {reinterpret_cast<const char*>(from + next), lines_, lines_count_};
    for (int d = 0; d < nest.depth; ++d) nest.loop[d].first = strides[d];
    return row;
  }

  // ---- one cell

  // Rows: samples, broadcast; vectors: the weights of columns. `w_next`: where those of the next cell
  // begin, from w.
  UNSHARED_INLINE void over_columns(const Nest& nest, const Real* a, int64_t a_row, const T* w,
                                    int64_t w_next, Real* c, int64_t c_row, bool from_zero,
                                    bool fresh) {
    const int64_t vectors = vectors_of(columns_);
    const int64_t most = rows_ <= most_rows(4)   ? 4
                         : rows_ <= most_rows(3) ? 3
                                                 : 2;  // vectors of a tile
    const bool whole = columns_ * parts % L::count == 0;
    const bool along_memory = parts == 1 && g.w_column == 1;
    // Weights that lie along the lanes are read in place: as a stream, if every one is used once; else
    // if all columns of a few steps lie together. Otherwise a panel is made of some of the columns.
    const bool stream =
        along_memory && (plain || whole) && rows_ <= most_rows(int(lesser(most, vectors)));
    const bool single = rows_ <= most_rows(1);  // every vector of a panel is used once
    const bool in_place = stream || (along_memory && plain && vectors <= widest_group);
    const int64_t group = in_place                  ? vectors
                          : single && !along_memory ? 1
                                                    : ceil_div(vectors, ceil_div(vectors, most));
    int64_t room = stage_ + scratch_reals - panel_;
    if (!single && nest.total() * group * L::count * parts > room) room = panel_reals;
    const int64_t limit = stream ? (vectors <= most ? 256 / vectors : int64_t{steps_ahead})
                                 : room / (group * L::count * parts);
    Pieces pieces(nest, lesser(limit, table_steps));
    while (pieces.more()) {
      const int64_t steps = pieces.part.total();
      const T* const from = w + pieces.second;
      Micro<T> t{};
      t.a = a + pieces.first * (plan_.staged ? 1 : parts);
      t.a_row = a_row;
      t.c_row = c_row;
      t.steps = steps * parts;
      t.from_zero = from_zero;
      t.a_step = small_step_;
      tabulate(pieces.part, steps, !in_place);
      pieces.next();
      const int64_t next = (pieces.more() ? pieces.second : w_next) - (from - w);
      if (stream) look_beyond(steps, next);
      for (int64_t first = 0; first < vectors; first += group) {
        const int64_t here = lesser(group, vectors - first), column = first * L::count / parts;
        const int64_t count = lesser(columns_ - column, here * L::count / parts);
        if (fresh && !stream)
          fetch_weights(
              pieces.part,
              from + (first + group < vectors ? (column + group * L::count / parts) * g.w_column
                                              : next),
              count);
        if (!in_place) {
          panels_.pack(from + column * g.w_column, g.w_column, count, w_step_, steps, panel_,
                       here * L::count, 0);
          panel_step(here * L::count, steps * parts);
        }
        for (int64_t v = 0; v < here;) {
          const int64_t wide = ceil_div(here - v, ceil_div(here - v, most));
          t.c = c + (first + v) * L::count;
          if constexpr (parts == 1) {
            if (in_place) {
              t.b = from + v * L::count;
              t.b_step = w_step_;
              t.ahead = stream ? lesser(steps, steps_ahead) : 0;
              t.last =
                  v + wide < vectors || whole ? L::count : static_cast<int>(columns_ % L::count);
              micro_rows<true>(t, rows_, wide, lines_ahead_, near_lines());
            }
          }
          if (!in_place) {
            Micro<Real> packed{t.a,     panel_ + v * L::count, t.c,         a_row,    c_row,
                               t.steps, small_step_,           panel_step_, from_zero};
            micro_rows<false>(packed, rows_, wide, lines_ahead_, near_lines());
          }
          v += wide;
        }
      }
      from_zero = false;
    }
  }

  // The lines of as much of w again as a nest's steps and `count` columns take, to be fetched from
  // `next` on while so many tiles are computed.
  UNSHARED_INLINE void fetch_weights(const Nest& nest, const T* next, int64_t count) {
    if (!(nest.same(fetched_w_) && count == fetched_columns_)) {
      Box box;
      for (int d = 0; d < nest.depth; ++d)
        box.add(nest.loop[d].count, nest.loop[d].second, nest.loop[d].second);
      box.lanes = count;
      box.lane_memory = g.w_column;
      fetched_w_ = nest;
      fetched_columns_ = count;
      w_lines_count_ = lines_of<T>(box, w_lines_, most_w_lines);
      pad(w_lines_, w_lines_count_);
    }
    lines_ahead_[1] = {reinterpret_cast<const char*>(next), w_lines_, w_lines_count_};
  }

  // Rows: the weights of columns, broadcast; vectors: samples.
  UNSHARED_INLINE void over_samples(const Nest& nest, const Real* b, const T* w, Real* c,
                                    int64_t c_row, bool from_zero) {
    if constexpr (plain && parts == 1) {
      const int64_t vectors = ceil_div(rows_, L::count);
      for (Pieces pieces(nest, table_steps); pieces.more(); pieces.next()) {
        const int64_t steps = pieces.part.total();
        tabulate(pieces.part, steps, false);
        Micro<Real> t{};
        t.a = w + pieces.second;
        t.a_row = g.w_column;
        t.a_step = w_step_;
        t.b = b + pieces.first;
        t.b_step = small_step_;
        t.c = c;
        t.c_row = c_row;
        t.steps = steps;
        t.from_zero = from_zero;
        micro_rows<false>(t, columns_, vectors, lines_ahead_, nullptr);
        from_zero = false;
      }
    }
  }

  // The offsets of a nest's steps in scratch and in w; kept while the nest is the same.
  UNSHARED_INLINE void tabulate(const Nest& nest, int64_t count, bool runs) {
    const bool known = nest.same(nest_);
    if (!known) {
      fill_table(nest, count);
      if (!plan_.staged) find_near(nest, count * parts);
    }
    if (runs && !(known && runs_known_)) panels_.find_runs(nest);
    runs_known_ = runs || (known && runs_known_);
  }
  void fill_table(const Nest& nest, int64_t count) {
    nest_ = nest;
    beyond_ = 0;
    const int scale = plan_.staged ? 1 : parts;  // scratch is counted in reals
    int64_t at[max_axes + 1] = {}, a = 0, b = 0;
    for (int64_t t = 0; t < count; ++t) {
      for (int q = 0; q < parts; ++q) small_step_[parts * t + q] = a * scale + q;
      w_step_[t] = b;
      for (int d = nest.depth - 1; d >= 0; --d) {
        a += nest.loop[d].first;
        b += nest.loop[d].second;
        if (++at[d] < nest.loop[d].count) break;
        a -= at[d] * nest.loop[d].first;
        b -= at[d] * nest.loop[d].second;
        at[d] = 0;
      }
    }
  }
  // Beyond the last step follow the first ones of the next cell, to be fetched ahead.
  UNSHARED_INLINE void look_beyond(int64_t steps, int64_t next) {
    if (steps == beyond_ && next == next_) return;
    for (int64_t j = 0; j < steps_ahead; ++j)
      w_step_[steps + j] = w_step_[lesser(j, steps - 1)] + next;
    beyond_ = steps;
    next_ = next;
  }
  static UNSHARED_INLINE void pad(std::int32_t* lines, int64_t count) {
    for (int64_t j = 0; j < table_steps * parts; ++j)
      lines[count + j] = count > 0 ? lines[count - 1] : 0;
  }
  // The lines that the rows of a tile lie in, all of one row before those of the next, where they are
  // read in place.
  UNSHARED_INLINE const std::int32_t* near_lines() const { return plan_.staged ? nullptr : near_; }
  void find_near(const Nest& nest, int64_t steps) {
    Box box;
    for (int d = 0; d < nest.depth; ++d)
      box.add(nest.loop[d].count, nest.loop[d].first * parts, nest.loop[d].first);
    box.lanes = parts;
    const int64_t lines = lines_of<Real>(box, near_, steps);
    const int64_t row = g.small_batch * int64_t{sizeof(T)};
    for (int64_t s = lines; s < steps; ++s) {
      const int64_t byte = near_[s - lines] + row;
      near_[s] = byte > max_extent || byte < -max_extent ? 0 : static_cast<std::int32_t>(byte);
    }
  }
  UNSHARED_INLINE void panel_step(int64_t width, int64_t steps) {
    if (width == panel_width_ && steps <= panel_steps_) return;
    for (int64_t t = 0; t < steps; ++t) panel_step_[t] = t * width;
    panel_width_ = width;
    panel_steps_ = steps;
  }

  const Problem& p;
  const Gathering g;
  const Call& call_;
  const Plan plan_;
  int64_t tap_step_[max_axes], partner_step_[max_axes];
  int64_t at_[max_axes] = {};  // where the strip stands along the other axes
  Line along_, across_;
  const T* last_ = nullptr;
  // The lines of what will be staged next, and how many of them were asked for.
  Box fetched_;
  int64_t lines_count_ = 0;
  Lines lines_ahead_[2];  // of the small tensor, and of w
  Nest fetched_w_;
  int64_t fetched_columns_ = 0, w_lines_count_ = 0;
  std::int32_t w_lines_[most_w_lines + table_steps * parts];
  int64_t rows_ = 0, columns_ = 0;  // of the block at hand
  Nest nest_;
  bool runs_known_ = false;
  int64_t beyond_ = 0, next_ = 0;

  int64_t panel_width_ = 0, panel_steps_ = 0;
  PanelPlan<T> panels_;
  std::int32_t near_[table_steps * parts];
  std::int32_t lines_[most_lines + table_steps * parts];
  int64_t small_step_[table_steps * parts], w_step_[table_steps + steps_ahead];
  int64_t panel_step_[table_steps * parts];
  alignas(64) Real stage_[scratch_reals + 2 * L::count];
  Real* panel_ = stage_;
  alignas(64) Real sums_[sums_reals + L::count];
};

static_assert(sizeof(Gather<float, Face::forward>) <= most_scratch &&
              sizeof(Gather<double, Face::grad_input>) <= most_scratch &&
              sizeof(Gather<Half, Face::forward>) <= most_scratch &&
              sizeof(Gather<Complex<double>, Face::forward>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
