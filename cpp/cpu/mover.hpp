// Copies a box of elements between memory, in whatever order, and scratch in the order a kernel wants,
// widening half types on the way in and rounding them on the way out. Where memory runs along another
// index than the lanes, pieces of it are turned in registers.
#pragma once

#include "across.hpp"
#include "share.hpp"
#include "stored.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

UNSHARED_INLINE int64_t magnitude(int64_t n) { return n < 0 ? -n : n; }

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
  // Makes the loop that goes on where the lanes end, on both sides, more of them.
  UNSHARED_INLINE void lengthen() {
    for (int d = depth - 1; d >= 0; --d)
      if (loop[d].memory == lanes * lane_memory && loop[d].scratch == lanes) {
        lanes *= loop[d].count;
        for (--depth; d < depth; ++d) loop[d] = loop[d + 1];
        return;
      }
  }

  bool dense = false;  // rows of scratch are not whole vectors apart: no squares
  bool distant = false;  // memory is in no cache: squares ask for what the next ones read

  UNSHARED_INLINE bool operator==(const Box& other) const {
    bool same = depth == other.depth && lanes == other.lanes && lane_memory == other.lane_memory;
    for (int d = 0; d < depth && same; ++d) same = loop[d] == other.loop[d];
    return same;
  }
  UNSHARED_INLINE void add(int64_t count, int64_t memory, int64_t scratch) {
    if (count != 1) loop[depth++] = {count, memory, scratch};
  }
};

// Where the columns of a square stand in scratch, if all are as far apart.
struct Evenly {
  int64_t apart;
  UNSHARED_INLINE int64_t operator()(int64_t column) const { return column * apart; }
};

// Whether elements have lanes of their own: not those of two doubles, which are moved as doubles.
template <class T>
inline constexpr bool has_lanes = !std::is_same_v<T, Complex<double>>;
inline constexpr const char* without_lanes = "elements of two doubles have no lanes of their own";

// What scratch holds of elements of storage type T: reals; or elements of two, which are moved as they are.
template <class T>
using Moved = std::conditional_t<Scalar<T>::parts == 2, T, typename Scalar<T>::Real>;

