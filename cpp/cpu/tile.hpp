// The one micro-kernel of lanes over channels, and what feeds it.
//
// A cell of any face is a small matrix product: result[row, col] = chain over steps of A[row, step]
// * B[step, col]. A tile keeps M rows of V vectors of result in registers while the steps go by:
// one element of A is broadcast, lanes run over columns, never over steps, so each result element
// is one sequential chain - the canonical order, whatever the tile, the level or the thread. Real
// arithmetic in float or double; complex elements become two real steps of twice as many columns
// (pack_columns), half types are widened on the way in and rounded once on the way out.
//
// A is a small tensor, staged by the caller so that its rows lie close together (strip.hpp), or
// complex and read where it is. B is read in place where columns are unit-stride, otherwise a panel
// of it is packed. All scratch is of fixed size on the worker's stack.
#pragma once

#include <utility>

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Scratch for the small tensor: all there is, and what stays in the nearest cache.
inline constexpr int64_t stage_bytes = 112 * 1024, near_bytes = 112 * 1024;
inline constexpr int most_vectors = 4;  // per row of a tile
// Rows of a tile of v vectors: the accumulators, v vectors of B and one broadcast fit into the
// registers.
constexpr int most_rows(int v) {
  return vector_registers == 16 ? (v == 1   ? 8
                                   : v == 2 ? 6
                                   : v == 3 ? 4
                                            : 2)
                                : (v == 1   ? 12
                                   : v == 2 ? 12
                                   : v == 3 ? 8
                                            : 6);
}
template <class Real>
struct Tile {
  const Real* a;
  const Real* b;
  Real* c;
  int64_t a_row, c_row, steps;
  const int64_t* a_step;
  const int64_t* b_step;  // not read when B is a packed panel: step t begins at t * V * lanes
  bool from_zero;
  int ahead;  // how many steps ahead of its use a line of B is asked for
  int last;  // lanes of the last vector, if B is read in place
};

template <class Real, int V, bool packed, int M>
void tile(const Tile<Real>& t) {
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
  const bool part = !packed && t.last != L::count;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sum[m][v] = t.from_zero ? L::zero() : L::load(t.c + m * t.c_row + v * L::count);
  // Three pointers, four rows each, so that every address is a base, a stride and a small factor.
  const int64_t a_row = t.a_row;
  const Real* const a0 = t.a;
  const Real* const a4 = a0 + 4 * a_row;
  const Real* const a8 = a4 + 4 * a_row;
  const auto steps = [&](auto partial) __attribute__((always_inline)) {
    for (int64_t s = 0; s < t.steps; ++s) {
      const int64_t at = t.a_step[s];
      const Real* const row[3] = {a0 + at, a4 + at, a8 + at};
      const Real* line = packed ? t.b + s * (V * L::count) : t.b + t.b_step[s];
      typename L::Vector vector[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        if constexpr (!packed) __builtin_prefetch(t.b + t.b_step[s + t.ahead] + v * L::count);
        if constexpr (decltype(partial)::value)
          vector[v] =
              v == V - 1 ? L::load_part(line + v * L::count, t.last) : L::load(line + v * L::count);
        else
          vector[v] = L::load(line + v * L::count);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const typename L::Vector one = L::broadcast(row[m / 4] + m % 4 * a_row);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = L::chain(one, vector[v], sum[m][v]);
      }
    }
  };
  if (part)
    steps(std::bool_constant<true>{});
  else
    steps(std::bool_constant<false>{});
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) L::store(t.c + m * t.c_row + v * L::count, sum[m][v]);
}

template <class Real, int V, bool packed>
struct Tiles {
  using Function = void (*)(const Tile<Real>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {tile<Real, V, packed, m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, most_rows(V)>{}));
  static UNSHARED_INLINE Function rows(int64_t m) { return All::of_rows[m - 1]; }
};

// One product. A, and its strides, in reals; the others in elements of T. `rows` may be nested: the
// innermost loop is tiled, the outer ones (over A and C) are walked; `steps` move A and B. If
// `unstaged` is given it stands for A, with strides in elements of T and rows that are not nested,
// and is staged piece by piece.
template <class T>
struct Product {
  const typename Scalar<T>::Real* a;
  const T* unstaged;
  const T* b;
  T* c;
  Nest rows, steps;
  int64_t columns, b_column, c_column;
  int64_t b_next;  // how far on the B of the next product lies, or is likely to
  bool pack;  // B even if it could be read in place: its steps lie pages apart
  bool accumulate;
};

