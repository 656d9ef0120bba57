// One vector register of the level this file is compiled for: load, store, broadcast, fused
// multiply-add. Where the level has no fused multiply-add there are no lanes, and the tile kernels
// decline.
#pragma once

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

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
  static UNSHARED_INLINE void transpose(Vector (&r)[16]) {
    Vector t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12,
                                     28, 13, 29);
      t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27,
                                         14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      r[i] = __builtin_shufflevector(t[i], t[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12,
                                     13, 28, 29);
      r[i + 1] = __builtin_shufflevector(t[i], t[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27,
                                         14, 15, 30, 31);
      r[i + 2] = __builtin_shufflevector(t[i + 1], t[i + 3], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24,
                                         25, 12, 13, 28, 29);
      r[i + 3] = __builtin_shufflevector(t[i + 1], t[i + 3], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                         27, 14, 15, 30, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 8)
#pragma GCC unroll 16
      for (int j = 0; j < 4; ++j) {
        t[i + j] = __builtin_shufflevector(r[i + j], r[i + j + 4], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17,
                                           18, 19, 24, 25, 26, 27);
        t[i + j + 4] = __builtin_shufflevector(r[i + j], r[i + j + 4], 4, 5, 6, 7, 12, 13, 14, 15,
                                               20, 21, 22, 23, 28, 29, 30, 31);
      }
#pragma GCC unroll 16
    for (int j = 0; j < 8; ++j) {
      r[j] = __builtin_shufflevector(t[j], t[j + 8], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24,
                                     25, 26, 27);
      r[j + 8] = __builtin_shufflevector(t[j], t[j + 8], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23,
                                         28, 29, 30, 31);
    }
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
  static UNSHARED_INLINE void transpose(Vector (&r)[8]) {
    Vector t[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
      t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
      t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 16
      for (int j = 0; j < 2; ++j) {
        r[i + j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 4, 5, 8, 9, 12, 13);
        r[i + j + 2] = __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 6, 7, 10, 11, 14, 15);
      }
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) {
      t[j] = __builtin_shufflevector(r[j], r[j + 4], 0, 1, 4, 5, 8, 9, 12, 13);
      t[j + 4] = __builtin_shufflevector(r[j], r[j + 4], 2, 3, 6, 7, 10, 11, 14, 15);
    }
#pragma GCC unroll 16
    for (int j = 0; j < 8; ++j) r[j] = t[j];
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
  static UNSHARED_INLINE void transpose(Vector (&r)[8]) {
    Vector t[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) {
      t[j] = _mm256_permute2f128_ps(r[j], r[j + 4], 0x20);
      t[j + 4] = _mm256_permute2f128_ps(r[j], r[j + 4], 0x31);
    }
#pragma GCC unroll 16
    for (int j = 0; j < 8; ++j) r[j] = t[j];
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
  static UNSHARED_INLINE void transpose(Vector (&r)[4]) {
    const Vector p = _mm256_unpacklo_pd(r[0], r[1]), q = _mm256_unpackhi_pd(r[0], r[1]),
                 u = _mm256_unpacklo_pd(r[2], r[3]), v = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(p, u, 0x20);
    r[1] = _mm256_permute2f128_pd(q, v, 0x20);
    r[2] = _mm256_permute2f128_pd(p, u, 0x31);
    r[3] = _mm256_permute2f128_pd(q, v, 0x31);
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
  static UNSHARED_INLINE void transpose(Vector (&r)[4]) {
    const Vector p = vtrn1q_f32(r[0], r[1]), q = vtrn2q_f32(r[0], r[1]), u = vtrn1q_f32(r[2], r[3]),
                 v = vtrn2q_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(p), vget_low_f32(u));
    r[1] = vcombine_f32(vget_low_f32(q), vget_low_f32(v));
    r[2] = vcombine_f32(vget_high_f32(p), vget_high_f32(u));
    r[3] = vcombine_f32(vget_high_f32(q), vget_high_f32(v));
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
  static UNSHARED_INLINE void transpose(Vector (&r)[2]) {
    const Vector p = vtrn1q_f64(r[0], r[1]), q = vtrn2q_f64(r[0], r[1]);
    r[0] = p;
    r[1] = q;
  }
};

#endif

#if defined(UNSHARED_LANES)
template <class Real>
struct LanesOf {
  using type = FloatLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};
template <class Real>
using Lanes = typename LanesOf<Real>::type;
#endif

#if defined(UNSHARED_LANES)
// Elements of storage type T as lanes of the type sums are kept in, and back.
template <class T>
struct Stored {
  using Real = T;
  using L = Lanes<T>;
  using Vector = typename L::Vector;
  static UNSHARED_INLINE Vector load(const T* p) { return L::load(p); }
  static UNSHARED_INLINE Vector load_part(const T* p, int n) { return L::load_part(p, n); }
  static UNSHARED_INLINE void store(T* p, Vector v) { L::store(p, v); }
  static UNSHARED_INLINE void store_around(T* p, Vector v) { L::store_around(p, v); }
  static UNSHARED_INLINE void store_part(T* p, Vector v, int n) { L::store_part(p, v, n); }
};

// Half types: widened exactly, rounded once to nearest even, as scalar.hpp states it.
template <class T>
struct StoredHalf {
  using Real = float;
  using L = FloatLanes;
  using Vector = L::Vector;
  static UNSHARED_INLINE Vector load(const T* p) {
#if defined(__AVX512F__)
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    return load_part(p, L::count);
#endif
  }
  static UNSHARED_INLINE Vector load_part(const T* p, int n) {
#if defined(__AVX512F__)
    return widened(_mm256_maskz_loadu_epi16(L::span(0, n), p));
#elif defined(__AVX2__)
    // Piece by piece, the last ones first.
    if (n == L::count) return load(p);
    __m128i bits = _mm_setzero_si128();
    if ((n & 1) != 0) bits = _mm_cvtsi32_si128(p[n - 1].bits);
    if ((n & 2) != 0) {
      int two;
      __builtin_memcpy(&two, p + (n & 4), sizeof two);
      bits = _mm_or_si128(_mm_slli_si128(bits, 4), _mm_cvtsi32_si128(two));
    }
    if ((n & 4) != 0)
      bits = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), bits);
    return widened(bits);
#else
    float all[L::count] = {};
    for (int i = 0; i < n; ++i) all[i] = widen(p[i]);
    return L::load(all);
#endif
  }
  static UNSHARED_INLINE void store(T* p, Vector v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(v));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), rounded(v));
