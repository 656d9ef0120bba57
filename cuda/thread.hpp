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

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  template <bool transposed>
  static UNSHARED_DEVICE void load_matrices(const void* row, std::uint32_t (&to)[4]) {
    const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(from)
                   : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(from)
                   : "memory");
  }
  template <bool transposed>
  static UNSHARED_DEVICE void load_matrices(const void* row, std::uint32_t (&to)[2]) {
    const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
    if constexpr (transposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                   : "=r"(to[0]), "=r"(to[1])
                   : "r"(from)
                   : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(to[0]), "=r"(to[1])
                   : "r"(from)
                   : "memory");
  }
#define UNSHARED_MMA(shape, type)                                            \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type                \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
      : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]))
  using Left = const std::uint32_t (&)[4];
  using Right = const std::uint32_t (&)[2];
  static UNSHARED_DEVICE void mma_f16(float (&sum)[4], Left p, Right q) {
    UNSHARED_MMA("m16n8k16", "f16");
  }
  static UNSHARED_DEVICE void mma_bf16(float (&sum)[4], Left p, Right q) {
    UNSHARED_MMA("m16n8k16", "bf16");
  }
  static UNSHARED_DEVICE void mma_tf32(float (&sum)[4], Left p, Right q) {
    UNSHARED_MMA("m16n8k8", "tf32");
  }
#undef UNSHARED_MMA
  static UNSHARED_DEVICE std::uint32_t round_tf32(std::uint32_t v) {
    std::uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(std::bit_cast<float>(v)));
    return rounded & 0xffffe000u;  // PTX leaves the bits below undefined
  }
#endif

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
