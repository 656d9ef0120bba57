// Multiply-adds that never leave the registers: what the FMA peak of a level is measured with
// (ceilings.hpp).
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

}  // namespace
}  // namespace unshared