#else
    store_part(p, v, L::count);
#endif
  }
  static UNSHARED_INLINE void store_around(T* p, Vector v) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), rounded(v));
#elif defined(__AVX2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), rounded(v));
#else
    store(p, v);
#endif
  }
  static UNSHARED_INLINE void store_part(T* p, Vector v, int n) {
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(p, L::span(0, n), rounded(v));
#elif defined(__AVX2__)
    if (n == L::count) return store(p, v);
    __m128i rest = rounded(v);
    if ((n & 4) != 0) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), rest);
      rest = _mm_unpackhi_epi64(rest, rest);
      p += 4;
    }
    if ((n & 2) != 0) {
      const int two = _mm_cvtsi128_si32(rest);
      __builtin_memcpy(p, &two, sizeof two);
      rest = _mm_srli_si128(rest, 4);
      p += 2;
    }
    if ((n & 1) != 0) p->bits = static_cast<std::uint16_t>(_mm_extract_epi16(rest, 0));
#else
    float all[L::count];
    L::store(all, v);
    for (int i = 0; i < n; ++i) p[i] = round_to<T>(all[i]);
#endif
  }

 private:
  static constexpr bool is_half = __is_same(T, Half);
#if defined(__AVX512F__)
  static UNSHARED_INLINE __m256i rounded(Vector v) {
    if constexpr (is_half)
      return _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i bits = _mm512_castps_si512(v), high = shifted(bits);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum =
        shifted(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))));
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_mask_blend_epi32(nan, sum, quiet));
  }
  static UNSHARED_INLINE __m512i shifted(__m512i bits) {
    return _mm512_maskz_srli_epi32(0xffff, bits, 16);
  }
  static UNSHARED_INLINE Vector widened(__m256i bits) {
    if constexpr (is_half) return _mm512_maskz_cvtph_ps(0xffff, bits);
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16));
  }
#elif defined(__AVX2__)
  static UNSHARED_INLINE __m128i rounded(Vector v) {
    if constexpr (is_half) return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i sum = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i all = _mm256_blendv_epi8(sum, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  }
  static UNSHARED_INLINE Vector widened(__m128i bits) {
    if constexpr (is_half) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
#endif
};
template <>
struct Stored<Half> : StoredHalf<Half> {};
template <>
struct Stored<BFloat16> : StoredHalf<BFloat16> {};

// The sums of a tile, kept as T: loaded, or stored, if wanted around the caches; then rows of c must
// be aligned. Of each row's last vector only `last` lanes are c's.
template <class L, class T, int M, int V>
UNSHARED_INLINE void load_tile(typename L::Vector (&sum)[M][V], const T* c, std::int64_t c_row,
                               int last) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const T* const at = c + m * c_row + v * L::count;
      sum[m][v] =
          v == V - 1 && last != L::count ? Stored<T>::load_part(at, last) : Stored<T>::load(at);
    }
}
template <class L, class T, int M, int V>
UNSHARED_INLINE void store_tile(const typename L::Vector (&sum)[M][V], T* c, std::int64_t c_row,
                                int last, bool around) {
  const auto rows = [&](auto store_last, auto store) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* const at = c + m * c_row + v * L::count;
        if (v == V - 1)
          store_last(at, sum[m][v]);
        else
          store(at, sum[m][v]);
      }
  };
  const auto whole = [](T* at, typename L::Vector v)
                         __attribute__((always_inline)) { Stored<T>::store(at, v); };
  const auto past = [](T* at, typename L::Vector v)
                        __attribute__((always_inline)) { Stored<T>::store_around(at, v); };
  if (around)
    rows(past, past);
  else if (last == L::count)
    rows(whole, whole);
  else
    rows([&](T* at, typename L::Vector v)
             __attribute__((always_inline)) { Stored<T>::store_part(at, v, last); },
         whole);
}
#endif

}  // namespace
}  // namespace unshared
