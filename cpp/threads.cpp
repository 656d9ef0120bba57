#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "default_floats.hpp"
#include "work_stealing.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace unshared {
namespace {

// True in a process forked after this library was loaded. The handler is armed at load, not at the
// first call: another user of the same OpenMP runtime may have started its threads before us.
std::atomic<bool> forked_child{false};
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int armed =
    pthread_atfork(nullptr, nullptr, [] { forked_child.store(true, std::memory_order_relaxed); });
#endif

// The CPU quota of this process's container in whole cores, or `most` where there is none.
int quota(int most) noexcept {
  int cores = most;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    double limit = 0, period = 0;
    if (std::fscanf(file, "%lf %lf", &limit, &period) == 2 && limit > 0 && period > 0) {
      const double whole = limit / period;
      cores = whole < 1 ? 1 : whole < most ? static_cast<int>(whole) : most;
    }
    std::fclose(file);
  }
  return cores;
}

}  // namespace

bool built_with_openmp() noexcept {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

int default_threads() noexcept {
#if defined(_OPENMP)
  static const int within_quota = quota(omp_get_num_procs());
  const int allowed = omp_get_max_threads();
  return allowed < within_quota ? allowed : within_quota;
#else
  return 1;
#endif
}

double multiplications_worth_a_thread() noexcept {
  static const double worth = [] {
    const char* text = std::getenv("UNSHARED_WORK_PER_THREAD");
    return text != nullptr ? std::atof(text) : 5e5;
  }();
  return worth;
}

bool Work::next() noexcept {
  if (shares_ == nullptr) {
    const bool first = end < items_;
    end = items_;
    return first;
  }
  const std::int64_t unit = shares_->take(worker_);
  if (unit < 0) return false;
  begin = unit * run_;
  end = std::min(begin + run_, items_);
  return true;
}

void parallel(std::int64_t items, std::int64_t run, int threads, Body body,
              const void* context) noexcept {
  if (items <= 0) return;
#if defined(_OPENMP)
  run = std::max({run, std::int64_t{1}, items / WorkStealing::most_units + 1});
  const std::int64_t units = (items + run - 1) / run;
  if (threads <= 0) threads = default_threads();
  threads = static_cast<int>(std::min<std::int64_t>({threads, units, WorkStealing::most_workers}));
  if (threads > 1 && !forked_child.load(std::memory_order_relaxed) && omp_in_parallel() == 0) {
    WorkStealing shares(units, threads);
#pragma omp parallel num_threads(threads)
    {
      const DefaultFloats floats;
      Work work(items, run, &shares, omp_get_thread_num());
      body(context, work);
    }
    return;
  }
#else
  (void)threads;
#endif
  Work all(items, items, nullptr, 0);
  body(context, all);
}

}  // namespace unshared
