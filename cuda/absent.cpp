// The CUDA backend of a build without CUDA: the same symbols, the same table for explain(), and a
// sentence that says so.
#include "kernels.hpp"

namespace unshared {
namespace {

struct Nowhere {
  static constexpr std::int64_t processors = 1;
  static void launch(const auto&, std::int64_t, std::int64_t, const Call&) noexcept {}
};

}  // namespace

bool cuda_built() noexcept { return false; }

CudaState cuda_state() noexcept { return {false, "this build of unshared has no CUDA kernels"}; }

const KernelTable& cuda_table() noexcept {
  static const KernelTable table = [] {
    KernelTable t{"cuda", {}, {}};
    cuda::fill<Nowhere, Face::forward>(t);
    cuda::fill<Nowhere, Face::grad_input>(t);
    cuda::fill<Nowhere, Face::grad_weight>(t);
    return t;
  }();
  return table;
}

void cuda_run(const Kernel&, const Problem&, const Call&) {}

}  // namespace unshared
