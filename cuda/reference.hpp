// Kernel "reference": the definition (cpp/reference.hpp) as it stands, a thread per result element.
// Any strides, any dtype, every option.
// Accumulator, order and determinism: those of the definition.
#pragma once

#include "../cpp/reference.hpp"
#include "device.hpp"

namespace unshared::cuda {

template <class T, Face face>
struct ReferenceKernel {
  static constexpr int threads = 256;
  static constexpr int blocks_per_processor = 4;

  Problem problem;
  reference::Operands<T> operands;
  std::int64_t elements;  // of the result

  template <class Thread>
  UNSHARED_DEVICE void operator()(Thread& t) const {
    for (std::int64_t e = t.block() * threads + t.index(); e < elements;
         e += t.blocks() * threads) {
      if constexpr (face == Face::forward) reference::forward(problem, operands, e);
      if constexpr (face == Face::grad_input) reference::grad_input(problem, operands, e);
      if constexpr (face == Face::grad_weight) reference::grad_weight(problem, operands, e);
    }
  }
};

template <class Device, class T, Face face>
void run_reference(const Problem& problem, const Call& call) noexcept {
  using Kernel = ReferenceKernel<T, face>;
  const Kernel kernel{problem, operands_of<T>(call), problem.layout(result_of(face)).elements()};
  const std::int64_t blocks = (kernel.elements + Kernel::threads - 1) / Kernel::threads;
  Device::launch(kernel, blocks < max_blocks ? blocks : max_blocks, 0, call);
}

}  // namespace unshared::cuda
