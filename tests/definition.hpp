// The result that the definition (cpp/reference.hpp) gives for a call, for tests of CUDA's kernels.
#pragma once

#include "../cuda/device.hpp"

namespace unshared {

template <class T>
void define(const Problem& problem, const Call& call) {
  const auto operands = cuda::operands_of<T>(call);
  const std::int64_t elements = problem.layout(result_of(call.face)).elements();
  for (std::int64_t e = 0; e < elements; ++e) {
    if (call.face == Face::forward) reference::forward(problem, operands, e);
    if (call.face == Face::grad_input) reference::grad_input(problem, operands, e);
    if (call.face == Face::grad_weight) reference::grad_weight(problem, operands, e);
  }
}

}  // namespace unshared
