// The shapes of tiles (tile.hpp): how many rows and columns of a product a block computes, and how
// many of them each of its threads keeps in registers.
#pragma once

#include "../cpp/scalar.hpp"

namespace unshared::cuda {

enum class TileKind { wide, flat, small, stream8, stream16 };
inline constexpr int tile_kinds = 5;

template <int rows_, int columns_, int thread_rows_, int thread_columns_, int blocks,
          int capacity_ = 36>
struct TileShape {
  static constexpr int rows = rows_, columns = columns_;
  static constexpr int thread_rows = thread_rows_, thread_columns = thread_columns_;
  static constexpr int threads = rows / thread_rows * (columns / thread_columns);
  static constexpr int blocks_per_processor = blocks;
  static constexpr int capacity = capacity_;  // steps of a chunk: 4 input channels of 3 x 3 taps
  static constexpr int stages = 2;  // chunks in flight or in use
};

// By the size of an element and of what its chain is computed in.
template <TileKind kind, int bytes>
struct ShapeOf;

template <>
struct ShapeOf<TileKind::wide, 4> : TileShape<64, 64, 8, 8, 4> {};
template <>
struct ShapeOf<TileKind::flat, 4> : TileShape<16, 128, 4, 8, 4> {};
template <>
struct ShapeOf<TileKind::small, 4> : TileShape<32, 32, 4, 4, 7> {};
template <>
struct ShapeOf<TileKind::stream8, 4> : TileShape<64, 8, 4, 4, 7> {};
template <>
struct ShapeOf<TileKind::stream16, 4> : TileShape<64, 16, 4, 8, 6> {};

template <>
struct ShapeOf<TileKind::wide, 8> : TileShape<64, 32, 8, 4, 4, 24> {};
template <>
struct ShapeOf<TileKind::flat, 8> : TileShape<16, 64, 4, 4, 3> {};
template <>
struct ShapeOf<TileKind::small, 8> : TileShape<32, 32, 4, 4, 4> {};
template <>
struct ShapeOf<TileKind::stream8, 8> : TileShape<64, 8, 4, 4, 4> {};
template <>
struct ShapeOf<TileKind::stream16, 8> : TileShape<64, 16, 4, 4, 3> {};

template <>
struct ShapeOf<TileKind::wide, 16> : TileShape<32, 32, 4, 4, 2, 18> {};
template <>
struct ShapeOf<TileKind::flat, 16> : TileShape<16, 64, 4, 4, 2, 18> {};
template <>
struct ShapeOf<TileKind::small, 16> : TileShape<16, 16, 2, 4, 5, 18> {};
template <>
struct ShapeOf<TileKind::stream8, 16> : TileShape<32, 8, 2, 4, 4, 18> {};
template <>
struct ShapeOf<TileKind::stream16, 16> : TileShape<32, 16, 2, 4, 4, 18> {};

template <class T, TileKind kind>
using Shape = ShapeOf<kind, static_cast<int>(sizeof(T) < 4 ? 4 : sizeof(T))>;

}  // namespace unshared::cuda
