// The Thread (cuda/device.hpp) of the emulator, and its Device.
#pragma once

#include <cstring>

#include "../../cuda/device.hpp"
#include "block.hpp"

namespace unshared::emulator {

class Thread {
 public:
  Thread(Block& block, int index, std::int64_t at, std::int64_t blocks)
      : block_(block), index_(index), at_(at), blocks_(blocks) {}

  int index() const { return index_; }
  std::int64_t block() const { return at_; }
  std::int64_t blocks() const { return blocks_; }
  std::byte* shared() { return block_.shared(); }
  void sync() { block_.sync(); }
  void sync_warp() { block_.sync_warp(); }
  template <class V>
  V shuffle(V v, int lane) {
    std::memcpy(block_.exchange(index_ % Block::warp), &v, sizeof v);
    block_.sync_warp();
    V found;
    std::memcpy(&found, block_.exchange(lane), sizeof found);
    block_.sync_warp();
    return found;
  }

  template <class V>
  V load(const V* p) {
    return *p;
  }
  template <class V>
  V load_once(const V* p) {
    return *p;
  }
  template <class V>
  V load_result(const V* p) {
    return *p;
  }
  template <class V>
  void store(V* p, V v) {
    *p = v;
  }
  template <class V>
  V load_shared(const V* p) {
    return *p;
  }
  template <class V>
  void store_shared(V* p, V v) {
    *p = v;
  }
  template <int bytes>
  void copy(void* shared, const void* global) {
    std::memcpy(shared, global, bytes);
  }
  void commit() {}
  template <int pending>
  void wait() {}

 private:
  Block& block_;
  int index_;
  std::int64_t at_, blocks_;
};

struct Emulator {
  template <class K>
  static void launch(const K& kernel, std::int64_t blocks, std::int64_t shared_bytes,
                     const Call&) noexcept {
    Block block(K::threads, shared_bytes);
    for (std::int64_t at = 0; at < blocks; ++at)
      block.run([&](int index) {
        Thread thread(block, index, at, blocks);
        kernel(thread);
      });
  }
};

}  // namespace unshared::emulator
