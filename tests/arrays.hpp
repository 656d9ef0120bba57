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
    size_ = cells_.size() * sizeof(T);
  }
  T* data() { return reinterpret_cast<T*>(bytes() + shift_) + zero_; }
  Cells<T>& cells() { return cells_; }

  // Numbers of both signs and many magnitudes, the same on every platform: no library function
  // takes part. They repeat after many, at no distance that a layout has.
  void fill(std::mt19937_64& random) {
    using Real = typename Scalar<T>::Real;
    const auto draw = [&] {
      const auto mantissa =
          static_cast<double>(static_cast<std::int64_t>(random()) >> 11) * 0x1p-52;
      return static_cast<Real>(std::ldexp(mantissa, static_cast<int>(random() % 8) - 4));
    };
    constexpr std::size_t period = 65537;
    for (std::size_t j = 0; j < cells_.size(); ++j) {
      if (j >= period) {
        cells_[j] = cells_[j - period];
        continue;
      }
      const Real one = draw(), two = draw();
      if constexpr (Scalar<T>::parts == 2)
        cells_[j] = {one, two};
      else
        cells_[j] = round_to<T>(one);
    }
  }
  // Bytes that are a NaN, margins included.
  void fill_with_nan() { std::memset(bytes(), 0xff, size_); }
  // The same array, margins included, that many real numbers further on in memory: an array may
  // begin anywhere, and complex numbers at odd multiples of their halves.
  Array moved(int reals) const {
    Array to = *this;
    to.shift_ = static_cast<std::size_t>(reals) * sizeof(typename Scalar<T>::Real);
    to.cells_.resize(cells_.size() + (to.shift_ + sizeof(T) - 1) / sizeof(T));
    std::memcpy(to.bytes() + to.shift_, cells_.data(), size_);
    return to;
  }
  bool same_bits(const Array& other) const {
    return std::memcmp(bytes() + shift_, other.bytes() + other.shift_, size_) == 0;
  }

 private:
  std::byte* bytes() { return reinterpret_cast<std::byte*>(cells_.data()); }
  const std::byte* bytes() const { return reinterpret_cast<const std::byte*>(cells_.data()); }

  Cells<T> cells_;
  std::int64_t zero_ = 0;
  std::size_t size_ = 0, shift_ = 0;  // bytes
};

}  // namespace unshared
