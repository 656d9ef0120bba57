// Element types: the storage types of the six dtypes, their accumulators, exact widening, one
// rounding at the end, and the only switch over dtypes in the library (visit). Host and device text
// in one.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "problem.hpp"

namespace unshared {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};
template <class R>
struct Complex {
  R re, im;
};

UNSHARED_INLINE float widen(float v) { return v; }
UNSHARED_INLINE double widen(double v) { return v; }
template <class R>
UNSHARED_INLINE Complex<R> widen(Complex<R> v) {
  return v;
}
UNSHARED_INLINE float widen(BFloat16 v) {
  return std::bit_cast<float>(std::uint32_t{v.bits} << 16);
}
UNSHARED_INLINE float widen(Half v) {
#if defined(__CUDA_ARCH__)  // one instruction that does what stands below
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  const std::uint32_t sign = std::uint32_t{v.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)  // infinity, NaN (quieted, as hardware does)
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 |
                                (magnitude > 0x7c00u ? 0x400000u : 0u));
  if (magnitude < 0x400u) {  // subnormal: an exact multiple of 2^-24
    const float m = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -m : m;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
#endif
}

// Rounding to storage: to nearest, ties to even; NaN stays NaN.
template <class T>
struct Rounder {
  template <class A>
  static UNSHARED_INLINE T round(A v) {
    return v;
  }
};
template <>
struct Rounder<BFloat16> {
  static UNSHARED_INLINE BFloat16 round(float v) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(v);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(u >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
  }
};
template <>
struct Rounder<Half> {
  static UNSHARED_INLINE Half round(float v) {
#if defined(__CUDA_ARCH__)
    Half half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(v));
    return half;
#else
    const std::uint32_t u = std::bit_cast<std::uint32_t>(v);
    const std::uint32_t sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
      return {static_cast<std::uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
    if (magnitude >= 0x47800000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
    if (magnitude <
        0x38800000u) {  // the sum below rounds to a multiple of 2^-24, the smallest subnormal
      const float m = std::bit_cast<float>(magnitude) + 0.5f;
      return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(m) - 0x3f000000u))};
    }
    return {static_cast<std::uint16_t>(
        sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13))};
#endif
  }
};

template <class T>
UNSHARED_INLINE T round_to(auto v) {
  return Rounder<T>::round(v);
}

UNSHARED_INLINE float conjugate(float v, bool) { return v; }
UNSHARED_INLINE double conjugate(double v, bool) { return v; }
template <class R>
UNSHARED_INLINE Complex<R> conjugate(Complex<R> v, bool yes) {
  return {v.re, yes ? -v.im : v.im};
}

// One link of the canonical chain. The builtins are the instruction where there is one, libm's
// exact fma elsewhere.
UNSHARED_INLINE float chain(float p, float q, float sum) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(p, q, sum);
#else
  return __builtin_fmaf(p, q, sum);
#endif
}
UNSHARED_INLINE double chain(double p, double q, double sum) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(p, q, sum);
#else
  return __builtin_fma(p, q, sum);
#endif
}
template <class R>
UNSHARED_INLINE Complex<R> chain(Complex<R> p, Complex<R> q, Complex<R> sum) {
  sum.re = chain(p.re, q.re, sum.re);
  sum.im = chain(p.re, q.im, sum.im);
  sum.re = chain(-p.im, q.im, sum.re);
  sum.im = chain(p.im, q.re, sum.im);
  return sum;
}

// What a storage type T is to the kernels: Real is the type sums are kept in, parts the reals per
// element.
template <class T>
struct Scalar;
template <>
struct Scalar<float> {
  using Real = float;
  static constexpr int parts = 1;
};
template <>
struct Scalar<double> {
  using Real = double;
  static constexpr int parts = 1;
};
template <>
struct Scalar<Half> {
  using Real = float;
  static constexpr int parts = 1;
};
template <>
struct Scalar<BFloat16> {
  using Real = float;
  static constexpr int parts = 1;
};
template <class R>
struct Scalar<Complex<R>> {
  using Real = R;
  static constexpr int parts = 2;
};

template <class T>
struct Type {
  using type = T;
};

// The only switch over dtypes.
template <class F>
UNSHARED_INLINE constexpr auto visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32: return f(Type<float>{});
    case DType::float64: return f(Type<double>{});
    case DType::float16: return f(Type<Half>{});
    case DType::bfloat16: return f(Type<BFloat16>{});
    case DType::complex64: return f(Type<Complex<float>>{});
    case DType::complex128: break;
  }
  return f(Type<Complex<double>>{});
}

// The DType of a storage type.
template <class T>
inline constexpr DType dtype_of = [] {
  int d = 0;
  while (!visit(static_cast<DType>(d),
                [](auto type) { return std::is_same_v<typename decltype(type)::type, T>; }))
    ++d;
  return static_cast<DType>(d);
}();

constexpr std::int64_t size_of(DType dtype) {
  return visit(dtype, [](auto t) -> std::int64_t { return sizeof(typename decltype(t)::type); });
}
constexpr int parts_of(DType dtype) {
  return visit(dtype, [](auto t) { return Scalar<typename decltype(t)::type>::parts; });
}

}  // namespace unshared
