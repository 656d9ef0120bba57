// Copies between the tensors of a call, in whatever memory order, and scratch in the order a kernel
// wants, widening half types on the way in and rounding them on the way out.
//
// Only the small tensors (x and y), single cells' weights and finished sums pass through here.
// Where memory runs along another index than the lanes, squares are transposed in registers.
#pragma once

#include "lanes.hpp"
#include "share.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// What README promises: the extra memory of a call, per worker, on its own stack.
inline constexpr int64_t most_scratch = 464 * 1024;

UNSHARED_INLINE int64_t magnitude(int64_t n) { return n < 0 ? -n : n; }

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

// A box of elements: nested loops, outermost first, with a stride in memory and one in scratch, and
// innermost the lanes, which lie side by side in scratch. Scratch has room for whole vectors: lanes
// beyond the last may be overwritten, so loops must ascend in scratch, and if memory does not run
// along the lanes, rows of scratch lie whole vectors apart.
struct Box {
  struct Loop {
    int64_t count, memory, scratch;
    bool operator==(const Loop&) const = default;
  };
  int depth = 0;
  Loop loop[max_axes + 3];
  int64_t lanes = 1, lane_memory = 1;
  // Makes one of loops that are one in memory and in scratch.
  UNSHARED_INLINE void merge() {
    int kept = 0;
    for (int d = 0; d < depth; ++d) {
      Loop& last = loop[kept > 0 ? kept - 1 : 0];
      if (kept > 0 && last.memory == loop[d].count * loop[d].memory &&
          last.scratch == loop[d].count * loop[d].scratch)
        last = {last.count * loop[d].count, loop[d].memory, loop[d].scratch};
      else
        loop[kept++] = loop[d];
    }
    depth = kept;
    if (lanes == 1) lane_memory = 1;
    while (lane_memory == 1 && depth > 0 && loop[depth - 1].memory == lanes &&
           loop[depth - 1].scratch == lanes)
      lanes *= loop[--depth].count;
  }

  bool dense = false;  // rows of scratch are not whole vectors apart: no squares

  UNSHARED_INLINE bool operator==(const Box& other) const {
    bool same = depth == other.depth && lanes == other.lanes && lane_memory == other.lane_memory;
    for (int d = 0; d < depth && same; ++d) same = loop[d] == other.loop[d];
    return same;
  }
  UNSHARED_INLINE void add(int64_t count, int64_t memory, int64_t scratch) {
    if (count != 1) loop[depth++] = {count, memory, scratch};
  }
};

template <class T, bool in>
struct Mover {
  using Real = typename Scalar<T>::Real;
  using S = Stored<T>;
  using L = Lanes<Real>;
  using Memory = std::conditional_t<in, const T, T>;
  using Scratch = std::conditional_t<in, Real, const Real>;

  // `count` elements, contiguous on both sides.
  static UNSHARED_INLINE void run(Memory* memory, Scratch* scratch, int64_t count, int64_t ahead) {
    int64_t j = 0;
    for (; j + L::count <= count; j += L::count) {
      if constexpr (in) {
        __builtin_prefetch(memory + j + ahead, 0, 2);
        L::store(scratch + j, S::load(memory + j));
      } else
        S::store(memory + j, L::load(scratch + j));
    }
    if (j < count) {
      const int left = static_cast<int>(count - j);
      if constexpr (in) {
        __builtin_prefetch(memory + j + ahead, 0, 2);
        L::store(scratch + j, S::load_part(memory + j, left));
      } else
        S::store_part(memory + j, L::load(scratch + j), left);
    }
  }

