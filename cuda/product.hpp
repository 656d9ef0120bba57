// A face, stated as one small matrix product per cell, for kernels to compute in tiles.
//
// A cell is an output place (forward, grad_weight) or an input pixel (grad_input). Its product is
// result[row, column] = chain over steps of first[column, step] * second[row, step]: rows and
// columns are never summed over, steps run in the canonical order. What differs between cells is
// where their operands begin and how many taps reach them; a warp finds that per cell (place) and
// leaves it in shared memory. forward.hpp, grad_input.hpp and grad_weight.hpp state the faces.
#pragma once

#include "../cpp/cells.hpp"
#include "device.hpp"

namespace unshared::cuda {

// What one axis adds to the offsets of a cell: its index and the reach found for it (cells.hpp)
// times these strides. `step_*`: from one pair (tap, partner) to the next.
struct CellAxis {
  Axis axis;
  int64_t cells = 1, inner = 1;  // along the axis; and how many its index jumps over
  int64_t tap_step = 0, partner_step = 0;
  int64_t first_partner = 0, second_partner = 0, second_tap = 0, second_cell = 0, result_cell = 0;
  int64_t step_first = 0, step_second = 0;
};

// One of the nested loops over columns. Where it runs over the taps of an axis, `first` is the
// stride of what these taps read.
struct ColumnLoop {
  int64_t count = 1, first = 0, result = 0;
  int axis = -1;
};

struct Product {
  bool by_input = false;
  bool taps_are_steps = true;  // or else columns: then those in padding are stored as zeros
  bool taps_inside = true;  // of the other loop over steps
  int axis_count = 0;
  CellAxis axes[max_axes];
  int64_t cells = 1;
  int64_t rows = 0, row_second = 0, row_result = 0;
  int64_t columns = 0;
  int column_depth = 0;
  ColumnLoop column[max_axes + 1];
  int64_t steps = 0, step_first = 0, step_second = 0;  // of the loop that is not over taps
  int64_t most_steps = 0;  // of any cell
};

// The strides of the axes are the caller's to fill in; finish_product() completes the rest.
inline Product start_product(const Problem& problem, Face face) {
  Product p;
  p.by_input = face == Face::grad_input;
  p.axis_count = problem.axis_count;
  const Cell cell(problem, face, 0);
  for (int s = p.axis_count - 1; s >= 0; --s) {
    CellAxis& a = p.axes[s];
    a.axis = problem.axes[s];
    a.inner = p.cells;
    a.cells = p.by_input ? a.axis.input : a.axis.output;
    a.tap_step = cell.tap_step[s];
    a.partner_step = cell.partner_step[s];
    p.cells *= a.cells;
  }
  return p;
}

inline void finish_product(Product& p) {
  p.columns = 1;
  for (int d = 0; d < p.column_depth; ++d) p.columns *= p.column[d].count;
  p.most_steps = p.steps;
  for (int s = 0; s < p.axis_count; ++s) {
    CellAxis& a = p.axes[s];
    a.step_first = a.partner_step * a.first_partner;
    a.step_second = a.partner_step * a.second_partner + a.tap_step * a.second_tap;
    if (p.taps_are_steps) p.most_steps *= a.axis.kernel;
  }
}

// How the lanes of a warp take the steps of a chunk: slot i takes step
// (i % run) * apart + i / run * beyond, so that neighbouring slots are neighbours in memory.
struct Order {
  int log_run, apart, beyond;
};

// A cell's place, in shared memory.
struct Spot {
  int64_t first, second, result;  // where its operands and its result begin
  int64_t index[max_axes];
  int64_t part[3][max_axes];  // of the three offsets above
  int64_t row, column;  // where the tile begins
  int count[max_axes];  // the reach along each axis
  int seen[max_axes];  // the counts before
  int steps, chunk, fresh;  // fresh: the counts are not those before
  Order order[2];  // of first and second
};

// Which loop over steps moves an operand by one element: an axis, or one of these.
inline constexpr int no_loop = -2, step_loop = -1;

// How many steps lie between neighbours in memory; 0 if there are none.
template <class Thread>
UNSHARED_DEVICE int period_of(Thread& t, const Product& p, const Spot& spot, int unit_loop) {
  if (unit_loop == no_loop) return 0;
  int64_t period = 1;
  if (p.taps_are_steps) {
    if (unit_loop != step_loop || p.taps_inside)
      for (int s = unit_loop + 1; s < p.axis_count; ++s) period *= t.load_shared(&spot.count[s]);
    if (unit_loop != step_loop && !p.taps_inside) period *= p.steps;
  }
  return static_cast<int>(lesser(period, 1 << 20));
}

// Finds a cell's place; for the first warp of a block. A chunk of steps has room for `capacity`.
template <class Thread>
UNSHARED_DEVICE void place(Thread& t, const Product& p, Spot& spot, int64_t cell, int first_unit,
                           int second_unit, int capacity) {
  const int lane = t.index();
  if (lane < p.axis_count) {
    const CellAxis& a = p.axes[lane];
    const int64_t index = cell / a.inner % a.cells;
    const Reach reach = reach_of(a.axis, p.by_input, index, a.tap_step);
    t.store_shared(&spot.index[lane], index);
    t.store_shared(&spot.count[lane], static_cast<int>(reach.count));
    t.store_shared(&spot.part[0][lane], reach.partner * a.first_partner);
    t.store_shared(&spot.part[1][lane], reach.partner * a.second_partner +
                                            reach.tap * a.second_tap + index * a.second_cell);
    t.store_shared(&spot.part[2][lane], index * a.result_cell);
  }
  t.sync_warp();
  if (lane != 0) return;
  int64_t offset[3] = {}, steps = p.steps;
  bool fresh = false;
  for (int s = 0; s < p.axis_count; ++s) {
    const int count = t.load_shared(&spot.count[s]);
    for (int o = 0; o < 3; ++o) offset[o] += t.load_shared(&spot.part[o][s]);
    steps *= p.taps_are_steps ? count : count > 0;
    fresh = fresh || count != t.load_shared(&spot.seen[s]);
    t.store_shared(&spot.seen[s], count);
  }
  t.store_shared(&spot.first, offset[0]);
  t.store_shared(&spot.second, offset[1]);
  t.store_shared(&spot.result, offset[2]);
  t.store_shared(&spot.steps, static_cast<int>(steps));
  t.store_shared(&spot.fresh, static_cast<int>(fresh));

  const int periods[2] = {period_of(t, p, spot, first_unit), period_of(t, p, spot, second_unit)};
  const int period = periods[1] > 1 ? periods[1] : periods[0];
  int log_run = period > 1 ? 3 : 0;
  while (log_run > 0 && period << log_run > capacity) --log_run;
  t.store_shared(&spot.chunk, log_run > 0 ? period << log_run : capacity & ~7);
  for (int o = 0; o < 2; ++o) {
    const bool spread = log_run > 0 && periods[o] == period;
    t.store_shared(&spot.order[o].log_run, spread ? log_run : 3);
    t.store_shared(&spot.order[o].apart, spread ? period : 1);
    t.store_shared(&spot.order[o].beyond, spread ? 1 : 8);
  }
}

struct StepOffset {
  int64_t first, second;
};

// Where step `flat` of a placed cell lies, from the cell's first one on.
template <class Thread>
UNSHARED_DEVICE StepOffset step_offset(Thread& t, const Product& p, const Spot& spot,
                                       unsigned flat) {
  StepOffset at{};
  const auto steps = static_cast<unsigned>(p.steps);
  unsigned other = flat;
  if (p.taps_are_steps) {
    if (!p.taps_inside) {
      other = flat % steps;
      flat /= steps;
    }
    for (int s = p.axis_count - 1; s >= 0; --s) {
      const auto count = static_cast<unsigned>(t.load_shared(&spot.count[s]));
      if (count == 1) continue;
      const unsigned tap = flat % count;
      flat /= count;
      at.first += tap * p.axes[s].step_first;
      at.second += tap * p.axes[s].step_second;
    }
    if (p.taps_inside) other = flat;
  }
  at.first += other * p.step_first;
  at.second += other * p.step_second;
  return at;
}

struct ColumnOffset {
  int64_t first, result;
  bool inside;  // the input, if the column belongs to a tap
};

// Where a column of a placed cell lies. One in padding may read what index 0 reads.
template <class Thread>
UNSHARED_DEVICE ColumnOffset column_offset(Thread& t, const Product& p, const Spot& spot,
                                           int64_t column) {
  if (p.taps_are_steps) return {column * p.column[0].first, column * p.column[0].result, true};
  ColumnOffset at{0, 0, true};
  auto flat = static_cast<unsigned>(column);
  for (int d = p.column_depth - 1; d >= 0; --d) {
    const ColumnLoop& loop = p.column[d];
    const auto count = static_cast<unsigned>(loop.count);
    const unsigned k = flat % count;
    flat /= count;
    int64_t from = k;
    if (loop.axis >= 0) {
      from = p.axes[loop.axis].axis.source(t.load_shared(&spot.index[loop.axis]), k);
      at.inside = at.inside && from >= 0;
      from = greater(from, 0);
    }
    at.first += from * loop.first;
    at.result += k * loop.result;
  }
  return at;
}

}  // namespace unshared::cuda
