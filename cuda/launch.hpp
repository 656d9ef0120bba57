// How a kernel (device.hpp) is started on a GPU. Included by .cu files alone.
#pragma once

#include <cuda_runtime.h>

#include "thread.hpp"

namespace unshared::cuda {

// What a kernel needs, as 10 * major + minor: table entries say it, too, and are checked first.
template <class K>
constexpr int architecture_of() {
  if constexpr (requires { K::architecture; })
    return K::architecture;
  else
    return 0;
}

template <class K>
__global__ void __launch_bounds__(K::threads, K::blocks_per_processor)
    entry(const __grid_constant__ K kernel) {
#if defined(__CUDA_ARCH__)
  if constexpr (__CUDA_ARCH__ >= 10 * architecture_of<K>()) {
    CudaThread thread;
    kernel(thread);
  }
#endif
}

// Queues blocks on the call's stream, and nothing else: no allocation, no synchronisation, so that
// it may be captured into a graph. What goes wrong is left in cudaGetLastError (backend.cu).
struct Cuda {
  static constexpr std::int64_t processors = 132;  // of an H200

  template <class K>
  static void launch(const K& kernel, std::int64_t blocks, std::int64_t shared_bytes,
                     const Call& call) noexcept {
    static_assert(sizeof(K) <= 4096, "the parameters of a kernel");
    constexpr std::int64_t free_for_all = 48 << 10;  // more shared memory must be asked for
    if (shared_bytes > free_for_all &&
        cudaFuncSetAttribute(entry<K>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)) != cudaSuccess)
      return;
    entry<K><<<static_cast<unsigned>(blocks), K::threads, static_cast<std::size_t>(shared_bytes),
               static_cast<cudaStream_t>(call.stream)>>>(kernel);
  }
};

}  // namespace unshared::cuda
