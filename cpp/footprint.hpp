// Which memory an array touches: within itself, and beside others.
#pragma once

#include "problem.hpp"

namespace unshared {

// True if two different indices reach one element. Exact, except that a search that gets too long
// counts as "yes"; the strides must be such that offsets fit in 64 bits.
bool overlaps_itself(const Layout& layout);

// The bytes [low, high) that an array with at least one element touches.
struct Bytes {
  std::uintptr_t low, high;
};
Bytes bytes_of(const void* data, const Layout& layout, std::int64_t element_size);

}  // namespace unshared
