// Eight floats or four doubles in one of the 16 registers of AVX2 (lanes.hpp).
#pragma once

#include <immintrin.h>

#include <utility>

#include "../scalar.hpp"

#define UNSHARED_LANES 1

namespace unshared {
namespace {

inline constexpr int vector_registers = 16;

struct FloatLanes {
  using Vector = __m256;
  static constexpr int count = 8;
  static UNSHARED_INLINE Vector zero() { return _mm256_setzero_ps(); }
  static UNSHARED_INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static UNSHARED_INLINE void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static UNSHARED_INLINE void store_around(float* p, Vector v) { _mm256_stream_ps(p, v); }
  static UNSHARED_INLINE Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm256_fmadd_ps(p, q, sum);
  }
  using Mask = __m256i;
  static UNSHARED_INLINE Mask span(int first, int last) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
  }
  static UNSHARED_INLINE Vector chain_where(Mask m, Vector p, Vector q, Vector sum) {
    return _mm256_blendv_ps(sum, _mm256_fmadd_ps(p, q, sum), _mm256_castsi256_ps(m));
  }
  static UNSHARED_INLINE Vector load_where(Mask m, const float* p) {
    return _mm256_maskload_ps(p, m);
  }
  static UNSHARED_INLINE void store_where(Mask m, float* p, Vector v) {
    _mm256_maskstore_ps(p, m, v);
  }
  static UNSHARED_INLINE Vector load_part(const float* p, int n) {
    return load_where(span(0, n), p);
  }
  static UNSHARED_INLINE void store_part(float* p, Vector v, int n) {
    // Piece by piece: masked stores are slow on processors of this level, a loop would call memcpy.
    if (n == count) return store(p, v);
    __m128 rest = _mm256_castps256_ps128(v);
    if ((n & 4) != 0) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if ((n & 2) != 0) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if ((n & 1) != 0) _mm_store_ss(p, rest);
  }
  using Piece = __m128;
  static UNSHARED_INLINE Piece load_piece(const void* p) {
    return _mm_loadu_ps(static_cast<const float*>(p));
  }
  static UNSHARED_INLINE Piece load_piece_part(const float* p, int n) {
    return _mm_maskload_ps(p, _mm256_castsi256_si128(span(0, n)));
  }
  static UNSHARED_INLINE void store_piece(float* p, Piece v) { _mm_storeu_ps(p, v); }
  static UNSHARED_INLINE void store_piece_part(float* p, Piece v, int n) {
    store_part(p, _mm256_castps128_ps256(v), n);
  }
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[4 * pieces], const auto& piece) {
#pragma GCC unroll 8
    for (int i = 0; i < 4 * pieces; ++i)
      v[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(piece(i / pieces, i % pieces)),
                                  piece(i / pieces + 4, i % pieces), 1);
    turn_pieces<pieces>(v);
  }
  static UNSHARED_INLINE void turn_back(Vector (&v)[4], const auto& store) {
    turn_pieces<1>(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      store(i, _mm256_castps256_ps128(v[i]));
      store(i + 4, _mm256_extractf128_ps(v[i], 1));
    }
  }
  template <int pieces>
  static UNSHARED_INLINE void turn_pieces(Vector (&v)[4 * pieces]) {
    Vector r[4 * pieces];
#pragma GCC unroll 4
    for (int g = 0; g < pieces; ++g) {
      const Vector p = _mm256_unpacklo_ps(v[g], v[g + pieces]),
                   q = _mm256_unpackhi_ps(v[g], v[g + pieces]),
                   u = _mm256_unpacklo_ps(v[g + 2 * pieces], v[g + 3 * pieces]),
                   w = _mm256_unpackhi_ps(v[g + 2 * pieces], v[g + 3 * pieces]);
      r[4 * g] = _mm256_shuffle_ps(p, u, 0x44);
      r[4 * g + 1] = _mm256_shuffle_ps(p, u, 0xee);
      r[4 * g + 2] = _mm256_shuffle_ps(q, w, 0x44);
      r[4 * g + 3] = _mm256_shuffle_ps(q, w, 0xee);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pieces; ++i) v[i] = r[i];
  }
};
struct DoubleLanes {
  using Vector = __m256d;
  static constexpr int count = 4;
  static UNSHARED_INLINE Vector zero() { return _mm256_setzero_pd(); }
  static UNSHARED_INLINE Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static UNSHARED_INLINE void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  static UNSHARED_INLINE void store_around(double* p, Vector v) { _mm256_stream_pd(p, v); }
  static UNSHARED_INLINE Vector broadcast(const double* p) { return _mm256_broadcast_sd(p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm256_fmadd_pd(p, q, sum);
  }
  using Mask = __m256i;
  static UNSHARED_INLINE Mask span(int first, int last) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_andnot_si256(_mm256_cmpgt_epi64(_mm256_set1_epi64x(first), lane),
                               _mm256_cmpgt_epi64(_mm256_set1_epi64x(last), lane));
  }
  static UNSHARED_INLINE Vector chain_where(Mask m, Vector p, Vector q, Vector sum) {
    return _mm256_blendv_pd(sum, _mm256_fmadd_pd(p, q, sum), _mm256_castsi256_pd(m));
  }
  static UNSHARED_INLINE Vector load_where(Mask m, const double* p) {
    return _mm256_maskload_pd(p, m);
  }
  static UNSHARED_INLINE void store_where(Mask m, double* p, Vector v) {
    _mm256_maskstore_pd(p, m, v);
  }
  static UNSHARED_INLINE Vector load_part(const double* p, int n) {
    return load_where(span(0, n), p);
  }
  static UNSHARED_INLINE void store_part(double* p, Vector v, int n) {
    if (n == count) return store(p, v);
    __m128d rest = _mm256_castpd256_pd128(v);
    if ((n & 2) != 0) {
      _mm_storeu_pd(p, rest);
      rest = _mm256_extractf128_pd(v, 1);
      p += 2;
    }
    if ((n & 1) != 0) _mm_store_sd(p, rest);
  }
  using Piece = __m128d;
  static UNSHARED_INLINE Piece load_piece(const void* p) {
    return _mm_loadu_pd(static_cast<const double*>(p));
  }
  static UNSHARED_INLINE Piece load_piece_part(const double* p, int) { return _mm_load_sd(p); }
  static UNSHARED_INLINE void store_piece(double* p, Piece v) { _mm_storeu_pd(p, v); }
  static UNSHARED_INLINE void store_piece_part(double* p, Piece v, int) { _mm_store_sd(p, v); }
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[2 * pieces], const auto& piece) {
#pragma GCC unroll 4
    for (int i = 0; i < 2 * pieces; ++i)
      v[i] = _mm256_insertf128_pd(_mm256_castpd128_pd256(piece(i / pieces, i % pieces)),
                                  piece(i / pieces + 2, i % pieces), 1);
    turn_pieces<pieces>(v);
  }
  static UNSHARED_INLINE void turn_back(Vector (&v)[2], const auto& store) {
    turn_pieces<1>(v);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      store(i, _mm256_castpd256_pd128(v[i]));
      store(i + 2, _mm256_extractf128_pd(v[i], 1));
    }
  }
  template <int pieces>
  static UNSHARED_INLINE void turn_pieces(Vector (&v)[2 * pieces]) {
    Vector r[2 * pieces];
#pragma GCC unroll 4
    for (int g = 0; g < pieces; ++g) {
      r[2 * g] = _mm256_unpacklo_pd(v[g], v[g + pieces]);
      r[2 * g + 1] = _mm256_unpackhi_pd(v[g], v[g + pieces]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * pieces; ++i) v[i] = r[i];
  }
};

}  // namespace
}  // namespace unshared
