// The result that the definition (cpp/reference.hpp) gives for a call.
#pragma once

#include "../cuda/device.hpp"

namespace unshared {

// One element of it.
template <class T>
void define(const Problem& problem, const Call& call, std::int64_t e) {
  const auto operands = cuda::operands_of<T>(call);
  if (call.face == Face::forward) reference::forward(problem, operands, e);
  if (call.face == Face::grad_input) reference::grad_input(problem, operands, e);
  if (call.face == Face::grad_weight) reference::grad_weight(problem, operands, e);
}

template <class T>
void define(const Problem& problem, const Call& call) {
  const std::int64_t elements = problem.layout(result_of(call.face)).elements();
  for (std::int64_t e = 0; e < elements; ++e) define<T>(problem, call, e);
}

}  // namespace unshared
