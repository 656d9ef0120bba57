// Kernels "mma": the faces on tensor cores, for calls that ask for another precision than IEEE.
//
// A cell is a matrix product, C[row, column] = sum over steps of A[row, step] * B[step, column]:
//
//     face          cell        rows  columns     steps
//     forward       place o     b     n           taps inside the input, within each a
//     grad_input    pixel i     a     n           places that reach i, within each b
//     grad_weight   place o     b     (taps, a)   n
//
// A block computes one tile of it, from chunks of 128 bytes of steps that pass through a ring in
// shared memory.
// Accumulator: the hardware's within `promotion` products (at most 64 terms), promoted into float32
// sums that round to nearest. Half results are rounded once; `accumulate` adds the sum to what
// result holds.
// Order: the steps as above, ascending, the same for every tile; chunks begin at step 0.
// Deterministic: each element is computed by one warp. A sample's results do not depend on the
// batch: the tile does, the order of a sum does not.
// Padded taps are no steps. What fills up the last chunk is zero in both operands.
#pragma once

#include <bit>
#include <cstdint>

#include "fragment.hpp"
#include "taps.hpp"

namespace unshared::cuda {

inline constexpr int most_taps = 512;  // that fit into the list

// A tile of rows x columns, by warps of warp_rows x warp_columns.
template <int rows_, int columns_, int warp_rows_, int warp_columns_, int stages_>
struct MmaTile {
  static constexpr int rows = rows_, columns = columns_, stages = stages_;
  static constexpr int warp_rows = warp_rows_, warp_columns = warp_columns_;
  static constexpr int warps = rows / warp_rows * (columns / warp_columns);
};
using WideTile = MmaTile<64, 64, 32, 32, 3>;
using ThinTile = MmaTile<64, 8, 16, 8, 4>;  // few columns: weights stream by
using FlatTile = MmaTile<16, 128, 16, 32, 3>;  // few rows

// How a matrix moves between device and shared memory: along its steps (a result: along its rows)
// or across them, 2^log_width elements at a time.
struct Movement {
  bool along = true;
  int log_width = 0;
};

// Where a step or column stands in its table: lanes that copy vectors find theirs in other banks.
UNSHARED_INLINE constexpr int spread(int index) { return index + index / 8; }

// The extents and strides of a cell's matrices.
struct Matrices {
  std::int64_t rows, columns, inner;  // inner: steps per tap
  std::int64_t a_row, a_inner, b_column, b_inner, c_row, c_column;
  std::int64_t column_run;  // columns that no tap interrupts
};
inline Matrices matrices_of(const Problem& p, Face face) {
  if (face == Face::forward)
    return {p.out_channels,   p.batch,          p.in_channels,      p.w_out_stride,
            p.w_in_stride,    p.x_batch_stride, p.x_channel_stride, p.y_channel_stride,
            p.y_batch_stride, p.batch};
  if (face == Face::grad_input)
    return {p.in_channels,    p.batch,          p.out_channels,     p.w_in_stride,
            p.w_out_stride,   p.y_batch_stride, p.y_channel_stride, p.x_channel_stride,
            p.x_batch_stride, p.batch};
  return {p.out_channels,   tap_count(p) * p.in_channels,
          p.batch,          p.y_channel_stride,
          p.y_batch_stride, p.x_channel_stride,
          p.x_batch_stride, p.w_out_stride,
          p.w_in_stride,    p.in_channels};
}

template <class Product, Face face, class Tile>
struct MmaKernel {
  using T = typename Product::Element;
  static constexpr int threads = 32 * Tile::warps;
  static constexpr int blocks_per_processor = Tile::rows * Tile::columns > 1024 ? 3 : 4;
  static constexpr int architecture = 80;

  Problem problem;
  TapRule rule;
  Matrices m;
  const T* a = nullptr;
  const T* b = nullptr;
  T* c = nullptr;
  bool accumulate = false;
  Movement a_way, b_way, c_way;
  int chunk_taps = 0, chunk_inner = 0;  // a chunk as so many taps and a rest
  std::int64_t row_tiles = 0, column_tiles = 0, first_item = 0;

  static constexpr int size = sizeof(T);
  static constexpr int chunk = 128 / size;  // steps
  static constexpr int log_chunk = std::countr_zero(static_cast<unsigned>(chunk));
  using APanel = Panel<T, Tile::rows, chunk>;
  using BPanel = Panel<T, Tile::columns, chunk>;
  static constexpr int stage_bytes = APanel::bytes + BPanel::bytes;
  // A tile of sums takes the ring's place in the end, row by row or column by column.
  static constexpr int by_rows_pitch = Tile::rows + 4, by_columns_pitch = Tile::columns + 8;
  static constexpr int sums_bytes =
      4 * (by_rows_pitch * Tile::columns > by_columns_pitch * Tile::rows
               ? by_rows_pitch * Tile::columns
               : by_columns_pitch * Tile::rows);

