#include "footprint.hpp"

#include <algorithm>
#include <cstdlib>
#include <numeric>

namespace unshared {
namespace {

// Is there a non-zero d with |d_i| < shape_i and sum d_i stride_i = 0? A search over the strides from
// the largest down; mostly none is needed, since each stride exceeds the reach of all smaller ones.
class SelfOverlap {
 public:
  explicit SelfOverlap(const Layout& layout) {
    for (int d = 0; d < layout.rank; ++d) {
      if (layout.shape[d] <= 1) continue;
      const Dim dim{std::abs(layout.stride[d]), layout.shape[d] - 1};
      int at = count_++;  // ascending by stride
      for (; at > 0 && dims_[at - 1].stride > dim.stride; --at) dims_[at] = dims_[at - 1];
      dims_[at] = dim;
    }
    std::int64_t reach = 0, divisor = 0;
    for (int d = 0; d < count_; ++d) {
      Dim& dim = dims_[d];
      easy_ = easy_ && dim.stride > reach;
      dim.reach_below = reach;
      dim.divisor_below = divisor;
      reach += dim.stride * dim.most;
      divisor = std::gcd(divisor, dim.stride);
    }
  }

  bool found() {
    if (easy_) return false;
    return dims_[0].stride == 0 || search(count_ - 1, 0, true);
  }

 private:
  struct Dim {
    std::int64_t stride = 0, most = 0, reach_below = 0, divisor_below = 0;
  };

  bool search(int d, std::int64_t sum, bool all_zero) {
    if (d < 0) return sum == 0 && !all_zero;
    const Dim& dim = dims_[d];
    // d and -d are one solution, so the first non-zero step is positive; start where the rest can
    // reach back to zero.
    std::int64_t step =
        all_zero ? 0 : std::max(-dim.most, (-dim.reach_below - sum) / dim.stride - 1);
    for (; step <= dim.most; ++step) {
      const std::int64_t next = sum + step * dim.stride;
      if (next > dim.reach_below) break;
      if (--budget_ < 0) return true;
      if (next < -dim.reach_below || (dim.divisor_below > 0 && next % dim.divisor_below != 0))
        continue;
      if (search(d - 1, next, all_zero && step == 0)) return true;
    }
    return false;
  }

  int count_ = 0;
  Dim dims_[max_dims];
  bool easy_ = true;
  std::int64_t budget_ = 1'000'000;
};

}  // namespace

bool overlaps_itself(const Layout& layout) { return SelfOverlap(layout).found(); }

Bytes bytes_of(const void* data, const Layout& layout, std::int64_t element_size) {
  std::int64_t low = 0, high = 0;
  for (int d = 0; d < layout.rank; ++d) {
    const std::int64_t reach = (layout.shape[d] - 1) * layout.stride[d];
    (reach < 0 ? low : high) += reach;
  }
  const auto base = reinterpret_cast<std::uintptr_t>(data);
  return {base + static_cast<std::uintptr_t>(low * element_size),
          base + static_cast<std::uintptr_t>((high + 1) * element_size)};
}

}  // namespace unshared
