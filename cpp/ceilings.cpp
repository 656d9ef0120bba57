#include "ceilings.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.hpp"
#include "threads.hpp"

namespace unshared {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Spin {
  double (*multiply_add)(std::int64_t rounds) noexcept;
  double flops = 0;  // of one item
};

struct Sweep {
  void (*read)(const float* from, std::int64_t count) noexcept;
  const float* data;
  std::int64_t item;  // floats of one item
};

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], Free>;

// In large pages, if the system gives them to those who ask: NumPy asks for them, too.
Floats ones(std::int64_t count) {
  constexpr std::size_t large = 2 * 1024 * 1024;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  Floats all(static_cast<float*>(std::aligned_alloc(large, bytes)));
  if (!all) throw std::bad_alloc();
#if defined(__linux__)
  madvise(all.get(), bytes, MADV_HUGEPAGE);
#endif
  std::fill_n(all.get(), count, 1.0f);
  return all;
}

}  // namespace

double measure_flops(DType dtype, int threads) {
  constexpr std::int64_t rounds = 20000;
  Spin spin{kernel_table().multiply_add[static_cast<int>(dtype)]};
  spin.flops = spin.multiply_add(1) * rounds;
  const Body body = [](const void* context, Work& work) noexcept {
    const Spin& s = *static_cast<const Spin*>(context);
    while (work.next())
      for (std::int64_t i = work.begin; i < work.end; ++i) s.multiply_add(rounds);
  };
  double best = 0;
  for (int attempt = 0; attempt < 30;
       ++attempt) {  // the fastest: a ceiling, so a neighbour's noise has no place in it
    const auto start = Clock::now();
    parallel(threads, 1, threads, body, &spin);
    const double rate = spin.flops * threads / seconds_since(start);
    best = rate > best ? rate : best;
  }
  return best;
}

double measure_bandwidth(int threads) {
  constexpr std::int64_t count = 256 * 1024 * 1024 / sizeof(float),
                         item = 1024 * 1024 / sizeof(float);
  const Floats data = ones(count);
  const Sweep sweep{kernel_table().read, data.get(), item};
  const Body body = [](const void* context, Work& work) noexcept {
    const Sweep& s = *static_cast<const Sweep*>(context);
    while (work.next())
      for (std::int64_t i = work.begin; i < work.end; ++i) s.read(s.data + i * s.item, s.item);
  };
  double best = 0;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const auto start = Clock::now();
    parallel(count / item, 1, threads, body, &sweep);
    const double rate = static_cast<double>(count) * sizeof(float) / seconds_since(start);
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace unshared
