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

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <utility>

#include "../scalar.hpp"

namespace unshared {
namespace {

#if defined(__AVX512F__)

#define UNSHARED_LANES 1
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

#elif defined(__AVX2__) && defined(__FMA__)

#define UNSHARED_LANES 1
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

#elif defined(__aarch64__)

#define UNSHARED_LANES 1
inline constexpr int vector_registers = 32;

struct FloatLanes {
  using Vector = float32x4_t;
  static constexpr int count = 4;
  static UNSHARED_INLINE Vector zero() { return vdupq_n_f32(0); }
  static UNSHARED_INLINE Vector load(const float* p) { return vld1q_f32(p); }
  static UNSHARED_INLINE void store(float* p, Vector v) { vst1q_f32(p, v); }
  static UNSHARED_INLINE void store_around(float* p, Vector v) { store(p, v); }
  static UNSHARED_INLINE Vector broadcast(const float* p) { return vdupq_n_f32(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return vfmaq_f32(sum, p, q);
  }
  using Mask = uint32x4_t;
  static UNSHARED_INLINE Mask span(int first, int last) {
    std::uint32_t lane[count];
    for (int i = 0; i < count; ++i)
      lane[i] = i >= first && i < last ? ~std::uint32_t{0} : std::uint32_t{0};
    return vld1q_u32(lane);
  }
  static UNSHARED_INLINE Vector chain_where(Mask m, Vector p, Vector q, Vector sum) {
    return vbslq_f32(m, vfmaq_f32(sum, p, q), sum);
  }
  // Lanes outside the mask may lie beyond what is mapped: they are not touched.
  static UNSHARED_INLINE Vector load_where(Mask m, const float* p) {
    std::uint32_t on[count];
    vst1q_u32(on, m);
    float all[count] = {};
    for (int i = 0; i < count; ++i)
      if (on[i] != 0) all[i] = p[i];
    return vld1q_f32(all);
  }
  static UNSHARED_INLINE void store_where(Mask m, float* p, Vector v) {
    std::uint32_t on[count];
    vst1q_u32(on, m);
    float all[count];
    vst1q_f32(all, v);
    for (int i = 0; i < count; ++i)
      if (on[i] != 0) p[i] = all[i];
  }
  static UNSHARED_INLINE Vector load_part(const float* p, int n) {
    float all[count] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return vld1q_f32(all);
  }
  static UNSHARED_INLINE void store_part(float* p, Vector v, int n) {
    float all[count];
    vst1q_f32(all, v);
    for (int i = 0; i < n; ++i) p[i] = all[i];
  }
  using Piece = Vector;
  static UNSHARED_INLINE Piece load_piece(const void* p) {
    return vld1q_f32(static_cast<const float*>(p));
  }
  static UNSHARED_INLINE Piece load_piece_part(const float* p, int n) { return load_part(p, n); }
  static UNSHARED_INLINE void store_piece(float* p, Piece v) { store(p, v); }
  static UNSHARED_INLINE void store_piece_part(float* p, Piece v, int n) { store_part(p, v, n); }
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[4], const auto& piece) {
    for (int i = 0; i < 4; ++i) v[i] = piece(i, 0);
    turn_pieces<1>(v);
  }
  static UNSHARED_INLINE void turn_back(Vector (&v)[4], const auto& store) {
    turn_pieces<1>(v);
    for (int i = 0; i < 4; ++i) store(i, v[i]);
  }
  template <int>
  static UNSHARED_INLINE void turn_pieces(Vector (&v)[4]) {
    const Vector p = vtrn1q_f32(v[0], v[1]), q = vtrn2q_f32(v[0], v[1]), u = vtrn1q_f32(v[2], v[3]),
                 w = vtrn2q_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(p), vget_low_f32(u));
    v[1] = vcombine_f32(vget_low_f32(q), vget_low_f32(w));
    v[2] = vcombine_f32(vget_high_f32(p), vget_high_f32(u));
    v[3] = vcombine_f32(vget_high_f32(q), vget_high_f32(w));
  }
};
struct DoubleLanes {
  using Vector = float64x2_t;
  static constexpr int count = 2;
  static UNSHARED_INLINE Vector zero() { return vdupq_n_f64(0); }
  static UNSHARED_INLINE Vector load(const double* p) { return vld1q_f64(p); }
  static UNSHARED_INLINE void store(double* p, Vector v) { vst1q_f64(p, v); }
  static UNSHARED_INLINE void store_around(double* p, Vector v) { store(p, v); }
  static UNSHARED_INLINE Vector broadcast(const double* p) { return vdupq_n_f64(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return vfmaq_f64(sum, p, q);
  }
  using Mask = uint64x2_t;
  static UNSHARED_INLINE Mask span(int first, int last) {
    std::uint64_t lane[count];
    for (int i = 0; i < count; ++i)
      lane[i] = i >= first && i < last ? ~std::uint64_t{0} : std::uint64_t{0};
    return vld1q_u64(lane);
  }
  static UNSHARED_INLINE Vector chain_where(Mask m, Vector p, Vector q, Vector sum) {
    return vbslq_f64(m, vfmaq_f64(sum, p, q), sum);
  }
  // Lanes outside the mask may lie beyond what is mapped: they are not touched.
  static UNSHARED_INLINE Vector load_where(Mask m, const double* p) {
    std::uint64_t on[count];
    vst1q_u64(on, m);
    double all[count] = {};
    for (int i = 0; i < count; ++i)
      if (on[i] != 0) all[i] = p[i];
    return vld1q_f64(all);
  }
  static UNSHARED_INLINE void store_where(Mask m, double* p, Vector v) {
    std::uint64_t on[count];
    vst1q_u64(on, m);
    double all[count];
    vst1q_f64(all, v);
    for (int i = 0; i < count; ++i)
      if (on[i] != 0) p[i] = all[i];
  }
  static UNSHARED_INLINE Vector load_part(const double* p, int n) {
    double all[count] = {};
    for (int i = 0; i < n; ++i) all[i] = p[i];
    return vld1q_f64(all);
  }
  static UNSHARED_INLINE void store_part(double* p, Vector v, int n) {
    double all[count];
    vst1q_f64(all, v);
    for (int i = 0; i < n; ++i) p[i] = all[i];
  }
  using Piece = Vector;
  static UNSHARED_INLINE Piece load_piece(const void* p) {
    return vld1q_f64(static_cast<const double*>(p));
  }
  static UNSHARED_INLINE Piece load_piece_part(const double* p, int n) { return load_part(p, n); }
  static UNSHARED_INLINE void store_piece(double* p, Piece v) { store(p, v); }
  static UNSHARED_INLINE void store_piece_part(double* p, Piece v, int n) { store_part(p, v, n); }
  template <int pieces>
  static UNSHARED_INLINE void turn(Vector (&v)[2], const auto& piece) {
    for (int i = 0; i < 2; ++i) v[i] = piece(i, 0);
    turn_pieces<1>(v);
  }
  static UNSHARED_INLINE void turn_back(Vector (&v)[2], const auto& store) {
    turn_pieces<1>(v);
    for (int i = 0; i < 2; ++i) store(i, v[i]);
  }
  template <int>
  static UNSHARED_INLINE void turn_pieces(Vector (&v)[2]) {
    const Vector p = v[0], q = v[1];
    v[0] = vtrn1q_f64(p, q);
    v[1] = vtrn2q_f64(p, q);
  }
};

#endif

#if defined(UNSHARED_LANES)

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
#endif

}  // namespace
}  // namespace unshared
