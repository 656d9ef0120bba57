// Products of vectors with vectors, lane by lane: of reals, or of complex elements, whose parts lie side by
// side in lanes of reals.
#pragma once

#include "lanes.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Each lane's neighbour of its pair, and lanes with the signs that they have in `signs` turned over.
template <class L>
UNSHARED_INLINE typename L::Vector swapped(typename L::Vector v) {
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(v, v, (i ^ 1)...);
  }(std::make_integer_sequence<int, L::count>{});
}
template <class L>
UNSHARED_INLINE typename L::Vector turned_over(typename L::Vector v, typename L::Vector signs) {
  using Bits [[gnu::vector_size(sizeof(typename L::Vector))]] = std::int64_t;
  return (typename L::Vector)((Bits)v ^ (Bits)signs);
}
// The part of each pair, for both of its lanes.
template <class L, int part>
UNSHARED_INLINE typename L::Vector both(typename L::Vector v) {
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(v, v, ((i & ~1) + part)...);
  }(std::make_integer_sequence<int, L::count>{});
}

// Signs of lanes, to be turned over: of complex elements of b, by the steps of either part of a.
template <class Real>
struct Signs {
  alignas(64) Real re[Lanes<Real>::count], im[Lanes<Real>::count];

  // With the signs of the conjugations of a and b.
  UNSHARED_INLINE Signs(bool conjugate_a, bool conjugate_b) {
    for (int i = 0; i < Lanes<Real>::count; i += 2) {
      re[i] = 0;
      re[i + 1] = conjugate_b ? -Real{0} : Real{0};
      im[i] = conjugate_a == conjugate_b ? -Real{0} : Real{0};
      im[i + 1] = conjugate_a ? -Real{0} : Real{0};
    }
  }
};

// Complex elements q as factors of the two parts of p: (q.re, q.im) and (-q.im, q.re), with those signs.
template <class Real>
struct PairFactor {
  using L = Lanes<Real>;
  typename L::Vector re, im;

  PairFactor() = default;
  UNSHARED_INLINE PairFactor(typename L::Vector q, const Signs<Real>& signs)
      : re(turned_over<L>(q, L::load(signs.re))),
        im(turned_over<L>(swapped<L>(q), L::load(signs.im))) {}
};

// The same of `count` reals in scratch, in place, and behind them the second factors.
template <class Real>
UNSHARED_INLINE void make_factors(Real* q, std::int64_t count, const Signs<Real>& signs) {
  using L = Lanes<Real>;
  for (std::int64_t j = 0; j < count; j += L::count) {
    const PairFactor<Real> factor(L::load(q + j), signs);
    L::store(q + j, factor.re);
    L::store(q + count + j, factor.im);
  }
}

// sum + p q, with q prepared once for all p.
template <class Element>
struct Products {
  using L = Lanes<Element>;
  using Vector = typename L::Vector;
  using Factor = Vector;

  UNSHARED_INLINE Products(bool, bool) {}
  UNSHARED_INLINE Factor factor(Vector q) const { return q; }
  static UNSHARED_INLINE Vector chain(Vector p, Factor q, Vector sum) {
    return L::chain(p, q, sum);
  }
  static UNSHARED_INLINE Vector chain_where(typename L::Mask m, Vector p, Factor q, Vector sum) {
    return L::chain_where(m, p, q, sum);
  }
};
template <class Real>
struct Products<Complex<Real>> {
  using L = Lanes<Complex<Real>>;
  using Vector = typename L::Vector;
  using Reals = Lanes<Real>;
  using Factor = PairFactor<Real>;

  UNSHARED_INLINE Products(bool conjugate_p, bool conjugate_q) : signs_(conjugate_p, conjugate_q) {}
  UNSHARED_INLINE Factor factor(Vector q) const { return {(typename Reals::Vector)q, signs_}; }
  static UNSHARED_INLINE Vector chain(Vector p, Factor q, Vector sum) {
    const auto v = (typename Reals::Vector)p;
    auto s = (typename Reals::Vector)sum;
    s = Reals::chain(both<Reals, 0>(v), q.re, s);
    return (Vector)Reals::chain(both<Reals, 1>(v), q.im, s);
  }
  static UNSHARED_INLINE Vector chain_where(typename L::Mask m, Vector p, Factor q, Vector sum) {
    return L::blend(m, sum, chain(p, q, sum));
  }

 private:
  const Signs<Real> signs_;
};

}  // namespace
}  // namespace unshared

#endif
