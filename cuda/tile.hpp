// Kernels "tile" and "stream": one block computes a tile of rows x columns of one cell's product
// (product.hpp), over the whole chain. The operands of a chunk of steps are copied to shared memory
// while those of the chunk before are used; each thread keeps a few rows x columns of sums in
// registers and goes over the steps one by one. The same text for every face and dtype; "stream" is
// the same tile for few columns, many rows: it reads each weight once and is bound by that.
// Accumulator: float32 for half types, else the element type.
// Order: that of the product's steps, which is the canonical one. No step beyond the chain is added.
// Deterministic: each result element is computed by one thread as one chain.
#pragma once

#include <initializer_list>

#include "forward.hpp"
#include "grad_input.hpp"
#include "grad_weight.hpp"
#include "reference.hpp"
#include "shapes.hpp"

namespace unshared::cuda {

// How an operand is brought to shared memory: 16 bytes along the lines of a tile (its rows or
// columns), element by element across the lines, or element by element along the steps.
enum class Way { vectors, across, along };

struct Staging {
  Way way;
  int unit_loop;  // which loop over steps (product.hpp) moves it by one element
};

inline constexpr int table_steps = 512;  // whose offsets are in shared memory at a time

// What lies in a block's shared memory, after the ring of chunks.
template <class S>
struct TileTables {
  StepOffset step[table_steps];
  int64_t row[S::rows];  // of second
  int64_t column[S::columns], result[S::columns];
  int inside[S::columns];
  Spot spot;
};

template <class T, Face face, class S>
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
    t.store_shared(&to->first, offset.first);
    t.store_shared(&to->second, offset.second);
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
      t.store_shared(&tables.row[r], (row + r) * product.row_second);
    for (int c = t.index(); c < S::columns; c += threads) {
      if (column + c >= product.columns) break;
      const ColumnOffset at = column_offset(t, product, spot, column + c);
      t.store_shared(&tables.column[c], at.first);
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
    int slot = 0;
    for (int done = 0; done < count; done += chunk) {
      t.template wait<S::stages - 2>();
      t.sync();  // this chunk is there, and nobody uses the one before
      stage_next();
      const int here = count - done < chunk ? count - done : chunk;
      multiply(t, ring + slot * stage_elements, here, sums);
      slot = slot + 1 == S::stages ? 0 : slot + 1;
    }
  }

  // Begins to copy a chunk of both operands.
  template <class Thread>
  UNSHARED_DEVICE void stage(Thread& t, const TileTables<S>& tables, T* to, const StepOffset* step,
                             int count, int chunk) const {
    const Spot& spot = tables.spot;
    const int64_t rows = product.rows - t.load_shared(&spot.row);
    const int64_t columns = product.columns - t.load_shared(&spot.column);
    stage_lines<S::rows>(t, to, operands.second + t.load_shared(&spot.second), tables.row,
                         &step->second, count, chunk, lesser(rows, S::rows), second.way,
                         spot.order[1]);
    stage_lines<S::columns>(
        t, to + S::capacity * row_pitch, operands.first + t.load_shared(&spot.first), tables.column,
        &step->first, count, chunk, lesser(columns, S::columns), first.way, spot.order[0]);
  }

  // `step` points at one of the two offsets of a StepOffset.
  template <int lines, class Thread>
  static UNSHARED_DEVICE void stage_lines(Thread& t, T* to, const T* from, const int64_t* line,
                                          const int64_t* step, int count, int chunk, int64_t valid,
                                          Way way, const Order& order) {
    constexpr int pitch = lines + vector;
    constexpr int step_size = sizeof(StepOffset) / sizeof(int64_t);
    const int end = static_cast<int>(valid);
    if (way == Way::vectors) {
      constexpr int per_step = lines / vector, side = per_step < threads ? per_step : threads;
      for (int s = t.index() / side; s < count; s += threads / side) {
        const T* at = from + t.load_shared(step + s * step_size);
        for (int l = t.index() % side * vector; l < lines; l += side * vector)
          if (l < end) t.template copy<16>(to + s * pitch + l, at + t.load_shared(line + l));
      }
    } else if (way == Way::across) {
      constexpr int side = lines < 32 ? lines : 32;
      for (int s = t.index() / side; s < count; s += threads / side) {
        const T* at = from + t.load_shared(step + s * step_size);
        for (int l = t.index() % side; l < lines; l += side)
          if (l < end) copy_one(t, to + s * pitch + l, at + t.load_shared(line + l));
      }
    } else {
      const int log_run = t.load_shared(&order.log_run), apart = t.load_shared(&order.apart);
      const int beyond = t.load_shared(&order.beyond), in_run = (1 << log_run) - 1;
      for (int i = t.index() % 8; i < chunk; i += 8) {
        const int s = (i & in_run) * apart + (i >> log_run) * beyond;
        if (s >= count) continue;
        const T* at = from + t.load_shared(step + s * step_size);
        for (int l = t.index() / 8; l < lines; l += threads / 8)
          if (l < end) copy_one(t, to + s * pitch + l, at + t.load_shared(line + l));
      }
    }
  }