  // Lanes at a stride, `count` elements of each contiguous in memory; element j of them all stands at
  // place(j) in scratch.
  static UNSHARED_INLINE void square(Memory* memory, int64_t lane_memory, int64_t lanes,
                                     Scratch* scratch, const auto& place, int64_t count,
                                     int64_t ahead) {
    for (int64_t l = 0; l < lanes; l += L::count)
      for (int64_t j = 0; j < count; j += L::count) {
        const int rows = static_cast<int>(lesser(L::count, lanes - l));
        const int columns = static_cast<int>(lesser(L::count, count - j));
        typename L::Vector v[L::count];
        if constexpr (in) {
          if (rows == L::count && columns == L::count) {
#pragma GCC unroll 16
            for (int i = 0; i < L::count; ++i) {
              __builtin_prefetch(memory + (l + i) * lane_memory + j + ahead, 0, 2);
              v[i] = S::load(memory + (l + i) * lane_memory + j);
            }
          } else {
#pragma GCC unroll 16
            for (int i = 0; i < L::count; ++i) {
              __builtin_prefetch(memory + (l + i) * lane_memory + j + ahead, 0, 2);
              v[i] =
                  i < rows ? S::load_part(memory + (l + i) * lane_memory + j, columns) : L::zero();
            }
          }
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < L::count; ++i)
            v[i] = i < columns ? L::load(scratch + place(j + i) + l) : L::zero();
        }
        L::transpose(v);
        if constexpr (in) {
#pragma GCC unroll 16
          for (int i = 0; i < L::count; ++i)
            if (i < columns) L::store(scratch + place(j + i) + l, v[i]);
        } else if (columns == L::count) {
#pragma GCC unroll 16
          for (int i = 0; i < L::count; ++i)
            if (i < rows) S::store(memory + (l + i) * lane_memory + j, v[i]);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < L::count; ++i)
            if (i < rows) S::store_part(memory + (l + i) * lane_memory + j, v[i], columns);
        }
      }
  }

  // Lanes of `count` elements each, all side by side in memory: as many vectors as there are
  // elements of a lane hold a vector's worth of lanes, and are sorted by shuffles.
  template <int count>
  static void zip(Memory* memory, int64_t lanes, Scratch* scratch, int64_t scratch_row,
                  int64_t ahead) {
    using Vector = typename L::Vector;
    for (int64_t l = 0; l < lanes; l += L::count, memory += count * L::count, scratch += L::count) {
      const int64_t all = lesser(L::count, lanes - l) * count;
      Vector v[count];
      sorted(std::make_integer_sequence<int, count>{}, [&](auto k) __attribute__((always_inline)) {
        if constexpr (in) {
          constexpr int at = k * L::count;
          __builtin_prefetch(memory + at + ahead, 0, 2);
          v[k] = at + L::count <= all ? S::load(memory + at)
                 : at < all           ? S::load_part(memory + at, static_cast<int>(all - at))
                                      : L::zero();
        } else {
          v[k] = L::load(scratch + k * scratch_row);
        }
      });
      sorted(std::make_integer_sequence<int, count>{}, [&](auto k) __attribute__((always_inline)) {
        const Vector sum = merge<count, k>(v[0], v);
        if constexpr (in) {
          L::store(scratch + k * scratch_row, sum);
        } else {
          constexpr int at = k * L::count;
          if (at + L::count <= all)
            S::store(memory + at, sum);
          else if (at < all)
            S::store_part(memory + at, sum, static_cast<int>(all - at));
        }
      });
    }
  }
  template <int... k, class Each>
  static UNSHARED_INLINE void sorted(std::integer_sequence<int, k...>, Each each) {
    (each(std::integral_constant<int, k>{}), ...);
  }
  // Vector k of what is zipped or unzipped: element i of it comes from one of `count` vectors,
  // which are merged in one after the other.
  template <int count, int k, int next = 1>
  static UNSHARED_INLINE typename L::Vector merge(typename L::Vector sum,
                                                  const typename L::Vector (&v)[count]) {
    if constexpr (next == count)
      return sum;
    else
      return merge<count, k, next + 1>(
          merge_one<count, k, next>(sum, v[next], std::make_integer_sequence<int, L::count>{}), v);
  }
  template <int count, int k, int next, int... i>
  static UNSHARED_INLINE typename L::Vector merge_one(typename L::Vector sum,
                                                      typename L::Vector more,
                                                      std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(sum, more, merged<count, k, next>(i)...);
  }
  template <int count, int k, int next>
  static constexpr int merged(int i) {
    const int from = in ? (i * count + k) / L::count : (k * L::count + i) % count;
    const int element = in ? (i * count + k) % L::count : (k * L::count + i) / count;
    return from == next ? L::count + element : from == 0 && next == 1 ? element : i;
  }

  // `ahead`: how many elements further on in memory the next box is expected; fetched along.
  static void move(Box box, Memory* memory, Scratch* scratch, int64_t ahead) {
    Box::Loop fast{1, 0, 0};
    bool squares = false;
    box.merge();
    if (box.lane_memory != 1 && !box.dense) {
      for (int d = box.depth - 1; d >= 0 && !squares; --d)
        if (box.loop[d].memory == 1 && (box.loop[d].count > 2 || box.lane_memory == 2)) {
          squares = true;
          fast = box.loop[d];
          for (; d + 1 < box.depth; ++d) box.loop[d] = box.loop[d + 1];
          --box.depth;
        }
    }
    if (!squares && box.depth > 0) fast = box.loop[--box.depth];
    if (!squares) return move(box, fast, false, memory, scratch, ahead);
    // In the order of memory, so that few pages of it are at hand at a time.
    for (int d = 1; d < box.depth; ++d)
      for (int q = d; q > 0 && magnitude(box.loop[q - 1].memory) < magnitude(box.loop[q].memory);
           --q) {
        const Box::Loop outer = box.loop[q];
        box.loop[q] = box.loop[q - 1];
        box.loop[q - 1] = outer;
      }
    const int64_t lanes = box.lanes;
    const bool far = box.depth > 0 && magnitude(box.lane_memory) > magnitude(box.loop[0].memory);
    const int64_t step = far ? L::count : lanes;
    for (int64_t l = 0; l < lanes; l += step) {
      box.lanes = lesser(step, lanes - l);
      move(box, fast, true, memory + l * box.lane_memory, scratch + l, ahead);
    }
  }

 private:
  // `fast`: the innermost loop; the others outside of it in their order.
  static UNSHARED_INLINE void move(const Box& box, const Box::Loop& fast, bool squares,
                                   Memory* memory, Scratch* scratch, int64_t ahead) {
    const auto place = [&](int64_t j) __attribute__((always_inline)) { return j * fast.scratch; };
    int64_t at[max_axes + 3] = {};
    for (;;) {
      if (squares && fast.count == box.lane_memory && fast.count <= 4) {
        if (fast.count == 2)
          zip<2>(memory, box.lanes, scratch, fast.scratch, ahead);
        else if (fast.count == 3)
          zip<3>(memory, box.lanes, scratch, fast.scratch, ahead);
        else
          zip<4>(memory, box.lanes, scratch, fast.scratch, ahead);
      } else if (squares) {
        square(memory, box.lane_memory, box.lanes, scratch, place, fast.count, ahead);
      } else if (box.lane_memory == 1) {
        for (int64_t j = 0; j < fast.count; ++j)
          run(memory + j * fast.memory, scratch + j * fast.scratch, box.lanes, ahead);
      } else {
        for (int64_t j = 0; j < fast.count; ++j)
          for (int64_t l = 0; l < box.lanes; ++l) {
            Memory& m = memory[j * fast.memory + l * box.lane_memory];
            Scratch& s = scratch[j * fast.scratch + l];
            if constexpr (in)
              s = widen(m);
            else
              m = round_to<T>(s);
          }
      }
      int d = box.depth - 1;
      for (; d >= 0; --d) {
        memory += box.loop[d].memory;
        scratch += box.loop[d].scratch;
        if (++at[d] < box.loop[d].count) break;
        memory -= at[d] * box.loop[d].memory;
        scratch -= at[d] * box.loop[d].scratch;
        at[d] = 0;
      }
      if (d < 0) return;
    }
  }
};

