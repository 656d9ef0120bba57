// The shapes of the kernel "tile", compiled for every dtype.
#include "tile_instances.hpp"

namespace unshared::cuda {

UNSHARED_TILES(, wide)
UNSHARED_TILES(, flat)
UNSHARED_TILES(, small)

}  // namespace unshared::cuda
