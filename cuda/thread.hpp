// The Thread (device.hpp) of CUDA. Included by .cu files alone.
#pragma once

#include <bit>

#include "device.hpp"

namespace unshared::cuda {

struct CudaThread {
  static UNSHARED_DEVICE int index() { return static_cast<int>(threadIdx.x); }
  static UNSHARED_DEVICE std::int64_t block() { return blockIdx.x; }
  static UNSHARED_DEVICE std::int64_t blocks() { return gridDim.x; }
  static UNSHARED_DEVICE std::byte* shared() {
    extern __shared__ __align__(128) unsigned char memory[];
    return reinterpret_cast<std::byte*>(memory);
  }
  static UNSHARED_DEVICE void sync() { __syncthreads(); }
  static UNSHARED_DEVICE void sync_warp() { __syncwarp(); }
  template <class V>
  static UNSHARED_DEVICE V shuffle(V v, int lane) {
    return __shfl_sync(0xffffffffu, v, lane);
  }

  template <class V>
  static UNSHARED_DEVICE V load(const V* p) {
    return as<V>(__ldg(words(p)));
  }
  template <class V>
  static UNSHARED_DEVICE V load_once(const V* p) {
    return as<V>(__ldcs(words(p)));
  }
  template <class V>
  static UNSHARED_DEVICE V load_result(const V* p) {
    return as<V>(*words(p));
  }
  template <class V>
  static UNSHARED_DEVICE void store(V* p, V v) {
    *words(p) = as<Words<V>>(v);
  }
  template <class V>
  static UNSHARED_DEVICE V load_shared(const V* p) {
    return as<V>(*words(p));
  }
  template <class V>
  static UNSHARED_DEVICE void store_shared(V* p, V v) {
    *words(p) = as<Words<V>>(v);
  }

  template <int bytes>
  static UNSHARED_DEVICE void copy(void* shared, const void* global) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
#if __CUDA_ARCH__ >= 800
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (bytes == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(bytes)
                   : "memory");
#else  // before Ampere: through registers, at once
    using V = Pack<std::uint32_t, bytes / 4>;
    store_shared(static_cast<V*>(shared), load(static_cast<const V*>(global)));
#endif
  }
  static UNSHARED_DEVICE void commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  template <int pending>
  static UNSHARED_DEVICE void wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
  }

 private:
  // The type of CUDA's that moves in one instruction.
  template <int bytes>
  struct Word;
  template <class V>
  using Words = typename Word<sizeof(V)>::type;

  template <class V>
  static UNSHARED_DEVICE Words<V>* words(V* p) {
    return reinterpret_cast<Words<V>*>(p);
  }
  template <class V>
  static UNSHARED_DEVICE const Words<V>* words(const V* p) {
    return reinterpret_cast<const Words<V>*>(p);
  }
  template <class To, class From>
  static UNSHARED_DEVICE To as(From v) {
    static_assert(sizeof(To) == sizeof(From));
    return std::bit_cast<To>(v);
  }
};

template <>
struct CudaThread::Word<2> {
  using type = unsigned short;
};
template <>
struct CudaThread::Word<4> {
  using type = unsigned;
};
template <>
struct CudaThread::Word<8> {
  using type = uint2;
};
template <>
struct CudaThread::Word<16> {
  using type = uint4;
};

}  // namespace unshared::cuda
