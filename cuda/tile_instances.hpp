// The kernels of tile.hpp do not depend on the face: tile.cu and stream.cu compile them once, and the
// faces' files only refer to them. Included by .cu files alone.
#pragma once

#include "launch.hpp"
#include "tiling.hpp"

#define UNSHARED_TILE(prefix, T, kind) \
  prefix template void run_shape<Cuda, T, TileKind::kind>(const Product&, const Call&) noexcept;
#define UNSHARED_TILES(prefix, kind)          \
  UNSHARED_TILE(prefix, float, kind)          \
  UNSHARED_TILE(prefix, double, kind)         \
  UNSHARED_TILE(prefix, Half, kind)           \
  UNSHARED_TILE(prefix, BFloat16, kind)       \
  UNSHARED_TILE(prefix, Complex<float>, kind) \
  UNSHARED_TILE(prefix, Complex<double>, kind)

namespace unshared::cuda {

UNSHARED_TILES(extern, wide)
UNSHARED_TILES(extern, flat)
UNSHARED_TILES(extern, small)
UNSHARED_TILES(extern, stream8)
UNSHARED_TILES(extern, stream16)

}  // namespace unshared::cuda
