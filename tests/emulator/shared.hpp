// The shared memory of a block, and what may be done to it: it begins as NaN; asynchronous copies
// land only at the wait that covers them, and until then their destination is NaN that nobody may
// touch; a byte that one thread wrote is for others only after a barrier they both passed (of the
// block, or of their warp), and so is writing what others have read.
#pragma once

#include <vector>

#include "block.hpp"

namespace unshared::emulator {

class Shared {
 public:
  static constexpr std::int64_t most = 227 << 10;  // bytes that a block may have

  void start(const Block& block, int threads, std::int64_t bytes);  // of a launch
  void start_block();
  std::byte* data() { return data_; }

  // Accesses of the current thread; they throw Failure.
  void read(const void* at, int bytes);
  void write(const void* at, int bytes);
  void copy(void* to, const void* from, int bytes);  // begins
  void commit();
  void wait(int pending);
  void leave();  // the thread has come to its end

 private:
  // What happened last to two bytes.
  struct Mark {
    std::uint32_t written = 0, read = 0;  // when
    std::int16_t writer = 0, reader = 0;  // by which thread; several_of(warp), or many
  };
  struct Copy {
    std::byte* to;
    const void* from;
    int bytes;
    std::int64_t group;
  };
  struct Copies {
    std::vector<Copy> begun;
    std::int64_t groups = 0;  // committed
  };
  static constexpr int granule = 2;
  static constexpr std::uint32_t in_flight = 0xffffffffu;
  static constexpr std::int16_t many = -1;
  static std::int16_t several_of(int warp) { return static_cast<std::int16_t>(-2 - warp); }
  static int warp_of(std::int16_t who) { return who < 0 ? -2 - who : who / Block::warp; }

  std::size_t granule_of(const void* at, int bytes) const;
  void mark_written(std::size_t first, int bytes, std::uint32_t when);
  [[noreturn]] void race(const char* what, const Mark& mark, std::int16_t who,
                         std::size_t at) const;

  const Block* block_ = nullptr;
  std::vector<std::byte> memory_;
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::vector<Mark> marks_;
  std::vector<Copies> copies_;
};

}  // namespace unshared::emulator
