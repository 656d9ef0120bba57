// Kernel "lanes": the lanes of a warp are cells - output places, input pixels, groups - for weights
// whose memory runs along places or groups, and for few channels. Nothing is shared between lanes:
// a thread keeps a tile of results of its own cell in registers, samples by channels (grad_weight:
// taps and input channels by output channels). Any strides, any dtype, every option.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face, a loop of the nest after the other. Deterministic: each result element is one chain in one
// thread.
//
// Weights go from memory to registers once per block of samples. Blocks of samples are neighbours in
// the grid, and not a loop of the thread: L2 serves the second reading either way, and there are
// more threads.
#pragma once

#include "lane_cells.hpp"

namespace unshared::cuda {

inline constexpr int lane_threads = 64;  // of a block

inline std::int64_t taps_of(const Problem& p) {
  std::int64_t taps = 1;
  for (int s = 0; s < p.axis_count; ++s) taps *= p.axes[s].kernel;
  return taps;
}

template <class V>
UNSHARED_DEVICE const V* displaced(const V* p, auto offset) {
  return reinterpret_cast<const V*>(reinterpret_cast<const std::byte*>(p) + offset);
}
template <class V>
UNSHARED_DEVICE V* displaced(V* p, auto offset) {
  return reinterpret_cast<V*>(reinterpret_cast<std::byte*>(p) + offset);
}

// One extent of the results (samples, channels), in blocks of `block`, a block a thread. Member m of
// a block lies the distances of m's bits from the first, so that all addresses follow from three
// numbers; in an extent below `block` some members coincide. A last block that is not full begins
// early. Either way only those are stored that nobody else stores.
template <int block, bool wide>
struct Spread {
  static constexpr int bits = 3;
  static_assert(block <= 1 << bits);
  Divider<wide> blocks;
  std::int64_t extent;
  int distance[bits];

  static Spread of(std::int64_t extent) {
    Spread s{{}, extent, {}};
    s.blocks.by = ceil_div(extent, block);
    std::int64_t left = lesser(extent, block) - 1;
    for (int bit = 0; bit < bits && left > 0; ++bit) {
      s.distance[bit] = static_cast<int>(lesser(left, 1 << bit));
      left -= s.distance[bit];
    }
    return s;
  }
  // Reads of a last block that begins early, or of members that coincide, are repeated.
  bool repeats() const { return extent > block && extent % block != 0; }

  struct Block {
    std::int64_t begin;
    int first;  // member to store
  };
  // Which block, taken off `unit`.
  template <class Index>
  UNSHARED_DEVICE Block take(Index& unit) const {
    const Index rest = blocks(unit), at = unit - rest * static_cast<Index>(blocks.by);
    unit = rest;
    const std::int64_t wanted = std::int64_t{at} * block;
    const std::int64_t begin = greater(lesser(wanted, extent - block), 0);
    return {begin, static_cast<int>(wanted - begin)};
  }
  // Calls f(m, index) for every member to store.
  template <class F>
  UNSHARED_DEVICE void each(int first, F f) const {
    for (int m = 0; m < block; ++m) {
      int index = 0;
      for (int bit = 0; bit < bits; ++bit) index += (m >> bit & 1) * distance[bit];
      if (index != first) continue;
      ++first;
      f(m, index);
    }
  }
};

// The distances of a Spread in bytes of an operand.
struct Distances {
  std::int64_t bit[3];

  template <class S>
  static Distances of(const S& spread, std::int64_t stride) {
    return {
        {spread.distance[0] * stride, spread.distance[1] * stride, spread.distance[2] * stride}};
  }
  // The members' addresses from that of the first.
  template <class V, int block>
  UNSHARED_DEVICE void reach(const V* (&member)[block]) const {
    for (int m = 1; m < block; ++m)
      member[m] = displaced(member[m & (m - 1)], bit[(m & 1) != 0 ? 0 : (m & 2) != 0 ? 1 : 2]);
  }
};

// forward and grad_input: rows are samples, columns the result's channels; the first operand is x
// or dy. Strides in bytes.
template <class T, Face face, int rows, int columns, bool wide_>
struct LanesGather {
  static constexpr bool wide = wide_;
  static constexpr int threads = lane_threads;
  static constexpr int blocks_per_processor = 8;

