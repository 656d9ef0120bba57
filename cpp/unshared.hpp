// The public door of the C++ library: describe a problem (problem.hpp), name the pointers, run.
//
// Contract: inputs are never written; everything is checked before the first write; nothing is
// allocated after it; nothing is copied between devices or synchronised; an empty problem returns
// at once with its result defined.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "problem.hpp"

namespace unshared {

enum class Place { cpu, cuda };

// The arithmetic of a call. `ieee` is the canonical chain, the same bits everywhere. The others are
// opt-ins on CUDA to tensor cores, whose order and rounding are the hardware's own: of float32
// inputs rounded to TF32 (tf32), of three such products per product (tf32x3: an infinite operand
// gives NaN), and of half types as they are (fast). A sample's results do not depend on its batch,
// and `accumulate` adds the finished sum. Where no such kernel takes a problem, IEEE arithmetic is
// used: other dtypes, kernels of more than 512 taps, products with fewer than 8 rows, columns or
// steps (cuda/mma.hpp). Error, with u = 2^-24, K terms and S the sum of their magnitudes:
// fast (128 + K/64) u S; tf32 2^-10 S + (64 + K/32) u S; tf32x3 (108 + K/16) u S; to first order,
// and the rounding of a half result. On a GPU without them (before compute capability 8.0) a call
// that chose such a kernel throws Error.
enum class Precision { ieee, tf32, tf32x3, fast };

// The pointers and the manner of one call. `first` and `second` are the operands in the order users
// type them: forward (x, w) -> y, grad_input (dy, w) -> dx, grad_weight (x, dy) -> dw. Each points
// at the element of index zero.
struct Call {
  Face face = Face::forward;
  DType dtype = DType::float32;
  Place place = Place::cpu;
  const void* first = nullptr;
  const void* second = nullptr;
  void* result = nullptr;
  bool accumulate = false;  // start every chain from what `result` holds instead of from zero
  bool conjugate_first = false, conjugate_second = false;
  int threads = 0;  // of the CPU; 0: as many as this process may use
  Precision precision = Precision::ieee;
  int device = -1;  // of CUDA; -1: the current one
  void* stream = nullptr;  // of CUDA: a cudaStream_t of that device
};

// Computes one face. Throws Error, before anything is written, if the call cannot be done as
// stated.
UNSHARED_API void run(const Problem& problem, const Call& call);

// Which kernel would run, and why those ahead of it in the list declined.
struct Explanation {
  std::string kernel, level;
  std::vector<std::pair<std::string, std::string>> declined;  // name, reason
  // Seconds that CUDA's IEEE kernel should take on an H200, by the model that chose it; else 0.
  double predicted_seconds = 0;
};
// Tells of CUDA on any machine, with or without a GPU.
UNSHARED_API Explanation explain(const Problem& problem, Face face, DType dtype,
                                 Place place = Place::cpu, Precision precision = Precision::ieee);

// Throws the Error that run() would for every call on that place: a build without CUDA, say.
UNSHARED_API void check_place(Face face, Place place);

struct BuildInfo {
  std::string version;
  std::vector<std::string> levels_built, levels_usable;
  std::string level;  // in use (UNSHARED_ISA caps it)
  bool openmp = false, cuda_built = false;
  int threads = 1;  // default number
};
UNSHARED_API BuildInfo build_info();

// Whether there is a GPU for the kernels of this build. Wakes CUDA's driver, which nothing else does
// before the first call on that place: a process may still fork.
UNSHARED_API bool cuda_available();

}  // namespace unshared
