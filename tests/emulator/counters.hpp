// What the accesses of a launch would cost a GPU, counted per warp.
//
// The lanes of a warp execute one access together. Here they take turns, so the accesses are paired
// up afterwards: between two points where a warp comes together (a barrier, an exchange), the i-th
// access that each lane makes at one place of the text belongs to the i-th of the other lanes. That
// is what happens if lanes of a warp do the same; where they part ways within a loop it is an
// approximation.
#pragma once

#include <array>
#include <vector>

#include "block.hpp"

namespace unshared::emulator {

// To and from global memory.
struct Traffic {
  std::int64_t accesses = 0;  // of warps
  std::int64_t requested = 0;  // bytes, of every lane
  std::int64_t fetched = 0;  // bytes, each once per access
  std::int64_t moved = 0;  // bytes of the 32-byte sectors that an access touches
  std::int64_t touched = 0;  // bytes, each once: what must be moved in any case
  int most = 0;  // how many accesses touched one and the same byte

  double times_fetched() const { return ratio(fetched, touched); }
  double moved_per_byte() const { return ratio(moved, fetched); }  // 1: all of every sector is used

 private:
  static double ratio(std::int64_t p, std::int64_t q) {
    return q == 0 ? 0 : static_cast<double>(p) / static_cast<double>(q);
  }
};

// Shared memory moves 32 words of 4 bytes at a time, one from each of 32 banks. Of wider accesses
// as many lanes go together as fill 128 bytes.
struct Banks {
  std::int64_t accesses = 0;
  std::int64_t rounds = 0;  // that they took
  std::int64_t least = 0;  // and would take without conflicts
};

struct Counters {
  Traffic first, second, result, stores;  // loads of each array, and stores
  Banks shared_loads, shared_stores, shared_copies;
  std::int64_t launches = 0, blocks = 0;
};

enum class Access { first, second, result, store, shared_load, shared_store, shared_copy };

class Tally {
 public:
  void start(const Block& block, int warps);
  void note(Access access, std::uintptr_t at, int bytes, Site site);  // by the current thread
  void end_block();

  // Bytes of an array, for `touched` and `most`.
  void cover(Access access, std::uintptr_t low, std::uintptr_t high);
  Counters counters() const;
  Counters total;

 private:
  // One access of a warp.
  struct Together {
    std::uint32_t lanes = 0;
    std::array<std::uintptr_t, Block::warp> at;
  };
  struct Place {
    Access access;
    Site site;
    int bytes;
    std::array<int, Block::warp> times{};  // how often each lane was here
    std::vector<Together> together;
  };
  struct Warp {
    std::uint32_t since = 0;
    std::vector<Place> places;
  };
  struct Cover {
    std::uintptr_t low = 0, high = 0;
    std::vector<std::uint16_t> times;  // of every two bytes
  };

  void flush(Warp& warp);
  void count_global(const Place& place, const Together& together);
  void count_shared(const Place& place, const Together& together);
  Traffic& traffic(Access access);

  const Block* block_ = nullptr;
  std::vector<Warp> warps_;
  Cover covers_[4];
};

}  // namespace unshared::emulator
