// grad_weight on CUDA: its kernels (kernels.hpp), compiled.
#include "kernels.hpp"
#include "tile_instances.hpp"

namespace unshared::cuda {

void fill_grad_weight(KernelTable& table) { fill<Cuda, Face::grad_weight>(table); }

}  // namespace unshared::cuda
