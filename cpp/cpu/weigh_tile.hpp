// Kernel "weigh", its micro-kernel: c[row, lane] = chain over steps of a[step, row] * b[step, lane].
//
// Unlike that of micro.hpp, steps lie a constant stride apart and the rows of a side by side; and
// sums are mostly written, once each, to memory that was not touched before: their lines are asked
// for while the steps go by. They may be rounded on their way out. A step of complex elements is two, of
// the parts of x: of a, as in micro.hpp, or of b; then a is dy, as the factors that products.hpp makes of it.
// Accumulator: Real. Order: that of the steps. Deterministic.
#pragma once

#include <utility>

#include "mover.hpp"
#include "products.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Columns of a tile, in vectors, and rows: few sums, so that a tile begins while the one before
// ends.
inline constexpr int weighed_vectors = vector_registers == 16 ? 3 : 4;
inline constexpr int weighed_rows_of[] = {0, vector_registers == 16 ? 10 : 16,
                                          vector_registers == 16 ? 5 : 8,
                                          vector_registers == 16 ? 4 : 6, 6};

// Samples of which tiles write what is beyond caches around them; slower tiles leave the time to read it.
inline constexpr int most_samples_around = vector_registers == 16 ? 16 : 64;
// The same of sums that are copied there, out of order or in the order of dw.
inline constexpr int most_samples_copied_around = 64,
                     most_samples_copied_dense = vector_registers == 16 ? 8 : 48;

// Vectors of rows at c that tiles which write around the caches must not part: those that fill a line.
template <class T>
UNSHARED_INLINE int64_t vectors_together(const T* c, int64_t row) {
  constexpr int64_t of_line = vectors_of_line<T>;
  return of_line <= weighed_vectors && whole_lines(c, row, of_line) ? of_line : 1;
}

// c[row, lane] = chain over steps of a[step, row] * b[step, lane], and lines that will be needed
// soon: of dw, those of as many rows, and of x or dy one for each step.
template <class T>
struct Weighed {
  const Moved<T>* a;
  const Moved<T>* b;
  T* c;
  int64_t a_step, b_step, c_row, steps;
  int last;  // lanes of each row's last vector that are c's
  bool from_zero;
  bool around;  // whether c, which must be aligned, is written around the caches
  const char* out_ahead;
  int64_t out_row;  // bytes; 0: nothing is asked for
  const char* in_ahead;
  int64_t in_step;  // bytes; 0: nothing is asked for after the lines of dw
  // Of complex elements: signs of dy, if it is b; how far behind its first factors the second are, if a.
  const Signs<typename Scalar<T>::Real>* signs;
  int64_t second;
};

// Whether a step asks for lines of dw, and of x or dy.
template <bool out, bool in>
struct Asks {
  static constexpr bool of_out = out, of_in = in;
};

template <class T, bool by_b, int V, int M>
void weighed_tile(const Weighed<T>& t) {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  constexpr int parts = Scalar<T>::parts, lanes = L::count / parts;
  using Out = std::conditional_t<parts == 2, Real, T>;
  Out* const c = reinterpret_cast<Out*>(t.c);
  typename L::Vector sum[M][V];
  if (t.from_zero) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = L::zero();
  } else {
    load_tile<L>(sum, static_cast<const Out*>(c), t.c_row * parts, t.last * parts);
  }
  const Real* a = reinterpret_cast<const Real*>(t.a);
  const Real* b = reinterpret_cast<const Real*>(t.b);
  const char* in = t.in_ahead;
  const char* out = nullptr;
  const int64_t a_step = t.a_step * parts, b_step = t.b_step * parts;
  const int64_t in_step = t.in_step, out_row = t.out_row, second = t.second;
  constexpr int asked = (V + 1) / 2;  // vectors of a row of dw
  const auto steps = [&](int64_t count, auto asks) __attribute__((always_inline)) {
#pragma GCC unroll 1
    for (; count > 0; --count) {
      if constexpr (decltype(asks)::of_out) {
#pragma GCC unroll 2
        for (int i = 0; i < asked; ++i) __builtin_prefetch(out + i * lanes * sizeof(T));
        out += out_row;
      }
      if constexpr (decltype(asks)::of_in) {
        __builtin_prefetch(in, 0, 2);
        in += in_step;
      }
      typename L::Vector line[V];
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) line[i] = L::load(b + i * L::count);
      const auto add = [&](const auto& broadcast) __attribute__((always_inline)) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const typename L::Vector one = broadcast(m);
#pragma GCC unroll 4
          for (int i = 0; i < V; ++i) sum[m][i] = L::chain(one, line[i], sum[m][i]);
        }
      };
      const auto rows = [&](int part) __attribute__((always_inline)) {
        add([&](int m)
                __attribute__((always_inline)) { return L::broadcast(a + m * parts + part); });
      };
      if constexpr (by_b) {
        const auto* const pairs = reinterpret_cast<const T*>(a);
        const auto pair = [](const T* p) __attribute__((always_inline)) {
          return (typename L::Vector)Lanes<T>::broadcast(p);
        };
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) line[i] = both<L, 0>(line[i]);
        add([&](int m) __attribute__((always_inline)) { return pair(pairs + m); });
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) line[i] = both<L, 1>(L::load(b + i * L::count));
        add([&](int m) __attribute__((always_inline)) { return pair(pairs + second + m); });
      } else if constexpr (parts == 2) {
        const typename L::Vector re = L::load(t.signs->re), im = L::load(t.signs->im);
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) line[i] = turned_over<L>(line[i], re);
        rows(0);
        // What was turned over for re is turned back.
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i)
          line[i] = turned_over<L>(swapped<L>(turned_over<L>(line[i], re)), im);
        rows(1);
      } else {
        rows(0);
      }
      a += a_step;
      b += b_step;
    }
  };
  // The first steps ask for the lines of dw: one vector's of each row, or two. To ask costs as much as
  // to load an operand, so that the other steps ask for nothing they need not.
  int64_t left = t.steps;
  for (int v = 0; v < V && left > 0 && out_row != 0; v += asked) {
    const int64_t here = left < M ? left : M;
    out = t.out_ahead + v * lanes * sizeof(T);
    steps(here, Asks<true, true>{});
    left -= here;
  }
  if (in_step != 0)
    steps(left, Asks<false, true>{});
  else
    steps(left, Asks<false, false>{});
  store_tile<L>(sum, c, t.c_row * parts, t.last * parts, t.around);
}

// by_b: whether a step of complex elements is one for each part of b.
template <class T, bool by_b, int V>
struct WeighedTiles {
  using Function = void (*)(const Weighed<T>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {weighed_tile<T, by_b, V, m + 1>...};
  };
  template <int... m>
  static constexpr Table<m...> table(std::integer_sequence<int, m...>) {
    return {};
  }
  using All = decltype(table(std::make_integer_sequence<int, weighed_rows_of[V]>{}));
};

}  // namespace
}  // namespace unshared

#endif
