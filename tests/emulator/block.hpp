// Blocks of threads on a CPU: every thread of a block is a fibre, and the fibres take turns between
// the points where threads wait for each other. The kernels' text (cuda/device.hpp) runs on them
// unchanged.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace unshared::emulator {

class Block {
 public:
  static constexpr int warp = 32;

  Block(int threads, std::int64_t shared_bytes);

  // Runs body(thread index) on every fibre until all have returned.
  void run(const std::function<void(int)>& body);

  // From within a fibre:
  void sync();
  void sync_warp();
  std::byte* exchange(int lane);  // 16 bytes per lane of the caller's warp
  std::byte* shared() { return shared_; }

 private:
  enum class State { ready, at_block, at_warp, finished };
  struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    std::byte slot[16];
  };

  void wait(State state);
  void release();
  static void enter(unsigned high, unsigned low);

  std::vector<Fibre> fibres_;
  std::vector<std::byte> memory_;
  std::byte* shared_;
  ucontext_t scheduler_;
  const std::function<void(int)>* body_ = nullptr;
  int current_ = 0;
};

}  // namespace unshared::emulator