  struct Tables {
    Taps<face> taps;
    Offsets steps[Tile::stages][spread(chunk)];  // of A and B
    Offsets columns[spread(Tile::columns)];  // of B and C
  };
  static constexpr int ring_bytes =
      Tile::stages * stage_bytes > sums_bytes ? Tile::stages * stage_bytes : sums_bytes;
  static constexpr int taps_at = ring_bytes + static_cast<int>(sizeof(Tables));
  static std::int64_t shared_bytes(std::int64_t taps) {
    return taps_at + taps * static_cast<std::int64_t>(sizeof(Offsets));
  }

  template <class Thread>
  UNSHARED_DEVICE void operator()(Thread& t) const {
    compute(t, first_item + t.block());
  }

 private:
  static constexpr int row_blocks = Tile::warp_rows / 16, column_blocks = Tile::warp_columns / 8;
  using Sums = float[row_blocks][column_blocks][4];

  // A block's tile of a cell's product.
  struct Work {
    std::int64_t column;  // the first
    const T* a_first;
    T* c_first;
    std::int64_t steps;
    int tap_count;
    int rows, columns;  // within the tile
  };

  template <class Thread>
  static UNSHARED_DEVICE Tables& tables(Thread& t) {
    return *reinterpret_cast<Tables*>(t.shared() + ring_bytes);
  }
  template <class Thread>
  static UNSHARED_DEVICE Offsets* taps(Thread& t) {
    return reinterpret_cast<Offsets*>(t.shared() + taps_at);
  }

  template <class Thread>
  UNSHARED_DEVICE void compute(Thread& t, std::int64_t item) const {
    const Work work = begin(t, item);
    NextStep next = first_step(t);
    for (int s = 0; s < Tile::stages; ++s) tabulate(t, work, next, s);
    tabulate_columns(t, work);
    t.sync();

    std::int64_t left = work.steps;
    UNSHARED_UNROLL(1)
    for (int s = 0; s < Tile::stages - 1; ++s) {
      if (s * chunk < left) fetch(t, work, s);
      t.commit();
    }
    Sums sums = {};
    UNSHARED_UNROLL(1)
    for (int stage = 0, last = Tile::stages - 1; left > 0; left -= chunk) {
      t.template wait<Tile::stages - 2>();
      t.sync();
      if (left > (Tile::stages - 1) * chunk) fetch(t, work, last);
      t.commit();
      tabulate(t, work, next, stage);
      multiply(t, work, stage, left < chunk ? static_cast<int>(left) : chunk, sums);
      last = stage;
      stage = stage + 1 == Tile::stages ? 0 : stage + 1;
    }
    t.template wait<0>();
    t.sync();
    lay_down(t, sums);
    t.sync();
    if (c_way.along)
      store<true>(t, work);
    else
      store<false>(t, work);
  }

  template <class Thread>
  UNSHARED_DEVICE Work begin(Thread& t, std::int64_t item) const {
    Work work;
    const std::int64_t tile = item / column_tiles, row = tile % row_tiles * Tile::rows;
    work.column = item % column_tiles * Tile::columns;
    work.rows = static_cast<int>(lesser(m.rows - row, Tile::rows));
    work.columns = static_cast<int>(lesser(m.columns - work.column, Tile::columns));
    Taps<face>& found = tables(t).taps;
    found.join(t, problem, rule, tile / row_tiles);
    t.sync();
    work.tap_count = m.inner == 0 ? 0 : face == Face::grad_weight ? 1 : found.count(t, problem);
    work.steps = work.tap_count * m.inner;
    const std::int64_t cell = found.cell_offset(t, problem);
    work.a_first = a + row * m.a_row + (face == Face::grad_weight ? cell : 0);
    work.c_first = c + row * m.c_row + (face == Face::grad_weight ? 0 : cell);
    found.list(t, problem, rule, threads, taps(t));
    t.sync();
    return work;
  }

  // The step that a thread tabulates next.
  struct NextStep {
    int tap;
    unsigned inner;
  };
  template <class Thread>
  UNSHARED_DEVICE NextStep first_step(Thread& t) const {
    if (m.inner == 0) return {0, 0};
    return {static_cast<int>(t.index() / m.inner), static_cast<unsigned>(t.index() % m.inner)};
  }

