// forward and grad_input where weights are read in place and are many columns wide: w is swept
// once, in its order in memory, a few steps at a time for all columns, while the lines of the next
// steps are on their way.
//
// What a strip of neighbouring cells reads of the small tensor (x or dy) is staged once for a block
// of samples: rows close together instead of pages apart, whatever their memory order. A tile is a
// block of rows (samples) by vectors of columns (the result's channels), as in tile.hpp. The sums
// stay in the result, or in scratch if it is not laid out like a tile or is of half type.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face; lanes and tiles run over columns and rows. Deterministic: one chain, one worker.
#pragma once

#include <utility>

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

inline constexpr int swept_vectors = 4;  // per row of a tile, at most
inline constexpr int swept_rows_of[] = {0, 8, vector_registers == 16 ? 6 : 8,
                                        vector_registers == 16 ? 4 : 8,
                                        vector_registers == 16 ? 2 : 6};
constexpr int swept_rows(int v) { return swept_rows_of[v]; }

template <class T>
struct Swept {
  using Real = typename Scalar<T>::Real;
  const Real* a;
  const T* b;
  Real* c;
  int64_t a_row, c_row, steps, ahead;  // ahead: a line of B is asked for so many steps before use
  const int64_t* a_step;
  const int64_t* b_step;
  bool from_zero;
  int last;  // lanes of the last vector
};

template <class T, int V, int M>
void swept_tile(const Swept<T>& t) {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sum[m][v] = t.from_zero ? L::zero() : L::load(t.c + m * t.c_row + v * L::count);
  // Two pointers, four rows each, so that every address is a base, a stride and a small factor.
  const int64_t a_row = t.a_row;
  const Real* const a0 = t.a;
  const Real* const a4 = a0 + 4 * a_row;
  const int64_t* const a_step = t.a_step;
  const int64_t* const b_step = t.b_step;
  const int64_t count = t.steps, ahead = t.ahead;
  const T* const b = t.b;
  const auto steps = [&](auto partial) __attribute__((always_inline)) {
    for (int64_t s = 0; s < count; ++s) {
      const int64_t at = a_step[s];
      const Real* const row[2] = {a0 + at, a4 + at};
      const T* line = b + b_step[s];
      const T* next = b + b_step[s + ahead];
      typename L::Vector w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        __builtin_prefetch(next + v * L::count);
        if constexpr (decltype(partial)::value)
          w[v] = v == V - 1 ? Stored<T>::load_part(line + v * L::count, t.last)
                            : Stored<T>::load(line + v * L::count);
        else
          w[v] = Stored<T>::load(line + v * L::count);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename L::Vector one = L::broadcast(row[m / 4] + m % 4 * a_row);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = L::chain(one, w[v], sum[m][v]);
      }
    }
  };
  if (t.last != L::count)
    steps(std::bool_constant<true>{});
  else
    steps(std::bool_constant<false>{});
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) L::store(t.c + m * t.c_row + v * L::count, sum[m][v]);
}

// A row of tiles of V vectors, split evenly.
template <class T, int V>
struct SweptTiles {
  using Function = void (*)(const Swept<T>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {swept_tile<T, V, m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, swept_rows(V)>{}));

  static UNSHARED_INLINE void run(Swept<T> t, int64_t rows) {
    int64_t tiles = ceil_div(rows, swept_rows(V));
    for (int64_t row = 0; row < rows; --tiles) {
      const int64_t height = ceil_div(rows - row, tiles);
      All::of_rows[height - 1](t);
      t.a += height * t.a_row;
      t.c += height * t.c_row;
      row += height;
    }
  }
};

// A gathering face: rows n, columns the result's channels, steps the summed channels and taps.
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
class Sweep {
 public:
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;

  UNSHARED_INLINE Sweep(const Problem& problem, const Call& call)
      : p(problem),
        g(gathering<face>(problem)),
        call_(call),
        rows_(rows_of_block(problem)),
        strips_(strips(problem, call)) {}

  static UNSHARED_INLINE const char* declines(const Problem& p) {
    const Gathering g = gathering<face>(p);
    if (g.w_column != 1) return "the weights of neighbouring columns are not neighbours in memory";
    if (g.columns <= (plain ? 2 : 0) * L::count)
      return "the weights are too few columns wide to be swept";
    if (padded(g.columns) * rows_of_block(p) > sums_reals || !fits(p, row_of(p)))
      return "a cell is too large to be staged as a whole";
    return nullptr;
  }

