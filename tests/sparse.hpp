// Arrays whose elements lie far apart, in memory of which only what is touched is there.
#pragma once

#include <vector>

#include "emulator/pages.hpp"
#include "footprint.hpp"

namespace unshared {

class Sparse {
 public:
  explicit Sparse(const Layout& layout)
      : layout_(layout),
        extent_(bytes_of(nullptr, layout, sizeof(float))),
        memory_(static_cast<std::size_t>(extent_.high - extent_.low)) {}

  float* data() {
    return reinterpret_cast<float*>(memory_.data() - static_cast<std::ptrdiff_t>(extent_.low));
  }
  void fill() {
    std::size_t e = 0;
    for (float* at : elements()) {
      *at = 1 + static_cast<float>(e * e % 61) / 7;  // neighbours along any dimension differ
      ++e;
    }
  }
  std::vector<float> values() {
    std::vector<float> all;
    for (const float* at : elements()) all.push_back(*at);
    return all;
  }

 private:
  // In row-major order.
  std::vector<float*> elements() {
    std::vector<float*> all{data()};
    for (int d = 0; d < layout_.rank; ++d) {
      std::vector<float*> next;
      for (float* at : all)
        for (std::int64_t i = 0; i < layout_.shape[d]; ++i)
          next.push_back(at + i * layout_.stride[d]);
      all = next;
    }
    return all;
  }

  Layout layout_;
  Bytes extent_;
  emulator::Pages memory_;
};

}  // namespace unshared
