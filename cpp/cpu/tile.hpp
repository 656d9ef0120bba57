// Kernel "tiles": a weight gradient's cell as small matrix products over the batch, in any memory
// order: result[row, col] = chain over samples of A[row, sample] * B[sample, col].
//
// Complex elements become two real steps of twice as many columns; half types are widened on the way
// in and rounded once on the way out. B is read in place where columns are unit-stride, otherwise a
// panel of it is packed. All scratch is of fixed size on the worker's stack.
#pragma once

#include "micro.hpp"
#include "panel.hpp"
#include "parts.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// One product. Strides are in elements of T. `rows` may be nested: the innermost loop is tiled, the
// outer ones (over A and C) are walked.
template <class T>
struct Product {
  const T* a;
  const T* b;
  T* c;
  Nest rows;
  int64_t steps, a_step, b_step;
  int64_t columns, b_column, c_column;
};

template <class T>
class Tiler {
 public:
  using Real = typename Scalar<T>::Real;
  using Sum = Moved<T>;
  static constexpr int reals = Scalar<T>::parts;
  static constexpr bool plain = sizeof(T) == reals * sizeof(Real);
  static constexpr int lanes = Lanes<Real>::count / reals;  // columns per vector
  static constexpr int vectors = 2, wide = lanes * vectors;  // of a tile

  UNSHARED_INLINE explicit Tiler(const Call& call) : call_(call) {
    for (int t = 0; t < most_steps; ++t) identity_[t] = t;
  }

  // Columns [first, last) of the product.
  UNSHARED_INLINE void compute(const Product<T>& product, int64_t first, int64_t last) {
    for (int64_t column = first; column < last; column += wide)
      columns(product, column, lesser(wide, last - column));
  }

 private:
  static constexpr int most_steps = 256;  // of real numbers
  static constexpr int64_t panel_rows = 128, widened_rows = 8;

