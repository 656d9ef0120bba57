// Panels: the weights of some columns of a cell, rearranged as [step][columns] in whole vectors,
// whatever their memory order, widened for half types.
//
// Steps that lie side by side in memory, in whatever order of the chain, are moved as one run:
// pieces of it are turned in registers, and each step goes to its place.
#pragma once

#include "micro.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
class Panel {
 public:
  using Real = typename Scalar<T>::Real;
  static constexpr int reals = Scalar<T>::parts;
  static constexpr int most_steps = 1344 / reals;  // 9x9 taps of 16 channels, and some

  // The steps of a nest, whose second strides are those of w; kept while the nest is the same.
  // Finds runs: the loop of stride 1, one of that loop's count, and so on.
  UNSHARED_INLINE void find_runs(const Nest& nest) {
    if (nest.same(nest_)) return;
    nest_ = nest;
    bool taken[max_axes + 1] = {};
    int64_t step[max_axes + 1], after = 1;
    for (int d = nest.depth - 1; d >= 0; --d) {
      step[d] = after;
      after *= nest.loop[d].count;
      taken[d] = nest.loop[d].count == 1;
    }
    run_ = 1;
    place_[0] = 0;
    for (bool found = true; found;) {
      found = false;
      for (int d = 0; d < nest.depth && !found; ++d) {
        const Nest::Loop& loop = nest.loop[d];
        if (taken[d] || loop.second != run_) continue;
        for (int64_t j = 1; j < loop.count; ++j)
          for (int64_t u = 0; u < run_; ++u)
            place_[j * run_ + u] = static_cast<std::int32_t>(place_[u] + j * step[d]);
        run_ *= loop.count;
        taken[d] = found = true;
      }
    }
    outer_ = {};
    for (int d = 0; d < nest.depth; ++d)
      if (!taken[d]) outer_.add(nest.loop[d].count, nest.loop[d].second, step[d]);
  }

  // `count` columns of the steps, `column` apart in memory, into a panel of rows `width` apart;
  // `w_step`: where each step lies.
  UNSHARED_INLINE void pack(const T* w, int64_t column, int64_t count, const int64_t* w_step,
                            int64_t steps, Real* panel, int64_t width, const Call& call) const {
    if constexpr (reals == 2) {
      bring_elements(w, column, count, w_step, steps, panel, width);
      make_pairs(panel, steps, width, Signs<Real>(call.conjugate_first, call.conjugate_second));
    } else if (column == 1) {
      for (int64_t t = 0; t < steps; ++t)
        Mover<T, true>::run(w + w_step[t], panel + t * width, count, 0);
    } else if (steps == 2 && run_ == 2 && column == 2) {
      Mover<T, true>::template zip<2>(w, count, panel, width, 0);  // columns of two, side by side
    } else if (run_ > 1) {
      squares(w, column, count, panel, width);
    } else {
      for (int64_t t = 0; t < steps; ++t) {
        for (int64_t j = 0; j < count; ++j) panel[t * width + j] = widen(w[w_step[t] + j * column]);
        for (int64_t j = count; j < width; ++j) panel[t * width + j] = 0;
      }
    }
  }

 private:
  // Runs of steps, each step to its row.
  UNSHARED_INLINE void squares(const T* w, int64_t column, int64_t count, Moved<T>* panel,
                               int64_t width) const {
    const auto place = [&](int64_t u) __attribute__((always_inline)) { return place_[u] * width; };
    // Nest::walk, with a pointer that goes along: 10 % of a call whose runs are one square each.
    int64_t at[max_axes + 1] = {}, step = 0;
    for (int d = 0; d >= 0;) {
      Mover<T, true>::square(w, column, count, panel + step * width, place, run_, 0);
      for (d = outer_.depth - 1; d >= 0; --d) {
        w += outer_.loop[d].first;
        step += outer_.loop[d].second;
        if (++at[d] < outer_.loop[d].count) break;
        w -= at[d] * outer_.loop[d].first;
        step -= at[d] * outer_.loop[d].second;
        at[d] = 0;
      }
    }
  }

  // Complex elements as they are, into the first of the two rows that each step has. They fill lanes
  // beyond the last column, if at all, with what pairs may be made of.
  UNSHARED_INLINE void bring_elements(const T* w, int64_t column, int64_t count,
                                      const int64_t* w_step, int64_t steps, Real* panel,
                                      int64_t width) const {
    if (column == 1) {
      for (int64_t t = 0; t < steps; ++t)
        Mover<Real, true>::run(reinterpret_cast<const Real*>(w + w_step[t]), panel + 2 * t * width,
                               2 * count, 0);
      return;
    }
    if constexpr (has_lanes<T>)
      if (run_ > 1) return squares(w, column, count, reinterpret_cast<T*>(panel), width);
    for (int64_t t = 0; t < steps; ++t) {
      T* const row = reinterpret_cast<T*>(panel + 2 * t * width);
      for (int64_t j = 0; j < count; ++j) row[j] = w[w_step[t] + j * column];
      for (int64_t j = count; j < width / 2; ++j) row[j] = T{};
    }
  }
  // One step of complex weights as the two steps that micro.hpp makes of it.
  UNSHARED_INLINE void make_pairs(Real* panel, int64_t steps, int64_t width,
                                  const Signs<Real>& signs) const {
    for (int64_t t = 0; t < steps; ++t, panel += 2 * width) make_factors(panel, width, signs);
  }

  Nest nest_, outer_;
  int64_t run_ = 1;
  std::int32_t place_[most_steps];  // of the elements of a run, in steps
};

}  // namespace
}  // namespace unshared

#endif
