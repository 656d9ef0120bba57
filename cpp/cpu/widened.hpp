// Weights of half types as floats in scratch, in their order in memory: where lanes run over samples,
// tiles broadcast them from there.
#pragma once

#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T>
class Widened {
 public:
  using Real = typename Scalar<T>::Real;

  // Finds the runs of a box of weights, for which scratch has so much room and a vector more; returns whether
  // it is another one than before.
  UNSHARED_INLINE bool find(const Box& box, int64_t room) {
    if (size_ > 0 && size_ <= room && box == box_) return false;
    box_ = box;
    size_ = cut(box, true);
    if (size_ > room) size_ = cut(box, false);
    return true;
  }
  // The box with its elements as far apart as they lie in scratch.
  UNSHARED_INLINE const Box& packed() const { return packed_; }
  // Brings it, run by run.
  UNSHARED_INLINE void bring(const T* memory, Real* scratch) const {
    walk_runs(loop_, depth_, memory, [&](const T* run) __attribute__((always_inline)) {
      Mover<T, true>::run(run, scratch, run_, 0);
      scratch += run_;
    });
  }

 private:
  // Returns how many elements that are in scratch. bridged: small gaps (taps in padding) are brought, too.
  UNSHARED_INLINE int64_t cut(const Box& box, bool bridged) {
    packed_ = box;
    run_ = 1;
    depth_ = 0;
    // The loops by how far apart their elements lie; the last one are the lanes.
    int order[max_axes + 4];
    const auto loop = [&](int d) {
      return d < box.depth ? box.loop[d] : Box::Loop{box.lanes, box.lane_memory, 0};
    };
    for (int d = 0; d <= box.depth; ++d) {
      int at = d;
      for (; at > 0 && magnitude(loop(order[at - 1]).memory) > magnitude(loop(d).memory); --at)
        order[at] = order[at - 1];
      order[at] = d;
    }
    int64_t elements = 1;
    for (int d = 0; d <= box.depth; ++d) {
      const Box::Loop here = loop(order[d]);
      if (here.count == 1) continue;
      int64_t apart = elements;
      if (depth_ == 0 && here.memory > 0 &&
          (bridged ? 2 * here.memory <= 3 * run_ : here.memory == run_)) {
        apart = here.memory;
        run_ += (here.count - 1) * apart;
        elements = run_;
      } else {
        loop_[depth_++] = here;
        elements *= here.count;
      }
      (order[d] < box.depth ? packed_.loop[order[d]].memory : packed_.lane_memory) = apart;
    }
    return elements;
  }

  Box box_, packed_;
  int64_t size_ = 0, run_ = 1;
  int depth_ = 0;
  Box::Loop loop_[max_axes + 4];  // over runs, innermost first
};

}  // namespace
}  // namespace unshared

#endif
