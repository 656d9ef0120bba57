// A tile of few rows whose weights lie across its lanes: steps side by side in memory, lanes apart.
// c[row, lane] = chain over steps of a[row, step] * w[lane, step].
//
// Pieces of weights are turned in registers and used from there, so that shuffles and memory work while
// those before are multiplied. A panel (panel.hpp) is made first and used then: of few rows, that leaves
// memory idle half of the time. Rows beyond a tile's would turn them again.
// A step of complex elements is two, of the parts of a, as in micro.hpp.
// Accumulator: Real (float32 for half types). Order: that of the steps, which ascend in memory.
#pragma once

#include <utility>

#include "across.hpp"
#include "mover.hpp"
#include "products.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Storage type T of w; a and c are of the type sums are kept in.
template <class T>
struct Turned {
  using Real = typename Scalar<T>::Real;
  static constexpr int lanes_of_w = Lanes<Moved<T>>::count;
  // In a_step: nothing is multiplied with what w has there.
  static constexpr std::int64_t gap = INT64_MIN;
  // What is asked for ahead of its use should wait in a second-level cache: up to so much, all of what
  // comes next, else some elements of each lane.
  static constexpr std::int64_t near_bytes = 256 * 1024, some_ahead = 256;
  const Real* a;
  const T* w;
  Real* c;
  std::int64_t a_row, c_row, apart;  // apart: lanes, in w
  std::int64_t steps;
  const std::int64_t* a_step;
  bool gaps, from_zero;
  int lanes = lanes_of_w;  // that w has
  int c_last = Lanes<Real>::count;  // that c has
  std::int64_t ahead = 0;  // what lies so much further on in w is asked for
  const Signs<Real>* signs = nullptr;  // of complex elements
};

template <class T>
struct TurnedTiles {
  using Real = typename Scalar<T>::Real;
  using Sums = Lanes<Real>;
  using L = Lanes<Moved<T>>;
  using Vector = typename L::Vector;
  using Function = void (*)(const Turned<T>&);
  static constexpr int most_rows = vector_registers == 16 ? 6 : 12;  // beside the pieces
  static constexpr int piece = Stored<T>::piece, line = 64 / sizeof(T);
  // Whether tiles of all lanes look for gaps, too: where registers are many, that costs nothing.
  static constexpr bool checks = vector_registers > 16;

  template <int M>
  static void tile(const Turned<T>& t) {
    typename Sums::Vector sum[M][1];
    if (t.from_zero) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) sum[m][0] = Sums::zero();
    } else {
      load_tile<Sums>(sum, static_cast<const Real*>(t.c), t.c_row, t.c_last);
    }
    const auto add = [&](std::int64_t step, Vector w, bool gaps) __attribute__((always_inline)) {
      if (gaps && t.a_step[step] == Turned<T>::gap) return;
      const auto add_part = [&](const Real* a,
                                typename Sums::Vector q) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
          sum[m][0] = Sums::chain(Sums::broadcast(a + m * t.a_row), q, sum[m][0]);
      };
      const Real* const a = t.a + t.a_step[step];
      if constexpr (Scalar<T>::parts == 2) {
        const PairFactor<Real> q((typename Sums::Vector)w, *t.signs);
        add_part(a, q.re);
        add_part(a + 1, q.im);
      } else {
        add_part(a, w);
      }
    };
    if (t.lanes == L::count && (checks || !t.gaps))
      turn<true>(t, LanesApart<T, L::count>(t.w, t.apart), add);
    else
      turn<false>(t, LanesListed<T, L::count>(t.w, t.apart, t.lanes), add);
    store_tile<Sums>(sum, t.c, t.c_row, t.c_last);
  }

  // What is asked for is asked for between the steps: as a burst it would wait for itself. Of fewer lanes
  // single pieces will do, at 0.95 of the speed: a tile is compiled for each number of rows.
  template <bool all>
  static UNSHARED_INLINE void turn(const Turned<T>& t, auto lane, const auto& add) {
    const std::int64_t steps = t.steps;
    std::int64_t s = 0;
    const auto fetch = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int i = 0; i < L::count; ++i) __builtin_prefetch(lane(i) + t.ahead, 0, 2);
    };
    const auto run = [&](auto some) __attribute__((always_inline)) {
      constexpr int wide = decltype(some)::value * piece;
      for (; s + wide <= steps; s += wide, lane.move(wide)) {
        constexpr bool spread = wide * sizeof(T) >= 32;
        if (!spread && s % line == 0) fetch();
        Vector v[wide];
        Stored<T>::template turn<decltype(some)::value>(v, lane);
#pragma GCC unroll 16
        for (int i = 0; i < wide; ++i) {
#pragma GCC unroll 4
          for (int q = i * L::count / wide; q < (i + 1) * L::count / wide; ++q)
            if (spread) __builtin_prefetch(lane(q) + t.ahead, 0, 2);
          add(s + i, v[i], !all || checks);
        }
      }
    };
    if constexpr (all) {
      if (lines_collide(t.apart * std::int64_t{sizeof(T)}))
        run(std::integral_constant<int, most_pieces<L>(piece)>{});
      run(std::integral_constant<int, some_pieces<L>(piece)>{});
    }
    // Single pieces, the last of which ends with the steps.
    for (; s < steps; s += piece, lane.move(piece)) {
      if (s % line == 0) fetch();
      Vector v[piece];
      std::int64_t done = 0;
      if (steps < piece) {
        Stored<T>::turn_part(v, lane, static_cast<int>(steps));
      } else {
        done = greater(s + piece - steps, 0);
        s -= done;
        lane.move(-done);
        Stored<T>::template turn<1>(v, lane);
      }
#pragma GCC unroll 16
      for (int i = 0; i < piece; ++i)
        if (i >= done && s + i < steps) add(s + i, v[i], !all || checks);
    }
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
