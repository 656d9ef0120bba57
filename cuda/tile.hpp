// Kernels "tile" and "stream": one block computes a tile of rows x columns of one cell's product
// (product.hpp), over the whole chain. The operands of a chunk of steps are copied to shared memory
// while those of the chunk before are used; each thread keeps a few rows x columns of sums in
// registers and goes over the steps one by one. The same text for every face and dtype; "stream" is
// the same tile for few columns, many rows: it reads each weight once and is bound by that.
// Accumulator: float32 for half types, else the element type.
// Order: that of the product's steps, which is the canonical one. No step beyond the chain is added.
// Deterministic: each result element is computed by one thread as one chain.
#pragma once

#include "shapes.hpp"
#include "staging.hpp"

namespace unshared::cuda {

inline constexpr int table_steps = 512;  // whose offsets are in shared memory at a time

// What lies in a block's shared memory, after the ring of chunks. Offsets of operands are in bytes.
template <class S>
struct TileTables {
  StepOffset step[table_steps];
  int64_t row[S::rows];  // of second
  int64_t column[S::columns], result[S::columns];
  int inside[S::columns];
  Spot spot;
};

template <class T, class S>
struct TileKernel {
  static constexpr int threads = S::threads;
  static constexpr int blocks_per_processor = S::blocks_per_processor;

  using Sum = decltype(widen(T{}));
  static constexpr int thread_rows = S::thread_rows, thread_columns = S::thread_columns;
  static constexpr int size = static_cast<int>(sizeof(T));
  static constexpr int vector = 16 / size;  // elements of a copy of 16 bytes
  static constexpr int pack = vector < 4 ? vector : 4;  // neighbours in a thread's rows or columns
  // 16 bytes beyond the lines: 8 steps of 4 lines fall into different banks, either way.
  static constexpr int row_pitch = S::rows + vector, column_pitch = S::columns + vector;
  static constexpr int stage_elements = S::capacity * (row_pitch + column_pitch);
  static constexpr int row_threads = S::rows / thread_rows;
  static constexpr int warps = threads / 32;
  static constexpr int64_t ring_bytes = (int64_t{S::stages} * stage_elements * size + 127) & ~127;
  static constexpr int64_t shared_bytes = ring_bytes + int64_t{sizeof(TileTables<S>)};
  static_assert(shared_bytes <= 64 << 10, "what every device has");
  static_assert(threads % 32 == 0 && thread_rows % pack == 0 && thread_columns % pack == 0);

  Product product;
  reference::Operands<T> operands;
  int64_t row_tiles, column_tiles, items;
  Staging first, second;
  bool pack_rows, pack_columns;  // neighbours of the result in one store

  struct Sums {
    Sum at[thread_rows][thread_columns];
  };

  template <class Thread>
  UNSHARED_DEVICE void operator()(Thread& t) const {
    T* const ring = reinterpret_cast<T*>(t.shared());
    auto& tables = *reinterpret_cast<TileTables<S>*>(t.shared() + ring_bytes);
    if (t.index() < max_axes) t.store_shared(&tables.spot.seen[t.index()], -1);
    for (int64_t item = t.block(); item < items; item += t.blocks()) {
      t.sync();  // nobody needs the item before any more
      begin(t, tables, item);
      Sums sums;
      start(t, tables, sums);
      const int steps = t.load_shared(&tables.spot.steps);
      const int chunk = t.load_shared(&tables.spot.chunk);
      const int segment = table_steps / chunk * chunk;
      for (int from = 0; from < steps; from += segment) {
        const int count = steps - from < segment ? steps - from : segment;
        if (t.load_shared(&tables.spot.fresh) != 0 || steps > segment) {
          for (int s = t.index(); s < count; s += threads)
            put(t, &tables.step[s],
                step_offset(t, product, tables.spot, static_cast<unsigned>(from + s)));
        }
        t.sync();
        run_segment(t, tables, ring, count, chunk, sums);
      }
      finish(t, tables, sums);
    }
  }

 private:
  template <class Thread>
  static UNSHARED_DEVICE void put(Thread& t, StepOffset* to, StepOffset offset) {
    t.store_shared(&to->first, offset.first * size);
    t.store_shared(&to->second, offset.second * size);
  }

