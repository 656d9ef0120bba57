// The choice among the IEEE kernels of CUDA: a small model of the time each would take. It looks at
// the Problem alone - not at a device, so that explain() says the same everywhere, and not at
// pointers. Its numbers are those of an H200; choice.cpp has them and their sources.
#pragma once

#include "../cpp/problem.hpp"
#include "shapes.hpp"

namespace unshared::cuda {

enum class Family { tile, stream, lanes, reference };  // the kernels' names
inline constexpr int family_count = 4;

struct Prediction {
  double microseconds[family_count];
  TileKind tile, stream;  // the shapes these two would use
  Family best;
  double of(Family family) const { return microseconds[static_cast<int>(family)]; }
};

Prediction predict(const Problem& problem, Face face, DType dtype) noexcept;

}  // namespace unshared::cuda
