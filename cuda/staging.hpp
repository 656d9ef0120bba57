// How the operands of a product are brought to shared memory (tile.hpp), decided by the host from
// their strides and pointers.
#pragma once

#include <initializer_list>

#include "product.hpp"

namespace unshared::cuda {

// How an operand is brought to shared memory: 16 bytes along the lines of a tile (its rows or
// columns), element by element across the lines, or element by element along the steps.
enum class Way { vectors, across, along };

struct Staging {
  Way way;
  int unit_loop;  // which loop over steps (product.hpp) moves it by one element
};

// Whether packs of n elements stay aligned: the pointer, and all strides but the unit one.
inline bool aligned(const void* data, int size, int n, std::initializer_list<int64_t> strides) {
  bool yes = reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(n * size) == 0;
  for (const int64_t stride : strides) yes = yes && stride % n == 0;
  return yes;
}

// Whether `n` neighbouring columns are neighbours in memory: of first, or of the result.
inline bool columns_together(const Product& p, int64_t ColumnLoop::* stride, int n) {
  for (int d = 0; d + 1 < p.column_depth; ++d)
    if (p.column[d].*stride % n != 0) return false;
  const ColumnLoop& last = p.column[p.column_depth - 1];
  return last.*stride == 1 && last.axis < 0 && last.count % n == 0;
}

// The loop over steps in which an operand moves by one element.
inline int unit_loop(const Product& p, int64_t step, int64_t CellAxis::* axis_step) {
  if (step == 1 && p.steps > 1) return step_loop;
  if (p.taps_are_steps)
    for (int s = p.axis_count - 1; s >= 0; --s)
      if (p.axes[s].axis.kernel > 1 && (p.axes[s].*axis_step == 1 || p.axes[s].*axis_step == -1))
        return s;
  return no_loop;
}

inline Staging staging_of_second(const Product& p, const void* data, int size) {
  const int n = 16 / size;
  bool together = aligned(data, size, n, {p.rows, p.step_second});
  for (int s = 0; s < p.axis_count; ++s)
    together = together &&
               aligned(data, size, n,
                       {p.axes[s].second_partner, p.axes[s].second_tap, p.axes[s].second_cell});
  if (p.row_second == 1) return {together ? Way::vectors : Way::across, no_loop};
  const int unit = unit_loop(p, p.step_second, &CellAxis::step_second);
  return {unit == no_loop ? Way::across : Way::along, unit};
}

inline Staging staging_of_first(const Product& p, const void* data, int size) {
  const int n = 16 / size;
  bool together =
      aligned(data, size, n, {p.step_first}) && columns_together(p, &ColumnLoop::first, n);
  for (int s = 0; s < p.axis_count; ++s) together = together && p.axes[s].first_partner % n == 0;
  if (together) return {Way::vectors, no_loop};
  for (int d = 0; d < p.column_depth; ++d)
    if (p.column[d].first == 1 && p.column[d].count > 1) return {Way::across, no_loop};
  const int unit = unit_loop(p, p.step_first, &CellAxis::step_first);
  return {unit == no_loop ? Way::across : Way::along, unit};
}

}  // namespace unshared::cuda