  template <class Thread>
  static UNSHARED_DEVICE void copy_one(Thread& t, T* to, const T* from) {
    if constexpr (size >= 4)
      t.template copy<size>(to, from);
    else  // no asynchronous copy is that small
      t.store_shared(to, t.load(from));
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
      for (int r = 0; r < thread_rows; ++r)
        for (int c = 0; c < thread_columns; ++c)
          sums.at[r][c] = chain(column[c], row[r], sums.at[r][c]);
    }
  }

  // A thread's lines of one step: packs, as far apart as all threads' packs are long.
  template <int mine, int lines, class Thread>
  static UNSHARED_DEVICE void read(Thread& t, const T* from, Sum (&to)[mine], bool conjugated) {
    using P = Pack<T, pack>;
    for (int g = 0; g < mine / pack; ++g) {
      const P p = t.load_shared(reinterpret_cast<const P*>(from + g * (lines / mine * pack)));
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
      for (int r = 0; r < thread_rows; ++r)
        for (int c = 0; c < thread_columns; ++c) sums.at[r][c] = Sum{};
      return;
    }
    const int64_t row = t.load_shared(&tables.spot.row),
                  column = t.load_shared(&tables.spot.column);
    const T* from = operands.result + t.load_shared(&tables.spot.result);
    for (int c = 0; c < thread_columns; ++c) {
      const int j = column_of(t.index(), c);
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
    for (int c = 0; c < thread_columns; c += pack) {
      const int j = column_of(t.index(), c);
      for (int r = 0; r < thread_rows; r += pack) {
        const int i = row_of(t.index(), r);
        store_square(t, tables, to + (row + i) * product.row_result, lesser(rows - i, pack),
                     lesser(columns - j, pack), j, sums, r, c);
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
    if (pack_columns && columns == pack) {
      const int64_t at = t.load_shared(&tables.result[j]);
      const bool inside = t.load_shared(&tables.inside[j]) != 0;
      if (!inside && operands.accumulate) return;
      for (int r = 0; r < pack; ++r) {
        P p;
        for (int c = 0; c < pack; ++c) p.at[c] = result(sums.at[r0 + r][c0 + c], inside);
        if (r < rows) t.store(reinterpret_cast<P*>(to + r * product.row_result + at), p);
      }
      return;
    }
    for (int c = 0; c < pack; ++c) {
      if (c >= columns) break;
      T* const at = to + t.load_shared(&tables.result[j + c]);
      const bool inside = t.load_shared(&tables.inside[j + c]) != 0;
      if (!inside && operands.accumulate) continue;
      if (pack_rows && rows == pack) {
        P p;
        for (int r = 0; r < pack; ++r) p.at[r] = result(sums.at[r0 + r][c0 + c], inside);
        t.store(reinterpret_cast<P*>(at), p);
      } else {
        for (int r = 0; r < pack; ++r)
          if (r < rows)
            t.store(at + r * product.row_result, result(sums.at[r0 + r][c0 + c], inside));
      }
    }
  }

  static UNSHARED_DEVICE T result(Sum sum, bool inside) { return inside ? round_to<T>(sum) : T{}; }
};

// --- the host's side
template <Face face>
Product product_of(const Problem& problem) {
  if constexpr (face == Face::forward) return forward_product(problem);
  if constexpr (face == Face::grad_input) return grad_input_product(problem);
  if constexpr (face == Face::grad_weight) return grad_weight_product(problem);
}

// Whether packs of n elements stay aligned: the pointer, and all strides but the unit one.
template <class T>
bool aligned(const void* data, int n, std::initializer_list<int64_t> strides) {
  const auto bytes = static_cast<std::uintptr_t>(n) * sizeof(T);
  bool yes = reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
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

template <class T>
Staging staging_of_second(const Product& p, const void* data) {
  constexpr int n = 16 / static_cast<int>(sizeof(T));
  bool together = aligned<T>(data, n, {p.rows, p.step_second});
  for (int s = 0; s < p.axis_count; ++s)
    together = together &&
               aligned<T>(data, n,
                          {p.axes[s].second_partner, p.axes[s].second_tap, p.axes[s].second_cell});
  if (p.row_second == 1) return {together ? Way::vectors : Way::across, no_loop};
  const int unit = unit_loop(p, p.step_second, &CellAxis::step_second);
  return {unit == no_loop ? Way::across : Way::along, unit};
}

template <class T>
Staging staging_of_first(const Product& p, const void* data) {
  constexpr int n = 16 / static_cast<int>(sizeof(T));
  bool together = aligned<T>(data, n, {p.step_first}) && columns_together(p, &ColumnLoop::first, n);
  for (int s = 0; s < p.axis_count; ++s) together = together && p.axes[s].first_partner % n == 0;
  if (together) return {Way::vectors, no_loop};
  for (int d = 0; d < p.column_depth; ++d)
    if (p.column[d].first == 1 && p.column[d].count > 1) return {Way::across, no_loop};
  const int unit = unit_loop(p, p.step_first, &CellAxis::step_first);
  return {unit == no_loop ? Way::across : Way::along, unit};
}

template <class Device, class T, Face face, class S>
void run_shape(const Product& product, const Call& call) noexcept {
  using K = TileKernel<T, face, S>;
  K kernel{};
  kernel.product = product;
  kernel.operands = operands_of<T>(call);
  kernel.row_tiles = ceil_div(product.rows, S::rows);
  kernel.column_tiles = ceil_div(product.columns, S::columns);
  kernel.items = product.cells * kernel.row_tiles * kernel.column_tiles;
  kernel.first = staging_of_first<T>(product, call.first);
  kernel.second = staging_of_second<T>(product, call.second);
  bool cells_aligned = true;
  for (int s = 0; s < product.axis_count; ++s)
    cells_aligned = cells_aligned && product.axes[s].result_cell % K::pack == 0;
  kernel.pack_columns = cells_aligned && columns_together(product, &ColumnLoop::result, K::pack) &&
                        aligned<T>(call.result, K::pack, {product.row_result});
  kernel.pack_rows =
      cells_aligned && product.row_result == 1 && aligned<T>(call.result, K::pack, {});
  for (int d = 0; d < product.column_depth; ++d)
    kernel.pack_rows = kernel.pack_rows && product.column[d].result % K::pack == 0;
  // Enough blocks to fill any device a few times over, and few enough that most compute several
  // cells, whose tables of steps are the same.
  constexpr int64_t processors = 132, rounds = 4;
  Device::launch(kernel, lesser(kernel.items, processors * S::blocks_per_processor * rounds),
                 K::shared_bytes, call);
}

// What the tables count in 32 bits.
template <Face face>
bool tile_able(const Problem& problem) noexcept {
  const Layout result = problem.layout(result_of(face));
  if (result.elements() == 0) return false;
  const Product p = product_of<face>(problem);
  return p.most_steps <= max_extent && p.columns <= max_extent;
}

template <class Device, class T, Face face, TileKind kind>
void run_tile(const Problem& problem, const Call& call) noexcept {
  // A complex number that straddles the alignment of its size cannot be copied at once.
  if (!aligned<T>(call.first, 1, {}) || !aligned<T>(call.second, 1, {}) ||
      !aligned<T>(call.result, 1, {}))
    return run_reference<Device, T, face>(problem, call);
  run_shape<Device, T, face, Shape<T, kind>>(product_of<face>(problem), call);
}

}  // namespace unshared::cuda
