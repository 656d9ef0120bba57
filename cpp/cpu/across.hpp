// Where lanes lie whose elements run along memory, and how many of them are best turned at a time.
#pragma once

#include "lanes.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Whether lines of lanes so many bytes apart lie in one set of a first-level cache, or in one of two.
UNSHARED_INLINE bool lines_collide(std::int64_t apart) { return apart % 4096 == 0; }
UNSHARED_INLINE bool lines_crowd(std::int64_t apart) { return apart % 2048 == 0; }
// How many pieces of a lane are turned at a time: where its line does not stay, as many as make a square,
// which the registers have room for; where it may not, or is still on its way, two, if the registers are
// many. Lines are then asked for twice, with each two: measured faster where memory binds.
template <class L>
constexpr int most_pieces(int piece) {
  return L::count > piece ? L::count / piece : 1;
}
template <class L>
constexpr int some_pieces(int piece) {
  return vector_registers > 16 && most_pieces<L>(piece) > 1 ? 2 : 1;
}

// Where lanes lie that are read side by side along memory: a pointer for every four, so that each address
// is a base, a stride and a small factor. The compiler would keep sixteen.
template <class T, int count>
struct LanesApart {
  const char* base[(count + 3) / 4];
  std::int64_t apart;  // bytes

  UNSHARED_INLINE LanesApart(const T* first, std::int64_t step)
      : apart(step * std::int64_t{sizeof(T)}) {
#pragma GCC unroll 4
    for (int q = 0; q < (count + 3) / 4; ++q) {
      base[q] = reinterpret_cast<const char*>(first + 4 * q * step);
      __asm__("" : "+r"(base[q]));  // nothing follows from where the others are
    }
  }
  UNSHARED_INLINE const T* operator()(int i) const {
    return reinterpret_cast<const T*>(base[i / 4] + i % 4 * apart);
  }
  UNSHARED_INLINE void move(std::int64_t elements) {
#pragma GCC unroll 4
    for (int q = 0; q < (count + 3) / 4; ++q) base[q] += elements * std::int64_t{sizeof(T)};
  }
};
// The same of fewer lanes: the others are the last one again.
template <class T, int count>
struct LanesListed {
  const T* at[count];
  std::int64_t apart, moved = 0;

  UNSHARED_INLINE LanesListed(const T* first, std::int64_t step, std::int64_t lanes)
      : apart(step * std::int64_t{sizeof(T)}) {
    for (int i = 0; i < count; ++i) at[i] = first + (i < lanes ? i : lanes - 1) * step;
  }
  UNSHARED_INLINE const T* operator()(int i) const { return at[i] + moved; }
  UNSHARED_INLINE void move(std::int64_t elements) { moved += elements; }
};

}  // namespace
}  // namespace unshared

#endif
