// The kernels of every instruction set that this machine can run, lowest first.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace unshared {

inline const std::vector<const KernelTable*>& levels() {
  static const std::vector<const KernelTable*> all = usable_kernel_tables();
  return all;
}

inline const Kernel* list_of(const KernelTable& level, DType dtype, Face face) {
  return level.list[static_cast<int>(dtype)][static_cast<int>(face)];
}

// Whether it takes the problem, or could.
inline bool can_run(const Kernel& kernel, const Problem& problem) {
  return kernel.declines(problem) == nullptr || (kernel.able != nullptr && kernel.able(problem));
}

}  // namespace unshared
