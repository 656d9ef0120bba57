// Four floats or two doubles in one of the 32 registers of AArch64 (lanes.hpp).
#pragma once

#include <arm_neon.h>

#include <utility>

#include "../scalar.hpp"

#define UNSHARED_LANES 1

namespace unshared {
namespace {

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

}  // namespace
}  // namespace unshared
