// What the tiles of kernel "lanes" are made of: sums, results along one extent shared out among
// threads, and the addresses of a tile's members.
#pragma once

#include "lane_cells.hpp"

namespace unshared::cuda {

inline constexpr int lane_threads = 64;  // of a block

template <class V>
UNSHARED_DEVICE const V* displaced(const V* p, auto offset) {
  return reinterpret_cast<const V*>(reinterpret_cast<const std::byte*>(p) + offset);
}
template <class V>
UNSHARED_DEVICE V* displaced(V* p, auto offset) {
  return reinterpret_cast<V*>(reinterpret_cast<std::byte*>(p) + offset);
}

// Elements as the packs V that move together.
template <class V, class T>
UNSHARED_DEVICE const V* packed(const T* p) {
  return reinterpret_cast<const V*>(p);
}
template <class V, class T>
UNSHARED_DEVICE V* packed(T* p) {
  return reinterpret_cast<V*>(p);
}

// As many sums, of as many cells that lie next to each other in memory.
template <class T, int pack>
struct PackedSum {
  decltype(widen(T{})) at[pack];

  static UNSHARED_DEVICE PackedSum of(const Pack<T, pack>& v, bool conjugated = false) {
    PackedSum s;
    for (int i = 0; i < pack; ++i) s.at[i] = conjugate(widen(v.at[i]), conjugated);
    return s;
  }
  UNSHARED_DEVICE void add(const PackedSum& p, const PackedSum& q) {
    for (int i = 0; i < pack; ++i) at[i] = chain(p.at[i], q.at[i], at[i]);
  }
  UNSHARED_DEVICE Pack<T, pack> rounded() const {
    Pack<T, pack> v;
    for (int i = 0; i < pack; ++i) v.at[i] = round_to<T>(at[i]);
    return v;
  }
};

// One extent of the results (samples, channels), in blocks of `block`, a block a thread. Member m
// of a block lies the distances of m's bits from the first, so that all addresses follow from
// three numbers; in an extent below `block` some members coincide. A last block that is not full
// begins early. Either way only those are stored that nobody else stores.
template <int block, bool wide>
struct Spread {
  static constexpr int bits = 3;
  static_assert(block <= 1 << bits);
  Divider<wide> blocks;
  std::int64_t extent;
  int distance[bits];

  static Spread of(std::int64_t extent) {
    Spread s{{}, extent, {}};
    s.blocks.by = ceil_div(extent, block);
    std::int64_t left = lesser(extent, block) - 1;
    for (int bit = 0; bit < bits && left > 0; ++bit) {
      s.distance[bit] = static_cast<int>(lesser(left, 1 << bit));
      left -= s.distance[bit];
    }
    return s;
  }
  // Reads of a last block that begins early, or of members that coincide, are repeated.
  bool repeats() const { return extent > block && extent % block != 0; }

  struct Block {
    std::int64_t begin;
    int first;  // member to store
  };
  // Which block, taken off `unit`.
  template <class Index>
  UNSHARED_DEVICE Block take(Index& unit) const {
    const Index rest = blocks(unit), at = unit - rest * static_cast<Index>(blocks.by);
    unit = rest;
    const std::int64_t wanted = std::int64_t{at} * block;
    const std::int64_t begin = greater(lesser(wanted, extent - block), 0);
    return {begin, static_cast<int>(wanted - begin)};
  }
  // Calls f(m, index) for every member to store.
  template <class F>
  UNSHARED_DEVICE void each(int first, F f) const {
    for (int m = 0; m < block; ++m) {
      int index = 0;
      for (int bit = 0; bit < bits; ++bit) index += (m >> bit & 1) * distance[bit];
      if (index != first) continue;
      ++first;
      f(m, index);
    }
  }
};

// The distances of a Spread in bytes of an operand.
struct Distances {
  std::int64_t bit[3];

  template <class S>
  static Distances of(const S& spread, std::int64_t stride) {
    return {
        {spread.distance[0] * stride, spread.distance[1] * stride, spread.distance[2] * stride}};
  }
  // The members' addresses from that of the first.
  template <class V, int block>
  UNSHARED_DEVICE void reach(const V* (&member)[block]) const {
    for (int m = 1; m < block; ++m)
      member[m] = displaced(member[m & (m - 1)], bit[(m & 1) != 0 ? 0 : (m & 2) != 0 ? 1 : 2]);
  }
};

}  // namespace unshared::cuda
