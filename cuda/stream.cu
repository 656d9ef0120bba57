// The shapes of the kernel "stream", compiled for every dtype.
#include "tile_instances.hpp"

namespace unshared::cuda {

UNSHARED_TILES(, stream8)
UNSHARED_TILES(, stream16)

}  // namespace unshared::cuda
