// What this machine can do at most, measured: the denominators of every figure the benchmarks
// print.
#pragma once

#include "problem.hpp"

namespace unshared {

// Floating-point operations per second of independent multiply-adds that stay in registers, at the
// instruction set in use, in the type `dtype` is summed in (a half type in float32). Takes about 30
// ms.
UNSHARED_API double measure_flops(DType dtype, int threads);

// Bytes per second read from memory by `threads` workers from an array of 256 MiB, allocated for the
// occasion, in large pages where there are such: far larger than the caches, but for the last one of some
// servers. Takes some 0.3 s.
UNSHARED_API double measure_bandwidth(int threads);

}  // namespace unshared
