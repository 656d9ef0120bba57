// What a GPU can do at most, measured: the denominators of bench/gpu.py, which compiles this file
// with nvcc as a library of one function. Nothing here is part of unshared.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int threads = 256;
constexpr std::int64_t large = std::int64_t{1} << 30;  // bytes: many times the last cache

// ---- memory ----

__global__ void read_kernel(const float4* from, std::int64_t count, int passes, float* never) {
  float4 sum[4] = {};
  const std::int64_t step = std::int64_t{gridDim.x} * threads;
  for (int pass = 0; pass < passes; ++pass)
    for (std::int64_t at = blockIdx.x * threads + threadIdx.x; at < count; at += 4 * step) {
      float4 value[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) value[j] = __ldcg(from + min(at + j * step, count - 1));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[j].x += value[j].x;
        sum[j].y += value[j].y;
        sum[j].z += value[j].z;
        sum[j].w += value[j].w;
      }
    }
  float all = 0;
  for (const float4& s : sum) all += s.x + s.y + s.z + s.w;
  if (all == 12345.678f) *never = all;
}

__global__ void write_kernel(float4* to, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * threads;
  for (std::int64_t at = blockIdx.x * threads + threadIdx.x; at < count; at += step)
    to[at] = float4{1, 2, 3, 4};
}

__global__ void copy_kernel(const float4* from, float4* to, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * threads;
  for (std::int64_t at = blockIdx.x * threads + threadIdx.x; at < count; at += 4 * step) {
    float4 value[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (at + j * step < count) value[j] = __ldcs(from + at + j * step);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (at + j * step < count) __stcs(to + at + j * step, value[j]);
  }
}

// ---- arithmetic: chains that never leave the registers ----

constexpr int chains = 16, rounds = 4096;

template <class Real>
__global__ void fma_kernel(Real p, Real q, Real* never) {
  Real sum[chains];
  for (int c = 0; c < chains; ++c) sum[c] = static_cast<Real>(threadIdx.x + c);
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int c = 0; c < chains; ++c) sum[c] = fma(sum[c], p, q);
  Real all = 0;
  for (const Real s : sum) all += s;
  if (all == static_cast<Real>(12345.678)) *never = all;
}

constexpr int tiles = 8;  // of accumulators, for each warp

template <bool half>
__global__ void mma_kernel(unsigned bits, float* never) {
  float sum[tiles][4] = {};
  for (int r = 0; r < rounds; ++r)
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      float (&c)[4] = sum[t];
      if constexpr (half)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, "
            "{%4,%4}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(bits));
      else
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, "
            "{%4,%4}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(bits));
    }
  float all = 0;
  for (const auto& s : sum) all += s[0] + s[1] + s[2] + s[3];
  if (all == 12345.678f) *never = all;
}

__global__ void empty_kernel() {}

// ---- the clock ----

struct Clock {
  cudaStream_t stream = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;

  Clock() {
    cudaStreamCreate(&stream);
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
  }
  ~Clock() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaStreamDestroy(stream);
  }
  // Seconds of the fastest of ten runs: a ceiling, so nobody's noise has a place in it.
  template <class Run>
  double fastest(Run run) {
    float best = 1e30f;
    for (int attempt = 0; attempt < 10; ++attempt) {
      cudaEventRecord(begin, stream);
      run();
      cudaEventRecord(end, stream);
      cudaEventSynchronize(end);
      float now = 0;
      cudaEventElapsedTime(&now, begin, end);
      if (now < best) best = now;
    }
    return best / 1e3;
  }
};

// Seconds from one empty kernel's begin to the next one's, in a graph or queued one by one.
double spacing(Clock& clock, bool in_graph) {
  constexpr int count = 1000;
  const auto queue = [&] {
    for (int i = 0; i < count; ++i) empty_kernel<<<1, 32, 0, clock.stream>>>();
  };
  if (!in_graph) return clock.fastest(queue) / count;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cudaStreamBeginCapture(clock.stream, cudaStreamCaptureModeThreadLocal);
  queue();
  cudaStreamEndCapture(clock.stream, &graph);
  cudaGraphInstantiate(&ready, graph, 0);
  const double seconds = clock.fastest([&] { cudaGraphLaunch(ready, clock.stream); }) / count;
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  return seconds;
}

}  // namespace

// Byte/s (read, write, copy: both ways; l2: read), operation/s (float32, float64, tf32, bf16) or
// seconds (graph, stream). An error of CUDA is returned, as its number; -1: no such ceiling.
extern "C" int measure(const char* what, double* found) {
  const auto is = [&](const char* name) { return std::strcmp(what, name) == 0; };
  int device = 0, processors = 0, cache = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
  const int blocks = processors * 8;
  float4 *from = nullptr, *to = nullptr;
  cudaMalloc(&from, large);
  cudaMalloc(&to, large);
  if (cudaGetLastError() != cudaSuccess) return cudaErrorMemoryAllocation;
  cudaMemset(from, 0, large);
  auto* const never = reinterpret_cast<float*>(to);
  constexpr std::int64_t count = large / sizeof(float4);
  int status = 0;
  {
    Clock clock;
    const cudaStream_t stream = clock.stream;
    const double warps = static_cast<double>(blocks) * threads / 32;
    const double work = warps * rounds;
    if (is("read")) {
      *found = large / clock.fastest([&] {
        read_kernel<<<blocks, threads, 0, stream>>>(from, count, 1, never);
      });
    } else if (is("write")) {
      *found =
          large / clock.fastest([&] { write_kernel<<<blocks, threads, 0, stream>>>(to, count); });
    } else if (is("copy")) {
      *found = 2 * large /
               clock.fastest([&] { copy_kernel<<<blocks, threads, 0, stream>>>(from, to, count); });
    } else if (is("l2")) {
      constexpr int passes = 40;
      const std::int64_t part = cache / 3 / static_cast<int>(sizeof(float4));
      *found = static_cast<double>(part * passes) * sizeof(float4) / clock.fastest([&] {
        read_kernel<<<blocks, threads, 0, stream>>>(from, part, passes, never);
      });
    } else if (is("float32")) {
      *found = work * 32 * chains * 2 / clock.fastest([&] {
        fma_kernel<float><<<blocks, threads, 0, stream>>>(0.999f, 0.001f, never);
      });
    } else if (is("float64")) {
      *found = work * 32 * chains * 2 / clock.fastest([&] {
        fma_kernel<double>
            <<<blocks, threads, 0, stream>>>(0.999, 0.001, reinterpret_cast<double*>(never));
      });
    } else if (is("tf32")) {
      *found = work * tiles * (2 * 16 * 8 * 8) / clock.fastest([&] {
        mma_kernel<false><<<blocks, threads, 0, stream>>>(0x3f000000u, never);
      });
    } else if (is("bf16")) {
      *found = work * tiles * (2 * 16 * 8 * 16) / clock.fastest([&] {
        mma_kernel<true><<<blocks, threads, 0, stream>>>(0x3f003f00u, never);
      });
    } else if (is("graph") || is("stream")) {
      *found = spacing(clock, is("graph"));
    } else {
      status = -1;
    }
    cudaDeviceSynchronize();
  }
  cudaFree(from);
  cudaFree(to);
  const cudaError_t error = cudaGetLastError();
  return error != cudaSuccess ? static_cast<int>(error) : status;
}
