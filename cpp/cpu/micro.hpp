// The micro-kernel of all kernels whose lanes run over one index of a small matrix product:
// c[row, lane] = chain over steps of a[row, step] * b[step, lane].
//
// A tile keeps M rows of V vectors of c in registers while the steps go by; an element of a is
// broadcast, lanes run over columns, never over steps, so each result element is one sequential
// chain, whatever the tile, the level or the thread. Steps are addressed through tables of offsets.
// Accumulator: Real (float32 for half types). Order: that of the steps.
#pragma once

#include <utility>

#include "products.hpp"
#include "stored.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Rows of a tile of V vectors: the sums, V vectors of b and one broadcast fit into the registers. More
// rows than tallest_rows are cut into tiles of at most most_rows, which were measured faster on Zen 4.
inline constexpr int most_vectors = 4;
inline constexpr bool few_registers = vector_registers == 16;
inline constexpr int tallest_rows_of[] = {0, few_registers ? 12 : 16, few_registers ? 6 : 12,
                                          few_registers ? 4 : 8, few_registers ? 3 : 6};
constexpr int tallest_rows(int vectors) { return tallest_rows_of[vectors]; }
constexpr int most_rows(int vectors) {
  return vectors == 1 && !few_registers ? 14 : tallest_rows_of[vectors];
}

// What a multiplication in a tile of one vector takes of one in other tiles. It loads an operand, and two
// loads a cycle are no more than Intel's two units of 512 bits multiply, so that those of tables and lists
// come on top. Measured on Zen 4, and for Intel's on an Emerald Rapids, where 1.3 was nearly as good; not
// on Intel's chips of one such unit.
UNSHARED_INLINE double one_vector_cost() {
#if defined(__x86_64__)
  if (!few_registers && __builtin_cpu_is("intel")) return 1.6;
#endif
  return 1.08;
}

// Vectors of the tiles for so many rows of so many vectors. Of three and five none is left for a tile of one,
// for the same reason.
constexpr int deepest(std::int64_t rows, std::int64_t of) {
  for (const int vectors : {4, 3, 2})
    if (rows <= tallest_rows(vectors)) return vectors;
  if (few_registers) return rows <= 2 * tallest_rows(3) ? 3 : 2;
  return of == 3 || of == 5 ? 3 : 2;
}

// Lines that will be needed later, asked for while tiles compute, one a step: as bursts between tiles
// they would wait for each other. A list must be readable for a tile's steps beyond its end.
struct Lines {
  const char* base = nullptr;
  const std::int32_t* at = nullptr;  // bytes
  std::int64_t count = 0;
};

// Where b lies, and what a tile asks for.
enum class Reads {
  stream,  // in memory: its own lines, ahead of their use
  panel,  // in a cache: nothing
  fetching,  // in a cache: lines of a list
  keeping,  // in memory, to be kept as a panel: its own, once more, and lines of a list, if there is one
};

// Storage type T of b; a and c are of the type sums are kept in. A step of complex elements, which are
// interleaved in all three, is two: an element q of b becomes, for the part p.re, the lanes (q.re, q.im), and
// for the part p.im the lanes (-q.im, q.re).
template <class T>
struct Micro {
  using Real = typename Scalar<T>::Real;
  static constexpr int parts = Scalar<T>::parts;
  const Real* a;
  const T* b;
  Real* c;
  std::int64_t a_row, c_row, steps;
  const std::int64_t* a_step;  // of the parts, if there are two
  const std::int64_t* b_step;
  bool from_zero;
  int c_last = Lanes<Real>::count;  // lanes of each row's last vector that are c's
  // Of what is in memory:
  int last = Lanes<Real>::count;  // lanes of the last vector that it has; the others are not read
  // A line is asked for so many steps before its use; of whole vectors again, if not 0, so many: faster where
  // memory binds, as if some of what is asked for were forgotten while the buffers for misses are full.
  std::int64_t ahead = 0, again = 0;
  Real* kept = nullptr;  // the panel that is to be made of it, if any
  Lines fetched = {};
  struct None {};
  [[no_unique_address]] std::conditional_t<parts == 2, const Signs<Real>*, None> signs = {};
};

