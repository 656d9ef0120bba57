// What the ceilings of a level are measured with (ceilings.hpp): multiply-adds that never leave the registers,
// and loads of whole vectors.
#pragma once

#include "lanes.hpp"

namespace unshared {
namespace {

// Runs `rounds` rounds of twelve independent chains and returns the floating-point operations that
// took.
template <class Real>
double multiply_add_rounds(std::int64_t rounds) noexcept {
  constexpr int chains =
      12;  // more than latency times pipes on any machine, and they fit into 16 registers
  Real seed[2] = {static_cast<Real>(0.999), static_cast<Real>(0.001)};
  __asm__ volatile("" : "+m"(seed));
#if defined(UNSHARED_LANES)
  using L = Lanes<Real>;
  typename L::Vector sum[chains];
  for (auto& one : sum) one = L::zero();
  const typename L::Vector p = L::broadcast(seed), q = L::broadcast(seed + 1);
  for (std::int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) sum[c] = L::chain(p, sum[c], q);
  Real out[L::count];
  for (const auto& one : sum) {
    L::store(out, one);
    __asm__ volatile("" : : "m"(out));
  }
  return 2.0 * chains * L::count * static_cast<double>(rounds);
#else
  Real sum[chains] = {};
  for (std::int64_t r = 0; r < rounds; ++r)
    for (int c = 0; c < chains; ++c) sum[c] = chain(seed[0], sum[c], seed[1]);
  __asm__ volatile("" : : "m"(sum));
  return 2.0 * chains * static_cast<double>(rounds);
#endif
}

// Reads so many floats, whole lines of them. By vectors: with four or eight loads a line, fewer lines are on
// their way at a time.
void read_floats(const float* from, std::int64_t count) noexcept {
  constexpr int line = 16;
#if defined(UNSHARED_LANES)
  using L = Lanes<float>;
  constexpr int width = L::count;
  typename L::Vector sum[line / width];
  for (auto& one : sum) one = L::zero();
  const auto add = [](auto& one, const float* at) {
    const auto v = L::load(at);
    one = L::chain(v, v, one);
  };
#else
  using Vector [[gnu::vector_size(16)]] = float;
  constexpr int width = 4;
  Vector sum[line / width] = {};
  const auto add = [](auto& one, const float* at) { one += *reinterpret_cast<const Vector*>(at); };
#endif
  for (std::int64_t j = 0; j < count; j += line)
#pragma GCC unroll 4
    for (int v = 0; v < line / width; ++v) add(sum[v], from + j + v * width);
  __asm__ volatile("" : : "m"(sum));
}

}  // namespace
}  // namespace unshared