template <class T>
class Tiler {
 public:
  using Real = typename Scalar<T>::Real;
  static constexpr int parts = Scalar<T>::parts;
  static constexpr bool plain =
      sizeof(T) == parts * sizeof(Real);  // storage is what the chain computes in
  static constexpr int lanes = Lanes<Real>::count / parts;  // columns per vector
  static constexpr int wide = lanes * most_vectors;

  UNSHARED_INLINE explicit Tiler(const Call& call)
      : conjugate_a_(call.conjugate_first), conjugate_b_(call.conjugate_second) {}

  // Whether B is read where it lies.
  static UNSHARED_INLINE bool in_place(int64_t b_column) {
    return plain && parts == 1 && b_column == 1;
  }

  // Columns [first, last) of the product.
  UNSHARED_INLINE void compute(const Product<T>& product, int64_t first, int64_t last) {
    if (sweeps(product, first, last)) {
      sweep(product, first, last);
      return;
    }
    const int64_t rows = product.rows.loop[product.rows.depth - 1].count;
    const int64_t most = rows <= most_rows(4) ? 4 : rows <= most_rows(3) ? 3 : 2;
    for (int64_t column = first; column < last;) {
      const int64_t vectors = ceil_div(last - column, lanes);
      const int64_t v = ceil_div(vectors, ceil_div(vectors, most));
      const int64_t count = lesser(last - column, v * lanes);
      const int64_t next = column + count < last
                               ? count * product.b_column
                               : product.b_next - (column - first) * product.b_column;
      if (v == 4) columns<4>(product, column, count, next);
      if (v == 3) columns<3>(product, column, count, next);
      if (v == 2) columns<2>(product, column, count, next);
      if (v == 1) columns<1>(product, column, count, next);
      column += count;
    }
  }

 private:
  // Weights read in place that are several column blocks wide are swept in their order in memory:
  // few steps at a time for all columns, while the lines of the next steps are on their way. The
  // sums stay in the result, or in scratch if it is not laid out like a tile.
  static UNSHARED_INLINE bool sweeps(const Product<T>& p, int64_t first, int64_t last) {
    const int64_t columns = ceil_div(last - first, lanes) * lanes;
    const int64_t rows = p.rows.loop[0].count;
    return in_place(p.b_column) && !p.pack && p.unstaged == nullptr && p.rows.depth == 1 &&
           columns > 2 * lanes && rows > 0 && p.steps.total() > 0 &&
           (swept_here(p, first, last) || rows * columns <= sums_reals);
  }
  static UNSHARED_INLINE bool swept_here(const Product<T>& p, int64_t first, int64_t last) {
    return plain && p.c_column == 1 && (last - first) % lanes == 0;
  }

  void sweep(const Product<T>& p, int64_t first, int64_t last) {
    if constexpr (plain && parts == 1) {
      const Nest::Loop& over = p.rows.loop[0];
      const bool direct = swept_here(p, first, last);
      const int64_t vectors = ceil_div(last - first, lanes);
      T* c = p.c + first * p.c_column;
      Box sums;
      sums.add(over.count, over.second, vectors * lanes);
      sums.lanes = last - first;
      sums.lane_memory = p.c_column;
      if (!direct && p.accumulate) stage(sums, c, sums_);
      Tile<Real> t{};
      t.c_row = direct ? over.second : vectors * lanes;
      t.a_row = over.first;
      t.ahead = swept_steps;
      t.from_zero = !p.accumulate;
      const int64_t most = over.count <= most_rows(4) ? 4 : over.count <= most_rows(3) ? 3 : 2;
      for (Pieces pieces(p.steps, table_steps); pieces.more(); pieces.next()) {
        const int64_t steps = pieces.part.total();
        tabulate(pieces.part, steps, pieces.single() ? p.b_next : 0);
        for (int64_t step = 0; step < steps; step += swept_steps) {
          t.steps = lesser(swept_steps, steps - step);
          t.a_step = a_step_ + step;
          t.b_step = b_step_ + step;
          for (int64_t at = 0; at < vectors;) {
            const int64_t left = vectors - at, v = ceil_div(left, ceil_div(left, most));
            t.a = p.a + pieces.first;
            t.b = p.b + pieces.second + first + at * lanes;
            t.c = (direct ? c : sums_) + at * lanes;
            at += v;
            t.last = static_cast<int>(at < vectors ? lanes : last - first - (vectors - 1) * lanes);
            if (v == 4) run_rows<4, false>(t, over.count);
            if (v == 3) run_rows<3, false>(t, over.count);
            if (v == 2) run_rows<2, false>(t, over.count);
            if (v == 1) run_rows<1, false>(t, over.count);
          }
          t.from_zero = false;
        }
      }
      if (!direct) unstage(sums, c, sums_);
    }
  }

