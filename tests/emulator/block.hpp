// A block of threads on a CPU: every thread is a fibre, and they take turns between the points where
// threads wait for each other, in one of several orders. What a kernel does wrong ends its launch
// with a Failure.
//
// Also the block's clock. It ticks when threads meet, so that others can tell whether two events are
// ordered: an event before the last meeting of all those concerned is over for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fibre.hpp"

namespace unshared::emulator {

// A place in the text of a kernel.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site&) const = default;
};
std::string to_string(const Site& site);

// What a kernel did wrong.
struct Failure {
  std::string text;
};

enum class Order { forward, backward, random };  // in which threads, and blocks, take turns
inline constexpr Order orders[] = {Order::forward, Order::backward, Order::random};
std::vector<std::int64_t> turns(std::int64_t count, Order order, std::uint64_t seed);

class Block {
 public:
  static constexpr int warp = 32;
  struct alignas(16) Slot {
    std::byte bytes[64];
  };

  Block(int threads, Order order);

  // Runs body(thread) for all threads to their ends. Throws Failure.
  void run(std::int64_t number, const std::function<void(int)>& body);

  // From within a thread. All its block, or all its warp, arrive at the same place of the text.
  void sync(Site site);
  void sync_warp(Site site);
  // What every lane of the warp hands in, size bytes each; valid until the exchange after the next.
  // Says nothing of the order of accesses to memory, as on the device.
  const Slot* exchange(const void* mine, std::size_t size, Site site);
  void at(Site site) { threads_[static_cast<std::size_t>(current_)].site = site; }
  int current() const { return current_; }

  // The clock: now; when all the block met last; when that warp did, for memory and for whatever.
  std::uint32_t now() const { return now_; }
  std::uint32_t block_met() const { return block_met_; }
  std::uint32_t warp_met(int w) const { return warps_[static_cast<std::size_t>(w)].met; }
  std::uint32_t warp_together(int w) const { return warps_[static_cast<std::size_t>(w)].together; }

 private:
  enum class State { fresh, ready, at_block, at_warp, at_exchange, finished };
  struct Thread {
    Fibre* fibre = nullptr;
    State state = State::fresh;
    Site site;
    unsigned exchanges = 0;
  };
  struct Warp {
    int waiting = 0;
    std::uint32_t met = 0, together = 0;
  };
  struct Stop {};  // thrown into threads that wait when another one failed

  static void life(Fibre& fibre);
  void work();
  void resume(int thread);
  void stop();
  void wait(State state, Site site);
  void arrive_at_block();
  void arrive_at_warp(State state);
  void same_place(int first, int last);
  void stuck();
  std::string describe(int thread) const;

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Slot> slots_;  // of every thread, for even and for odd exchanges
  Order order_;
  const std::function<void(int)>* body_ = nullptr;
  std::int64_t number_ = 0;
  int current_ = 0, at_block_ = 0;
  std::uint32_t block_met_ = 0;
  bool failed_ = false;
  Failure failure_;
  static std::uint32_t now_;
};

}  // namespace unshared::emulator
