// The Thread (cuda/device.hpp) of the emulator, and its Device.
#pragma once

#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "../../cuda/device.hpp"
#include "mma.hpp"
#include "shared.hpp"
#include "watch.hpp"

namespace unshared::emulator {

class Thread : public TensorCore<Thread> {
 public:
  Thread(Block& block, Shared& memory, Watch& watch, int index, std::int64_t at,
         std::int64_t blocks)
      : block_(block), memory_(memory), watch_(watch), index_(index), at_(at), blocks_(blocks) {}

  int index() const { return index_; }
  std::int64_t block() const { return at_; }
  std::int64_t blocks() const { return blocks_; }
  std::byte* shared() { return memory_.data(); }
  void sync(Site site = Site::here()) { block_.sync(site); }
  void sync_warp(Site site = Site::here()) { block_.sync_warp(site); }
  template <class V>
  V shuffle(V v, int lane, Site site = Site::here()) {
    block_.at(site);
    if (lane < 0 || lane >= Block::warp) throw Failure{"shuffles from a lane that is not there"};
    return value<V>(exchange(v, site)[lane].bytes);
  }
  // The v of every lane of the warp: what instructions of a whole warp are made of.
  template <class V>
  void gather(V v, V (&all)[Block::warp], Site site = Site::here()) {
    const Block::Slot* slots = exchange(v, site);
    for (int lane = 0; lane < Block::warp; ++lane) all[lane] = value<V>(slots[lane].bytes);
  }

  template <class V>
  V load(const V* p, Site site = Site::here()) {
    block_.at(site);
    note<V>(watch_.read(p, size<V>), p, site);
    return value<V>(p);
  }
  template <class V>
  V load_once(const V* p, Site site = Site::here()) {
    return load(p, site);
  }
  template <class V>
  V load_result(const V* p, Site site = Site::here()) {
    block_.at(site);
    watch_.read_result(p, size<V>);
    note<V>(Access::result, p, site);
    return value<V>(p);
  }
  template <class V>
  void store(V* p, V v, Site site = Site::here()) {
    block_.at(site);
    watch_.write(p, size<V>);
    note<V>(Access::store, p, site);
    std::memcpy(static_cast<void*>(p), &v, sizeof v);
  }
  template <class V>
  V load_shared(const V* p, Site site = Site::here()) {
    block_.at(site);
    memory_.read(p, size<V>);
    note<V>(Access::shared_load, p, site);
    return value<V>(p);
  }
  template <class V>
  void store_shared(V* p, V v, Site site = Site::here()) {
    block_.at(site);
    memory_.write(p, size<V>);
    note<V>(Access::shared_store, p, site);
    std::memcpy(static_cast<void*>(p), &v, sizeof v);
  }

  template <int bytes>
  void copy(void* shared, const void* global, Site site = Site::here()) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    block_.at(site);
    const Access access = watch_.read(global, bytes);
    memory_.copy(shared, global, bytes);
    if (Tally* tally = watch_.tally()) {
      tally->note(access, reinterpret_cast<std::uintptr_t>(global), bytes, site);
      tally->note(Access::shared_copy, reinterpret_cast<std::uintptr_t>(shared), bytes, site);
    }
  }
  void commit() { memory_.commit(); }
  template <int pending>
  void wait() {
    static_assert(pending >= 0);
    memory_.wait(pending);
  }

 private:
  template <class V>
  static constexpr int size = [] {
    static_assert(sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
    return static_cast<int>(sizeof(V));
  }();
  template <class V>
  const Block::Slot* exchange(const V& v, Site site) {
    static_assert(sizeof v <= sizeof(Block::Slot) && std::is_trivially_copyable_v<V>);
    return block_.exchange(&v, sizeof v, site);
  }
  template <class V>
  static V value(const void* p) {
    V v;
    std::memcpy(static_cast<void*>(&v), p, sizeof v);
    return v;
  }
  template <class V>
  void note(Access access, const void* p, Site site) {
    if (Tally* tally = watch_.tally())
      tally->note(access, reinterpret_cast<std::uintptr_t>(p), size<V>, site);
  }

  Block& block_;
  Shared& memory_;
  Watch& watch_;
  const int index_;
  const std::int64_t at_, blocks_;
};

struct Launch {
  const char* kernel;  // as the compiler names its type
  int threads;
  std::size_t parameters;  // bytes
  std::int64_t blocks, shared_bytes;

  // Runs all blocks under the current Watch.
  void run(const std::function<void(Thread&)>& body) const noexcept;

 private:
  const char* mistake() const;
};

struct Emulator {
  static constexpr std::int64_t processors = 1;  // few blocks that have much to do each

  template <class K>
  static void launch(const K& kernel, std::int64_t blocks, std::int64_t shared_bytes,
                     const Call&) noexcept {
    static_assert(std::is_trivially_copyable_v<K>);
    Launch{typeid(K).name(), K::threads, sizeof(K), blocks, shared_bytes}.run(
        [&](Thread& thread) { kernel(thread); });
  }
};

}  // namespace unshared::emulator