  UNSHARED_INLINE void columns(const Product<T>& p, int64_t column, int64_t count) {
    const int64_t vectors_here = ceil_div(count, lanes), width = vectors_here * Lanes<Real>::count;
    const bool full = count % lanes == 0;
    const bool in_place = plain && reals == 1 && full && p.b_column == 1;
    const bool direct = plain && full && p.c_column == 1;
    const int64_t chunks = greater(ceil_div(p.steps, most_steps / reals), 1);
    const int64_t chunk = ceil_div(p.steps, chunks);
    const T* b = p.b + column * p.b_column;

    const Nest::Loop& inner = p.rows.loop[p.rows.depth - 1];
    if (inner.count == 0) return;
    tabulate(p, in_place ? p.b_step : width, inner.first);
    const int64_t outer = p.rows.total() / inner.count;
    const int64_t block = direct ? inner.count : panel_rows;
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
        const T* a = p.a + a_at + row * inner.first;
        T* c = p.c + c_at + row * inner.second;
        Micro<Real> t{};
        t.c = direct ? reinterpret_cast<Real*>(c) : sums_;
        t.c_row = direct ? inner.second * reals : width;
        t.b_step = b_step_;
        if (!direct && call_.accumulate)
          move<true>(c, inner.second, p.c_column, rows, count, width);
        for (int64_t begin = 0; begin == 0 || begin < p.steps; begin += chunk) {
          const int64_t here = lesser(chunk, p.steps - begin);
          if (!in_place && !(packed && chunks == 1)) {
            Nest steps;
            steps.add(here, p.a_step, p.b_step);
            packer_.find_runs(steps);
            packer_.pack(b + begin * p.b_step, p.b_column, count, w_step_, here, panel_, width,
                         call_);
            packed = true;
          }
          t.b = in_place ? reinterpret_cast<const Real*>(b + begin * p.b_step) : panel_;
          t.steps = here * reals;
          t.from_zero = begin == 0 && !call_.accumulate;
          multiply(t, a + begin * p.a_step, inner.first, p.a_step, rows, vectors_here);
          if (p.steps == 0) break;
        }
        if (!direct) move<false>(c, inner.second, p.c_column, rows, count, width);
      }
    }
  }

  UNSHARED_INLINE void multiply(Micro<Real> t, const T* a, int64_t a_row, int64_t a_step,
                                int64_t rows, int64_t vectors_here) {
    if constexpr (plain) {
      t.a = reinterpret_cast<const Real*>(a);
      t.a_row = a_row * reals;
      t.a_step = a_step_;
      micro_rows<false>(t, rows, vectors_here, nothing_, near_);
    } else {
      t.a_row = most_steps;
      t.a_step = identity_;
      for (int64_t row = 0; row < rows; row += widened_rows) {
        t.a = widened_;
        const int64_t height = lesser(widened_rows, rows - row);
        for (int64_t m = 0; m < height; ++m)
          for (int64_t s = 0; s < t.steps; ++s)
            widened_[m * most_steps + s] = widen(a[(row + m) * a_row + s * a_step]);
        micro_rows<false>(t, height, vectors_here, nothing_, nullptr);
      }
    }
  }

  // The offsets of steps: in A (in reals), in B in memory, and in what is read of B: that or a panel,
  // where all the reals of an element are steps.
  // Samples lie pages apart, beyond what hardware fetches ahead: at every step one element of the next
  // tile is asked for. (Worth a fifth of the time with 128 samples.)
  UNSHARED_INLINE void tabulate(const Product<T>& p, int64_t b_step, int64_t a_row) {
    if (p.a_step == known_a_ && p.b_step == known_w_ && b_step == known_b_ && a_row == known_row_)
      return;
    known_row_ = a_row;
    known_a_ = p.a_step;
    known_w_ = p.b_step;
    known_b_ = b_step;
    for (int64_t t = 0; t < most_steps; ++t) {
      a_step_[t] = t / reals * p.a_step * reals + t % reals;
      w_step_[t] = t * p.b_step;
      b_step_[t] = t * b_step;
      const int64_t byte =
          (a_step_[t] + t % tallest_rows(1) * a_row * reals) * int64_t{sizeof(Real)};
      near_[t] = byte > max_extent || byte < -max_extent ? 0 : static_cast<std::int32_t>(byte);
    }
  }

  // Sums between memory and scratch: as a box, where that has runs worth finding.
  template <bool in>
  __attribute__((noinline)) void move(T* c, int64_t c_row, int64_t c_column, int64_t rows,
                                      int64_t count, int64_t width) {
    using Boxes = Boxed<T>;
    constexpr int64_t run = 8;
    if ((c_row != 1 || rows < run) && (c_column != 1 || count < run)) {
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t j = 0; j < count; ++j) {
          T& at = c[m * c_row + j * c_column];
          Sum& sum = *reinterpret_cast<Sum*>(sums_ + m * width + j * reals);
          if constexpr (in)
            sum = widen(at);
          else
            at = round_to<T>(sum);
        }
      return;
    }
    Box box;
    box.add(rows, c_row * Boxes::in_memory, width / Boxes::in_scratch);
    box.lanes = count;
    box.lane_memory = c_column;
    Boxes::pairs(box);
    Boxes::template move<in>(false, box, c, sums_);
  }

  const Call& call_;
  Lines nothing_[2];
  Panel<T> packer_;
  int64_t known_a_ = 0, known_w_ = 0, known_b_ = -1, known_row_ = 0;
  std::int32_t near_[most_steps];
  int64_t a_step_[most_steps], w_step_[most_steps], b_step_[most_steps], identity_[most_steps];
  alignas(64) Real panel_[most_steps * vectors * Lanes<Real>::count];
  alignas(64) Real sums_[panel_rows * vectors * Lanes<Real>::count];
  alignas(64) Real widened_[plain ? 1 : widened_rows * most_steps];
};

static_assert(sizeof(Tiler<float>) <= most_scratch && sizeof(Tiler<double>) <= most_scratch &&
              sizeof(Tiler<Half>) <= most_scratch &&
              sizeof(Tiler<Complex<double>>) <= most_scratch);

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