  using Cells = LaneCells<wide>;
  using Index = typename Cells::Index;
  using Offset = typename Cells::Offset;
  using Sum = decltype(widen(T{}));

  struct At {
    const T* first;
    const T* second;
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

    T* const to = displaced(
        displaced(operands.result, row.begin * result_sample + column.begin * result_channel),
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
      each([&](int m, int v, T* at) { sum[m][v] = widen(t.load_result(at)); });
    const At at{displaced(displaced(operands.first, row.begin * first_sample), first),
                displaced(displaced(operands.second, column.begin * second_channel), second)};
    if (read_once)
      add<true>(t, sum, at, count);
    else
      add<false>(t, sum, at, count);
    each([&](int m, int v, T* at) { t.store(at, round_to<T>(sum[m][v])); });
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
    const T* first[rows] = {at.first};
    const T* second[columns] = {at.second};
    first_rows.reach(first);
    second_columns.reach(second);
    Sum p[rows], q[columns];
    for (int v = 0; v < columns; ++v)
      q[v] = conjugate(widen(once ? t.load_once(second[v]) : t.load(second[v])),
                       operands.conjugate_second);
    for (int m = 0; m < rows; ++m)
      p[m] = conjugate(widen(t.load(first[m])), operands.conjugate_first);
    for (int m = 0; m < rows; ++m)
      for (int v = 0; v < columns; ++v) sum[m][v] = chain(p[m], q[v], sum[m][v]);
  }
};

// grad_weight: rows are pairs of an input channel and a tap, taps running fastest; columns are
// output channels. A row whose tap falls into padding reads what it may and stores an empty chain.
// Strides in bytes.
template <class T, int rows_, int columns, bool wide_>
struct LanesWeight {
  static constexpr int rows = rows_;
  static constexpr bool wide = wide_;
  static constexpr int threads = lane_threads;
  static constexpr int blocks_per_processor = 8;

  using Cells = LaneCells<wide>;
  using Index = typename Cells::Index;
  using Offset = typename Cells::Offset;
  using Sum = decltype(widen(T{}));

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

    T* const to = displaced(displaced(operands.result, column.begin * result_channel), result);
    const auto each = [&](int m, const Row& r, auto f) {
      if (row + m >= all_rows) return;
      T* const place = displaced(to, weight_of(r));
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
        each(m, r, [&](int v, T* at) { sum[m][v] = widen(t.load_result(at)); });
    }
    if (inside != 0)
      add(t, sum, from,
          displaced(displaced(operands.second, column.begin * second_channel), second));