  // The offsets of the next chunk's steps.
  template <class Thread>
  UNSHARED_DEVICE void tabulate(Thread& t, const Work& work, NextStep& next, int stage) const {
    if (t.index() >= chunk) return;
    Offsets at{outside, outside};
    if (next.tap < work.tap_count) {
      at = {next.inner * m.a_inner, next.inner * m.b_inner};
      if (face != Face::grad_weight) {
        const Offsets tap = t.load_shared(&taps(t)[next.tap]);
        at.first += tap.second;
        at.second += tap.first;
      }
    }
    t.store_shared(&tables(t).steps[stage][spread(t.index())], at);
    next.tap += chunk_taps;
    next.inner += chunk_inner;
    if (next.inner >= m.inner) {
      next.inner -= static_cast<unsigned>(m.inner);
      ++next.tap;
    }
  }

  template <class Thread>
  UNSHARED_DEVICE void tabulate_columns(Thread& t, const Work& work) const {
    for (int i = t.index(); i < Tile::columns; i += threads) {
      Offsets at{outside, 0};
      const std::int64_t column = work.column + i;
      if (i < work.columns) {
        if (face != Face::grad_weight) {
          at = {column * m.b_column, column * m.c_column};
        } else {
          at = t.load_shared(&taps(t)[column / problem.in_channels]);
          const std::int64_t channel = column % problem.in_channels;
          if (at.first != outside) at.first += channel * m.b_column;
          at.second += channel * m.c_column;
        }
      }
      t.store_shared(&tables(t).columns[spread(i)], at);
    }
  }

  // Begins to copy a chunk of both operands.
  template <class Thread>
  UNSHARED_DEVICE void fetch(Thread& t, const Work& work, int stage) const {
    std::byte* panel = t.shared() + stage * stage_bytes;
    const Offsets* steps = tables(t).steps[stage];
    fetch_panel<APanel, Tile::rows>(
        t, panel, work.a_first, a_way,
        [&](int row) { return row < work.rows ? row * m.a_row : outside; },
        [&](int step) { return t.load_shared(&steps[spread(step)].first); });
    fetch_panel<BPanel, Tile::columns>(
        t, panel + APanel::bytes, b, b_way,
        [&](int column) { return t.load_shared(&tables(t).columns[spread(column)].first); },
        [&](int step) { return t.load_shared(&steps[spread(step)].second); });
  }

  template <class Shape, int lines, class Thread, class LineOffset, class StepOffset>
  UNSHARED_DEVICE void fetch_panel(Thread& t, std::byte* panel, const T* from, Movement way,
                                   LineOffset line_offset, StepOffset step_offset) const {
    constexpr int log_lines = std::countr_zero(static_cast<unsigned>(lines));
    const int pitch = way.along ? Shape::along_pitch : Shape::across_pitch;
    const int log_run = (way.along ? log_chunk : log_lines) - way.log_width;
    const int count = lines * chunk >> way.log_width;
    UNSHARED_UNROLL(2)
    for (int i = t.index(); i < count; i += threads) {
      const int major = i >> log_run, minor = (i & ((1 << log_run) - 1)) << way.log_width;
      const std::int64_t line = line_offset(way.along ? major : minor);
      const std::int64_t step = step_offset(way.along ? minor : major);
      const bool inside = line != outside && step != outside;
      move(t, panel + major * pitch + minor * size, from + (inside ? line + step : 0), inside,
           size << way.log_width);
    }
  }

  // `bytes` to shared memory, or as many zeros.
  template <class Thread>
  static UNSHARED_DEVICE void move(Thread& t, std::byte* to, const T* from, bool inside,
                                   int bytes) {
    if (bytes == 16)
      move<16>(t, to, from, inside);
    else if (bytes == 8)
      move<8>(t, to, from, inside);
    else if (bytes == 4)
      move<4>(t, to, from, inside);
    else if constexpr (size == 2)
      t.store_shared(reinterpret_cast<T*>(to), inside ? t.load(from) : T{});
  }
  template <int bytes, class Thread>
  static UNSHARED_DEVICE void move(Thread& t, std::byte* to, const T* from, bool inside) {
    using Words = Pack<std::uint32_t, bytes / 4>;
    if (inside)
      t.template copy<bytes>(to, from);
    else
      t.store_shared(reinterpret_cast<Words*>(to), Words{});
  }

  static UNSHARED_DEVICE int warp_row(int warp) {
    return warp % (Tile::rows / Tile::warp_rows) * Tile::warp_rows;
  }
  static UNSHARED_DEVICE int warp_column(int warp) {
    return warp / (Tile::rows / Tile::warp_rows) * Tile::warp_columns;
  }

