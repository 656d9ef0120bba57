// Arrays of random numbers for the C++ tests, with margins that must stay as they are.
#pragma once

#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#include "scalar.hpp"

namespace unshared {

inline constexpr std::int64_t margin = 64;  // elements on either side that must stay as they are

// Memory that begins where a GPU's would: at a whole line of a cache.
template <class T>
struct Lines {
  using value_type = T;
  static constexpr std::align_val_t line{128};
  Lines() = default;
  template <class U>
  Lines(const Lines<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, line); }
  bool operator==(const Lines&) const = default;
};
template <class T>
using Cells = std::vector<T, Lines<T>>;

// An array with room for the layout's elements and margins; data() points at the element of index
// zero.
template <class T>
class Array {
 public:
  explicit Array(const Layout& layout) {
    std::int64_t low = 0, high = 0;
    for (int d = 0; d < layout.rank; ++d) {
      const std::int64_t reach = (layout.shape[d] - 1) * layout.stride[d];
      if (layout.shape[d] > 0) (reach < 0 ? low : high) += reach;
    }
    zero_ = margin - low;
    cells_.resize(static_cast<std::size_t>(high - low + 1 + 2 * margin));
  }
  T* data() { return cells_.data() + zero_; }
  Cells<T>& cells() { return cells_; }

  // Numbers of both signs and many magnitudes, the same on every platform: no library function
  // takes part.
  void fill(std::mt19937_64& random) {
    using Real = typename Scalar<T>::Real;
    const auto draw = [&] {
      const auto mantissa =
          static_cast<double>(static_cast<std::int64_t>(random()) >> 11) * 0x1p-52;
      return static_cast<Real>(std::ldexp(mantissa, static_cast<int>(random() % 8) - 4));
    };
    for (T& cell : cells_) {
      const Real one = draw(), two = draw();
      if constexpr (Scalar<T>::parts == 2)
        cell = {one, two};
      else
        cell = round_to<T>(one);
    }
  }
  // Bytes that are a NaN, margins included.
  void fill_with_nan() {
    std::memset(static_cast<void*>(cells_.data()), 0xff, cells_.size() * sizeof(T));
  }
  bool same_bits(const Array& other) const {
    return std::memcmp(cells_.data(), other.cells_.data(), cells_.size() * sizeof(T)) == 0;
  }

 private:
  Cells<T> cells_;
  std::int64_t zero_ = 0;
};

}  // namespace unshared
