// Threads behind one small interface with two implementations, OpenMP and serial, that give the
// same bits.
//
// The serial one runs in a forked child (libgomp would hang there), inside somebody else's parallel
// region, and where OpenMP was not built in. Workers compute in the default floating-point
// environment, as run() lets the caller do.
#pragma once

#include <cstdint>

namespace unshared {

// A worker takes the items [begin, end). It must not throw, allocate or call back.
using Body = void (*)(const void* context, std::int64_t begin, std::int64_t end) noexcept;

// Hands out `items` in runs of `run` items to at most `threads` workers (0: default_threads()),
// whoever is free first.
void parallel(std::int64_t items, std::int64_t run, int threads, Body body,
              const void* context) noexcept;

// How many workers a call may use: OMP_NUM_THREADS, the affinity mask and the container's quota,
// whichever is least.
int default_threads() noexcept;
bool built_with_openmp() noexcept;

// How many multiplications a further worker must save to be worth waking: some 10 microseconds of
// them, since beside a busy neighbour a parallel region can cost more than the work.
// UNSHARED_WORK_PER_THREAD overrides it: the tests set 0.
double multiplications_worth_a_thread() noexcept;

}  // namespace unshared
