// forward and grad_input with a cell a lane (lanes.hpp). A tile's rows are samples, its columns the
// result's channels; the first operand is x or dy.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of the face,
// a nest of loops over taps and channels. Deterministic: each result element is one chain in one
// thread.
#pragma once

#include "lane_tiles.hpp"

namespace unshared::cuda {

// Strides are in bytes.
template <class T, Face face, int rows, int columns, int pack, bool wide_>
struct LanesGather {
  static constexpr bool wide = wide_;
  static constexpr int threads = lane_threads;
  // Tiles of complex128 need more than the 128 registers of eight blocks.
  static constexpr int blocks_per_processor = sizeof(T) == 16 ? 6 : 8;

  using Cells = LaneCells<wide>;
  using Index = typename Cells::Index;
  using Offset = typename Cells::Offset;
  using V = Pack<T, pack>;
  using Sum = PackedSum<T, pack>;

  struct At {
    const V* first;
    const V* second;
  };
  struct Loop {
    std::int64_t first, second;
    UNSHARED_DEVICE void move(At& at) const {
      at.first = displaced(at.first, first);
      at.second = displaced(at.second, second);
    }
  };

  Cells cells;
  reference::Operands<T> operands;
  Spread<rows, wide> samples;
  Spread<columns, wide> channels;
  std::int64_t first_sample, second_channel, result_sample, result_channel;
  Distances first_rows, second_columns;
  Index summed;  // channels, outside of the taps or inside
  bool summed_inside, read_once;  // nobody else reads the same weights
  Loop loop[reaching_axes + 1];  // outermost first
  std::int64_t units;

  template <class Thread>
  UNSHARED_DEVICE void operator()(Thread& t) const {
    for (std::int64_t unit = t.block(); unit < units; unit += t.blocks())
      compute(t, static_cast<Index>(unit));
  }

 private:
  using Sums = Sum[rows][columns];
  template <class Thread>
  UNSHARED_DEVICE void compute(Thread& t, Index unit) const {
    const auto row = samples.take(unit);
    const auto column = channels.take(unit);
    const Index cell = unit * threads + t.index();
    if (cell >= static_cast<Index>(cells.count)) return;

    Offset first = cells.first, second = cells.second, result = cells.result;
    Index count[reaching_axes] = {1, 1, 1};
    for (int s = 0; s < max_axes; ++s) {
      const auto& line = cells.line[s];
      if (!line.present) continue;
      const Index index = cells.index(line, cell);
      const auto reach = line.reach(index, s < reaching_axes);
      const Index weights = face == Face::forward ? index : reach.partner;
      first += static_cast<Offset>(reach.partner) * line.first;
      second +=
          static_cast<Offset>(weights) * line.second + static_cast<Offset>(reach.tap) * line.tap;
      result += static_cast<Offset>(index) * line.result;
      if (s < reaching_axes) count[s] = reach.count;
    }

    V* const to = displaced(displaced(packed<V>(operands.result),
                                      row.begin * result_sample + column.begin * result_channel),
                            result);
    const auto each = [&](auto f) {
      samples.each(row.first, [&](int m, int n) {
        channels.each(column.first, [&](int v, int c) {
          f(m, v, displaced(to, n * result_sample + c * result_channel));
        });
      });
    };
    Sums sum = {};
    if (operands.accumulate)
      each([&](int m, int v, V* at) { sum[m][v] = Sum::of(t.load_result(at)); });
    const At at{
        displaced(displaced(packed<V>(operands.first), row.begin * first_sample), first),
        displaced(displaced(packed<V>(operands.second), column.begin * second_channel), second)};
    if (read_once)
      add<true>(t, sum, at, count);
    else
      add<false>(t, sum, at, count);
    each([&](int m, int v, V* at) { t.store(at, sum[m][v].rounded()); });
  }

  // So many taps are read before the first of them is used: three if registers allow, as most
  // kernels have that many along their last axis.
  static constexpr int together = (rows + columns) * int{sizeof(Sum)} <= 16 ? 3 : 2;

  // The chain.
  template <bool once, class Thread>
  UNSHARED_DEVICE void add(Thread& t, Sums& sum, At at0, const Index* count) const {
    const Index n0 = summed_inside ? count[0] : summed;
    const Index n1 = summed_inside ? count[1] : count[0];
    const Index n2 = summed_inside ? count[2] : count[1];
    const Index n3 = summed_inside ? summed : count[2];
    for (Index i0 = 0; i0 < n0; ++i0, loop[0].move(at0)) {
      At at1 = at0;
      for (Index i1 = 0; i1 < n1; ++i1, loop[1].move(at1)) {
        At at2 = at1;
        for (Index i2 = 0; i2 < n2; ++i2, loop[2].move(at2)) {
          At at3 = at2;
          UNSHARED_UNROLL(together)
          for (Index i3 = 0; i3 < n3; ++i3, loop[3].move(at3)) add<once>(t, sum, at3);
        }
      }
    }
  }
  template <bool once, class Thread>
  UNSHARED_DEVICE void add(Thread& t, Sums& sum, const At& at) const {
    const V* first[rows] = {at.first};
    const V* second[columns] = {at.second};
    first_rows.reach(first);
    second_columns.reach(second);
    Sum p[rows], q[columns];
    for (int v = 0; v < columns; ++v)
      q[v] = Sum::of(once ? t.load_once(second[v]) : t.load(second[v]), operands.conjugate_second);
    for (int m = 0; m < rows; ++m) p[m] = Sum::of(t.load(first[m]), operands.conjugate_first);
    for (int m = 0; m < rows; ++m)
      for (int v = 0; v < columns; ++v) sum[m][v].add(p[m], q[v]);
  }
};

}  // namespace unshared::cuda
