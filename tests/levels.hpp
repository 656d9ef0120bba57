// The instruction sets whose kernels this machine can run, lowest first.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace unshared {

inline std::vector<const KernelTable*> levels() {
#if defined(__x86_64__)
  std::vector<const KernelTable*> all{&kernel_table_v2()};
  if (__builtin_cpu_supports("x86-64-v3")) all.push_back(&kernel_table_v3());
  if (__builtin_cpu_supports("x86-64-v4")) all.push_back(&kernel_table_v4());
  return all;
#elif defined(__aarch64__)
  return {&kernel_table_neon()};
#else
  return {&kernel_table_baseline()};
#endif
}

inline const Kernel* list_of(const KernelTable& level, DType dtype, Face face) {
  return level.list[static_cast<int>(dtype)][static_cast<int>(face)];
}

// Whether it takes the problem, or could.
inline bool can_run(const Kernel& kernel, const Problem& problem) {
  return kernel.declines(problem) == nullptr || (kernel.able != nullptr && kernel.able(problem));
}

}  // namespace unshared