  static constexpr int swept_steps = 64;
  static constexpr int table_steps = 512, ahead = 64, most_unstaged_rows = 64;
  static constexpr int64_t panel_reals = 32 * 1024 / sizeof(Real),
                           sums_reals = 16 * 1024 / sizeof(Real);
  template <int V>
  static constexpr int width = V * Lanes<Real>::count;  // of a panel, in reals

  // Stages the rows [row, row + rows) of a piece; its steps then lead through scratch.
  UNSHARED_INLINE void stage_rows(const Product<T>& p, Pieces& pieces, int64_t row, int64_t rows,
                                  int64_t& a_row) {
    const Nest::Loop& over = p.rows.loop[0];
    const T* from = p.unstaged + row * over.first + pieces.first;
    a_row = stage_nest(pieces.part, over.first, rows, from, stage_);
  }

 public:
  // Stages rows of a nest's first operand densely, and turns its strides into those of scratch;
  // returns the distance of two rows.
  static int64_t stage_nest(Nest& nest, int64_t row_stride, int64_t rows, const T* from, Real* to,
                            int64_t ahead = 0) {
    int fast = -1;
    for (int d = 0; d < nest.depth; ++d)
      if (nest.loop[d].count > 1 && (fast < 0 || nest.loop[d].first == 1)) fast = d;
    const int64_t row = spaced(nest.total());
    int64_t scratch = fast < 0 ? 1 : nest.loop[fast].count;
    Box box;
    int64_t strides[max_axes + 1] = {};
    for (int d = nest.depth - 1; d >= 0; --d) {
      if (d == fast || nest.loop[d].count == 1) continue;
      strides[d] = scratch;
      scratch *= nest.loop[d].count;
    }
    box.add(rows, row_stride, row);
    for (int d = 0; d < nest.depth; ++d)
      if (d != fast) box.add(nest.loop[d].count, nest.loop[d].first, strides[d]);
    if (fast >= 0) {
      box.lanes = nest.loop[fast].count;
      box.lane_memory = nest.loop[fast].first;
      strides[fast] = 1;
    }
    box.dense = true;
    stage(box, from, to, ahead);
    for (int d = 0; d < nest.depth; ++d) nest.loop[d].first = strides[d];
    return row;
  }

  // Rows of scratch at a distance that does not put them all into one set of a cache.
  static UNSHARED_INLINE int64_t spaced(int64_t reals) {
    constexpr int64_t line = 64 / sizeof(Real);
    return (ceil_div(reals, line) | 1) * line;
  }

  static constexpr int64_t stage_reals = stage_bytes / sizeof(Real);
  static constexpr int64_t near_reals = near_bytes / sizeof(Real);
  alignas(64) Real stage_[stage_reals + 2 * Lanes<Real>::count];

