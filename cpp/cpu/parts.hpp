// Complex elements in scratch. Where lanes run over columns they stay as they are. Where lanes run over
// samples their two parts are vectors of their own: a sum's re is p.re q.re, then -p.im q.im; its im is
// p.re q.im, then p.im q.re; each with the signs of conjugation. Weights are broadcast from where they are,
// so it is what is staged that is kept a second time, with signs turned over.
#pragma once

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// What boxes of elements of T count in.
template <class T>
struct Boxed {
  using Real = typename Scalar<T>::Real;
  // Over columns: elements, but for those of two doubles, which are moved as doubles.
  using Element = std::conditional_t<has_lanes<T>, T, Real>;
  // Over samples: reals.
  using Part = std::conditional_t<Scalar<T>::parts == 2, Real, T>;
  // Of an element, in memory and of what it is counted in, in scratch.
  static constexpr int64_t in_memory = sizeof(T) / sizeof(Element),
                           in_scratch = sizeof(Moved<Element>) / sizeof(Real);

  // Elements of two doubles: where the lanes of a box do not lie side by side, the two do, and the lanes
  // are one more loop.
  static UNSHARED_INLINE void pairs(Box& box) {
    if constexpr (in_memory == 2) {
      if (box.lanes == 1 || box.lane_memory == 1) {
        box.lanes *= 2;
      } else {
        box.add(box.lanes, 2 * box.lane_memory, 2);
        box.lanes = 2;
      }
      box.lane_memory = 1;
      box.dense = true;
    }
  }
  // use(memory, scratch), as pointers to what boxes count in.
  static UNSHARED_INLINE void with(bool over_samples, auto* memory, Real* scratch,
                                   const auto& use) {
    constexpr bool reads = std::is_const_v<std::remove_pointer_t<decltype(memory)>>;
    using Parts = std::conditional_t<reads, const Part, Part>;
    using Elements = std::conditional_t<reads, const Element, Element>;
    if (Scalar<T>::parts == 2 && over_samples)
      use(reinterpret_cast<Parts*>(memory), scratch);
    else
      use(reinterpret_cast<Elements*>(memory), reinterpret_cast<Moved<Element>*>(scratch));
  }
  template <bool in>
  static UNSHARED_INLINE void move(bool over_samples, const Box& box, T* memory, Real* scratch) {
    with(over_samples, memory, scratch, [&](auto* m, auto* s) __attribute__((always_inline)) {
      if constexpr (in)
        stage(box, m, s);
      else
        unstage(box, m, s);
    });
  }
};

// Over samples: elements p staged as vectors of `lanes` re and as many im, and `turned` further on the same
// with signs turned over, of the parts that a product wants so.
template <class Real>
struct SampleParts {
  using L = Lanes<Real>;
  bool im_of_re, re_of_im, im_of_im;  // which products want it
  int64_t lanes = 0, turned = 0;

  UNSHARED_INLINE explicit SampleParts(const Call& call)
      : im_of_re(call.conjugate_first == call.conjugate_second),
        re_of_im(call.conjugate_second),
        im_of_im(call.conjugate_first) {}

  // Of `size` staged reals.
  UNSHARED_INLINE void turn_over(Real* staged, int64_t size) const {
    const Real minus_zero = -Real{0};
    const auto signs = L::broadcast(&minus_zero);
    const auto turn = [&](int64_t from) {
      for (int64_t j = from; j < size; j += 2 * lanes)
        for (int64_t v = j; v < j + lanes; v += L::count)
          L::store(staged + turned + v, turned_over<L>(L::load(staged + v), signs));
    };
    if (re_of_im) turn(0);
    if (im_of_re || im_of_im) turn(lanes);
  }
  // The two steps t of the chains of re and of im: of p staged at `at`, and of the weight at w.
  UNSHARED_INLINE void step(int64_t t, int64_t at, int64_t w, int64_t* re_p, int64_t* re_w,
                            int64_t* im_p, int64_t* im_w) const {
    re_p[2 * t] = at;
    re_p[2 * t + 1] = at + lanes + (im_of_re ? turned : 0);
    im_p[2 * t] = at + (re_of_im ? turned : 0);
    im_p[2 * t + 1] = at + lanes + (im_of_im ? turned : 0);
    for (int q = 0; q < 2; ++q) {
      re_w[2 * t + q] = 2 * w + q;
      im_w[2 * t + q] = 2 * w + 1 - q;
    }
  }
};

}  // namespace
}  // namespace unshared

#endif