  // Adds the chunk's products to the sums of the thread's fragments.
  template <class Thread>
  UNSHARED_DEVICE void multiply(Thread& t, const Work& work, int stage, int steps,
                                Sums& sums) const {
    const int lane = t.index() % 32, warp = t.index() / 32;
    const int row = warp_row(warp), column = warp_column(warp);
    if (row >= work.rows || column >= work.columns) return;  // nothing of it is stored
    const std::byte* panel = t.shared() + stage * stage_bytes;
    Reader left = reader_of<APanel, Product>(panel, a_way.along, lane, row, true);
    Reader right =
        reader_of<BPanel, Product>(panel + APanel::bytes, b_way.along, lane, column, false);
    UNSHARED_UNROLL(1)
    for (int k = 0; k < steps; k += Product::promotion * Product::steps) {
      Sums part = {};

      for (int i = 0; i < Product::promotion; ++i) {
        if (k + i * Product::steps >= steps) break;
        multiply(t, left, right, part);
        left.at += left.next_steps;
        right.at += right.next_steps;
      }
      promote(part, sums);
    }
  }

  template <class Thread>
  static UNSHARED_DEVICE void multiply(Thread& t, const Reader& left, const Reader& right,
                                       Sums& part) {
    typename Product::Left p[row_blocks];
    for (int i = 0; i < row_blocks; ++i) {
      std::uint32_t raw[4];
      read<APanel>(t, left, 2 * i * left.next_lines, true, raw);
      p[i] = Product::left(t, raw);
    }
    constexpr int together = column_blocks == 1 ? 1 : 2;  // blocks of columns per ldmatrix
    for (int j = 0; j < column_blocks; j += together) {
      std::uint32_t raw[2 * together];
      read<BPanel>(t, right, j * right.next_lines, false, raw);
      for (int h = 0; h < together; ++h) {
        const auto q = Product::right(t, raw[2 * h], raw[2 * h + 1]);
        for (int i = 0; i < row_blocks; ++i) Product::multiply(t, part[i][j + h], p[i], q);
      }
    }
  }

  static UNSHARED_DEVICE void promote(const Sums& part, Sums& sums) {
    for (int i = 0; i < row_blocks * column_blocks * 4; ++i)
      (&sums[0][0][0])[i] += (&part[0][0][0])[i];
  }

  // The sums, from fragments to a tile in shared memory.
  template <class Thread>
  UNSHARED_DEVICE void lay_down(Thread& t, const Sums& sums) const {
    float* tile = reinterpret_cast<float*>(t.shared());
    const int lane = t.index() % 32, warp = t.index() / 32;
    const int row = warp_row(warp) + lane / 4, column = warp_column(warp) + 2 * (lane % 4);
    for (int i = 0; i < row_blocks; ++i)
      for (int j = 0; j < column_blocks; ++j)
        for (int h = 0; h < 4; h += 2) {
          float* to = &tile[at(row + 16 * i + h / 2 * 8, column + 8 * j)];
          if (c_way.along) {
            t.store_shared(to, sums[i][j][h]);
            t.store_shared(to + by_rows_pitch, sums[i][j][h + 1]);
          } else {
            t.store_shared(reinterpret_cast<Pack<float, 2>*>(to),
                           {{sums[i][j][h], sums[i][j][h + 1]}});
          }
        }
  }
  UNSHARED_DEVICE int at(int row, int column) const {
    return c_way.along ? column * by_rows_pitch + row : row * by_columns_pitch + column;
  }

  template <bool along, class Thread>
  UNSHARED_DEVICE void store(Thread& t, const Work& work) const {
    if (c_way.log_width == 0)
      store<along, 1>(t, work);
    else
      store<along, 16 / size>(t, work);
  }

  // The tile to the result, `width` elements at a time.
  template <bool along, int width, class Thread>
  UNSHARED_DEVICE void store(Thread& t, const Work& work) const {
    const float* tile = reinterpret_cast<const float*>(t.shared());
    constexpr int run = (along ? Tile::rows : Tile::columns) / width;
    for (int i = t.index(); i < Tile::rows * Tile::columns / width; i += threads) {
      const int major = i / run, minor = i % run * width;
      const int row = along ? minor : major, column = along ? major : minor;
      if (row >= work.rows || column >= work.columns) continue;
      const Offsets offsets = t.load_shared(&tables(t).columns[spread(column)]);
      const bool empty = offsets.first == outside;  // a tap in padding
      Pack<T, width>* place =
          reinterpret_cast<Pack<T, width>*>(work.c_first + row * m.c_row + offsets.second);
      Pack<T, width> held{}, rounded;
      if (accumulate) held = t.load_result(place);
      constexpr int together = width < 4 ? 1 : 4;  // sums, which lie as the elements do
      for (int u = 0; u < width; u += together) {
        const auto sums = t.load_shared(reinterpret_cast<const Pack<float, together>*>(
            &tile[at(along ? row + u : row, along ? column : column + u)]));
        for (int v = 0; v < together; ++v) {
          const float before = widen(held.at[u + v]);
          rounded.at[u + v] = round_to<T>(empty        ? before
                                          : accumulate ? before + sums.at[v]
                                                       : sums.at[v]);
        }
      }
      t.store(place, rounded);
    }
  }
};

}  // namespace unshared::cuda