 private:
  template <int V>
  UNSHARED_INLINE void columns(const Product<T>& p, int64_t column, int64_t count, int64_t b_next) {
    const bool full = count == V * lanes;
    const bool here = in_place(p.b_column) && !p.pack;
    const bool direct = plain && full && p.c_column == 1;
    int64_t most = table_steps / parts;
    if (!here) most = lesser(most, panel_reals / width<V> / parts);
    const T* b = p.b + column * p.b_column;
    const Nest::Loop& inner = p.rows.loop[p.rows.depth - 1];
    const int64_t outer = p.rows.total() / greater(inner.count, 1);
    if (inner.count == 0) return;
    int64_t block = direct ? inner.count : sums_reals / width<V>;
    if (p.unstaged != nullptr) {
      block = lesser(block, most_unstaged_rows);
      block = ceil_div(inner.count, ceil_div(inner.count, block));
      most = lesser(most, stage_reals / block - Lanes<Real>::count);
    }
    bool packed = false;
    for (int64_t o = 0; o < outer; ++o) {
      int64_t a_at = 0, c_at = column * p.c_column, flat = o;
      for (int d = p.rows.depth - 2; d >= 0; --d) {
        const int64_t at = flat % p.rows.loop[d].count;
        flat /= p.rows.loop[d].count;
        a_at += at * p.rows.loop[d].first;
        c_at += at * p.rows.loop[d].second;
      }
      for (int64_t row = 0; row < inner.count; row += block) {
        const int64_t rows = lesser(block, inner.count - row);
        T* c = p.c + c_at + row * inner.second;
        Box sums;
        if constexpr (parts == 1) {
          sums.add(rows, inner.second, width<V>);
          sums.lanes = count;
          sums.lane_memory = p.c_column;
        }
        if (!direct && p.accumulate) load<V>(sums, c, inner.second, p.c_column, rows, count);
        Tile<Real> t{};
        t.c = direct ? reinterpret_cast<Real*>(c) : sums_;
        t.c_row = direct ? inner.second * parts : width<V>;
        t.a_row = inner.first;
        t.last = here ? static_cast<int>(count - (V - 1) * lanes) : Lanes<Real>::count;
        t.a_step = a_step_;
        t.b_step = b_step_;
        t.ahead = V == 1 ? 32 : 16;
        t.from_zero = !p.accumulate;
        Pieces pieces(p.steps, most);
        if (pieces.none()) run_rows<V, true>(t, rows);
        for (; pieces.more(); pieces.next()) {
          const int64_t steps = pieces.part.total();
          const T* from = b + pieces.second;
          if (!here && !(packed && pieces.single())) {
            pack_columns<V>(pieces.part, from, p.b_column, steps, count, b_next);
            packed = true;
          }
          if (p.unstaged != nullptr) {
            if constexpr (parts == 1) stage_rows(p, pieces, row, rows, t.a_row);
            t.a = stage_;
          } else {
            t.a = p.a + a_at + row * inner.first + pieces.first;
          }
          tabulate(pieces.part, steps, pieces.single() ? b_next : 0);
          t.b = here ? reinterpret_cast<const Real*>(from) : panel_;
          t.steps = steps * parts;
          if (here)
            run_rows<V, false>(t, rows);
          else
            run_rows<V, true>(t, rows);
          t.from_zero = false;
        }
        if (!direct) store<V>(sums, c, inner.second, p.c_column, rows, count);
      }
    }
  }

  // Splits the rows evenly into tiles.
  template <int V, bool packed>
  UNSHARED_INLINE void run_rows(Tile<Real> t, int64_t rows) {
    int64_t tiles = ceil_div(rows, most_rows(V));
    for (int64_t row = 0; row < rows; --tiles) {
      const int64_t height = ceil_div(rows - row, tiles);
      Tiles<Real, V, packed>::rows(height)(t);
      t.a += height * t.a_row;
      t.c += height * t.c_row;
      row += height;
    }
  }

  // The offsets of a nest's steps in A (in reals) and B (in elements); kept while the nest is the
  // same. Beyond the last step follow the first ones of the next product, to be fetched ahead.
  UNSHARED_INLINE void tabulate(const Nest& nest, int64_t count, int64_t b_next) {
    // The last of several pieces is shorter than the others: what stands in the table serves it, too.
    const bool known = count <= known_ && nest.same_but_first(nest_);
    if (known && count == count_ && b_next == b_next_) return;
    if (!known) {
      fill_table(nest, count);
      known_ = count;
    }
    // Beyond the last step follow the first ones of the next product, unless the table goes on.
    if (count >= known_ || known_ - count < ahead) {
      for (int j = 0; j < ahead; ++j) b_step_[count + j] = b_step_[lesser(j, count - 1)] + b_next;
      known_ = count;
    }
    nest_ = nest;
    b_next_ = b_next;
    count_ = count;
  }
  void fill_table(const Nest& nest, int64_t count) {
    int64_t at[max_axes + 1] = {}, a = 0, b = 0;
    const int last = nest.depth - 1;
    const Nest::Loop& fast = nest.loop[last];
    for (int64_t t = 0; t < count;) {
      for (int64_t j = 0; j < fast.count; ++j, ++t, a += fast.first, b += fast.second) {
        if constexpr (parts == 1) {
          a_step_[t] = a;
        } else {
          a_step_[2 * t] = a;
          a_step_[2 * t + 1] = a + 1;
        }
        b_step_[t] = b;
      }
      a -= fast.count * fast.first;
      b -= fast.count * fast.second;
      for (int d = last - 1; d >= 0; --d) {
        a += nest.loop[d].first;
        b += nest.loop[d].second;
        if (++at[d] < nest.loop[d].count) break;
        a -= at[d] * nest.loop[d].first;
        b -= at[d] * nest.loop[d].second;
        at[d] = 0;
      }
    }
  }

