// Kernel "along", whose lanes run along an axis of places or groups: for few channels (depthwise, a
// scale for every pixel, one filter along a line), where lanes over channels would stay empty; and where
// they would take longer to fill than to use: weight gradients of few input channels, few samples of short
// chains. Complex elements stay as they lie in memory: products.hpp takes their parts apart.
//
// along_plan.hpp says which axis, and how cells are cut into blocks; along_block.hpp what a block
// sees; along_gather.hpp and along_weights.hpp compute one, along_planes.hpp one of several rows of
// cells (along_pile.hpp), on the tiles of along_tile.hpp.
#pragma once

#include "along_gather.hpp"
#include "along_planes.hpp"
#include "along_weights.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
using Along = std::conditional_t<face == Face::grad_weight, AlongWeights<T>, AlongGather<T, face>>;
template <class T, Face face>
using AlongPlanes =
    std::conditional_t<face == Face::grad_weight, PlanesWeights<T>, PlanesGather<T, face>>;

static_assert(sizeof(Along<float, Face::forward>) <= most_scratch &&
              sizeof(Along<double, Face::grad_input>) <= most_scratch &&
              sizeof(Along<Half, Face::grad_weight>) <= most_scratch &&
              sizeof(Along<Complex<float>, Face::forward>) <= most_scratch &&
              sizeof(Along<Complex<float>, Face::grad_weight>) <= most_scratch &&
              sizeof(AlongPlanes<float, Face::forward>) <= most_scratch &&
              sizeof(AlongPlanes<double, Face::grad_input>) <= most_scratch &&
              sizeof(AlongPlanes<Half, Face::grad_weight>) <= most_scratch);

}  // namespace
}  // namespace unshared

#endif
