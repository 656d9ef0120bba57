// What a backend hands to dispatch.cpp: for every dtype and face an ordered list of kernels. A
// kernel inspects the Problem and accepts, or declines with a reason; the strided reference ends
// every list and never declines.
#pragma once

#include <vector>

#include "unshared.hpp"

namespace unshared {

struct Kernel {
  const char* name;
  const char* (*declines)(const Problem&) noexcept;  // nullptr: it accepts; otherwise why not
  void (*run)(const Problem&, const Call&) noexcept;
  Precision precision = Precision::ieee;  // other than ieee: only for calls that ask for it
  // Whether it could, even where it declines because another is faster; nullptr: it declines only
  // what it cannot do. For tests: they run every kernel on all it can do.
  bool (*able)(const Problem&) noexcept = nullptr;
  int architecture = 0;  // of a CUDA device, at least, as 10 * major + minor
};

inline constexpr int kernels_per_list = 8;

struct KernelTable {
  const char* level;  // the instruction set these kernels were compiled for
  Kernel list[dtype_count][face_count]
             [kernels_per_list];  // ends at the first kernel without a name
  // For ceilings.hpp: of every dtype, returns the operations done; floats of aligned lines.
  double (*multiply_add[dtype_count])(std::int64_t rounds) noexcept;
  void (*read)(const float* from, std::int64_t count) noexcept = nullptr;
};

// The table of the instruction set in use.
const KernelTable& kernel_table();

// Of every instruction set that was compiled and this machine can run, lowest first.
std::vector<const KernelTable*> usable_kernel_tables();

// The CUDA backend (cuda/). A build without CUDA has the table, too, so that it can be explained;
// its kernels do nothing and are never run.
bool cuda_built() noexcept;
struct CudaState {
  bool available;
  const char* sentence;  // why not, if not
};
CudaState cuda_state() noexcept;  // wakes the driver
const KernelTable& cuda_table() noexcept;
// What the model that chooses among its IEEE kernels expects (cuda/choice.hpp); 0: no result.
double cuda_predicted_seconds(const Problem& problem, Face face, DType dtype) noexcept;
// Runs a kernel of the table on the call's device and stream. Throws Error if it was not launched.
void cuda_run(const Kernel& kernel, const Problem& problem, const Call& call);

}  // namespace unshared