    r = row_at(row);
    UNSHARED_UNROLL(rows)
    for (int m = 0; m < rows; ++m, advance(r))
      each(m, r, [&](int v, T* at) {
        if ((inside >> m & 1) == 0)
          sum[m][v] = operands.accumulate ? widen(t.load_result(at)) : Sum{};
        t.store(at, round_to<T>(sum[m][v]));
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
                           const T* column) const {
    const T* sample = operands.first;
    UNSHARED_UNROLL(2)
    for (std::int64_t n = 0; n < samples; ++n) {
      const T* second[columns] = {column};
      second_columns.reach(second);
      Sum p[rows], q[columns];
      for (int v = 0; v < columns; ++v)
        q[v] = conjugate(widen(t.load(second[v])), operands.conjugate_second);
      for (int m = 0; m < rows; ++m)
        p[m] = conjugate(widen(t.load(displaced(sample, from[m]))), operands.conjugate_first);
      sample = displaced(sample, first_sample);
      column = displaced(column, second_sample);
      for (int m = 0; m < rows; ++m)
        for (int v = 0; v < columns; ++v) sum[m][v] = chain(p[m], q[v], sum[m][v]);
    }
  }
};

// The tiles: for few channels, for a single one, and a small one for small batches, few cells and
// problems whose offsets need 64 bits. Sizes by how many 4-byte words a sum has: as much as fits
// into registers without spilling.
enum class LaneTile { few, single, small };
struct TileSize {
  int rows, columns;
};
constexpr TileSize size_of(LaneTile tile, Face face, int words) {
  const bool single = tile == LaneTile::single;
  if (tile == LaneTile::small) return {2, 2};
  if (face == Face::grad_weight) return {words == 4 ? 4 : 9, single ? 1 : words == 1 ? 4 : 2};
  return {words == 1 || (words == 2 && single) ? 8 : 4, single ? 1 : words == 4 ? 2 : 4};
}
template <class T>
inline constexpr int sum_words = sizeof(decltype(widen(T{}))) / 4;

// Whether a tile takes the problem; the small one takes all.
template <class T, Face face>
bool lanes_fit(LaneTile tile, const Problem& p) {
  if (tile == LaneTile::small) return true;
  const LaneOrder order(p, face, sizeof(T));
  // The largest number of blocks there can be is that of tiles of one result.
  return order.narrow() && p.layout(result_of(face)).elements() <= max_extent;
}

template <class T, Face face>
LaneTile lanes_tile(const Problem& p) {
  // A few warps for every scheduler of a large device.
  constexpr std::int64_t enough_threads = 256 * 132;
  const std::int64_t columns = face == Face::grad_input ? p.in_channels : p.out_channels;
  const std::int64_t rows = face == Face::grad_weight ? p.in_channels * taps_of(p) : p.batch;
  const LaneTile large = columns == 1 ? LaneTile::single : LaneTile::few;
  const TileSize size = size_of(large, face, sum_words<T>);
  const std::int64_t threads =
      Cell::count(p, face) * ceil_div(rows, size.rows) * ceil_div(columns, size.columns);
  return rows <= 2 || threads < enough_threads || !lanes_fit<T, face>(large, p) ? LaneTile::small
                                                                                : large;
}

// Bytes of so many elements.
template <class T>
constexpr std::int64_t bytes_of(std::int64_t elements) {
  return elements * std::int64_t{sizeof(T)};
}

template <class K, class T>
void fill_common(K& k, const LaneOrder& order, const Call& call, std::int64_t row_blocks) {
  k.cells = order.cells_as<K::wide>();
  k.operands = operands_of<T>(call);
  k.operands.first = order.origin<K::wide>(k.operands.first, 0);
  k.operands.second = order.origin<K::wide>(k.operands.second, 1);
  k.operands.result = order.origin<K::wide>(k.operands.result, 2);
  k.units = ceil_div(order.cells(), K::threads) * row_blocks * k.channels.blocks.by;
  k.channels.blocks = Divider<K::wide>::of(k.channels.blocks.by, k.units);
}

template <class K, class T, Face face>
K gather_of(const Problem& p, const LaneOrder& order, const Call& call) {
  constexpr bool forward = face == Face::forward;
  K k{};
  k.samples = decltype(k.samples)::of(p.batch);
  k.channels = decltype(k.channels)::of(forward ? p.out_channels : p.in_channels);
  fill_common<K, T>(k, order, call, k.samples.blocks.by);
  k.read_once = k.samples.blocks.by == 1 && !k.channels.repeats();
  k.samples.blocks = Divider<K::wide>::of(k.samples.blocks.by, k.units);
  k.first_sample = bytes_of<T>(forward ? p.x_batch_stride : p.y_batch_stride);
  k.second_channel = bytes_of<T>(forward ? p.w_out_stride : p.w_in_stride);
  k.result_sample = bytes_of<T>(forward ? p.y_batch_stride : p.x_batch_stride);
  k.result_channel = bytes_of<T>(forward ? p.y_channel_stride : p.x_channel_stride);
  k.first_rows = Distances::of(k.samples, k.first_sample);
  k.second_columns = Distances::of(k.channels, k.second_channel);
  k.summed = static_cast<typename K::Index>(forward ? p.in_channels : p.out_channels);

  // With a single tap, or a single channel, either order of the two is canonical: the longer loop
  // is the inner one.
  k.summed_inside = forward ? taps_of(p) == 1 : k.summed != 1;
  k.loop[k.summed_inside ? reaching_axes : 0] = {
      bytes_of<T>(forward ? p.x_channel_stride : p.y_channel_stride),
      bytes_of<T>(forward ? p.w_in_stride : p.w_out_stride)};
  for (int s = 0; s < p.axis_count; ++s) {
    if (order.slot(s) >= reaching_axes) continue;
    const Axis& a = p.axes[s];
    const std::int64_t spacing = forward ? a.input_dilation : a.stride;
    const std::int64_t common = greatest_divisor(spacing, a.dilation);
    const std::int64_t taps = spacing / common, partners = a.dilation / common;
    k.loop[order.slot(s) + (k.summed_inside ? 0 : 1)] = {
        bytes_of<T>(partners * (forward ? a.x_stride : a.y_stride)),
        bytes_of<T>(forward ? taps * a.w_tap_stride
                            : partners * a.w_place_stride - taps * a.w_tap_stride)};
  }
  return k;
}

template <class K, class T>
K weight_of(const Problem& p, const LaneOrder& order, const Call& call) {
  K k{};
  const std::int64_t rows = p.in_channels * taps_of(p), blocks = ceil_div(rows, K::rows);
  k.channels = decltype(k.channels)::of(p.out_channels);
  fill_common<K, T>(k, order, call, blocks);
  k.all_rows = static_cast<typename K::Index>(rows);
  k.row_blocks = Divider<K::wide>::of(blocks, k.units);
  k.samples = p.layout(Seat::x).elements() == 0 ? 0 : p.batch;
  k.first_sample = bytes_of<T>(p.x_batch_stride);
  k.second_sample = bytes_of<T>(p.y_batch_stride);
  k.second_channel = bytes_of<T>(p.y_channel_stride);
  k.second_columns = Distances::of(k.channels, k.second_channel);
  k.result_channel = bytes_of<T>(p.w_out_stride);
  k.result_in = bytes_of<T>(p.w_in_stride);
  k.first_in = static_cast<typename K::Offset>(bytes_of<T>(p.x_channel_stride));
  for (int s = 0; s < p.axis_count; ++s) {
    if (order.slot(s) >= reaching_axes) continue;
    k.result_tap[order.slot(s)] = bytes_of<T>(p.axes[s].w_tap_stride);
    k.split[order.slot(s)] = Divider<K::wide>::of(p.axes[s].kernel, rows);
  }
  return k;
}

template <class Device, class T, Face face, LaneTile tile>
void launch_lanes(const Problem& p, const Call& call) noexcept {
  constexpr TileSize size = size_of(tile, face, sum_words<T>);
  constexpr bool wide = tile == LaneTile::small;
  const LaneOrder order(p, face, sizeof(T));
  if constexpr (face == Face::grad_weight) {
    using K = LanesWeight<T, size.rows, size.columns, wide>;
    const K kernel = weight_of<K, T>(p, order, call);
    Device::launch(kernel, lesser(kernel.units, max_blocks), 0, call);
  } else {
    using K = LanesGather<T, face, size.rows, size.columns, wide>;
    const K kernel = gather_of<K, T, face>(p, order, call);
    Device::launch(kernel, lesser(kernel.units, max_blocks), 0, call);
  }
}

template <class Device, class T, Face face>
void run_lanes(const Problem& p, const Call& call) noexcept {
  switch (lanes_tile<T, face>(p)) {
    case LaneTile::few: return launch_lanes<Device, T, face, LaneTile::few>(p, call);
    case LaneTile::single: return launch_lanes<Device, T, face, LaneTile::single>(p, call);
    case LaneTile::small: return launch_lanes<Device, T, face, LaneTile::small>(p, call);
  }
}

template <class T, Face face>
bool lanes_able(const Problem&) noexcept {
  return true;
}

// Whether to expect the most of it: weights run along the lanes, but for a few channels of each, or
// a place has so few that a warp needs most of what it touches anyway.
inline bool lanes_suits(const Problem& p, Face face) {
  const LaneOrder order(p, face, 1);
  if (order.cells() < 32) return false;
  return order.lane_stride() <= 4 || taps_of(p) * p.in_channels * p.out_channels <= 32;
}

template <class T, Face face>
const char* lanes_declines(const Problem& p) noexcept {
  return lanes_suits(p, face) ? nullptr
                              : "weights do not run along places or groups, and are not few";
}

}  // namespace unshared::cuda