  static UNSHARED_INLINE int64_t items(const Problem& p, const Call& call) {
    return Cell::count(p, face) / row_of(p) * strips(p, call);
  }

  // The strips [begin, end).
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    const int64_t row = row_of(p);
    Cell cell(p, face, begin / strips_ * row + begin % strips_ * row / strips_);
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t at = strip % strips_;
      compute(cell, (at + 1) * row / strips_ - at * row / strips_);
      cell.advance();
    }
  }

 private:
  static constexpr bool plain = sizeof(T) == sizeof(Real);
  static constexpr int table_steps = 512, steps_at_once = 64, longest_strip = 16;
  static constexpr int64_t stage_reals = 112 * 1024 / sizeof(Real);
  static constexpr int64_t sums_reals = 32 * 1024 / sizeof(Real);
  static constexpr int64_t cache_bytes = 512 * 1024;  // about half a second-level cache

  static UNSHARED_INLINE int64_t padded(int64_t n) { return ceil_div(n, L::count) * L::count; }
  // Rows of scratch at a distance that does not put them all into one set of a cache.
  static UNSHARED_INLINE int64_t spaced(int64_t reals) {
    constexpr int64_t line = 64 / sizeof(Real);
    return (ceil_div(reals, line) | 1) * line;
  }
  static UNSHARED_INLINE int64_t row_of(const Problem& p) {
    const Axis& last = p.axes[p.axis_count - 1];
    return face == Face::grad_input ? last.input : last.output;
  }
  // Samples staged together, evenly split: two tiles' worth.
  static UNSHARED_INLINE int64_t rows_of_block(const Problem& p) {
    return ceil_div(p.batch, ceil_div(greater(p.batch, 1), 16));
  }

  // How many strips to cut a row of cells into: the weights of one stay in a cache while blocks of
  // samples pass, what it reads fits into scratch, and every thread finds work.
  static UNSHARED_INLINE int64_t strips(const Problem& p, const Call& call) {
    const Gathering g = gathering<face>(p);
    const int64_t row = row_of(p), rows = Cell::count(p, face) / row;
    int64_t terms = g.summed;
    for (int s = 0; s < p.axis_count; ++s) terms *= p.axes[s].kernel;
    int64_t longest = lesser(row, longest_strip);
    if (p.batch > rows_of_block(p))
      longest = lesser(
          longest, greater(1, cache_bytes / int64_t{sizeof(T)} / greater(1, terms * g.columns)));
    if (call.threads != 1) longest = lesser(longest, greater(1, row * rows / 32));
    while (longest > 1 && !fits(p, ceil_div(row, longest))) --longest;
    return ceil_div(row, longest);
  }

  // Whether what a strip reads of the small tensor fits into scratch.
  static UNSHARED_INLINE bool fits(const Problem& p, int64_t strips) {
    const int64_t count = ceil_div(row_of(p), strips);
    int64_t reals = gathering<face>(p).summed;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const bool forward = face == Face::forward;
      int64_t most = axis.kernel;
      if (s == p.axis_count - 1 && count > 1)
        most = ((count - 1) * (forward ? axis.stride : axis.input_dilation) +
                (axis.kernel - 1) * axis.dilation) /
                   (forward ? axis.input_dilation : axis.stride) +
               1;
      reals *= greater(1, lesser(most, forward ? axis.input : axis.output));
      if (reals > stage_reals) return false;
    }
    return spaced(reals) * rows_of_block(p) <= stage_reals;
  }

  static UNSHARED_INLINE int64_t w_offset(const Axis& axis, int64_t index, const Reach& reach) {
    return (face == Face::forward ? index : reach.partner) * axis.w_place_stride +
           reach.tap * axis.w_tap_stride;
  }
  static UNSHARED_INLINE int64_t w_step(const Axis& axis, int64_t tap_step, int64_t partner_step) {
    return tap_step * axis.w_tap_stride +
           (face == Face::forward ? 0 : partner_step * axis.w_place_stride);
  }

  // `count` cells from `cell` on, which is left at the last of them.
  void compute(Cell& cell, int64_t count) {
    const int z = p.axis_count - 1;
    const Axis& last = p.axes[z];
    struct {
      Reach reach;
      int64_t index;
    } at[longest_strip];
    int64_t low = max_extent, high = -1;
    for (int64_t j = 0; j < count; ++j) {
      if (j > 0) cell.advance();
      at[j] = {cell.reach[z], cell.index.at[z]};
      if (at[j].reach.count == 0) continue;
      low = lesser(low, at[j].reach.partner);
      high = greater(high, at[j].reach.partner + (at[j].reach.count - 1) * cell.partner_step[z]);
    }

    // All but the last axis: the same for every cell of the strip.
    Nest others;  // strides of the small tensor and of w
    const T* small = static_cast<const T*>(call_.first);
    const T* w = static_cast<const T*>(call_.second);
    T* result = static_cast<T*>(call_.result);
    for (int s = 0; s < z; ++s) {
      const Axis& axis = p.axes[s];
      const Reach& reach = cell.reach[s];
      small += reach.partner * axis.*g.small_stride;
      result += cell.index.at[s] * axis.*g.result_stride;
      w += w_offset(axis, cell.index.at[s], reach);
      others.add(reach.count, cell.partner_step[s] * axis.*g.small_stride,
                 w_step(axis, cell.tap_step[s], cell.partner_step[s]));
    }
    const int64_t unit = count == 1 ? cell.partner_step[z] : 1;
    const bool empty = high < 0 || others.total() == 0 || g.summed == 0;
    const int64_t window = empty ? 0 : (high - low) / unit + 1;
    small += empty ? 0 : low * last.*g.small_stride;
    const int64_t ahead = last_ == nullptr ? 0 : small - last_;
    last_ = small;

    for (int64_t n = 0; n < p.batch; n += rows_) {
      const int64_t rows = lesser(rows_, p.batch - n);
      Nest staged = others;
      staged.add(window, unit * last.*g.small_stride, 0);
      staged.add(g.summed, g.small_channel, 0);
      const int64_t a_row = empty ? 0 : stage_rows(staged, rows, small + n * g.small_batch, ahead);
      const int64_t z_scratch = staged.loop[others.depth].first;
      const int64_t channel = staged.loop[others.depth + 1].first;
      for (int64_t j = 0; j < count; ++j) {
        Nest steps;
        if (face == Face::forward) steps.add(g.summed, channel, g.w_summed);
        for (int d = 0; d < others.depth; ++d)
          steps.add(others.loop[d].count, staged.loop[d].first, others.loop[d].second);
        steps.add(at[j].reach.count, cell.partner_step[z] / unit * z_scratch,
                  w_step(last, cell.tap_step[z], cell.partner_step[z]));
        if (face == Face::grad_input) steps.add(g.summed, channel, g.w_summed);
        const int64_t skip = at[j].reach.count == 0 ? 0 : (at[j].reach.partner - low) / unit;
        sweep(steps, stage_ + skip * z_scratch, a_row, w + w_offset(last, at[j].index, at[j].reach),
              result + n * g.result_batch + at[j].index * last.*g.result_stride, rows);
      }
    }
  }

  // Stages rows of a nest's first operand densely, the loop that runs along memory innermost, and
  // turns its strides into those of scratch; returns the distance of two rows.
  UNSHARED_INLINE int64_t stage_rows(Nest& nest, int64_t rows, const T* from, int64_t ahead) {
    int fast = -1;
    for (int d = 0; d < nest.depth; ++d)
      if (nest.loop[d].count > 1 && (fast < 0 || nest.loop[d].first == 1)) fast = d;
    const int64_t row = spaced(nest.total());
    int64_t scratch = fast < 0 ? 1 : nest.loop[fast].count, strides[max_axes + 1] = {};
    for (int d = nest.depth - 1; d >= 0; --d) {
      if (d == fast || nest.loop[d].count == 1) continue;
      strides[d] = scratch;
      scratch *= nest.loop[d].count;
    }
    Box box;
    box.dense = true;
    box.add(rows, g.small_batch, row);
    for (int d = 0; d < nest.depth; ++d)
      if (d != fast) box.add(nest.loop[d].count, nest.loop[d].first, strides[d]);
    if (fast >= 0) {
      box.lanes = nest.loop[fast].count;
      box.lane_memory = nest.loop[fast].first;
      strides[fast] = 1;
    }
    stage(box, from, stage_, ahead);
    for (int d = 0; d < nest.depth; ++d) nest.loop[d].first = strides[d];
    return row;
  }

  // One cell: rows of A, staged, by the columns of B, which is w.
  UNSHARED_INLINE void sweep(const Nest& nest, const Real* a, int64_t a_row, const T* b, T* result,
                             int64_t rows) {
    const int64_t vectors = ceil_div(g.columns, L::count);
    const bool direct = plain && g.result_channel == 1 && g.columns % L::count == 0;
    Box sums;
    sums.add(rows, g.result_batch, vectors * L::count);
    sums.lanes = g.columns;
    sums.lane_memory = g.result_channel;
    if (!direct && call_.accumulate) stage(sums, result, sums_);
    Swept<T> t{};
    Real* const c = direct ? reinterpret_cast<Real*>(result) : sums_;
    t.c_row = direct ? g.result_batch : vectors * L::count;
    t.a_row = a_row;
    t.from_zero = !call_.accumulate;
    t.a_step = a_step_;
    t.b_step = b_step_;
    const int64_t most = rows <= swept_rows(4) ? 4 : rows <= swept_rows(3) ? 3 : 2;
    const auto columns = [&](const Real* from, const T* line) __attribute__((always_inline)) {
      for (int64_t v = 0; v < vectors;) {
        const int64_t left = vectors - v, wide = ceil_div(left, ceil_div(left, most));
        t.a = from;
        t.b = line + v * L::count;
        t.c = c + v * L::count;
        v += wide;
        t.last = static_cast<int>(v < vectors ? L::count : g.columns - (vectors - 1) * L::count);
        if (wide == 4) SweptTiles<T, 4>::run(t, rows);
        if (wide == 3) SweptTiles<T, 3>::run(t, rows);
        if (wide == 2) SweptTiles<T, 2>::run(t, rows);
        if (wide == 1) SweptTiles<T, 1>::run(t, rows);
      }
      t.from_zero = false;
    };
    Pieces pieces(nest, table_steps);
    if (pieces.none()) columns(stage_, b);  // nothing to add up: zero, or what the result holds
    for (; pieces.more(); pieces.next()) {
      const int64_t steps = pieces.part.total();
      tabulate(pieces.part, steps, pieces.single() ? p.axes[p.axis_count - 1].w_place_stride : 0);
      for (int64_t step = 0; step < steps; step += steps_at_once) {
        t.steps = lesser(steps_at_once, steps - step);
        t.a_step = a_step_ + step;
        t.b_step = b_step_ + step;
        t.ahead = steps_at_once;
        columns(a + pieces.first, b + pieces.second);
      }
    }
    if (!direct) unstage(sums, result, sums_);
  }

  // The offsets of a nest's steps in A and B; kept while the nest is the same. Beyond the last step
  // follow the first ones of the next cell, to be fetched ahead.
  UNSHARED_INLINE void tabulate(const Nest& nest, int64_t count, int64_t b_next) {
    // The last of several pieces is shorter than the others: what stands in the table serves it.
    const bool known = count <= known_ && nest.same_but_first(nest_);
    if (known && count == count_ && b_next == b_next_) return;
    if (!known) {
      fill_table(nest, count);
      known_ = count;
    }
    if (known_ - count < steps_at_once) {
      for (int j = 0; j < steps_at_once; ++j)
        b_step_[count + j] = b_step_[lesser(j, count - 1)] + b_next;
      known_ = count;
    }
    nest_ = nest;
    b_next_ = b_next;
    count_ = count;
  }
  void fill_table(const Nest& nest, int64_t count) {
    int64_t at[max_axes + 1] = {}, a = 0, b = 0;
    for (int64_t t = 0; t < count; ++t) {
      a_step_[t] = a;
      b_step_[t] = b;
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

  const Problem& p;
  const Gathering g;
  const Call& call_;
  const int64_t rows_, strips_;
  const T* last_ = nullptr;
  Nest nest_;
  int64_t b_next_ = 0, count_ = -1, known_ = -1;
  int64_t a_step_[table_steps], b_step_[table_steps + steps_at_once];
  alignas(64) Real stage_[stage_reals + 2 * L::count];
  alignas(64) Real sums_[sums_reals + L::count];
};

static_assert(sizeof(Sweep<float, Face::forward>) <= most_scratch &&
              sizeof(Sweep<double, Face::grad_input>) <= most_scratch &&
              sizeof(Sweep<Half, Face::forward>) <= most_scratch);

template <class T, Face face>
const char* sweep_declines(const Problem& p) noexcept {
  if constexpr (face == Face::grad_weight)
    return "grad_weight writes the weights";
  else if constexpr (Scalar<T>::parts == 2)
    return "complex weights have to be rearranged";
  else
    return Sweep<T, face>::declines(p);
}

}  // namespace
}  // namespace unshared

#endif
