// Work stealing (cpp/work_stealing.hpp): every unit is done once, whoever is slow or never comes.
#include "work_stealing.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

using namespace unshared;

namespace {

std::vector<std::int64_t> taken_by(WorkStealing& work, int worker) {
  std::vector<std::int64_t> taken;
  for (std::int64_t unit; (unit = work.take(worker)) >= 0;) taken.push_back(unit);
  return taken;
}

}  // namespace

TEST_CASE("a worker does its own share in order, and then what others left") {
  WorkStealing work(10, 3);  // 0-2, 3-5, 6-9
  CHECK(work.take(1) == 3);
  CHECK(work.take(0) == 0);
  // Its own, then the back half of what is left to whoever has most (8, 9), and so on.
  CHECK(taken_by(work, 1) == std::vector<std::int64_t>{4, 5, 8, 9, 2, 7, 1, 6});
  CHECK(work.take(0) == -1);
  CHECK(work.take(2) == -1);
}

TEST_CASE("workers that never come lose nothing") {
  for (const std::int64_t units : {1, 2, 7, 1000}) {
    WorkStealing work(units, 64);
    std::vector<int> times(static_cast<std::size_t>(units));
    for (const std::int64_t unit : taken_by(work, 63)) ++times[static_cast<std::size_t>(unit)];
    CHECK(times == std::vector<int>(static_cast<std::size_t>(units), 1));
  }
}

TEST_CASE("the largest counts there are") {
  const auto work =
      std::make_unique<WorkStealing>(WorkStealing::most_units, WorkStealing::most_workers);
  CHECK(work->take(0) == 0);
  CHECK(work->take(WorkStealing::most_workers - 1) ==
        WorkStealing::most_units * (WorkStealing::most_workers - 1) / WorkStealing::most_workers);
}

TEST_CASE("units that many threads fight for are done once each") {
  constexpr int workers = 8, units = 20000;
  for (int round = 0; round < 20; ++round) {
    WorkStealing work(units, workers);
    std::vector<std::atomic<int>> times(units);
    std::vector<std::thread> threads;
    for (int w = 1; w < workers; ++w)  // worker 0 does not come
      threads.emplace_back([&, w] {
        for (std::int64_t unit; (unit = work.take(w)) >= 0;)
          ++times[static_cast<std::size_t>(unit)];
      });
    for (std::thread& thread : threads) thread.join();
    bool once = true;
    for (const std::atomic<int>& t : times) once = once && t == 1;
    CHECK(once);
  }
}
