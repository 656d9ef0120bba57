// The list of kernels of every dtype and face, over a Device: what starts a kernel's blocks. Devices
// are CUDA (launch.hpp), the emulator of the tests, and, in builds without CUDA, none (absent.cpp).
// A Device has
//
//     static void launch(const auto& kernel, int64 blocks, int64 shared_bytes, const Call&) noexcept
#pragma once

#include "../cpp/scalar.hpp"
#include "lanes.hpp"
#include "reference.hpp"

namespace unshared::cuda {

constexpr const char* accepts(const Problem&) noexcept { return nullptr; }

// A complex number may begin at an odd multiple of its half. What moves whole elements leaves such
// arrays to the reference.
template <class Device, class T, Face face, auto run>
void run_whole(const Problem& problem, const Call& call) noexcept {
  bool whole = true;
  for (const void* data : {call.first, call.second, static_cast<const void*>(call.result)})
    whole = whole && reinterpret_cast<std::uintptr_t>(data) % sizeof(T) == 0;
  whole ? run(problem, call) : run_reference<Device, T, face>(problem, call);
}

// Fills in the kernels of one face. The first that accepts runs.
template <class Device, Face face>
void fill(KernelTable& table) {
  for (int d = 0; d < dtype_count; ++d)
    visit(static_cast<DType>(d), [&](auto type) {
      using T = typename decltype(type)::type;
      Kernel* at = table.list[d][static_cast<int>(face)];
      *at++ = {"lanes", lanes_declines<T, face>,
               run_whole<Device, T, face, run_lanes<Device, T, face>>, Precision::ieee,
               lanes_able<T, face>};
      *at++ = {"reference", accepts, run_reference<Device, T, face>};
    });
}

}  // namespace unshared::cuda