  // The tile's place, and the offsets of its rows and columns.
  template <class Thread>
  UNSHARED_DEVICE void begin(Thread& t, TileTables<S>& tables, int64_t item) const {
    Spot& spot = tables.spot;
    if (t.index() < 32) {
      const int64_t tile = item / column_tiles;
      if (t.index() == 0) {
        t.store_shared(&spot.column, item % column_tiles * S::columns);
        t.store_shared(&spot.row, tile % row_tiles * S::rows);
      }
      place(t, product, spot, tile / row_tiles, first.unit_loop, second.unit_loop, S::capacity);
    }
    t.sync();
    const int64_t row = t.load_shared(&spot.row), column = t.load_shared(&spot.column);
    for (int r = t.index(); r < S::rows; r += threads)
      t.store_shared(&tables.row[r], (row + r) * product.row_second * size);
    for (int c = t.index(); c < S::columns; c += threads) {
      const ColumnOffset at =
          column_offset(t, product, spot, lesser(column + c, product.columns - 1));
      t.store_shared(&tables.column[c], at.first * size);
      t.store_shared(&tables.result[c], at.result);
      t.store_shared(&tables.inside[c], static_cast<int>(at.inside));
    }
    t.sync();
  }

  // --- the steps
  template <class Thread>
  UNSHARED_DEVICE void run_segment(Thread& t, const TileTables<S>& tables, T* ring, int count,
                                   int chunk, Sums& sums) const {
    int staged = 0, slot_in = 0;
    const auto stage_next = [&] {
      if (staged < count) {
        const int here = count - staged < chunk ? count - staged : chunk;
        stage(t, tables, ring + slot_in * stage_elements, &tables.step[staged], here, chunk);
        staged += here;
        slot_in = slot_in + 1 == S::stages ? 0 : slot_in + 1;
      }
      t.commit();
    };
    for (int s = 0; s + 1 < S::stages; ++s) stage_next();
    // Threads whose rows or columns all lie beyond the last one only help to copy.
    const bool idle =
        t.load_shared(&tables.spot.row) + row_of(t.index(), 0) >= product.rows ||
        t.load_shared(&tables.spot.column) + column_of(t.index(), 0) >= product.columns;
    int slot = 0;
    for (int done = 0; done < count; done += chunk) {
      t.template wait<S::stages - 2>();
      t.sync();  // this chunk is there, and nobody uses the one before
      stage_next();
      const int here = count - done < chunk ? count - done : chunk;
      if (!idle) multiply(t, ring + slot * stage_elements, here, sums);
      slot = slot + 1 == S::stages ? 0 : slot + 1;
    }
  }

  // Begins to copy a chunk of both operands.
  template <class Thread>
  UNSHARED_DEVICE void stage(Thread& t, const TileTables<S>& tables, T* to, const StepOffset* step,
                             int count, int chunk) const {
    const Spot& spot = tables.spot;
    const Chunk rows{operands.second + t.load_shared(&spot.second),
                     tables.row,
                     &step->second,
                     &spot.order[1],
                     static_cast<int>(lesser(product.rows - t.load_shared(&spot.row), S::rows)),
                     count,
                     chunk};
    const Chunk columns{
        operands.first + t.load_shared(&spot.first),
        tables.column,
        &step->first,
        &spot.order[0],
        static_cast<int>(lesser(product.columns - t.load_shared(&spot.column), S::columns)),
        count,
        chunk};
    stage_lines<S::rows>(t, rows, to, second.way);
    stage_lines<S::columns>(t, columns, to + S::capacity * row_pitch, first.way);
  }

  // What to copy of one operand. `step` points at one of the two offsets of a StepOffset.
  struct Chunk {
    const T* from;
    const int64_t* line;
    const int64_t* step;
    const Order* order;
    int lines, count, room;  // count steps, in an order made for `room` of them
  };

  template <int lines, class Thread>
  static UNSHARED_DEVICE void stage_lines(Thread& t, const Chunk& chunk, T* to, Way way) {
    constexpr int packs = lines / vector;
    if (way == Way::vectors)
      stage_by < lines, vector, packs<threads ? packs : threads, false>(t, chunk, to);
    else if (way == Way::across)
      stage_by < lines, 1, lines<32 ? lines : 32, false>(t, chunk, to);
    else
      stage_by<lines, 1, threads / 8, true>(t, chunk, to);
  }

