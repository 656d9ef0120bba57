// One vector register of the level this file is compiled for: load, store, broadcast, fused
// multiply-add. Where the level has no fused multiply-add there are no lanes, and the tile kernels
// decline.
//
// turn() brings across the lanes what lies along memory: of pieces of 16 bytes, piece(i, g) the g-th of
// lane i, it makes a vector of the first elements of all lanes, one of the second ones, and so on. Pieces
// are put together while they are loaded, so that shuffles need not cross them: half as many as otherwise.
// Those of a lane are loaded one after the other, as their line may not stay in a first-level cache.
// turn_back() takes such vectors apart again, and stores piece i of each lane by store(i, piece).
#pragma once

#include "../scalar.hpp"

#if defined(__AVX512F__)
#include "lanes_avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__)
#include "lanes_avx2.hpp"
#elif defined(__aarch64__)
#include "lanes_neon.hpp"
#endif

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Complex elements of eight bytes, as lanes of doubles. They are multiplied by products.hpp.
struct PairLanes : DoubleLanes {
  using Element = Complex<float>;
  static UNSHARED_INLINE const double* as(const Element* p) {
    return reinterpret_cast<const double*>(p);
  }
  static UNSHARED_INLINE double* as(Element* p) { return reinterpret_cast<double*>(p); }
  static UNSHARED_INLINE Vector blend(Mask m, Vector off, Vector on) {
#if defined(__AVX512F__)
    return _mm512_mask_blend_pd(m, off, on);
#elif defined(__AVX2__)
    return _mm256_blendv_pd(off, on, _mm256_castsi256_pd(m));
#else
    return vbslq_f64(m, on, off);
#endif
  }
  static UNSHARED_INLINE Vector broadcast(const Element* p) {
    double pair;
    __builtin_memcpy(&pair, p, sizeof(Element));
    return DoubleLanes::broadcast(&pair);
  }
  static UNSHARED_INLINE Vector load(const Element* p) { return DoubleLanes::load(as(p)); }
  static UNSHARED_INLINE void store(Element* p, Vector v) { DoubleLanes::store(as(p), v); }
  static UNSHARED_INLINE Piece load_piece(const Element* p) {
    return DoubleLanes::load_piece(as(p));
  }
  static UNSHARED_INLINE void store_piece(Element* p, Piece v) {
    DoubleLanes::store_piece(as(p), v);
  }
  // A part is never read or written as doubles: scratch is of floats.
  static UNSHARED_INLINE Piece load_piece_part(const Element* p, int) {
    double all[2] = {};
    __builtin_memcpy(all, p, sizeof(Element));
    return DoubleLanes::load_piece(all);
  }
  static UNSHARED_INLINE void store_piece_part(Element* p, Piece v, int) {
    double all[2];
    DoubleLanes::store_piece(all, v);
    __builtin_memcpy(p, all, sizeof(Element));
  }
  static UNSHARED_INLINE Vector load_part(const Element* p, int n) {
#if defined(__x86_64__)
    return DoubleLanes::load_part(as(p), n);
#else
    double all[count] = {};
    __builtin_memcpy(all, p, static_cast<std::size_t>(n) * sizeof(Element));
    return DoubleLanes::load(all);
#endif
  }
  static UNSHARED_INLINE Vector load_where(Mask m, const Element* p) {
#if defined(__x86_64__)
    return DoubleLanes::load_where(m, as(p));
#else
    std::uint64_t on[count];
    vst1q_u64(on, m);
    double all[count] = {};
    for (int i = 0; i < count; ++i)
      if (on[i] != 0) __builtin_memcpy(all + i, p + i, sizeof(Element));
    return DoubleLanes::load(all);
#endif
  }
  static UNSHARED_INLINE void store_where(Mask m, Element* p, Vector v) {
#if defined(__x86_64__)
    DoubleLanes::store_where(m, as(p), v);
#else
    std::uint64_t on[count];
    vst1q_u64(on, m);
    double all[count];
    DoubleLanes::store(all, v);
    for (int i = 0; i < count; ++i)
      if (on[i] != 0) __builtin_memcpy(p + i, all + i, sizeof(Element));
#endif
  }
  static UNSHARED_INLINE void store_part(Element* p, Vector v, int n) {
#if defined(__AVX512F__)
    DoubleLanes::store_part(as(p), v, n);
#else
    double all[count];
    DoubleLanes::store(all, v);
    for (int i = 0; i < n; ++i) __builtin_memcpy(p + i, all + i, sizeof(Element));
#endif
  }
};

template <class Real>
struct LanesOf {
  using type = FloatLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};
template <>
struct LanesOf<Complex<float>> {
  using type = PairLanes;
};
template <class Real>
using Lanes = typename LanesOf<Real>::type;

}  // namespace
}  // namespace unshared

#endif
