// The one micro-kernel that serves the three faces, and what feeds it.
//
// A cell of any face is a small matrix product: result[row, col] = chain over steps of A[row, step]
// * B[step, col]. A tile keeps M rows of V vectors of result in registers while the steps go by:
// one element of A is broadcast, lanes run over columns, never over steps, so each result element
// is one sequential chain - the canonical order, whatever the tile, the level or the thread. Real
// arithmetic in float or double; complex elements become two real steps of twice as many columns
// (pack_columns), half types are widened on the way in and rounded once on the way out.
//
// A and the steps are addressed through tables of offsets, so any layout of A costs nothing. B is
// read in place where columns are unit-stride, otherwise a panel of it is packed. All scratch is of
// fixed size on the worker's stack.
#pragma once

#include <utility>

#include "lanes.hpp"
#include "share.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

inline constexpr int tile_vectors = 2;  // per row of a tile
// Rows of a tile of v vectors: the accumulators, v vectors of B and one broadcast fit into the
// registers.
constexpr int tile_rows(int v) {
  return vector_registers == 16 ? (v == 1 ? 12 : 6) : (v == 1 ? 16 : 12);
}

template <class Real>
using TileFunction = void (*)(const Real* a, int64_t a_row, const int64_t* a_step, const Real* b,
                              const int64_t* b_step, int64_t steps, Real* c, int64_t c_row,
                              bool from_zero);