template <class T, bool in>
struct Mover {
  using Real = Moved<T>;
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
    for (int64_t l = 0; l < lanes; l += L::count, memory += L::count * lane_memory) {
      const int64_t here = lesser(L::count, lanes - l);
      if constexpr (in) {
        if (here == L::count)
          columns(LanesApart<T, L::count>(memory, lane_memory), scratch + l, place, count, ahead);
        else
          columns(LanesListed<T, L::count>(memory, lane_memory, here), scratch + l, place, count,
                  ahead);
      } else {
        ask_for(memory, lane_memory, here, count);
        if (sizeof(T) == sizeof(Real) && count < L::count)
          narrow(memory, lane_memory, here, scratch + l, place, count);
        else
          for (int64_t j = 0; j < count; j += L::count)
            rows(memory, lane_memory, here, scratch + l, place, count, j);
      }
    }
  }
  // The lines that a square is written to, all at once: stores that miss would wait for each other.
  static UNSHARED_INLINE void ask_for(const T* memory, int64_t lane_memory, int64_t lanes,
                                      int64_t count) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t i = 0; i < lanes; ++i, memory += lane_memory) {
      for (int64_t j = 0; j < count; j += line) __builtin_prefetch(memory + j, 1);
      __builtin_prefetch(memory + count - 1, 1);
    }
  }
  // The columns of a square, some pieces of each lane at a time.
  static UNSHARED_INLINE void columns(auto lane, Real* scratch, const auto& place, int64_t count,
                                      int64_t ahead) {
    constexpr int piece = S::piece, line = 64 / sizeof(T);
    const int64_t apart = lane.apart;
    int64_t j = 0;
    const auto fetch = [&]() __attribute__((always_inline)) {
      if (ahead == 0) return;
#pragma GCC unroll 16
      for (int i = 0; i < L::count; ++i) __builtin_prefetch(lane(i) + ahead, 0, 2);
    };
    const auto run = [&](auto some) __attribute__((always_inline)) {
      constexpr int wide = decltype(some)::value * piece;
      for (; j + wide <= count; j += wide, lane.move(wide)) {
        if (decltype(some)::value == 2 || j % line == 0) fetch();
        typename L::Vector v[wide];
        S::template turn<decltype(some)::value>(v, lane);
#pragma GCC unroll 16
        for (int i = 0; i < wide; ++i) L::store(scratch + place(j + i), v[i]);
      }
    };
    if (lines_collide(apart)) run(std::integral_constant<int, most_pieces<L>(piece)>{});
    if (lines_crowd(apart) || ahead != 0) run(std::integral_constant<int, some_pieces<L>(piece)>{});
    run(std::integral_constant<int, 1>{});
    if (j == count) return;
    if (j % line == 0) fetch();
    typename L::Vector v[piece];
    if (count < piece) {
      S::turn_part(v, lane, static_cast<int>(count));
    } else {
      lane.move(count - piece - j);
      j = count - piece;  // ends with the columns
      S::template turn<1>(v, lane);
    }
#pragma GCC unroll 8
    for (int i = 0; i < piece; ++i)
      if (i < count) L::store(scratch + place(j + i), v[i]);
  }

  // Out of scratch: vectors of columns from j on, or those that end with the last one, for a piece of
  // lanes at a time.
  static UNSHARED_INLINE void rows(Memory* memory, int64_t lane_memory, int64_t lanes,
                                   const Real* scratch, const auto& place, int64_t count,
                                   int64_t j) {
    constexpr int piece = Stored<Real>::piece;
    const int64_t from = lesser(j, greater(0, count - L::count)),
                  last = lesser(L::count, count) - 1;
    const auto turn = [&](int64_t l, const auto& column) __attribute__((always_inline)) {
      typename L::Vector v[piece];
      L::template turn<1>(
          v, [&](int i, int) __attribute__((always_inline)) { return L::load_piece(column(i)); });
#pragma GCC unroll 4
      for (int i = 0; i < piece; ++i) {
        if (l + i >= lanes) break;
        Memory* const row = memory + (l + i) * lane_memory + from;
        if (last + 1 == L::count)
          S::store(row, v[i]);
        else
          S::store_part(row, v[i], static_cast<int>(last + 1));
      }
    };
    if constexpr (std::is_same_v<decltype(place), const Evenly&>)
      if (last + 1 == L::count) {
        LanesApart<Real, L::count> column(scratch + place(from), place.apart);
        for (int64_t l = 0; l < lanes; l += piece, column.move(piece)) turn(l, column);
        return;
      }
    for (int64_t l = 0; l < lanes; l += piece)
      turn(l, [&](int i) __attribute__((always_inline)) {
        return scratch + place(from + lesser(i, last)) + l;
      });
  }
  // Out of scratch: fewer columns than a vector has, a piece of them at a time.
  static UNSHARED_INLINE void narrow(Memory* memory, int64_t lane_memory, int64_t lanes,
                                     const Real* scratch, const auto& place, int64_t count) {
    constexpr int piece = Stored<Real>::piece;
    const int some = static_cast<int>(lesser(piece, count));
    for (int64_t j = 0; j < count; j += piece) {
      const int64_t from = lesser(j, count - some);
      typename L::Vector v[piece];
#pragma GCC unroll 4
      for (int i = 0; i < piece; ++i) v[i] = L::load(scratch + place(from + lesser(i, some - 1)));
      L::turn_back(v, [&](int i, typename L::Piece p) __attribute__((always_inline)) {
        if (i >= lanes) return;
        auto* const at = reinterpret_cast<Real*>(memory + i * lane_memory + from);
        if (some == piece)
          L::store_piece(at, p);
        else
          L::store_piece_part(at, p, some);
      });
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
    if (box.distant && box.depth > 0) ahead = box.loop[box.depth - 1].memory;
    for (int64_t l = 0; l < lanes; l += step) {
      box.lanes = lesser(step, lanes - l);
      move(box, fast, true, memory + l * box.lane_memory, scratch + l, ahead);
    }
  }

 private:
  // `fast`: the innermost loop; the others outside of it in their order.
  static UNSHARED_INLINE void move(const Box& box, const Box::Loop& fast, bool squares,
                                   Memory* memory, Scratch* scratch, int64_t ahead) {
    const Evenly place{fast.scratch};
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

}  // namespace
}  // namespace unshared

#endif