  // n neighbouring lines at a time; `on_lines` threads share the lines, the others take other steps.
  template <int lines, int n, int on_lines, bool along, class Thread>
  static UNSHARED_DEVICE void stage_by(Thread& t, const Chunk& chunk, T* to) {
    constexpr int on_steps = threads / on_lines, pitch = lines + vector;
    constexpr int mine = lines / n / on_lines, apart = on_lines * n;
    static_assert(mine * apart == lines && on_steps * on_lines == threads);
    const int line = (along ? t.index() / on_steps : t.index() % on_lines) * n;
    const int left = chunk.lines - line;
    int64_t offset[mine];
    UNSHARED_UNROLL(16)
    for (int u = 0; u < mine; ++u) offset[u] = t.load_shared(chunk.line + line + u * apart);
    Order order{3, 1, 8};
    if (along)
      order = {t.load_shared(&chunk.order->log_run), t.load_shared(&chunk.order->apart),
               t.load_shared(&chunk.order->beyond)};
    const int run = (1 << order.log_run) - 1, end = along ? chunk.room : chunk.count;
    for (int i = along ? t.index() % on_steps : t.index() / on_lines; i < end; i += on_steps) {
      const int s = along ? (i & run) * order.apart + (i >> order.log_run) * order.beyond : i;
      if (along && s >= chunk.count) continue;
      constexpr int next = sizeof(StepOffset) / sizeof(int64_t);
      const char* from = bytes(chunk.from) + t.load_shared(chunk.step + s * next);
      copy_lines<n, mine, apart>(t, to + s * pitch + line, from, offset, left);
    }
  }
  static UNSHARED_DEVICE const char* bytes(const T* p) { return reinterpret_cast<const char*>(p); }

  template <int n, int mine, int apart, class Thread>
  static UNSHARED_DEVICE void copy_lines(Thread& t, T* to, const char* from,
                                         const int64_t (&offset)[mine], int left) {
    if constexpr (n * size >= 4) {
      UNSHARED_UNROLL(16)
      for (int u = 0; u < mine; ++u)
        if (u * apart < left) t.template copy<n * size>(to + u * apart, from + offset[u]);
    } else {  // no asynchronous copy is that small
      T moved[mine];
      UNSHARED_UNROLL(16)
      for (int u = 0; u < mine; ++u)
        if (u * apart < left) moved[u] = t.load(reinterpret_cast<const T*>(from + offset[u]));
      UNSHARED_UNROLL(16)
      for (int u = 0; u < mine; ++u)
        if (u * apart < left) t.store_shared(to + u * apart, moved[u]);
    }
  }

  template <class Thread>
  UNSHARED_DEVICE void multiply(Thread& t, const T* chunk, int count, Sums& sums) const {
    const T* rows = chunk + t.index() % row_threads * pack;
    const T* columns = chunk + S::capacity * row_pitch + t.index() / row_threads * pack;
    UNSHARED_UNROLL(4)
    for (int s = 0; s < count; ++s) {
      Sum row[thread_rows], column[thread_columns];
      read<thread_rows, S::rows>(t, rows + s * row_pitch, row, operands.conjugate_second);
      read<thread_columns, S::columns>(t, columns + s * column_pitch, column,
                                       operands.conjugate_first);
      UNSHARED_UNROLL(8)
      for (int r = 0; r < thread_rows; ++r) UNSHARED_UNROLL(8)
      for (int c = 0; c < thread_columns; ++c)
        sums.at[r][c] = chain(column[c], row[r], sums.at[r][c]);
    }
  }

  // A thread's lines of one step: packs, as far apart as all threads' packs are long.
  template <int mine, int lines, class Thread>
  static UNSHARED_DEVICE void read(Thread& t, const T* from, Sum (&to)[mine], bool conjugated) {
    using P = Pack<T, pack>;
    UNSHARED_UNROLL(16)
    for (int g = 0; g < mine / pack; ++g) {
      const P p = t.load_shared(reinterpret_cast<const P*>(from + g * (lines / mine * pack)));
      UNSHARED_UNROLL(16)
      for (int v = 0; v < pack; ++v) to[g * pack + v] = conjugate(widen(p.at[v]), conjugated);
    }
  }

  // --- the result
  // Which line of the tile is a thread's own number `mine`.
  template <int own, int lines>
  static UNSHARED_DEVICE int line_of(int thread, int mine) {
    return mine / pack * (lines / own * pack) + thread * pack + mine % pack;
  }
  static UNSHARED_DEVICE int row_of(int index, int r) {
    return line_of<thread_rows, S::rows>(index % row_threads, r);
  }
  static UNSHARED_DEVICE int column_of(int index, int c) {
    return line_of<thread_columns, S::columns>(index / row_threads, c);
  }

