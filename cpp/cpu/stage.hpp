// Copies between the tensors of a call, in whatever memory order, and scratch in the order a kernel
// wants, widening half types on the way in and rounding them on the way out.
//
// Only the small tensors (x and y), single cells' weights and finished sums pass through here.
#pragma once

#include "mover.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// What README promises: the extra memory of a call, per worker, on its own stack.
inline constexpr int64_t most_scratch = 464 * 1024;

// Room for so many elements in whole vectors.
template <class Real>
UNSHARED_INLINE int64_t padded(int64_t n) {
  return ceil_div(n, Lanes<Real>::count) * Lanes<Real>::count;
}
// Rows of scratch at a distance that does not put them all into one set of a cache.
template <class Real>
UNSHARED_INLINE int64_t spaced(int64_t n) {
  constexpr int64_t line = 64 / sizeof(Real);
  return (ceil_div(n, line) | 1) * line;
}

template <class T>
UNSHARED_INLINE void stage(const Box& box, const T* memory, Moved<T>* scratch, int64_t ahead = 0) {
  Mover<T, true>::move(box, memory, scratch, ahead);
}
template <class T>
UNSHARED_INLINE void unstage(const Box& box, T* memory, const Moved<T>* scratch) {
  Mover<T, false>::move(box, memory, scratch, 0);
}

// Zero in dw for every tap of the place at those indices that falls into padding, for `ins` by `outs`
// channels from where dw points.
template <class T>
UNSHARED_INLINE void clear_padding(const Problem& p, const int64_t* place, T* dw, int64_t ins,
                                   int64_t outs) {
  constexpr int some = 64;
  int64_t taps[some];
  int count = 0;
  const auto clear = [&] {
    if (p.w_out_stride == 1) {
      for (int q = 0; q < count; ++q)
        for (int64_t a = 0; a < ins; ++a)
          __builtin_memset(dw + taps[q] + a * p.w_in_stride, 0,
                           static_cast<std::size_t>(outs) * sizeof(T));
    } else if (p.w_in_stride == 1) {
      for (int q = 0; q < count; ++q)
        for (int64_t b = 0; b < outs; ++b)
          __builtin_memset(dw + taps[q] + b * p.w_out_stride, 0,
                           static_cast<std::size_t>(ins) * sizeof(T));
    } else {
      for (int64_t b = 0; b < outs; ++b)
        for (int64_t a = 0; a < ins; ++a)
          for (int q = 0; q < count; ++q)
            dw[taps[q] + a * p.w_in_stride + b * p.w_out_stride] = T{};
    }
    count = 0;
  };
  reference::Index k{};
  do {
    int64_t w = 0;
    bool in_chain = true;
    for (int s = 0; s < p.axis_count; ++s) {
      in_chain = in_chain && p.axes[s].source(place[s], k.at[s]) >= 0;
      w += k.at[s] * p.axes[s].w_tap_stride;
    }
    if (!in_chain) taps[count++] = w;
    if (count == some) clear();
  } while (reference::next(p, k));
  clear();
}

// Whether all weights are more than stays in a last-level cache.
template <class T>
UNSHARED_INLINE bool weights_beyond_caches(const Problem& p) {
  constexpr double last_cache = 16 * 1024 * 1024;
  double bytes =
      static_cast<double>(p.in_channels * int64_t{sizeof(T)}) * static_cast<double>(p.out_channels);
  for (int s = 0; s < p.axis_count; ++s)
    bytes *= static_cast<double>(p.axes[s].output) * static_cast<double>(p.axes[s].kernel);
  return bytes > last_cache;
}
// Whether weight gradients should be written around the caches: if they would not stay in one anyway, and
// if there are so few samples that to read their lines first, as caches do, could take longer than the sums.
// Not those that are added to, which are read first. Whoever writes so calls written_around() when done.
template <class T>
UNSHARED_INLINE bool beyond_caches(const Problem& p, int64_t most_samples) {
  return p.batch <= most_samples && weights_beyond_caches<T>(p);
}
// Vectors of sums that fill a line of memory as elements of T.
template <class T>
inline constexpr int64_t vectors_of_line =
    64 * Scalar<T>::parts / (Lanes<typename Scalar<T>::Real>::count * int64_t{sizeof(T)});
// Rows that can be: whole lines. Half a line at a time takes four times as long as through the caches.
template <class T>
UNSHARED_INLINE bool whole_lines(const T* c, int64_t row, int64_t vectors) {
  return vectors % vectors_of_line<T> == 0 &&
         (reinterpret_cast<std::uintptr_t>(c) |
          static_cast<std::uintptr_t>(row * int64_t{sizeof(T)})) %
                 64 ==
             0;
}
// Makes what was written so visible to whoever waits for this thread.
UNSHARED_INLINE void written_around() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Every run of a box, `memory` being the first; loops over them, innermost first.
template <class T>
UNSHARED_INLINE void walk_runs(const Box::Loop* loop, int depth, T* memory, const auto& each) {
  int64_t at[max_axes + 4] = {};
  for (;;) {
    each(memory);
    int d = 0;
    for (; d < depth; ++d) {
      memory += loop[d].memory;
      if (++at[d] < loop[d].count) break;
      memory -= at[d] * loop[d].memory;
      at[d] = 0;
    }
    if (d == depth) return;
  }
}

// A box as it lies in memory: runs of so many elements side by side, and loops over them, innermost first.
struct Runs {
  int64_t run = 1;
  int depth = 0;
  Box::Loop loop[max_axes + 4];

  // `packed`: the same box with its runs side by side, in the order of memory.
  UNSHARED_INLINE Runs(const Box& box, Box& packed) {
    int from[max_axes + 4];  // whose loop it is
    const auto add = [&](int64_t count, int64_t stride, int whose) {
      int at = depth++;
      for (; at > 0 && magnitude(loop[at - 1].memory) > magnitude(stride); --at) {
        loop[at] = loop[at - 1];
        from[at] = from[at - 1];
      }
      loop[at] = {count, stride, 0};
      from[at] = whose;
    };
    for (int d = 0; d < box.depth; ++d) add(box.loop[d].count, box.loop[d].memory, d);
    add(box.lanes, box.lane_memory, box.depth);
    packed = box;
    int64_t elements = 1;
    int kept = 0;
    for (int d = 0; d < depth; ++d) {
      (from[d] == box.depth ? packed.lane_memory : packed.loop[from[d]].memory) = elements;
      elements *= loop[d].count;
      if (kept == 0 && (loop[d].count == 1 || loop[d].memory == run))
        run *= loop[d].count;
      else
        loop[kept++] = loop[d];
    }
    depth = kept;
  }
};

// Copies bytes around the caches, but for those that share a line with others.
UNSHARED_INLINE void copy_around(char* to, const char* from, int64_t bytes) {
  using L = Lanes<float>;
  constexpr int64_t line = 64, vector = L::count * int64_t{sizeof(float)};
  const int64_t head =
      lesser(bytes, -static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(to)) & (line - 1));
  __builtin_memcpy(to, from, static_cast<std::size_t>(head));
  int64_t at = head;
  for (; at + line <= bytes; at += line)
    for (int64_t v = 0; v < line; v += vector)
      L::store_around(reinterpret_cast<float*>(to + at + v),
                      L::load(reinterpret_cast<const float*>(from + at + v)));
  __builtin_memcpy(to + at, from + at, static_cast<std::size_t>(bytes - at));
}

}  // namespace
}  // namespace unshared

#endif
