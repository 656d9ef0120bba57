// Threads behind one small interface with two implementations, OpenMP and serial, that give the
// same bits.
//
// The serial one runs in a forked child (libgomp would hang there), inside somebody else's parallel
// region, and where OpenMP was not built in. Workers compute in the default floating-point
// environment, as run() lets the caller do.
#pragma once

#include <cstdint>

namespace unshared {

class Work;
class WorkStealing;

// A worker. It must not throw, allocate or call back.
using Body = void (*)(const void* context, Work& work) noexcept;

// Hands out `items`, `run` of them at a time, to at most `threads` workers (0: default_threads()).
void parallel(std::int64_t items, std::int64_t run, int threads, Body body,
              const void* context) noexcept;

// What one worker does, a run of items [begin, end) after the other: neighbours, as long as it has not done
// its own share.
class Work {
 public:
  std::int64_t begin = 0, end = 0;

  bool next() noexcept;  // false: there is nothing left to do

 private:
  friend void parallel(std::int64_t, std::int64_t, int, Body, const void*) noexcept;
  Work(std::int64_t items, std::int64_t run, WorkStealing* shares, int worker)
      : items_(items), run_(run), shares_(shares), worker_(worker) {}

  const std::int64_t items_, run_;
  WorkStealing* const shares_;  // nullptr: there are no other workers
  const int worker_;
};

// How many workers a call may use: OMP_NUM_THREADS, the affinity mask and the container's quota,
// whichever is least.
int default_threads() noexcept;
bool built_with_openmp() noexcept;

// How many multiplications a further worker must save to be worth waking: some 10 microseconds of
// them, since beside a busy neighbour a parallel region can cost more than the work.
// UNSHARED_WORK_PER_THREAD overrides it: the tests set 0.
double multiplications_worth_a_thread() noexcept;

}  // namespace unshared
