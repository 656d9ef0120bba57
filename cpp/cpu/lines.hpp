// Lists of the lines that a box takes in memory, for tiles to fetch while they compute.
#pragma once

#include "micro.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Where the lines of a box lie in memory, in bytes from its first element. Returns how many were
// written, at most `most`. `begin`: where in a line every run of the box begins, in bytes; negative: it
// may be anywhere.
template <class T>
int64_t lines_of(Box box, std::int32_t* lines, int64_t most, int64_t begin = -1) {
  box.merge();
  constexpr auto size = static_cast<int64_t>(sizeof(T));
  Box::Loop loop[max_axes + 4];
  int depth = 0;
  int64_t run = 1;
  const auto add = [&](int64_t count, int64_t stride) {
    if (count == 1) return;
    if (stride == 1)
      run = count;
    else
      loop[depth++] = {count, stride, 0};
  };
  for (int d = 0; d < box.depth; ++d) add(box.loop[d].count, box.loop[d].memory);
  add(box.lanes, box.lane_memory);
  for (bool found = true; found;) {  // loops that go on where a run ends make it longer
    found = false;
    for (int d = 0; d < depth && !found; ++d)
      if (loop[d].memory == run) {
        found = true;
        run *= loop[d].count;
        for (--depth; d < depth; ++d) loop[d] = loop[d + 1];
      }
  }
  int64_t at[max_axes + 4] = {}, offset = 0, count = 0;
  for (;;) {
    const int64_t last = offset * size + (run - 1) * size;
    for (int64_t byte = offset * size;; byte = lesser(byte + 64, last)) {
      if (count == most || byte > max_extent || byte < -max_extent) return count;
      lines[count++] = static_cast<std::int32_t>(byte);
      if (byte == last || (begin >= 0 && last - byte < 64 - begin)) break;
    }
    int d = depth - 1;
    for (; d >= 0; --d) {
      offset += loop[d].memory;
      if (++at[d] < loop[d].count) break;
      offset -= loop[d].count * loop[d].memory;
      at[d] = 0;
    }
    if (d < 0) return count;
  }
}

// The lines of a box in memory, listed anew when the box changes, and readable beyond the last one.
template <int most, int beyond>
class LineList {
 public:
  // `steps`: of the tiles that ask for them. If there are more steps than lines, lines are listed
  // again, so that memory is not asked for all at once.
  template <class T>
  UNSHARED_INLINE Lines of(const Box& box, const T* memory, int64_t steps = 0) {
    const int64_t begin = begin_of_runs(box, memory);
    if (!(box == box_ && begin == begin_ && steps == steps_)) {
      // The first list is continued to the end of its room, later ones for the steps of their tiles: what
      // is left of others beyond may be asked for in vain, but filling all the room took longer than a
      // small cell.
      const int64_t fill = count_ == 0 || steps == 0 ? beyond : lesser(beyond, steps);
      box_ = box;
      begin_ = begin;
      steps_ = steps;
      count_ = lines_of<T>(box, lines_, most, begin);
      const int64_t times = lesser(lesser(steps, most) / greater(count_, 1), 4);
      if (times > 1)
        for (int64_t j = (count_ *= times) - 1; j > 0; --j) lines_[j] = lines_[j / times];
      for (int64_t j = 0; j < fill; ++j) lines_[count_ + j] = lines_[count_ - 1];
    }
    return {reinterpret_cast<const char*>(memory), lines_, count_};
  }

 private:
  template <class T>
  static UNSHARED_INLINE int64_t begin_of_runs(const Box& box, const T* memory) {
    int64_t strides = 0;
    const auto look_at = [&](int64_t count, int64_t stride) {
      if (count > 1 && stride != 1) strides |= stride * int64_t{sizeof(T)};
    };
    for (int d = 0; d < box.depth; ++d) look_at(box.loop[d].count, box.loop[d].memory);
    look_at(box.lanes, box.lane_memory);
    return strides % 64 == 0 ? static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(memory) % 64)
                             : -1;
  }

  Box box_;
  int64_t count_ = 0, begin_ = -1, steps_ = 0;
  std::int32_t lines_[most + beyond];
};

}  // namespace
}  // namespace unshared

#endif