template <class T, Reads reads, int V, int M>
void micro_tile(const Micro<T>& t) {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
  if (t.from_zero) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = L::zero();
  } else {
    load_tile<L>(sum, static_cast<const Real*>(t.c), t.c_row, t.c_last);
  }
  // Stores that miss would wait for each other: their lines are asked for now.
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) __builtin_prefetch(t.c + m * t.c_row + v * L::count, 1);
  // A pointer for every four rows, so that each address is a base, a stride and a small factor.
  const std::int64_t a_row = t.a_row, count = t.steps, ahead = t.ahead, again = t.again;
  const Real* base[(M + 3) / 4];
#pragma GCC unroll 4
  for (int q = 0; q < (M + 3) / 4; ++q) base[q] = t.a + 4 * q * a_row;
  const std::int64_t* const a_step = t.a_step;
  const std::int64_t* const b_step = t.b_step;
  constexpr int parts = Scalar<T>::parts;
  using Lane = std::conditional_t<parts == 2, Real, T>;
  const Lane* const b = reinterpret_cast<const Lane*>(t.b);
  const Lines fetched = t.fetched;
  constexpr bool of_panel = reads == Reads::panel || reads == Reads::fetching;
  const auto steps = [&](auto partial, auto twice, auto keeps) __attribute__((always_inline)) {
    Real* kept = t.kept;
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t at = a_step[s * parts];
      const Lane* line = b + b_step[s] * parts;
      const Lane* next = !of_panel ? b + b_step[s + ahead] * parts : nullptr;
      const Lane* soon = decltype(twice)::value ? b + b_step[s + again] * parts : nullptr;
      if constexpr (reads == Reads::fetching)
        __builtin_prefetch(fetched.base + fetched.at[s], 0, 2);
      if constexpr (reads == Reads::keeping)
        if (fetched.at != nullptr) __builtin_prefetch(fetched.base + fetched.at[s], 0, 2);
      const auto vector = [&](int v) __attribute__((always_inline)) {
        if constexpr (reads == Reads::stream) __builtin_prefetch(next + v * L::count, 0, 2);
        if constexpr (reads == Reads::keeping) __builtin_prefetch(next + v * L::count, 0, 3);
        if constexpr (decltype(twice)::value) __builtin_prefetch(soon + v * L::count, 0, 2);
        const typename L::Vector w = decltype(partial)::value && v == V - 1
                                         ? Stored<Lane>::load_part(line + v * L::count, t.last)
                                         : Stored<Lane>::load(line + v * L::count);
        if constexpr (decltype(keeps)::value) L::store(kept + v * L::count, w);
        return w;
      };
      const auto row = [&](int m, int part = 0) __attribute__((always_inline)) {
        return L::broadcast(base[m / 4] + at + m % 4 * a_row + part);
      };
      const auto for_re = [&](typename L::Vector w) __attribute__((always_inline)) {
        if constexpr (parts == 2) return turned_over<L>(w, L::load(t.signs->re));
        return w;
      };
      const auto for_im = [&](typename L::Vector w) __attribute__((always_inline)) {
        if constexpr (parts == 2) return turned_over<L>(swapped<L>(w), L::load(t.signs->im));
        return w;
      };
      // Of the two, the fewer are held in registers, and one of the others at a time.
      typename L::Vector held[V < M ? V : M];
      if constexpr (V < M) {
        const auto rows = [&](int part) __attribute__((always_inline)) {
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) {
            const typename L::Vector one = row(m, part);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[m][v] = L::chain(one, held[v], sum[m][v]);
          }
        };
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) held[v] = for_re(vector(v));
        rows(0);
        if constexpr (parts == 2) {
          // What was turned over for re is turned back.
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) held[v] = for_im(for_re(held[v]));
          rows(1);
        }
      } else {
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) held[m] = row(m);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const typename L::Vector w = vector(v), re = for_re(w);
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[m][v] = L::chain(held[m], re, sum[m][v]);
          if constexpr (parts == 2) {
            const typename L::Vector im = for_im(w);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sum[m][v] = L::chain(row(m, 1), im, sum[m][v]);
          }
        }
      }
      if constexpr (decltype(keeps)::value) kept += V * L::count;
    }
  };
  constexpr std::bool_constant<true> yes;
  constexpr std::bool_constant<false> no;
  if constexpr (of_panel) {
    steps(no, no, no);
  } else if constexpr (reads == Reads::keeping) {
    steps(no, no, yes);
  } else {
    if (t.last != L::count)
      steps(yes, no, no);
    else if (again != 0)
      steps(no, yes, no);
    else
      steps(no, no, no);
  }
  store_tile<L>(sum, t.c, t.c_row, t.c_last);
}

