// Cells (../cells.hpp) on the threads of a CPU: loops cut to the size of a cache, and work shared out.
#pragma once

#include "../cells.hpp"
#include "../kernels.hpp"
#include "../threads.hpp"

namespace unshared {
namespace {

// A nest cut into boxes of at most `most` steps, in order; a box is a nest of as many loops.
struct Pieces {
  Nest part;
  int64_t first = 0, second = 0;  // the offsets of the box

  // Of the loop that is cut, multiples of `unit` together, where there is room: whole lines of memory.
  UNSHARED_INLINE Pieces(const Nest& nest, int64_t most, int64_t unit = 1) : whole_(nest) {
    int64_t inner = nest.total();
    left_ = inner > 0;
    if (!left_) return;
    if (inner <= most) {
      run_ = nest.loop[0].count;
      single_ = true;
      part = nest;
      return;
    }
    while (cut_ < nest.depth) {
      inner /= nest.loop[cut_].count;
      if (inner <= most) break;
      ++cut_;
    }
    // Boxes of like size.
    const int64_t count = nest.loop[cut_].count;
    const int64_t longest = lesser(greater(most / inner, 1), count);
    run_ = ceil_div(count, ceil_div(count, longest));
    if (longest >= unit) run_ = lesser(longest / unit, ceil_div(run_, unit)) * unit;
    single_ = cut_ == 0 && run_ == count;
    find();
  }
  UNSHARED_INLINE bool none() const { return !left_ && begin_[0] == 0; }
  UNSHARED_INLINE bool more() const { return left_; }
  UNSHARED_INLINE bool single() const { return single_; }
  UNSHARED_INLINE void next() {
    int d = cut_;
    for (; d >= 0; --d) {
      begin_[d] += d == cut_ ? run_ : 1;
      if (begin_[d] < whole_.loop[d].count) break;
      if (d > 0) begin_[d] = 0;
    }
    left_ = d >= 0;
    if (left_) find();
  }

 private:
  UNSHARED_INLINE void find() {
    part = whole_;
    first = second = 0;
    for (int d = 0; d <= cut_; ++d) {
      first += begin_[d] * whole_.loop[d].first;
      second += begin_[d] * whole_.loop[d].second;
      part.loop[d].count = d < cut_ ? 1 : lesser(run_, whole_.loop[d].count - begin_[d]);
    }
  }

  const Nest& whole_;
  int cut_ = 0;
  int64_t run_ = 1, begin_[max_axes + 1] = {};
  bool left_ = false, single_ = false;
};

UNSHARED_INLINE double multiplications_of(const Problem& problem) {
  double work = static_cast<double>(problem.batch) * static_cast<double>(problem.in_channels) *
                static_cast<double>(problem.out_channels);
  for (int s = 0; s < problem.axis_count; ++s)
    work *=
        static_cast<double>(problem.axes[s].output) * static_cast<double>(problem.axes[s].kernel);
  return work;
}
// As many threads as a call may use and its multiplications are worth.
UNSHARED_INLINE int threads_of(const Problem& problem, const Call& call) {
  int threads = call.threads > 0 ? call.threads : default_threads();
  const double work = multiplications_of(problem), worth = multiplications_worth_a_thread();
  while (threads > 1 && work < worth * threads) --threads;
  return threads;
}
// Items that these should have: some each, so that they end together.
UNSHARED_INLINE int64_t least_items_of(const Problem& problem, const Call& call) {
  const int64_t threads = threads_of(problem, call);
  return threads == 1 ? 1 : 4 * threads;
}

// Shares out `items` of equal work.
UNSHARED_INLINE void share(const Problem& problem, const Call& call, int64_t items, Body body,
                           const void* context) {
  constexpr double worth_a_run = 2e5;  // multiplications: some 4 microseconds at full speed
  const int threads = threads_of(problem, call);
  const double run = worth_a_run / (multiplications_of(problem) / static_cast<double>(items) + 1);
  const int64_t fair = ceil_div(items, int64_t{8} * threads);
  parallel(items, run > static_cast<double>(fair) ? fair : static_cast<int64_t>(run), threads, body,
           context);
}

// Gives every cell to a worker: `each(cell, part)` for parts 0..parts-1 of every cell, on as many
// threads as the work (in multiplications) is worth. Worker is made once per thread, on its own stack.
template <class Worker>
struct Walk {
  const Problem& problem;
  const Call& call;
  int64_t parts;

  static void body(const void* context, Work& work) noexcept {
    const Walk& walk = *static_cast<const Walk*>(context);
    Worker worker(walk.problem, walk.call, walk.parts);
    while (work.next()) {
      int64_t part = work.begin % walk.parts;
      Cell cell(walk.problem, walk.call.face, work.begin / walk.parts);
      for (int64_t item = work.begin; item < work.end; ++item) {
        worker.compute(cell, part);
        if (++part == walk.parts) {
          part = 0;
          cell.advance();
        }
      }
    }
  }

  UNSHARED_INLINE void run() const {
    share(problem, call, Cell::count(problem, call.face) * parts, body, this);
  }
};

}  // namespace
}  // namespace unshared
