// The micro-kernels of kernel "along": products of vectors with vectors, lane by lane.
//
// Neighbouring lanes are neighbouring cells, which have weights of their own; so nothing is
// broadcast, and a tile keeps M rows of V columns of sums in registers, each a vector, while the
// steps of the chain go by. Lanes that a step does not concern (they see padding, or lie beyond the
// last cell) are masked: not read, not summed, not written.
// Accumulator: Real. Order: that of the steps. Deterministic.
#pragma once

#include <utility>

#include "products.hpp"
#include "share.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Rows of a tile by its columns: what the registers have room for, one vector of the rows' operand
// and one of each column's besides the sums.
inline constexpr int along_columns = 4;
inline constexpr int along_rows_of[] = {0, 9, vector_registers == 16 ? 5 : 8,
                                        vector_registers == 16 ? 3 : 6,
                                        vector_registers == 16 ? 2 : 5};
constexpr int along_rows(int columns) { return along_rows_of[columns]; }

// Columns at a time, as even as may be: the first tile of `columns` has this many.
UNSHARED_INLINE int64_t along_width(int64_t columns) {
  return ceil_div(columns, ceil_div(columns, along_columns));
}

// Rows cut into tiles of at most `most`, as even as may be: how high tile number t is.
struct Heights {
  int64_t tiles, low, higher;

  UNSHARED_INLINE Heights(int64_t rows, int64_t most)
      : tiles(ceil_div(rows, most)),
        low(tiles == 0 ? 0 : rows / tiles),
        higher(rows - tiles * low) {}
  UNSHARED_INLINE int64_t of(int64_t t) const { return low + (t < higher ? 1 : 0); }
};

// Chains through tables of steps: c[row, column] = chain over s of a[row, s] * b[s, column].
template <class Real>
struct AlongTile {
  using Mask = typename Lanes<Real>::Mask;
  const Real* a;
  const Real* b;
  Real* c;
  int64_t a_row, b_column, c_row, c_column, steps;
  const int64_t* a_step;
  const int64_t* b_step;
  bool from_zero;
  const Mask* mask;  // lanes that take part in tap number tap[step]; nullptr: all in every step
  const std::int16_t* tap;
  int last;  // lanes of c
  // What following tiles will read and write, seen from a (of every row), from each step's b, and
  // from c; c_fetch 0: nothing.
  const int64_t* fetch;
  int64_t fetches, b_fetch, c_fetch;
  // Part::staged, and what is read next, one line for each step; its address may be anything.
  bool staged;
  const Real* ahead;
  const int64_t* ahead_step;
  const Products<Real>* products;
};

// Which lanes take part: all, those of masks, or all in steps, of which the last ones are not written.
enum class Part { all, masked, staged };

template <class Real, int V, int M, Part part>
void along_tile(const AlongTile<Real>& t) {
  using L = Lanes<Real>;
  constexpr bool masked = part == Part::masked;
  const Products<Real>& of = *t.products;
  typename L::Vector sum[M][V];
  for (int64_t f = 0; f < t.fetches; ++f)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) __builtin_prefetch(t.a + t.fetch[f] + m * t.a_row, 0, 2);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Real* c = t.c + m * t.c_row + v * t.c_column;
      if (t.c_fetch != 0) __builtin_prefetch(c + t.c_fetch, 1, 2);
      sum[m][v] = t.from_zero         ? L::zero()
                  : part == Part::all ? L::load(c)
                                      : L::load_part(c, t.last);
    }
  for (int64_t s = 0; s < t.steps; ++s) {
    const Real* row = t.a + t.a_step[s];
    const Real* column = t.b + t.b_step[s];
    __builtin_prefetch(part == Part::staged ? t.ahead + t.ahead_step[s] : column + t.b_fetch, 0, 2);
    typename Products<Real>::Factor w[V];
    const auto mask = masked ? t.mask[t.tap[s]] : typename L::Mask{};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      w[v] = of.factor(masked ? L::load_where(mask, column + v * t.b_column)
                              : L::load(column + v * t.b_column));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const typename L::Vector one =
          masked ? L::load_where(mask, row + m * t.a_row) : L::load(row + m * t.a_row);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        sum[m][v] =
            masked ? of.chain_where(mask, one, w[v], sum[m][v]) : of.chain(one, w[v], sum[m][v]);
    }
  }
  const auto store = [&](auto partial) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        Real* c = t.c + m * t.c_row + v * t.c_column;
        if (decltype(partial)::value)
          L::store_part(c, sum[m][v], t.last);
        else
          L::store(c, sum[m][v]);
      }
  };
  if (part == Part::all || (part == Part::staged && t.last == L::count))
    store(std::false_type{});
  else
    store(std::true_type{});
}

