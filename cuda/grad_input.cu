// grad_input on CUDA: its kernels (kernels.hpp), compiled.
#include "kernels.hpp"
#include "tile_instances.hpp"

namespace unshared::cuda {

void fill_grad_input(KernelTable& table) { fill<Cuda, Face::grad_input>(table); }

}  // namespace unshared::cuda
