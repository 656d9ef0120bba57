// Which worker does what: each begins with a share of neighbouring units, since what is next in memory was
// asked for and tables are at hand. Who has done its own steals the back half of what is left to whoever has
// most, so that a busy neighbour costs little.
#pragma once

#include <atomic>
#include <cstdint>

namespace unshared {

class WorkStealing {
 public:
  static constexpr int most_workers = 512;
  static constexpr std::int64_t most_units = 0xffffffff;

  WorkStealing(std::int64_t units, int workers) noexcept : workers_(workers) {
    for (int w = 0; w < workers; ++w)
      shares_[w].left.store(word({units * w / workers, units * (w + 1) / workers}), relaxed);
  }

  // The unit that `worker` does next, which nobody else gets; -1: there is none left to take.
  std::int64_t take(int worker) noexcept {
    std::atomic<std::uint64_t>& own_share = shares_[worker].left;
    for (;;) {
      std::uint64_t held = own_share.load(relaxed);
      while (units(held).count() > 0) {
        const Units own = units(held);
        if (own_share.compare_exchange_weak(held, word({own.begin + 1, own.end}), relaxed))
          return own.begin;
      }
      int victim = -1;
      std::uint64_t most = 0;
      for (int w = 0; w < workers_; ++w) {
        const std::uint64_t here = shares_[w].left.load(relaxed);
        if (units(here).count() > units(most).count()) {
          most = here;
          victim = w;
        }
      }
      if (victim < 0) return -1;
      const Units of_victim = units(most);
      const std::int64_t middle = of_victim.begin + of_victim.count() / 2;
      if (shares_[victim].left.compare_exchange_strong(most, word({of_victim.begin, middle}),
                                                       relaxed))
        own_share.store(word({middle, of_victim.end}), relaxed);
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

  // Few of them to a line of memory, since each is written by its own worker, most of the time; but all on the
  // stack of the thread that calls (README).
  struct alignas(32) Share {
    std::atomic<std::uint64_t> left;
  };

  const int workers_;
  Share shares_[most_workers];
};

}  // namespace unshared