// Chains over the batch: c[row, column] = chain over s of a[row, s] * b[s, column], steps a
// constant stride apart, rows anywhere.
template <class Real>
struct BatchTile {
  using Mask = typename Lanes<Real>::Mask;
  const Real* a;
  const Real* b;
  Real* c;
  const int64_t* a_row;
  const int64_t* c_row;
  int64_t b_column, c_column, steps, a_step, b_step;
  bool from_zero;
  const Mask* mask;  // lanes that take part in a row of tap number tap[row]; nullptr: all in all
  const std::int16_t* tap;
  int last;  // not of all: lanes of b
  int64_t a_fetch, b_fetch;  // from each step's operands: what following tiles will read
  // Part::staged, and what is staged next, one line for each step; its address may be anything.
  bool staged;
  const Real* ahead;
  int64_t ahead_step;
  const Products<Real>* products;
};

template <class Real, int V, int M, Part part>
void batch_tile(const BatchTile<Real>& t) {
  using L = Lanes<Real>;
  constexpr bool masked = part == Part::masked;
  typename L::Vector sum[M][V];
  const Products<Real>& of = *t.products;
  typename L::Mask mask[M];
  const auto all = part == Part::all ? typename L::Mask{} : L::span(0, t.last);
  int64_t at[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    at[m] = t.a_row[m];
    if (masked) mask[m] = t.mask[t.tap[m]];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Real* c = t.c + t.c_row[m] + v * t.c_column;
      sum[m][v] = t.from_zero ? L::zero() : masked ? L::load_where(mask[m], c) : L::load(c);
    }
  }
  const Real* row = t.a;
  const Real* column = t.b;
  for (int64_t s = 0; s < t.steps; ++s, row += t.a_step, column += t.b_step) {
    __builtin_prefetch(part == Part::staged ? t.ahead + s * t.ahead_step : row + t.a_fetch, 0, 2);
    __builtin_prefetch(column + t.b_fetch, 0, 2);
    typename Products<Real>::Factor y[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      y[v] = of.factor(part == Part::all ? L::load(column + v * t.b_column)
                                         : L::load_where(all, column + v * t.b_column));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const typename L::Vector one =
          masked ? L::load_where(mask[m], row + at[m]) : L::load(row + at[m]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        sum[m][v] =
            masked ? of.chain_where(mask[m], one, y[v], sum[m][v]) : of.chain(one, y[v], sum[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Real* c = t.c + t.c_row[m] + v * t.c_column;
      if (masked)
        L::store_where(mask[m], c, sum[m][v]);
      else
        L::store(c, sum[m][v]);
    }
}

// Every height and width of a tile, for every part of the lanes.
template <class Real, int V>
struct AlongTiles {
  using Function = void (*)(const AlongTile<Real>&);
  using Batch = void (*)(const BatchTile<Real>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[3][sizeof...(m)] = {
        {along_tile<Real, V, m + 1, Part::all>...},
        {along_tile<Real, V, m + 1, Part::masked>...},
        {along_tile<Real, V, m + 1, Part::staged>...}};
    static constexpr Batch batch[3][sizeof...(m)] = {{batch_tile<Real, V, m + 1, Part::all>...},
                                                     {batch_tile<Real, V, m + 1, Part::masked>...},
                                                     {batch_tile<Real, V, m + 1, Part::staged>...}};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, along_rows(V)>{}));
};

template <class Tile>
UNSHARED_INLINE int part_of(const Tile& t) {
  return static_cast<int>(t.mask != nullptr ? Part::masked : t.staged ? Part::staged : Part::all);
}
template <class Real>
UNSHARED_INLINE void run_tile(const AlongTile<Real>& t, int64_t rows, int64_t columns) {
  const int part = part_of(t);
  switch (columns) {
    case 1: return AlongTiles<Real, 1>::All::of_rows[part][rows - 1](t);
    case 2: return AlongTiles<Real, 2>::All::of_rows[part][rows - 1](t);
    case 3: return AlongTiles<Real, 3>::All::of_rows[part][rows - 1](t);
    default: return AlongTiles<Real, 4>::All::of_rows[part][rows - 1](t);
  }
}
template <class Real>
UNSHARED_INLINE void run_tile(const BatchTile<Real>& t, int64_t rows, int64_t columns) {
  const int part = part_of(t);
  switch (columns) {
    case 1: return AlongTiles<Real, 1>::All::batch[part][rows - 1](t);
    case 2: return AlongTiles<Real, 2>::All::batch[part][rows - 1](t);
    case 3: return AlongTiles<Real, 3>::All::batch[part][rows - 1](t);
    default: return AlongTiles<Real, 4>::All::batch[part][rows - 1](t);
  }
}

}  // namespace
}  // namespace unshared

#endif
