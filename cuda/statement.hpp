// The product of any face.
#pragma once

#include "forward.hpp"
#include "grad_input.hpp"
#include "grad_weight.hpp"

namespace unshared::cuda {

inline Product product_of(const Problem& problem, Face face) {
  switch (face) {
    case Face::forward: return forward_product(problem);
    case Face::grad_input: return grad_input_product(problem);
    case Face::grad_weight: break;
  }
  return grad_weight_product(problem);
}

}  // namespace unshared::cuda
