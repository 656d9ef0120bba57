// The CUDA backend of a build without CUDA: the same symbols, and a sentence that says so.
#include "../cpp/kernels.hpp"

namespace unshared {

CudaState cuda_state() noexcept {
  return {false, false, "this build of unshared has no CUDA kernels"};
}
const KernelTable* cuda_table() noexcept { return nullptr; }

}  // namespace unshared