template <class T, Reads reads, int V>
struct MicroTiles {
  using Function = void (*)(const Micro<T>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {micro_tile<T, reads, V, m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, tallest_rows(V)>{}));
};

// How many tiles of so many vectors rows are cut into.
constexpr std::int64_t tiles_of(std::int64_t rows, int vectors) {
  return rows <= tallest_rows(vectors) ? 1 : (rows + most_rows(vectors) - 1) / most_rows(vectors);
}

// What `run` makes of a number of vectors, 1 to most_vectors, as a constant.
UNSHARED_INLINE auto with_vectors(std::int64_t vectors, const auto& run) {
  switch (vectors) {
    case 1: return run(std::integral_constant<int, 1>{});
    case 2: return run(std::integral_constant<int, 2>{});
    case 3: return run(std::integral_constant<int, 3>{});
    default: return run(std::integral_constant<int, 4>{});
  }
}

// Any number of rows of `vectors` (1 to most_vectors) vectors, split evenly into tiles. Of a stream only
// the first tile fetches ahead: the others find b in a cache. Tiles of a panel fetch from the lists, the
// last one first, or, if those are done, the rows of the next tile, whose lines `near` tells. `t` is the first
// tile and moves on: to copy it would take longer than a small one.
template <bool stream, class T, int lists>
UNSHARED_INLINE void micro_rows(Micro<T>& t, std::int64_t rows, std::int64_t vectors,
                                Lines (&lines)[lists], const std::int32_t* near) {
  constexpr bool whole = std::is_same_v<T, typename Micro<T>::Real>;
  const bool first_only = whole && t.last == Lanes<typename Micro<T>::Real>::count;
  with_vectors(vectors, [&]<int V>(std::integral_constant<int, V>) __attribute__((always_inline)) {
    std::int64_t tiles = tiles_of(rows, V);
    for (std::int64_t row = 0; row < rows; --tiles) {
      const std::int64_t height = (rows - row + tiles - 1) / tiles;
      if (stream && (row == 0 || !first_only)) {
        MicroTiles<T, Reads::stream, V>::All::of_rows[height - 1](t);
      } else if constexpr (whole) {
        int at = lists - 1;
        while (at > 0 && lines[at].count <= 0) --at;
        Lines& list = lines[at];
        if (list.count > 0) {
          t.fetched = list;
          list.at += t.steps;
          list.count -= t.steps;
        } else {
          t.fetched = {reinterpret_cast<const char*>(t.a + height * t.a_row), near, 0};
        }
        if (t.fetched.at != nullptr)
          MicroTiles<T, Reads::fetching, V>::All::of_rows[height - 1](t);
        else
          MicroTiles<T, Reads::panel, V>::All::of_rows[height - 1](t);
      }
      t.a += height * t.a_row;
      t.c += height * t.c_row;
      row += height;
    }
  });
}

// The first tile of more rows, which reads b in memory and keeps it; returns its rows.
template <class T>
UNSHARED_INLINE std::int64_t keep_rows(Micro<T>& t, std::int64_t rows, std::int64_t vectors,
                                       Lines& list) {
  t.fetched = {};
  if (list.count > 0) {
    t.fetched = list;
    list.at += t.steps;
    list.count -= t.steps;
  }
  return with_vectors(
      vectors, [&]<int V>(std::integral_constant<int, V>) __attribute__((always_inline)) {
        const std::int64_t tiles = tiles_of(rows, V), height = (rows + tiles - 1) / tiles;
        MicroTiles<T, Reads::keeping, V>::All::of_rows[height - 1](t);
        return height;
      });
}

}  // namespace
}  // namespace unshared

#endif