  // B[steps, count] into the panel, lanes beyond `count` zero or of no account.
  template <int V>
  UNSHARED_INLINE void pack_columns(const Nest& steps, const T* b, int64_t b_column, int64_t total,
                                    int64_t count, int64_t b_next) {
    if constexpr (parts == 1) {
      Box box;
      int64_t scratch = width<V> * total;
      for (int d = 0; d < steps.depth; ++d) {
        scratch /= steps.loop[d].count;
        box.add(steps.loop[d].count, steps.loop[d].second, scratch);
      }
      box.lanes = count;
      box.lane_memory = b_column;
      stage(box, b, panel_, b_next);
    } else {
      tabulate(steps, total, 0);
      for (int64_t t = 0; t < total; ++t) pack_step<V>(b + b_step_[t], b_column, t, count);
    }
  }

  // One step of a complex B: an element q becomes, for the steps that broadcast p.re and p.im, the
  // lanes (q.re, q.im) and (-q.im, q.re), with the signs of the conjugations.
  template <int V>
  UNSHARED_INLINE void pack_step(const T* from, int64_t b_column, int64_t t, int64_t count) {
    Real* by_re = panel_ + 2 * t * width<V>;
    Real* by_im = by_re + width<V>;
    for (int64_t j = 0; j < count; ++j) {
      const T q = conjugate(from[j * b_column], conjugate_b_);
      by_re[2 * j] = q.re;
      by_re[2 * j + 1] = q.im;
      by_im[2 * j] = conjugate_a_ ? q.im : -q.im;
      by_im[2 * j + 1] = conjugate_a_ ? -q.re : q.re;
    }
    for (int64_t j = 2 * count; j < width<V>; ++j) by_re[j] = by_im[j] = 0;
  }

  template <int V>
  UNSHARED_INLINE void load(const Box& box, const T* c, int64_t c_row, int64_t c_column,
                            int64_t rows, int64_t count) {
    if constexpr (parts == 1) {
      stage(box, c, sums_);
    } else {
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t j = 0; j < count; ++j) {
          const auto held = c[m * c_row + j * c_column];
          sums_[m * width<V> + 2 * j] = held.re;
          sums_[m * width<V> + 2 * j + 1] = held.im;
        }
    }
  }

  template <int V>
  UNSHARED_INLINE void store(const Box& box, T* c, int64_t c_row, int64_t c_column, int64_t rows,
                             int64_t count) {
    if constexpr (parts == 1) {
      unstage(box, c, sums_);
    } else {
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t j = 0; j < count; ++j)
          c[m * c_row + j * c_column] = {sums_[m * width<V> + 2 * j],
                                         sums_[m * width<V> + 2 * j + 1]};
    }
  }

  bool conjugate_a_, conjugate_b_;
  Nest nest_;
  int64_t b_next_ = 0, count_ = -1, known_ = -1;
  int64_t a_step_[table_steps], b_step_[table_steps + ahead];
  alignas(64) Real panel_[panel_reals + Lanes<Real>::count];
  alignas(64) Real sums_[sums_reals + Lanes<Real>::count];
};

static_assert(sizeof(Tiler<float>) <= most_scratch && sizeof(Tiler<double>) <= most_scratch &&
              sizeof(Tiler<Half>) <= most_scratch &&
              sizeof(Tiler<Complex<double>>) <= most_scratch);

// Part `part` of `parts` of a cell's columns, cut at whole vectors.
template <class T>
UNSHARED_INLINE void compute_part(Tiler<T>& tiler, const Product<T>& product, int64_t part,
                                  int64_t parts) {
  const int64_t vectors = ceil_div(product.columns, Tiler<T>::lanes);
  tiler.compute(product, part * vectors / parts * Tiler<T>::lanes,
                lesser((part + 1) * vectors / parts * Tiler<T>::lanes, product.columns));
}

}  // namespace
}  // namespace unshared

#endif
