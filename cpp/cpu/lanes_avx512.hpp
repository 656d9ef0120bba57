// Sixteen floats or eight doubles in one of the 32 registers of AVX-512 (lanes.hpp).
#pragma once

#include <immintrin.h>

#include <utility>

#include "../scalar.hpp"

#define UNSHARED_LANES 1

namespace unshared {
namespace {

inline constexpr int vector_registers = 32;

struct FloatLanes {
  using Vector = __m512;
  static constexpr int count = 16;
  static UNSHARED_INLINE Vector zero() { return _mm512_setzero_ps(); }
  static UNSHARED_INLINE Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static UNSHARED_INLINE void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static UNSHARED_INLINE void store_around(float* p, Vector v) { _mm512_stream_ps(p, v); }
  static UNSHARED_INLINE Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm512_fmadd_ps(p, q, sum);
  }
  using Mask = __mmask16;
  static UNSHARED_INLINE Mask span(int first, int last) {
    return static_cast<Mask>((1u << last) - (1u << first));
  }
  static UNSHARED_INLINE Vector chain_where(Mask m, Vector p, Vector q, Vector sum) {
    return _mm512_mask3_fmadd_ps(p, q, sum, m);
  }
  static UNSHARED_INLINE Vector load_where(Mask m, const float* p) {
    return _mm512_maskz_loadu_ps(m, p);
  }
  static UNSHARED_INLINE void store_where(Mask m, float* p, Vector v) {
    _mm512_mask_storeu_ps(p, m, v);
  }
  static UNSHARED_INLINE Vector load_part(const float* p, int n) {
    return load_where(span(0, n), p);
  }
  static UNSHARED_INLINE void store_part(float* p, Vector v, int n) {
    _mm512_mask_storeu_ps(p, span(0, n), v);
  }
  using Piece = __m128;
  static UNSHARED_INLINE Piece load_piece(const void* p) {
    return _mm_loadu_ps(static_cast<const float*>(p));
  }
  static UNSHARED_INLINE Piece load_piece_part(const float* p, int n) {
    return _mm_maskz_loadu_ps(static_cast<__mmask8>((1u << n) - 1), p);
  }
  static UNSHARED_INLINE void store_piece(float* p, Piece v) { _mm_storeu_ps(p, v); }
  static UNSHARED_INLINE void store_piece_part(float* p, Piece v, int n) {
    _mm_mask_storeu_ps(p, static_cast<__mmask8>((1u << n) - 1), v);
  }
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[4 * pieces], const auto& piece) {
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pieces; ++i)
      v[i] = _mm512_castps128_ps512(piece(i / pieces, i % pieces));
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pieces; ++i)
      v[i] = _mm512_mask_broadcast_f32x4(v[i], 0x00f0, piece(i / pieces + 4, i % pieces));
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pieces; ++i)
      v[i] = _mm512_mask_broadcast_f32x4(v[i], 0x0f00, piece(i / pieces + 8, i % pieces));
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pieces; ++i)
      v[i] = _mm512_mask_broadcast_f32x4(v[i], 0xf000, piece(i / pieces + 12, i % pieces));
    turn_pieces<pieces>(v);
  }
  static UNSHARED_INLINE void turn_back(Vector (&v)[4], const auto& store) {
    turn_pieces<1>(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      store(i, __builtin_shufflevector(v[i], v[i], 0, 1, 2, 3));
      store(i + 4, _mm512_maskz_extractf32x4_ps(0xf, v[i], 1));
      store(i + 8, _mm512_maskz_extractf32x4_ps(0xf, v[i], 2));
      store(i + 12, _mm512_maskz_extractf32x4_ps(0xf, v[i], 3));
    }
  }
  template <int pieces>
  static UNSHARED_INLINE void turn_pieces(Vector (&v)[4 * pieces]) {
    Vector r[4 * pieces];
#pragma GCC unroll 4
    for (int g = 0; g < pieces; ++g) {
      const Vector p = __builtin_shufflevector(v[g], v[g + pieces], 0, 16, 1, 17, 4, 20, 5, 21, 8,
                                               24, 9, 25, 12, 28, 13, 29);
      const Vector q = __builtin_shufflevector(v[g], v[g + pieces], 2, 18, 3, 19, 6, 22, 7, 23, 10,
                                               26, 11, 27, 14, 30, 15, 31);
      const Vector u = __builtin_shufflevector(v[g + 2 * pieces], v[g + 3 * pieces], 0, 16, 1, 17,
                                               4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
      const Vector w = __builtin_shufflevector(v[g + 2 * pieces], v[g + 3 * pieces], 2, 18, 3, 19,
                                               6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
      r[4 * g] =
          __builtin_shufflevector(p, u, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[4 * g + 1] =
          __builtin_shufflevector(p, u, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
      r[4 * g + 2] =
          __builtin_shufflevector(q, w, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[4 * g + 3] =
          __builtin_shufflevector(q, w, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pieces; ++i) v[i] = r[i];
  }
};
struct DoubleLanes {
  using Vector = __m512d;
  static constexpr int count = 8;
  static UNSHARED_INLINE Vector zero() { return _mm512_setzero_pd(); }
  static UNSHARED_INLINE Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static UNSHARED_INLINE void store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
  static UNSHARED_INLINE void store_around(double* p, Vector v) { _mm512_stream_pd(p, v); }
  static UNSHARED_INLINE Vector broadcast(const double* p) { return _mm512_set1_pd(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm512_fmadd_pd(p, q, sum);
  }
  using Mask = __mmask8;
  static UNSHARED_INLINE Mask span(int first, int last) {
    return static_cast<Mask>((1u << last) - (1u << first));
  }
  static UNSHARED_INLINE Vector chain_where(Mask m, Vector p, Vector q, Vector sum) {
    return _mm512_mask3_fmadd_pd(p, q, sum, m);
  }
  static UNSHARED_INLINE Vector load_where(Mask m, const double* p) {
    return _mm512_maskz_loadu_pd(m, p);
  }
  static UNSHARED_INLINE void store_where(Mask m, double* p, Vector v) {
    _mm512_mask_storeu_pd(p, m, v);
  }
  static UNSHARED_INLINE Vector load_part(const double* p, int n) {
    return load_where(span(0, n), p);
  }
  static UNSHARED_INLINE void store_part(double* p, Vector v, int n) {
    _mm512_mask_storeu_pd(p, span(0, n), v);
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
#pragma GCC unroll 8
    for (int i = 0; i < 2 * pieces; ++i)
      v[i] = _mm512_castpd128_pd512(piece(i / pieces, i % pieces));
#pragma GCC unroll 8
    for (int i = 0; i < 2 * pieces; ++i)
      v[i] = _mm512_mask_broadcast_f64x2(v[i], 0x0c, piece(i / pieces + 2, i % pieces));
#pragma GCC unroll 8
    for (int i = 0; i < 2 * pieces; ++i)
      v[i] = _mm512_mask_broadcast_f64x2(v[i], 0x30, piece(i / pieces + 4, i % pieces));
#pragma GCC unroll 8
    for (int i = 0; i < 2 * pieces; ++i)
      v[i] = _mm512_mask_broadcast_f64x2(v[i], 0xc0, piece(i / pieces + 6, i % pieces));
    turn_pieces<pieces>(v);
  }
  static UNSHARED_INLINE void turn_back(Vector (&v)[2], const auto& store) {
    turn_pieces<1>(v);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      store(i, __builtin_shufflevector(v[i], v[i], 0, 1));
      store(i + 2, _mm512_maskz_extractf64x2_pd(3, v[i], 1));
      store(i + 4, _mm512_maskz_extractf64x2_pd(3, v[i], 2));
      store(i + 6, _mm512_maskz_extractf64x2_pd(3, v[i], 3));
    }
  }
  template <int pieces>
  static UNSHARED_INLINE void turn_pieces(Vector (&v)[2 * pieces]) {
    Vector r[2 * pieces];
#pragma GCC unroll 4
    for (int g = 0; g < pieces; ++g) {
      r[2 * g] = __builtin_shufflevector(v[g], v[g + pieces], 0, 8, 2, 10, 4, 12, 6, 14);
      r[2 * g + 1] = __builtin_shufflevector(v[g], v[g + pieces], 1, 9, 3, 11, 5, 13, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * pieces; ++i) v[i] = r[i];
  }
};

}  // namespace
}  // namespace unshared
