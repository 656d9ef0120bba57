// Which worker does what: each begins with a share of neighbouring units, since what is next in memory was
// asked for and tables are at hand. Who has done its own steals the back half of what is left to whoever has
// most, so that a busy neighbour costs little.
#pragma once

#include <atomic>
#include <cstdint>

namespace unshared {

class WorkStealing {
 public:
  static constexpr int most_workers = 1024;
  static constexpr std::int64_t most_units = 0xffffffff;

  WorkStealing(std::int64_t units, int workers) noexcept : workers_(workers) {
    for (int w = 0; w < workers; ++w)
      left_[w].store(word({units * w / workers, units * (w + 1) / workers}), relaxed);
  }

  // The unit that `worker` does next, which nobody else gets; -1: there is none left to take.
  std::int64_t take(int worker) noexcept {
    for (;;) {
      std::uint64_t held = left_[worker].load(relaxed);
      while (units(held).count() > 0) {
        const Units own = units(held);
        if (left_[worker].compare_exchange_weak(held, word({own.begin + 1, own.end}), relaxed))
          return own.begin;
      }
      int victim = -1;
      std::uint64_t most = 0;
      for (int w = 0; w < workers_; ++w) {
        const std::uint64_t here = left_[w].load(relaxed);
        if (units(here).count() > units(most).count()) {
          most = here;
          victim = w;
        }
      }
      if (victim < 0) return -1;
      const Units of_victim = units(most);
      const std::int64_t middle = of_victim.begin + of_victim.count() / 2;
      if (left_[victim].compare_exchange_strong(most, word({of_victim.begin, middle}), relaxed))
        left_[worker].store(word({middle, of_victim.end}), relaxed);
    }
  }

 private:
  // Who computes what is all that hangs on these words: results are handed on by the end of the region.
  static constexpr std::memory_order relaxed = std::memory_order_relaxed;

  struct Units {
    std::int64_t begin, end;
    std::int64_t count() const { return end - begin; }
  };
  static std::uint64_t word(Units u) {
    return static_cast<std::uint64_t>(u.begin) << 32 | static_cast<std::uint64_t>(u.end);
  }
  static Units units(std::uint64_t word) {
    return {static_cast<std::int64_t>(word >> 32), static_cast<std::int64_t>(word & 0xffffffff)};
  }

  const int workers_;
  std::atomic<std::uint64_t> left_[most_workers];  // by worker
};

}  // namespace unshared
