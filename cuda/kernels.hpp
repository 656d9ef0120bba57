// The list of kernels of every dtype and face, over a Device: what starts a kernel's blocks. Devices
// are CUDA (launch.hpp), the emulator of the tests, and, in builds without CUDA, none (absent.cpp).
// A Device has
//
//     static void launch(const auto& kernel, int64 blocks, int64 shared_bytes, const Call&) noexcept
//     static constexpr int64 processors           about how many that run blocks at the same time
#pragma once

#include "../cpp/scalar.hpp"
#include "lanes.hpp"
#include "mma.hpp"
#include "reference.hpp"
#include "tiling.hpp"

namespace unshared::cuda {

constexpr const char* accepts(const Problem&) noexcept { return nullptr; }

// The first that accepts runs, and that is the one of which choice.hpp expects the most.
template <class T, Face face, Family family>
const char* declines(const Problem& problem) noexcept {
  const bool able =
      family == Family::lanes ? lanes_able<T, face>(problem) : tile_able<face>(problem);
  if (!able) return "more terms to a sum than it counts";
  return predict(problem, face, dtype_of<T>).best == family
             ? nullptr
             : "another kernel is predicted to be faster";
}

// A complex number may begin at an odd multiple of its half. What moves whole elements leaves such
// arrays to the reference.
template <class Device, class T, Face face, auto run>
void run_whole(const Problem& problem, const Call& call) noexcept {
  bool whole = true;
  for (const void* data : {call.first, call.second, static_cast<const void*>(call.result)})
    whole = whole && reinterpret_cast<std::uintptr_t>(data) % sizeof(T) == 0;
  whole ? run(problem, call) : run_reference<Device, T, face>(problem, call);
}

// The opt-in modes of a dtype.
template <class Device, class T, Face face>
Kernel* add_mma(Kernel* at) {
  const auto add = [&](auto product, Precision precision) {
    *at++ = {
        "mma", mma_declines<face>, run_mma<Device, decltype(product), face>, precision, mma_can,
        80};
  };
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>)
    add(HalfProduct<T>{}, Precision::fast);
  if constexpr (std::is_same_v<T, float>) {
    add(Tf32Product{}, Precision::tf32);
    add(Tf32x3Product{}, Precision::tf32x3);
  }
  return at;
}

// Fills in the kernels of one face.
template <class Device, Face face>
void fill(KernelTable& table) {
  for (int d = 0; d < dtype_count; ++d)
    visit(static_cast<DType>(d), [&](auto type) {
      using T = typename decltype(type)::type;
      Kernel* at = table.list[d][static_cast<int>(face)];
      at = add_mma<Device, T, face>(at);
      *at++ = {"tile", declines<T, face, Family::tile>,
               run_whole<Device, T, face, run_tile<Device, T, face, Family::tile>>, Precision::ieee,
               tile_able<face>};
      *at++ = {"stream", declines<T, face, Family::stream>,
               run_whole<Device, T, face, run_tile<Device, T, face, Family::stream>>,
               Precision::ieee, tile_able<face>};
      *at++ = {"lanes", declines<T, face, Family::lanes>,
               run_whole<Device, T, face, run_lanes<Device, T, face>>, Precision::ieee,
               lanes_able<T, face>};
      *at++ = {"reference", accepts, run_reference<Device, T, face>};
    });
}

}  // namespace unshared::cuda
