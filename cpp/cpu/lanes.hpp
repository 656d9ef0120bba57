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
  static UNSHARED_INLINE Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm512_fmadd_ps(p, q, sum);
  }
};
struct DoubleLanes {
  using Vector = __m512d;
  static constexpr int count = 8;
  static UNSHARED_INLINE Vector zero() { return _mm512_setzero_pd(); }
  static UNSHARED_INLINE Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static UNSHARED_INLINE void store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
  static UNSHARED_INLINE Vector broadcast(const double* p) { return _mm512_set1_pd(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm512_fmadd_pd(p, q, sum);
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
  static UNSHARED_INLINE Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm256_fmadd_ps(p, q, sum);
  }
};
struct DoubleLanes {
  using Vector = __m256d;
  static constexpr int count = 4;
  static UNSHARED_INLINE Vector zero() { return _mm256_setzero_pd(); }
  static UNSHARED_INLINE Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static UNSHARED_INLINE void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  static UNSHARED_INLINE Vector broadcast(const double* p) { return _mm256_broadcast_sd(p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return _mm256_fmadd_pd(p, q, sum);
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
  static UNSHARED_INLINE Vector broadcast(const float* p) { return vdupq_n_f32(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return vfmaq_f32(sum, p, q);
  }
};
struct DoubleLanes {
  using Vector = float64x2_t;
  static constexpr int count = 2;
  static UNSHARED_INLINE Vector zero() { return vdupq_n_f64(0); }
  static UNSHARED_INLINE Vector load(const double* p) { return vld1q_f64(p); }
  static UNSHARED_INLINE void store(double* p, Vector v) { vst1q_f64(p, v); }
  static UNSHARED_INLINE Vector broadcast(const double* p) { return vdupq_n_f64(*p); }
  static UNSHARED_INLINE Vector chain(Vector p, Vector q, Vector sum) {
    return vfmaq_f64(sum, p, q);
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

// A square of 16-byte rows, transposed in registers.
template <class Real>
struct Block;
template <>
struct Block<float> {
  using Row = float __attribute__((vector_size(16), aligned(4), may_alias));
  static constexpr int side = 4;
  static UNSHARED_INLINE void transpose(const float* from, std::int64_t from_row, float* to,
                                        std::int64_t to_row) {
    const Row p = *reinterpret_cast<const Row*>(from),
              q = *reinterpret_cast<const Row*>(from + from_row),
              r = *reinterpret_cast<const Row*>(from + 2 * from_row),
              s = *reinterpret_cast<const Row*>(from + 3 * from_row);
    const Row pq_low = __builtin_shufflevector(p, q, 0, 4, 1, 5),
              pq_high = __builtin_shufflevector(p, q, 2, 6, 3, 7);
    const Row rs_low = __builtin_shufflevector(r, s, 0, 4, 1, 5),
              rs_high = __builtin_shufflevector(r, s, 2, 6, 3, 7);
    *reinterpret_cast<Row*>(to) = __builtin_shufflevector(pq_low, rs_low, 0, 1, 4, 5);
    *reinterpret_cast<Row*>(to + to_row) = __builtin_shufflevector(pq_low, rs_low, 2, 3, 6, 7);
    *reinterpret_cast<Row*>(to + 2 * to_row) =
        __builtin_shufflevector(pq_high, rs_high, 0, 1, 4, 5);
    *reinterpret_cast<Row*>(to + 3 * to_row) =
        __builtin_shufflevector(pq_high, rs_high, 2, 3, 6, 7);
  }
};
template <>
struct Block<double> {
  using Row = double __attribute__((vector_size(16), aligned(8), may_alias));
  static constexpr int side = 2;
  static UNSHARED_INLINE void transpose(const double* from, std::int64_t from_row, double* to,
                                        std::int64_t to_row) {
    const Row p = *reinterpret_cast<const Row*>(from),
              q = *reinterpret_cast<const Row*>(from + from_row);
    *reinterpret_cast<Row*>(to) = __builtin_shufflevector(p, q, 0, 2);
    *reinterpret_cast<Row*>(to + to_row) = __builtin_shufflevector(p, q, 1, 3);
  }
};

}  // namespace
}  // namespace unshared
