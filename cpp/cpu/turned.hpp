// A tile of few rows whose weights lie across its lanes: steps side by side in memory, lanes apart.
// c[row, lane] = chain over steps of a[row, step] * w[lane, step].
//
// Squares of weights are transposed in registers and used from there, so that shuffles and memory work
// while the square before is multiplied. A panel (panel.hpp) is made first and used then: of few rows,
// that leaves memory idle half of the time. Rows beyond a tile's would transpose again.
// Accumulator: Real (float32 for half types). Order: that of the steps, which ascend in memory.
#pragma once

#include <utility>

#include "lanes.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Storage type T of w; a and c are of the type sums are kept in.
template <class T>
struct Turned {
  using Real = typename Scalar<T>::Real;
  // In a_step: nothing is multiplied with what w has there.
  static constexpr std::int64_t gap = INT64_MIN;
  // What is asked for ahead of its use should wait in a second-level cache: up to so much, all of what
  // comes next, else some elements of each lane.
  static constexpr std::int64_t near_bytes = 128 * 1024, some_ahead = 256;
  const Real* a;
  const T* w;
  Real* c;
  std::int64_t a_row, c_row, apart;  // apart: lanes, in w
  std::int64_t steps;
  const std::int64_t* a_step;
  bool gaps, from_zero;
  int lanes = Lanes<Real>::count;  // that w has
  int c_last = Lanes<Real>::count;  // that c has
  std::int64_t ahead = 0;  // what lies so much further on in w is asked for
};

template <class T>
struct TurnedTiles {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  using Vector = typename L::Vector;
  using Function = void (*)(const Turned<T>&);
  static constexpr int most_rows = vector_registers == 16 ? 6 : 12;  // beside a square

  template <int M>
  static void tile(const Turned<T>& t) {
    Vector sum[M][1];
    if (t.from_zero) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) sum[m][0] = L::zero();
    } else {
      load_tile<L>(sum, static_cast<const Real*>(t.c), t.c_row, t.c_last);
    }
    const auto add = [&](std::int64_t step, Vector w) __attribute__((always_inline)) {
      const Real* const a = t.a + t.a_step[step];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) sum[m][0] = L::chain(L::broadcast(a + m * t.a_row), w, sum[m][0]);
    };
    std::int64_t s = 0;
    const auto squares = [&](auto gaps) __attribute__((always_inline)) {
      for (; s + L::count <= t.steps; s += L::count) {
        Vector v[L::count];
#pragma GCC unroll 16
        for (int i = 0; i < L::count; ++i) {
          const T* const line = t.w + i * t.apart + s;
          __builtin_prefetch(line + t.ahead, 0, 2);
          v[i] = Stored<T>::load(line);
        }
        L::transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < L::count; ++i)
          if (!decltype(gaps)::value || t.a_step[s + i] != Turned<T>::gap) add(s + i, v[i]);
      }
    };
    if (t.lanes == L::count) {
      if (t.gaps)
        squares(std::bool_constant<true>{});
      else
        squares(std::bool_constant<false>{});
    }
    alignas(64) Real square[L::count * L::count];
    for (; s < t.steps; s += L::count) {
      const int here = static_cast<int>(s + L::count < t.steps ? L::count : t.steps - s);
      Vector v[L::count];
#pragma GCC unroll 16
      for (int i = 0; i < L::count; ++i) {
        v[i] = L::zero();
        if (i >= t.lanes) continue;
        const T* const line = t.w + i * t.apart + s;
        __builtin_prefetch(line + t.ahead, 0, 2);
        v[i] = Stored<T>::load_part(line, here);
      }
      L::transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < L::count; ++i) L::store(square + i * L::count, v[i]);
      for (int i = 0; i < here; ++i)
        if (t.a_step[s + i] != Turned<T>::gap) add(s + i, L::load(square + i * L::count));
    }
    store_tile<L>(sum, t.c, t.c_row, t.c_last, false);
  }

  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {tile<m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, most_rows>{}));
};

// Rows that are worth it: those of one tile.
inline constexpr int most_rows_turned = TurnedTiles<float>::most_rows;

template <class T>
UNSHARED_INLINE void turned_rows(const Turned<T>& t, std::int64_t rows) {
  TurnedTiles<T>::All::of_rows[rows - 1](t);
}

}  // namespace
}  // namespace unshared

#endif
