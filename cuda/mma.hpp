// Kernels "mma" (mma_kernel.hpp) on the host: what they take, how their operands move, which tile.
// Any strides: the widest vectors that strides, extents and addresses allow are found here. Nothing
// of it changes a bit of a result.
#pragma once

#include "mma_kernel.hpp"

namespace unshared::cuda {

// What the offsets of a tensor's cells and taps are multiples of.
inline std::int64_t common_stride(const Problem& p, Seat seat) {
  std::int64_t common = 0;
  const auto take = [&](std::int64_t extent, std::int64_t stride) {
    if (extent > 1) common = greatest_divisor(common, stride < 0 ? -stride : stride);
  };
  for (int s = 0; s < p.axis_count; ++s) {
    const Axis& axis = p.axes[s];
    if (seat == Seat::x) take(axis.input, axis.x_stride);
    if (seat == Seat::y) take(axis.output, axis.y_stride);
    if (seat == Seat::w) take(axis.output, axis.w_place_stride);
    if (seat == Seat::w) take(axis.kernel, axis.w_tap_stride);
  }
  return common;
}

// One direction of a matrix: how far apart its neighbours are, and how many there are in a run.
struct Direction {
  std::int64_t stride, run;
};

// How many elements, as a power of two, may move together in that direction.
inline int log_width_of(const void* data, int size, const Direction& in, const Direction& other,
                        std::int64_t common) {
  int width = 0;
  if (in.stride != 1) return width;
  const std::int64_t apart =
      other.run > 1 ? greatest_divisor(common, other.stride < 0 ? -other.stride : other.stride)
                    : common;
  const auto fits = [&](std::int64_t n) {
    return n * size <= 16 && in.run % n == 0 && apart % n == 0 &&
           reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(n * size) == 0;
  };
  while (fits(std::int64_t{2} << width)) ++width;
  return width;
}

inline Movement movement_of(const void* data, int size, const Direction& along,
                            const Direction& across, std::int64_t common) {
  const int over_steps = log_width_of(data, size, along, across, common);
  const int over_lines = log_width_of(data, size, across, along, common);
  if (over_steps == over_lines) return {along.stride == 1 || across.stride != 1, over_steps};
  return over_steps > over_lines ? Movement{true, over_steps} : Movement{false, over_lines};
}

template <class Device, class Product, Face face, class Tile>
void launch_mma(const Problem& p, const Call& call) noexcept {
  using Kernel = MmaKernel<Product, face, Tile>;
  using T = typename Product::Element;
  constexpr Seat a_seat = face == Face::grad_weight ? Seat::y : Seat::w;
  constexpr Seat b_seat = face == Face::grad_input ? Seat::y : Seat::x;
  Kernel k;
  k.problem = p;
  k.rule = tap_rule(p, face);
  k.m = matrices_of(p, face);
  k.a = static_cast<const T*>(call.second);
  k.b = static_cast<const T*>(call.first);
  k.c = static_cast<T*>(call.result);
  k.accumulate = call.accumulate;
  const Matrices& m = k.m;
  constexpr int size = sizeof(T);
  k.a_way =
      movement_of(k.a, size, {m.a_inner, m.inner}, {m.a_row, m.rows}, common_stride(p, a_seat));
  k.b_way = movement_of(k.b, size, {m.b_inner, m.inner}, {m.b_column, m.column_run},
                        common_stride(p, b_seat));
  k.c_way = movement_of(k.c, size, {m.c_row, m.rows}, {m.c_column, m.column_run},
                        common_stride(p, result_of(face)));
  if (size << k.c_way.log_width != 16) k.c_way.log_width = 0;  // whole vectors or elements
  k.chunk_taps = static_cast<int>(Kernel::chunk / greater(m.inner, 1));
  k.chunk_inner = static_cast<int>(Kernel::chunk % greater(m.inner, 1));
  k.row_tiles = ceil_div(m.rows, Tile::rows);
  k.column_tiles = ceil_div(m.columns, Tile::columns);
  const std::int64_t items = Cell::count(p, face) * k.row_tiles * k.column_tiles;
  for (; k.first_item < items; k.first_item += max_blocks)
    Device::launch(k, lesser(items - k.first_item, max_blocks), Kernel::shared_bytes(tap_count(p)),
                   call);
}

// The tile is chosen by the extents of the product; the order of its sums does not depend on it.
template <class Device, class Product, Face face>
void run_mma(const Problem& p, const Call& call) noexcept {
  const Matrices m = matrices_of(p, face);
  if (m.columns <= ThinTile::columns)
    launch_mma<Device, Product, face, ThinTile>(p, call);
  else if (m.rows <= FlatTile::rows)
    launch_mma<Device, Product, face, FlatTile>(p, call);
  else
    launch_mma<Device, Product, face, WideTile>(p, call);
}

inline bool mma_can(const Problem& p) noexcept { return tap_count(p) <= most_taps; }

// Nothing here depends on the batch in forward and grad_input, so that no sample's result does.
template <Face face>
const char* mma_declines(const Problem& p) noexcept {
  const Matrices m = matrices_of(p, face);
  if (!mma_can(p)) return "the kernel has more than 512 taps";
  if (m.rows < 8) return "too few channels: a fragment has 16 rows";
  if (face == Face::grad_weight ? m.columns < 8 : tap_count(p) * m.inner < 8)
    return "too few taps and channels: a fragment has 8 of them or more";
  return nullptr;
}

}  // namespace unshared::cuda
