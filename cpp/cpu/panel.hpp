// Weights rearranged for the micro-kernel: a box of steps of one cell, copied into scratch as
// [step][columns] in whole vectors, whatever their memory order, widened for half types.
//
// Where memory runs along the steps instead of the columns, squares are transposed in registers.
#pragma once

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
class PanelPlan {
 public:
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  using S = Stored<T>;
  static constexpr int most_steps = 1024;

  // Finds the steps that lie side by side in memory: loops of stride 1, of stride that loop's count,
  // and so on. A nest's second strides are those of w.
  UNSHARED_INLINE void find_runs(const Nest& nest) {
    bool taken[max_axes + 1] = {};
    int64_t step[max_axes + 1], after = 1;
    for (int d = nest.depth - 1; d >= 0; --d) {
      step[d] = after;
      after *= nest.loop[d].count;
      taken[d] = nest.loop[d].count == 1;
    }
    length_ = 1;
    run_step_[0] = 0;
    for (bool found = true; found;) {
      found = false;
      for (int d = 0; d < nest.depth; ++d) {
        const Nest::Loop& loop = nest.loop[d];
        if (taken[d] || loop.second != length_) continue;
        for (int64_t j = 1; j < loop.count; ++j)
          for (int64_t u = 0; u < length_; ++u)
            run_step_[j * length_ + u] = static_cast<std::int32_t>(run_step_[u] + j * step[d]);
        length_ *= loop.count;
        taken[d] = found = true;
        break;
      }
    }
    outer_ = {};
    for (int d = 0; d < nest.depth; ++d)
      if (!taken[d]) outer_.add(nest.loop[d].count, nest.loop[d].second, step[d]);
  }

  // `count` columns into a panel of rows `width` apart; `w_step`: where each step lies in memory. What
  // lies `ahead` elements further on is asked for along the way.
  UNSHARED_INLINE void pack(const T* w, int64_t column, int64_t count, const int64_t* w_step,
                            int64_t steps, Real* panel, int64_t width, int64_t ahead) const {
    if (column == 1) {
      for (int64_t t = 0; t < steps; ++t)
        Mover<T, true>::run(w + w_step[t], panel + t * width, count, ahead);
    } else if (length_ > 2) {
      squares(w, column, count, panel, width, ahead);
    } else {
      for (int64_t t = 0; t < steps; ++t) {
        for (int64_t j = 0; j < count; ++j) panel[t * width + j] = widen(w[w_step[t] + j * column]);
        for (int64_t j = count; j < width; ++j) panel[t * width + j] = 0;
      }
    }
  }

 private:
  void squares(const T* w, int64_t column, int64_t count, Real* panel, int64_t width,
               int64_t ahead) const {
    int64_t at[max_axes + 1] = {};
    for (int64_t step = 0;;) {
      for (int64_t u = 0; u < length_; u += L::count) {
        const int units = static_cast<int>(lesser(L::count, length_ - u));
        for (int64_t c = 0; c < count; c += L::count) {
          const int columns = static_cast<int>(lesser(L::count, count - c));
          typename L::Vector v[L::count];
          const T* from = w + c * column + u;
          if (columns == L::count && units == L::count) {
#pragma GCC unroll 16
            for (int i = 0; i < L::count; ++i) {
              __builtin_prefetch(from + i * column + ahead);
              v[i] = S::load(from + i * column);
            }
          } else {
#pragma GCC unroll 16
            for (int i = 0; i < L::count; ++i) {
              v[i] = i < columns ? S::load_part(from + i * column, units) : L::zero();
              if (i < columns) __builtin_prefetch(from + i * column + ahead);
            }
          }
          L::transpose(v);
          Real* to = panel + step * width + c;
#pragma GCC unroll 16
          for (int i = 0; i < L::count; ++i)
            if (i < units) L::store(to + run_step_[u + i] * width, v[i]);
        }
      }
      int d = outer_.depth - 1;
      for (; d >= 0; --d) {
        const Nest::Loop& loop = outer_.loop[d];
        w += loop.first;
        step += loop.second;
        if (++at[d] < loop.count) break;
        w -= at[d] * loop.first;
        step -= at[d] * loop.second;
        at[d] = 0;
      }
      if (d < 0) return;
    }
  }

  int64_t length_ = 1;
  Nest outer_;
  std::int32_t run_step_[most_steps];
};

// A complex element q becomes, for the steps that broadcast p.re and p.im, the lanes (q.re, q.im) and
// (-q.im, q.re), with the signs of the conjugations.
template <class R>
class PanelPlan<Complex<R>> {
 public:
  using T = Complex<R>;
  static constexpr int most_steps = 512;

  UNSHARED_INLINE void conjugate_operands(bool a, bool b) {
    conjugate_a_ = a;
    conjugate_b_ = b;
  }
  UNSHARED_INLINE void find_runs(const Nest&) {}
  UNSHARED_INLINE void pack(const T* w, int64_t column, int64_t count, const int64_t* w_step,
                            int64_t steps, R* panel, int64_t width, int64_t) const {
    for (int64_t t = 0; t < steps; ++t) {
      R* by_re = panel + 2 * t * width;
      R* by_im = by_re + width;
      for (int64_t j = 0; j < count; ++j) {
        const T q = conjugate(w[w_step[t] + j * column], conjugate_b_);
        by_re[2 * j] = q.re;
        by_re[2 * j + 1] = q.im;
        by_im[2 * j] = conjugate_a_ ? q.im : -q.im;
        by_im[2 * j + 1] = conjugate_a_ ? -q.re : q.re;
      }
      for (int64_t j = 2 * count; j < width; ++j) by_re[j] = by_im[j] = 0;
    }
  }

 private:
  bool conjugate_a_ = false, conjugate_b_ = false;
};

}  // namespace
}  // namespace unshared

#endif