template <class T>
UNSHARED_INLINE void stage(const Box& box, const T* memory, typename Scalar<T>::Real* scratch,
                           int64_t ahead = 0) {
  Mover<T, true>::move(box, memory, scratch, ahead);
}
template <class T>
UNSHARED_INLINE void unstage(const Box& box, T* memory, const typename Scalar<T>::Real* scratch) {
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

// Whether weight gradients should be written around the caches: if few samples leave the time to the
// memory, and if they would not stay in a cache anyway. Not those that are added to, which are read
// first. Whoever writes so calls written_around() when done.
template <class T>
UNSHARED_INLINE bool beyond_caches(const Problem& p, int64_t most_samples = 8) {
  constexpr double last_cache = 16 * 1024 * 1024;
  double bytes =
      static_cast<double>(p.in_channels * int64_t{sizeof(T)}) * static_cast<double>(p.out_channels);
  for (int s = 0; s < p.axis_count; ++s)
    bytes *= static_cast<double>(p.axes[s].output) * static_cast<double>(p.axes[s].kernel);
  return p.batch <= most_samples && bytes > last_cache;
}
// Rows of vectors that can be: of whole lines, if the type is a half one.
template <class T>
UNSHARED_INLINE bool aligned(const T* c, int64_t row) {
  using Real = typename Scalar<T>::Real;
  constexpr int64_t bytes = Lanes<Real>::count * int64_t{sizeof(Real)};
  return (reinterpret_cast<std::uintptr_t>(c) |
          static_cast<std::uintptr_t>(row * int64_t{sizeof(T)})) %
             bytes ==
         0;
}
// Makes what was written so visible to whoever waits for this thread.
UNSHARED_INLINE void written_around() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
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
      for (; at > 0 && loop[at - 1].memory > stride; --at) {
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

// One step of complex weights as two steps of reals: an element q becomes, for the steps that
// broadcast p.re and p.im, the lanes (q.re, q.im) and (-q.im, q.re), with the signs of the
// conjugations of p (a) and q (b).
template <class R>
UNSHARED_INLINE void stage_pairs(const Complex<R>* from, int64_t column, int64_t count, R* scratch,
                                 int64_t width, bool conjugate_a, bool conjugate_b) {
  R* by_re = scratch;
  R* by_im = scratch + width;
  for (int64_t j = 0; j < count; ++j) {
    const Complex<R> q = conjugate(from[j * column], conjugate_b);
    by_re[2 * j] = q.re;
    by_re[2 * j + 1] = q.im;
    by_im[2 * j] = conjugate_a ? q.im : -q.im;
    by_im[2 * j + 1] = conjugate_a ? -q.re : q.re;
  }
  for (int64_t j = 2 * count; j < width; ++j) by_re[j] = by_im[j] = 0;
}

}  // namespace
}  // namespace unshared

#endif
