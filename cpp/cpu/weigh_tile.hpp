// Kernel "weigh", its micro-kernel: c[row, lane] = chain over steps of a[step, row] * b[step, lane].
//
// Unlike that of micro.hpp, steps lie a constant stride apart and the rows of a side by side; and
// sums are mostly written, once each, to memory that was not touched before: their lines are asked
// for while the steps go by. They may be rounded on their way out.
// Accumulator: Real. Order: that of the steps. Deterministic.
#pragma once

#include <utility>

#include "share.hpp"
#include "stored.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Columns of a tile, in vectors, and rows: few sums, so that a tile begins while the one before
// ends.
inline constexpr int weighed_vectors = vector_registers == 16 ? 3 : 4;
inline constexpr int weighed_rows_of[] = {0, vector_registers == 16 ? 10 : 16,
                                          vector_registers == 16 ? 5 : 8,
                                          vector_registers == 16 ? 4 : 6, 6};

// c[row, lane] = chain over steps of a[step, row] * b[step, lane], and lines that will be needed
// soon: of dw, those of as many rows, and of x or dy one for each step.
template <class T>
struct Weighed {
  using Real = typename Scalar<T>::Real;
  const Real* a;
  const Real* b;
  T* c;
  int64_t a_step, b_step, c_row, steps;
  int last;  // lanes of each row's last vector that are c's
  bool from_zero;
  bool around;  // whether c, which must be aligned, is written around the caches
  const char* out_ahead;
  int64_t out_row;  // bytes; 0: nothing is asked for
  const char* in_ahead;
  int64_t in_step;  // bytes; 0: nothing is asked for after the lines of dw
};

// Whether a step asks for lines of dw, and of x or dy.
template <bool out, bool in>
struct Asks {
  static constexpr bool of_out = out, of_in = in;
};

template <class T, int V, int M>
void weighed_tile(const Weighed<T>& t) {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  typename L::Vector sum[M][V];
  if (t.from_zero) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = L::zero();
  } else {
    load_tile<L>(sum, static_cast<const T*>(t.c), t.c_row, t.last);
  }
  const Real* a = t.a;
  const Real* b = t.b;
  const char* in = t.in_ahead;
  const char* out = nullptr;
  const int64_t a_step = t.a_step, b_step = t.b_step, in_step = t.in_step, out_row = t.out_row;
  constexpr int asked = (V + 1) / 2;  // vectors of a row of dw
  const auto steps = [&](int64_t count, auto asks) __attribute__((always_inline)) {
#pragma GCC unroll 1
    for (; count > 0; --count) {
      if constexpr (decltype(asks)::of_out) {
#pragma GCC unroll 2
        for (int i = 0; i < asked; ++i) __builtin_prefetch(out + i * L::count * sizeof(T));
        out += out_row;
      }
      if constexpr (decltype(asks)::of_in) {
        __builtin_prefetch(in, 0, 2);
        in += in_step;
      }
      typename L::Vector line[V];
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) line[i] = L::load(b + i * L::count);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const typename L::Vector one = L::broadcast(a + m);
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) sum[m][i] = L::chain(one, line[i], sum[m][i]);
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
    out = t.out_ahead + v * L::count * sizeof(T);
    steps(here, Asks<true, true>{});
    left -= here;
  }
  if (in_step != 0)
    steps(left, Asks<false, true>{});
  else
    steps(left, Asks<false, false>{});
  store_tile<L>(sum, t.c, t.c_row, t.last, t.around);
}

template <class T, int V>
struct WeighedTiles {
  using Function = void (*)(const Weighed<T>&);
  template <int... m>
  struct Table {
    static constexpr Function of_rows[] = {weighed_tile<T, V, m + 1>...};
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