  template <class Thread>
  UNSHARED_DEVICE void start(Thread& t, const TileTables<S>& tables, Sums& sums) const {
    if (!operands.accumulate) {
      UNSHARED_UNROLL(8)
      for (int r = 0; r < thread_rows; ++r) UNSHARED_UNROLL(8)
      for (int c = 0; c < thread_columns; ++c) sums.at[r][c] = Sum{};
      return;
    }
    const int64_t row = t.load_shared(&tables.spot.row),
                  column = t.load_shared(&tables.spot.column);
    const T* from = operands.result + t.load_shared(&tables.spot.result);
    UNSHARED_UNROLL(8)
    for (int c = 0; c < thread_columns; ++c) {
      const int j = column_of(t.index(), c);
      UNSHARED_UNROLL(8)
      for (int r = 0; r < thread_rows; ++r) {
        const int64_t at = row + row_of(t.index(), r);
        sums.at[r][c] = at < product.rows && column + j < product.columns
                            ? widen(t.load_result(from + at * product.row_result +
                                                  t.load_shared(&tables.result[j])))
                            : Sum{};
      }
    }
  }

  template <class Thread>
  UNSHARED_DEVICE void finish(Thread& t, const TileTables<S>& tables, const Sums& sums) const {
    const Spot& spot = tables.spot;
    const int64_t row = t.load_shared(&spot.row), column = t.load_shared(&spot.column);
    T* const to = operands.result + t.load_shared(&spot.result);
    const int64_t rows = product.rows - row, columns = product.columns - column;
    UNSHARED_UNROLL(8)
    for (int c = 0; c < thread_columns; c += pack) {
      const int j = column_of(t.index(), c);
      UNSHARED_UNROLL(8)
      for (int r = 0; r < thread_rows; r += pack) {
        const int i = row_of(t.index(), r);
        store_square(t, tables, to + (row + i) * product.row_result, rows - i, columns - j, j, sums,
                     r, c);
      }
    }
  }

  // pack x pack neighbours, as far as they are results.
  template <class Thread>
  UNSHARED_DEVICE void store_square(Thread& t, const TileTables<S>& tables, T* to, int64_t rows,
                                    int64_t columns, int j, const Sums& sums, int r0,
                                    int c0) const {
    using P = Pack<T, pack>;
    if (rows <= 0 || columns <= 0) return;
    P in_column[pack];
    UNSHARED_UNROLL(4)
    for (int c = 0; c < pack; ++c) UNSHARED_UNROLL(4)
    for (int r = 0; r < pack; ++r) in_column[c].at[r] = round_to<T>(sums.at[r0 + r][c0 + c]);
    if (pack_columns && columns >= pack && t.load_shared(&tables.inside[j]) != 0) {
      to += t.load_shared(&tables.result[j]);
      UNSHARED_UNROLL(4)
      for (int r = 0; r < pack; ++r) {
        P in_row;
        UNSHARED_UNROLL(4)
        for (int c = 0; c < pack; ++c) in_row.at[c] = in_column[c].at[r];
        if (r < rows) t.store(reinterpret_cast<P*>(to + r * product.row_result), in_row);
      }
      return;
    }
    UNSHARED_UNROLL(4)
    for (int c = 0; c < pack; ++c)
      if (c < columns) store_column(t, tables, to, rows, j + c, in_column[c]);
  }

  template <class Thread>
  UNSHARED_DEVICE void store_column(Thread& t, const TileTables<S>& tables, T* to, int64_t rows,
                                    int j, Pack<T, pack> sums) const {
    to += t.load_shared(&tables.result[j]);
    const bool inside = t.load_shared(&tables.inside[j]) != 0;
    if (pack_rows && rows >= pack && inside) {
      t.store(reinterpret_cast<Pack<T, pack>*>(to), sums);
      return;
    }
    UNSHARED_UNROLL(4)
    for (int r = 0; r < pack; ++r)
      if (r < rows) store_one(t, to + r * product.row_result, sums.at[r], inside);
  }

  // A tap in padding has an empty chain: zero, or what was there.
  template <class Thread>
  UNSHARED_DEVICE void store_one(Thread& t, T* to, T sum, bool inside) const {
    t.store(to, inside ? sum : operands.accumulate ? t.load_result(to) : T{});
  }
};

}  // namespace unshared::cuda
