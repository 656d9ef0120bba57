// What tensor cores do (cuda/device.hpp), for the emulator's Thread: fragments are exchanged through
// the warp, lane by lane as PTX lays them out.
//
// The arithmetic is no better than that of any hardware there is (Fasi et al., PeerJ Computer
// Science 2021): products are exact; they and the accumulator are aligned to the largest of them and
// truncated to `extra_bits` below 24 bits; their sum is truncated to float32. So each of the terms
// costs up to 2^-23 of the largest, which the bounds in test_mma.cpp assume.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "../../cpp/scalar.hpp"
#include "../../cuda/device.hpp"
#include "block.hpp"

namespace unshared::emulator {

inline constexpr int extra_bits = 1;

// sum + p[0] q[0] + ... in one go.
template <int count>
float truncated_sum(float sum, const float (&p)[count], const float (&q)[count]) {
  double terms[count + 1];
  terms[count] = sum;
  double largest = std::fabs(terms[count]);
  bool finite = std::isfinite(sum);
  for (int k = 0; k < count; ++k) {
    terms[k] = static_cast<double>(p[k]) * q[k];  // exact: 11 or fewer bits each
    finite = finite && std::isfinite(terms[k]);
    largest = std::fmax(largest, std::fabs(terms[k]));
  }
  if (!finite) {
    double all = 0;
    for (const double term : terms) all += term;
    return static_cast<float>(all);
  }
  if (largest == 0) return 0;
  const int unit = std::ilogb(largest) - 23 - extra_bits;
  const double scale = std::ldexp(1.0, -unit);
  std::int64_t units = 0;
  for (const double term : terms) units += static_cast<std::int64_t>(term * scale);
  const double exact = std::ldexp(static_cast<double>(units), unit);  // fewer than 53 bits
  const float nearest = static_cast<float>(exact);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(exact) ? std::nextafter(nearest, 0.0f)
                                                                    : nearest;
}

// For a Thread that has index(), load_shared() and gather().
template <class Thread>
class TensorCore {
 public:
  template <bool transposed, int count>
  void load_matrices(const void* row, std::uint32_t (&to)[count], Site site = Site::here()) {
    struct Row {
      std::uint16_t at[8];
    };
    using Words = cuda::Pack<std::uint32_t, 4>;
    Words mine{}, rows[32];
    if (lane() < 8 * count) mine = self().load_shared(static_cast<const Words*>(row), site);
    self().gather(mine, rows, site);
    for (int j = 0; j < count; ++j) {
      std::uint16_t pair[2];
      for (int h = 0; h < 2; ++h) {
        const int g = lane() / 4, at = 2 * (lane() % 4) + h;
        pair[h] = transposed ? std::bit_cast<Row>(rows[8 * j + at]).at[g]
                             : std::bit_cast<Row>(rows[8 * j + g]).at[at];
      }
      to[j] = pair[0] | std::uint32_t{pair[1]} << 16;
    }
  }

  using Left = const std::uint32_t (&)[4];
  using Right = const std::uint32_t (&)[2];
  void mma_f16(float (&sum)[4], Left p, Right q, Site site = Site::here()) {
    multiply<Half>(sum, p, q, site);
  }
  void mma_bf16(float (&sum)[4], Left p, Right q, Site site = Site::here()) {
    multiply<BFloat16>(sum, p, q, site);
  }
  void mma_tf32(float (&sum)[4], Left p, Right q, Site site = Site::here()) {
    multiply<float>(sum, p, q, site);
  }

  // Infinities and NaN pass.
  std::uint32_t round_tf32(std::uint32_t v) {
    return (v & 0x7f800000u) == 0x7f800000u ? v : (v + 0x1000u) & 0xffffe000u;
  }

 private:
  Thread& self() { return static_cast<Thread&>(*this); }
  int lane() { return self().index() % 32; }

  // The element of step k within the four words of a line that lane / 4 stands for.
  template <class T>
  static float element(const std::uint32_t (&words)[8], int k) {
    if constexpr (sizeof(T) == 4)
      return std::bit_cast<float>(words[k] & 0xffffe000u);  // what the hardware reads of it
    else
      return widen(T{static_cast<std::uint16_t>(words[k / 2] >> 16 * (k % 2))});
  }

  struct Fragments {
    std::uint32_t left[4], right[2];
  };
  template <class T>
  void multiply(float (&sum)[4], Left p, Right q, Site site) {
    constexpr int steps = 32 / sizeof(T);
    Fragments fragments[32];
    self().gather(Fragments{{p[0], p[1], p[2], p[3]}, {q[0], q[1]}}, fragments, site);
    const int g = lane() / 4, t = lane() % 4;
    for (int c = 0; c < 4; ++c) {
      const int row_half = c / 2, column = 2 * t + c % 2;
      std::uint32_t row_words[8], column_words[8];
      for (int w = 0; w < 8; ++w) {
        row_words[w] = fragments[4 * g + w % 4].left[w / 4 * 2 + row_half];
        column_words[w] = fragments[4 * column + w % 4].right[w / 4];
      }
      float row[steps], col[steps];
      for (int k = 0; k < steps; ++k) {
        row[k] = element<T>(row_words, k);
        col[k] = element<T>(column_words, k);
      }
      sum[c] = truncated_sum(sum[c], row, col);
    }
  }
};

}  // namespace unshared::emulator
