// How many blocks of every CUDA kernel fit on a multiprocessor, by the calculator that comes with
// CUDA (cuda_occupancy.h), for all launches of the case lists. Nothing runs: a Device writes down
// what would be launched. No GPU, no nvcc.
//
// Usage: cuda_occupancy CASES... and on standard input a line for each kernel and target:
//     <target> <registers> <bytes of static shared memory> <kernel>
// (check_cuda_objects.py). On the H200 as many blocks must fit as the kernel promises the compiler
// (blocks_per_processor); on other GPUs every launch must be possible.
#include <cuda_occupancy.h>
#include <cxxabi.h>

#include <cstdio>
#include <iostream>
#include <map>
#include <typeinfo>

#include "../cuda/kernels.hpp"
#include "cases.hpp"

using namespace unshared;

namespace {

struct Launch {
  int threads, promised;
  std::int64_t shared_bytes;
  std::string problem;  // the first with that much shared memory
};
std::map<std::string, Launch> launches;  // the one with the most shared memory of each kernel
std::string problem_now;

std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string found = status == 0 ? text : name;
  std::free(text);
  return found;
}

struct Recorder {
  static constexpr std::int64_t processors = 132;
  template <class K>
  static void launch(const K&, std::int64_t, std::int64_t shared_bytes, const Call&) noexcept {
    const Launch launch{K::threads, K::blocks_per_processor, shared_bytes, problem_now};
    const auto [at, fresh] = launches.emplace(demangled(typeid(K).name()), launch);
    if (!fresh && at->second.shared_bytes < shared_bytes) at->second = launch;
  }
};

// Addresses that no kernel follows: of no machine's memory, aligned as allocations are.
void* address(std::uintptr_t n) { return reinterpret_cast<void*>(n << 32); }

void record(const KernelTable& table, const Problem& problem) {
  for (int d = 0; d < dtype_count; ++d)
    for (Face face : {Face::forward, Face::grad_input, Face::grad_weight}) {
      Call call{face, static_cast<DType>(d), Place::cuda};
      call.first = address(1);
      call.second = address(2);
      call.result = address(3);
      const Kernel* kernel = table.list[d][static_cast<int>(face)];
      for (; kernel->name != nullptr; ++kernel)
        if (kernel->able ? kernel->able(problem) : kernel->declines(problem) == nullptr)
          kernel->run(problem, call);
    }
}

struct Gpu {
  const char* name;
  int target;  // whose machine code it runs
  int major, minor, threads, shared_kib, optin_kib, reserved;
};
constexpr Gpu gpus[] = {{"T4", 75, 7, 5, 1024, 64, 64, 0},
                        {"A100", 80, 8, 0, 2048, 164, 163, 1024},
                        {"RTX 3090", 80, 8, 6, 1536, 100, 99, 1024},
                        {"L40", 80, 8, 9, 1536, 100, 99, 1024},
                        {"H200", 90, 9, 0, 2048, 228, 227, 1024}};

int blocks_that_fit(const Gpu& gpu, const Launch& launch, int registers, int static_shared) {
  cudaOccDeviceProp properties;
  properties.computeMajor = gpu.major;
  properties.computeMinor = gpu.minor;
  properties.maxThreadsPerBlock = 1024;
  properties.maxThreadsPerMultiprocessor = gpu.threads;
  properties.regsPerBlock = properties.regsPerMultiprocessor = 65536;
  properties.warpSize = 32;
  properties.sharedMemPerBlock = 48 << 10;
  properties.sharedMemPerMultiprocessor = static_cast<std::size_t>(gpu.shared_kib) << 10;
  properties.numSms = 1;
  properties.sharedMemPerBlockOptin = static_cast<std::size_t>(gpu.optin_kib) << 10;
  properties.reservedSharedMemPerBlock = static_cast<std::size_t>(gpu.reserved);
  cudaOccFuncAttributes attributes;
  attributes.maxThreadsPerBlock = launch.threads;
  attributes.numRegs = registers;
  attributes.sharedSizeBytes = static_cast<std::size_t>(static_shared);
  attributes.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  attributes.maxDynamicSharedSizeBytes = static_cast<std::size_t>(launch.shared_bytes);
  attributes.numBlockBarriers = 1;
  const cudaOccDeviceState state;
  cudaOccResult result;
  const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
      &result, &properties, &attributes, &state, launch.threads,
      static_cast<std::size_t>(launch.shared_bytes));
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : 0;
}

}  // namespace

int main(int argc, char** argv) {
  KernelTable table{"recorded", {}, {}};
  cuda::fill<Recorder, Face::forward>(table);
  cuda::fill<Recorder, Face::grad_input>(table);
  cuda::fill<Recorder, Face::grad_weight>(table);
  for (int i = 1; i < argc; ++i)
    for (const std::string& line : cases_of(argv[i])) {
      problem_now = line;
      record(table, parse_problem(line));
    }

  int failures = 0, compared = 0;
  std::map<std::string, bool> compiled;
  int target, registers, static_shared;
  for (std::string name; std::cin >> target >> registers >> static_shared &&
                         std::getline(std::cin >> std::ws, name);) {
    const auto found = launches.find(name);
    compiled[name] = found != launches.end();
    if (found == launches.end()) continue;
    const Launch& launch = found->second;
    for (const Gpu& gpu : gpus) {
      if (gpu.target != target) continue;
      const int fit = blocks_that_fit(gpu, launch, registers, static_shared);
      const int needed = std::string(gpu.name) == "H200" ? launch.promised : 1;
      ++compared;
      if (fit >= needed) continue;
      ++failures;
      std::printf(
          "occupancy: %d of %d blocks of %s fit on a multiprocessor of the %s (%d threads, "
          "%d registers, %lld bytes of shared memory, e.g. for %s)\n",
          fit, needed, name.c_str(), gpu.name, launch.threads, registers,
          static_cast<long long>(launch.shared_bytes), launch.problem.c_str());
    }
  }
  for (const auto& [name, launched] : compiled)
    if (!launched) std::printf("note: no case launches %s\n", name.c_str());
  for (const auto& [name, launch] : launches)
    if (!compiled.contains(name)) {
      ++failures;
      std::printf("occupancy: %s is launched, but no object holds it\n", name.c_str());
    }
  std::printf("occupancy: %d figures of %zu kernels compared\n", compared, launches.size());
  return failures == 0 && compared > 0 ? 0 : 1;
}
