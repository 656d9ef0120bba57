// What kernels are written against. A kernel is a value: a struct of parameters with a body,
//
//     struct SomeKernel {
//       static constexpr int threads = 128;           // of one block
//       static constexpr int blocks_per_processor = 4;  // that must fit at least (registers)
//       ...                                           // parameters: passed by value
//       template <class Thread> UNSHARED_DEVICE void operator()(Thread& t) const;
//     };
//
// and its body asks nothing of the machine but through `t`, its thread. thread.hpp has the Thread of
// CUDA; tests/emulator/ has one that runs the same text on a CPU and checks every access. Both have
// these members:
//
//     int index()                                 0 .. threads-1 within the block
//     int64 block(), int64 blocks()               which block of how many
//     std::byte* shared()                         the block's shared memory, aligned to 128 bytes
//     void sync()                                 a barrier of the block; all its threads arrive
//     void sync_warp()                            of the 32 threads of a warp
//     V    shuffle(V v, int lane)                 the v of that lane of the warp; all take part
//     V    load(const V* p)                       from global memory that nobody writes meanwhile
//     V    load_once(const V* p)                  the same for data no other block reads: a weight
//     void store(V* p, V v)                       to global memory
//     V    load_shared(const V* p)                shared memory
//     void store_shared(V* p, V v)
//     void copy<bytes>(void* shared, const void* global)    begin an asynchronous copy: 4, 8 or 16
//     void commit()                               bytes; close a group of copies begun so far;
//     void wait<pending>()                        wait for all but the latest `pending` groups
//                                                 (of this thread: others see them after a sync())
//
// and, for kernels that name the architecture they need (static constexpr int architecture = 80, say),
// what tensor cores do, a warp at a time; g = lane / 4, t = lane % 4:
//
//     void load_matrices<transposed>(const void* row, uint32 (&to)[2 or 4])
//         ldmatrix: of 8 x 8 matrices of 16-bit elements in shared memory, lane l names row l % 8 of
//         matrix l / 8 (16 bytes, aligned); to[j] is elements 2t, 2t+1 of row g of matrix j, or,
//         transposed, of column g
//     void mma_f16(float (&sum)[4], const uint32 (&p)[4], const uint32 (&q)[2]), mma_bf16, mma_tf32
//         sum[16 x 8] += p[16 x K] * q[K x 8], K = 16 halves or 8 TF32 numbers:
//         sum: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
//         p, in words of 4 bytes: (g, t), (g+8, t), (g, t+4), (g+8, t+4), q: (t, g), (t+4, g);
//         a word holds one TF32 number, or the halves of steps 2w and 2w+1, lower half first
//     uint32 round_tf32(uint32 v)     the bits of a float rounded to TF32, nearest, ties away from 0
//
// V is a scalar or a Pack of at most 16 bytes; addresses are multiples of its size. A result that a
// call accumulates onto is read with `load_result(const V* p)`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cpp/kernels.hpp"
#include "../cpp/reference.hpp"

#if defined(__CUDACC__)
#define UNSHARED_DEVICE __device__ __forceinline__
#else
#define UNSHARED_DEVICE inline
#endif

// Before a loop of a kernel: unrolled that many times on a device. (Loops of constant length over
// registers are unrolled anyway.)
#if defined(__CUDA_ARCH__)
#define UNSHARED_PRAGMA(text) _Pragma(#text)
#define UNSHARED_UNROLL(n) UNSHARED_PRAGMA(unroll n)
#else
#define UNSHARED_UNROLL(n)
#endif

namespace unshared::cuda {

// n values that move together.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T at[n];
};

inline constexpr std::int64_t max_blocks = 2147483647;  // of a grid

template <class T>
reference::Operands<T> operands_of(const Call& call) {
  return {static_cast<const T*>(call.first),
          static_cast<const T*>(call.second),
          static_cast<T*>(call.result),
          call.accumulate,
          call.conjugate_first,
          call.conjugate_second};
}

}  // namespace unshared::cuda
