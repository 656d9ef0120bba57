// forward on CUDA: its kernels (kernels.hpp), compiled.
#include "kernels.hpp"
#include "tile_instances.hpp"

namespace unshared::cuda {

void fill_forward(KernelTable& table) { fill<Cuda, Face::forward>(table); }

}  // namespace unshared::cuda