// b_step is not read when B is a packed panel: there, step t begins at t * V * lanes.
template <class Real, int V, bool packed, int M>
void tile(const Real* a, int64_t a_row, const int64_t* a_step, const Real* b, const int64_t* b_step,
          int64_t steps, Real* c, int64_t c_row, bool from_zero) {
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      sum[m][v] = from_zero ? L::zero() : L::load(c + m * c_row + v * L::count);
  // Rows of A lie pages apart, beyond what hardware fetches ahead: ask for one element of the next
  // tile at every step. (Worth 10 % of forward and grad_weight in the seed case, channels last.)
  const Real* ahead = a + M * a_row;
  const Real* const beyond = ahead + M * a_row;
  for (int64_t t = 0; t < steps; ++t) {
    const Real* row = a + a_step[t];
    __builtin_prefetch(ahead + a_step[t]);
    ahead += a_row;
    if (ahead == beyond) ahead = a + M * a_row;
    const Real* line = packed ? b + t * (V * L::count) : b + b_step[t];
    typename L::Vector vector[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) vector[v] = L::load(line + v * L::count);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const typename L::Vector one = L::broadcast(row + m * a_row);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = L::chain(one, vector[v], sum[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) L::store(c + m * c_row + v * L::count, sum[m][v]);
}

template <class Real, int V, bool packed>
struct Tiles {
  template <int... m>
  struct Table {
    static constexpr TileFunction<Real> of_rows[] = {tile<Real, V, packed, m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, tile_rows(V)>{}));
  static UNSHARED_INLINE TileFunction<Real> rows(int64_t m) { return All::of_rows[m - 1]; }
};

// One product. Strides are in elements of T. `rows` may be nested: the innermost loop is tiled, the
// outer ones (over A and C) are walked; `steps` move A and B.
template <class T>
struct Product {
  const T* a;
  const T* b;
  T* c;
  Nest rows, steps;
  int64_t columns, b_column, c_column;
};

template <class T>
class Tiler {
 public:
  using Real = typename Scalar<T>::Real;
  static constexpr int parts = Scalar<T>::parts;
  static constexpr bool plain =
      sizeof(T) == parts * sizeof(Real);  // storage is what the chain computes in
  static constexpr int lanes = Lanes<Real>::count / parts;  // columns per vector
  static constexpr int wide = lanes * tile_vectors;

  UNSHARED_INLINE explicit Tiler(const Call& call)
      : accumulate_(call.accumulate),
        conjugate_a_(call.conjugate_first),
        conjugate_b_(call.conjugate_second) {
    if constexpr (!plain)
      for (int t = 0; t < panel_steps; ++t) identity_[t] = t;
  }

  // Columns [first, last) of the product.
  UNSHARED_INLINE void compute(const Product<T>& product, int64_t first, int64_t last) {
    for (int64_t column = first; column < last;) {
      const int64_t left = last - column;
      if (left > lanes) {
        columns<2>(product, column, lesser(left, wide));
        column += wide;
      } else {
        columns<1>(product, column, left);
        column += lanes;
      }
    }
  }

 private:
  static constexpr int table_steps = 512, panel_steps = 256, panel_rows = 128;
  template <int V>
  static constexpr int width = V * Lanes<Real>::count;  // of a panel, in reals

  template <int V>
  UNSHARED_INLINE void columns(const Product<T>& p, int64_t column, int64_t count) {
    const bool full = count == V * lanes;
    const bool in_place = plain && parts == 1 && full && p.b_column == 1;
    const bool direct = plain && full && p.c_column == 1;
    const int64_t steps = p.steps.total();
    const int64_t chunks =
        greater(ceil_div(steps, in_place ? table_steps : panel_steps / parts), 1);
    const int64_t chunk = ceil_div(steps, chunks);
    const T* b = p.b + column * p.b_column;
    bool packed = false;

    const Nest::Loop& inner = p.rows.loop[p.rows.depth - 1];
    const int64_t outer = p.rows.total() / greater(inner.count, 1);
    if (inner.count == 0) return;
    const int64_t block = direct ? inner.count : panel_rows;
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
        const T* a = p.a + a_at + row * inner.first;
        T* c = p.c + c_at + row * inner.second;
        Real* sums = direct ? reinterpret_cast<Real*>(c) : sums_;
        const int64_t sums_row = direct ? inner.second * parts : width<V>;
        if (!direct && accumulate_) load<V>(c, inner.second, p.c_column, rows, count);
        for (int64_t begin = 0; begin == 0 || begin < steps; begin += chunk) {
          const int64_t here = lesser(chunk, steps - begin);
          tabulate(p.steps, begin, here);
          if (!in_place && !(packed && chunks == 1)) {
            pack_columns<V>(b, p.b_column, here, count);
            packed = true;
          }
          const bool from_zero = begin == 0 && !accumulate_;
          if (in_place)
            rows_of<V, false>(a, inner.first, reinterpret_cast<const Real*>(b), here, sums,
                              sums_row, rows, from_zero);
          else
            rows_of<V, true>(a, inner.first, panel_, here, sums, sums_row, rows, from_zero);
          if (steps == 0) break;
        }
        if (!direct) store<V>(c, inner.second, p.c_column, rows, count);
      }
    }
  }

  // Splits the rows evenly into tiles.
  template <int V, bool packed>
  UNSHARED_INLINE void rows_of(const T* a, int64_t a_row, const Real* b, int64_t steps, Real* c,
                               int64_t c_row, int64_t rows, bool from_zero) {
    int64_t tiles = ceil_div(rows, tile_rows(V));
    for (int64_t row = 0; row < rows; --tiles) {
      const int64_t height = ceil_div(rows - row, tiles);
      const auto run = Tiles<Real, V, packed>::rows(height);
      if constexpr (plain) {
        run(reinterpret_cast<const Real*>(a) + row * a_row * parts, a_row * parts, a_step_, b,
            b_step_, steps * parts, c + row * c_row, c_row, from_zero);
      } else {
        for (int64_t m = 0; m < height; ++m)
          for (int64_t t = 0; t < steps; ++t)
            widened_[m * panel_steps + t] = widen(a[(row + m) * a_row + a_step_[t]]);
        run(widened_, panel_steps, identity_, b, b_step_, steps, c + row * c_row, c_row, from_zero);
      }
      row += height;
    }
  }

  // The offsets of steps [begin, begin + count) in A (in reals) and B (in elements); kept while the
  // nest is the same.
  UNSHARED_INLINE void tabulate(const Nest& nest, int64_t begin, int64_t count) {
    if (begin == begin_ && count == count_ && nest.same(nest_)) return;
    nest_ = nest;
    begin_ = begin;
    count_ = count;
    unit_period_ = 0;
    int64_t period = 1;
    for (int d = nest.depth - 1; d >= 0 && unit_period_ == 0; --d) {
      if (nest.loop[d].second == 1 && nest.loop[d].count > 1) unit_period_ = period;
      period *= nest.loop[d].count;
    }
    if (count == 0) return;
    int64_t at[max_axes + 1], a = 0, b = 0, flat = begin;
    const int last = nest.depth - 1;
    for (int d = last; d >= 0; --d) {
      at[d] = flat % nest.loop[d].count;
      flat /= nest.loop[d].count;
      a += at[d] * nest.loop[d].first;
      b += at[d] * nest.loop[d].second;
    }
    const Nest::Loop& fast = nest.loop[last];
    for (int64_t t = 0;;) {
      for (; at[last] < fast.count && t < count;
           ++at[last], ++t, a += fast.first, b += fast.second) {
        if constexpr (parts == 1) {
          a_step_[t] = a;
        } else {
          a_step_[2 * t] = 2 * a;
          a_step_[2 * t + 1] = 2 * a + 1;
        }
        b_step_[t] = b;
      }
      if (t == count) return;
      for (int d = last; at[d] == nest.loop[d].count; --d) {
        a += nest.loop[d - 1].first - at[d] * nest.loop[d].first;
        b += nest.loop[d - 1].second - at[d] * nest.loop[d].second;
        at[d] = 0;
        ++at[d - 1];
      }
    }
  }

  // B[steps, count] into the panel, lanes beyond `count` zero. Where B runs contiguously along the
  // steps instead (at some period, say one input channel of all taps), square blocks of it are
  // transposed in registers.
  template <int V>
  UNSHARED_INLINE void pack_columns(const T* b, int64_t b_column, int64_t steps, int64_t count) {
    const int64_t period = unit_period_;
    if (!plain || parts == 2 || period == 0) {
      for (int64_t t = 0; t < steps; ++t) pack_step<V>(b + b_step_[t], b_column, t, count);
      return;
    }
    if constexpr (plain && parts == 1) {
      constexpr int side = Block<Real>::side;
      for (int64_t base = 0; base < steps; base += side * period)
        for (int64_t t = base; t < lesser(base + period, steps); ++t) {
          bool run = t + (side - 1) * period < steps;
          for (int j = 1; j < side && run; ++j) run = b_step_[t + j * period] == b_step_[t] + j;
          int64_t column = 0;
          if (run)
            for (; column + side <= count; column += side)
              Block<Real>::transpose(b + b_step_[t] + column * b_column, b_column,
                                     panel_ + t * width<V> + column, period * width<V>);
          for (int j = 0; j < side && t + j * period < steps; ++j)
            pack_step<V>(b + b_step_[t + j * period], b_column, t + j * period, count, column);
        }
    }
  }

  // One step of B, from column `first` on. A complex element q becomes, for the steps that
  // broadcast p.re and p.im, the lanes (q.re, q.im) and (-q.im, q.re), with the signs of the
  // conjugations.
  template <int V>
  UNSHARED_INLINE void pack_step(const T* from, int64_t b_column, int64_t t, int64_t count,
                                 int64_t first = 0) {
    if constexpr (parts == 1) {
      Real* to = panel_ + t * width<V>;
      for (int64_t j = first; j < count; ++j) to[j] = widen(from[j * b_column]);
      for (int64_t j = count; j < width<V>; ++j) to[j] = 0;
    } else {
      Real* by_re = panel_ + 2 * t * width<V>;
      Real* by_im = by_re + width<V>;
      for (int64_t j = first; j < count; ++j) {
        const T q = conjugate(from[j * b_column], conjugate_b_);
        by_re[2 * j] = q.re;
        by_re[2 * j + 1] = q.im;
        by_im[2 * j] = conjugate_a_ ? q.im : -q.im;
        by_im[2 * j + 1] = conjugate_a_ ? -q.re : q.re;
      }
      for (int64_t j = 2 * count; j < width<V>; ++j) by_re[j] = by_im[j] = 0;
    }
  }

  template <int V>
  UNSHARED_INLINE void load(const T* c, int64_t c_row, int64_t c_column, int64_t rows,
                            int64_t count) {
    for (int64_t m = 0; m < rows; ++m) {
      Real* sum = sums_ + m * width<V>;
      for (int64_t j = 0; j < count; ++j) {
        const auto held = widen(c[m * c_row + j * c_column]);
        if constexpr (parts == 1) {
          sum[j] = held;
        } else {
          sum[2 * j] = held.re;
          sum[2 * j + 1] = held.im;
        }
      }
    }
  }

  template <int V>
  UNSHARED_INLINE void store(T* c, int64_t c_row, int64_t c_column, int64_t rows, int64_t count) {
    for (int64_t m = 0; m < rows; ++m) {
      const Real* sum = sums_ + m * width<V>;
      for (int64_t j = 0; j < count; ++j) {
        if constexpr (parts == 1)
          c[m * c_row + j * c_column] = round_to<T>(sum[j]);
        else
          c[m * c_row + j * c_column] = {sum[2 * j], sum[2 * j + 1]};
      }
    }
  }

  const bool accumulate_, conjugate_a_, conjugate_b_;
  Nest nest_;
  int64_t begin_ = -1, count_ = -1;
  int64_t unit_period_ = 0;  // how many steps lie between neighbours of B in memory; 0 if none do
  int64_t a_step_[table_steps], b_step_[table_steps], identity_[panel_steps];
  alignas(64) Real panel_[panel_steps * tile_vectors * Lanes<Real>::count];
  alignas(64) Real sums_[panel_rows * tile_vectors * Lanes<Real>::count];
  alignas(64) Real widened_[plain ? 1 : 16 * panel_steps];
};

// What README promises: the extra memory of a call, per worker, on its own stack.
static_assert(sizeof(Tiler<float>) <= 80 * 1024 && sizeof(Tiler<double>) <= 80 * 1024 &&
              sizeof(Tiler<Half>) <= 80 * 1024 && sizeof(Tiler<Complex<double>>) <= 80 * 1024);

// Part `part` of `parts` of a cell's columns, cut at whole tiles.
template <class T>
UNSHARED_INLINE void compute_part(Tiler<T>& tiler, const Product<T>& product, int64_t part,
                                  int64_t parts) {
  const int64_t tiles = ceil_div(product.columns, Tiler<T>::wide);
  tiler.compute(product, part * tiles / parts * Tiler<T>::wide,
                lesser((part + 1) * tiles / parts * Tiler<T>::wide, product.columns));
}

}  // namespace
}  // namespace unshared

#endif
