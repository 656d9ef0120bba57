// grad_weight with a cell a lane (lanes.hpp). A tile's rows are pairs of an input channel and a
// tap, taps running fastest, its columns output channels. A row whose tap falls into padding reads
// what it may and stores an empty chain.
// Accumulator: float32 for half types, else the element type. Order: the batch ascending.
// Deterministic: each dw[o, k, a, b] is one chain in one thread.
#pragma once

#include "lane_tiles.hpp"

namespace unshared::cuda {

// Strides are in bytes.
template <class T, int rows_, int columns, int pack, bool wide_>
struct LanesWeight {
  static constexpr int rows = rows_;
  static constexpr bool wide = wide_;
  static constexpr int threads = lane_threads;
  static constexpr int blocks_per_processor = 8;

  using Cells = LaneCells<wide>;
  using Index = typename Cells::Index;
  using Offset = typename Cells::Offset;
  using V = Pack<T, pack>;
  using Sum = PackedSum<T, pack>;

  Cells cells;
  reference::Operands<T> operands;
  Divider<wide> row_blocks, split[reaching_axes];  // split: of a row into taps
  Index all_rows;
  Spread<columns, wide> channels;
  std::int64_t samples;  // none if x is empty
  std::int64_t first_sample, second_sample, second_channel, result_channel;
  std::int64_t result_in, result_tap[reaching_axes];
  Offset first_in;
  Distances second_columns;
  std::int64_t units;

  template <class Thread>
  UNSHARED_DEVICE void operator()(Thread& t) const {
    for (std::int64_t unit = t.block(); unit < units; unit += t.blocks())
      compute(t, static_cast<Index>(unit));
  }

 private:
  using Sums = Sum[rows][columns];
  struct Row {
    Index a, k[reaching_axes];
  };
  UNSHARED_DEVICE Row row_at(Index row) const {
    Row r{};
    for (int s = reaching_axes - 1; s >= 0; --s) {
      const Index rest = split[s](row);
      r.k[s] = row - rest * static_cast<Index>(split[s].by);
      row = rest;
    }
    r.a = row;
    return r;
  }
  UNSHARED_DEVICE void advance(Row& r) const {
    for (int s = reaching_axes - 1; s >= 0; --s) {
      if (++r.k[s] < static_cast<Index>(split[s].by)) return;
      r.k[s] = 0;
    }
    ++r.a;
  }
  UNSHARED_DEVICE std::int64_t weight_of(const Row& r) const {
    std::int64_t w = r.a * result_in;
    for (int s = 0; s < reaching_axes; ++s) w += r.k[s] * result_tap[s];
    return w;
  }

  template <class Thread>
  UNSHARED_DEVICE void compute(Thread& t, Index unit) const {
    const auto column = channels.take(unit);
    const Index rest = row_blocks(unit);
    const Index row = (unit - rest * static_cast<Index>(row_blocks.by)) * rows;
    const Index cell = rest * threads + t.index();
    if (cell >= static_cast<Index>(cells.count)) return;

    Offset first = cells.first, second = cells.second, result = cells.result;
    Index begin[reaching_axes] = {};
    for (int s = 0; s < max_axes; ++s) {
      const auto& line = cells.line[s];
      if (!line.present) continue;
      const Index index = cells.index(line, cell);
      second += static_cast<Offset>(index) * line.second;
      result += static_cast<Offset>(index) * line.result;
      if (s >= reaching_axes || line.plain)
        first += static_cast<Offset>(index) * line.first;
      else
        begin[s] = index * line.rate + line.shift;
    }

    V* const to =
        displaced(displaced(packed<V>(operands.result), column.begin * result_channel), result);
    const auto each = [&](int m, const Row& r, auto f) {
      if (row + m >= all_rows) return;
      V* const place = displaced(to, weight_of(r));
      channels.each(column.first,
                    [&](int v, int c) { f(v, displaced(place, c * result_channel)); });
    };
    Sums sum = {};
    Offset from[rows];
    std::uint32_t inside = 0;  // the rows that have a chain
    Row r = row_at(row);
    UNSHARED_UNROLL(rows)
    for (int m = 0; m < rows; ++m, advance(r)) {
      Offset source = first + static_cast<Offset>(r.a) * first_in;
      const bool found = row + m < all_rows && find(r, begin, source);
      inside |= found ? 1u << m : 0u;
      from[m] = found ? source : cells.first;
      if (operands.accumulate)
        each(m, r, [&](int v, V* at) { sum[m][v] = Sum::of(t.load_result(at)); });
    }
    if (inside != 0)
      add(t, sum, from,
          displaced(displaced(packed<V>(operands.second), column.begin * second_channel), second));

    r = row_at(row);
    UNSHARED_UNROLL(rows)
    for (int m = 0; m < rows; ++m, advance(r))
      each(m, r, [&](int v, V* at) {
        if ((inside >> m & 1) == 0)
          sum[m][v] = operands.accumulate ? Sum::of(t.load_result(at)) : Sum{};
        t.store(at, sum[m][v].rounded());
      });
  }

  // Adds a tap's input to `source`; false if there is none.
  UNSHARED_DEVICE bool find(const Row& r, const Index* begin, Offset& source) const {
    bool found = true;
    for (int s = 0; s < reaching_axes; ++s) {
      if (s < cells.first_reaching) continue;
      const auto& line = cells.line[s];
      const Index at = begin[s] + r.k[s] * line.dilation;
      found = found && at >= 0 && at <= line.last;
      Index partner = at;
      if (line.spacing != 1) {
        partner = line.by_spacing(at < 0 ? 0 : at);
        found = found && partner * line.spacing == at;
      }
      source += static_cast<Offset>(partner) * line.first;
    }
    return found;
  }

  template <class Thread>
  UNSHARED_DEVICE void add(Thread& t, Sums& sum, const Offset (&from)[rows],
                           const V* column) const {
    const V* sample = packed<V>(operands.first);
    UNSHARED_UNROLL(2)
    for (std::int64_t n = 0; n < samples; ++n) {
      const V* second[columns] = {column};
      second_columns.reach(second);
      Sum p[rows], q[columns];
      for (int v = 0; v < columns; ++v)
        q[v] = Sum::of(t.load(second[v]), operands.conjugate_second);
      for (int m = 0; m < rows; ++m)
        p[m] = Sum::of(t.load(displaced(sample, from[m])), operands.conjugate_first);
      sample = displaced(sample, first_sample);
      column = displaced(column, second_sample);
      for (int m = 0; m < rows; ++m)
        for (int v = 0; v < columns; ++v) sum[m][v].add(p[m], q[v]);
    }
  }
};

}  // namespace unshared::cuda
