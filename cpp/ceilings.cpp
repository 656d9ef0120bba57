#include "ceilings.hpp"

#include <chrono>
#include <cstring>
#include <vector>

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
  const std::uint64_t* data;
  std::int64_t item;  // words of one item
};

volatile std::uint64_t sink;

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
  constexpr std::int64_t words = 256 * 1024 * 1024 / 8, item = 1024 * 1024 / 8;
  const std::vector<std::uint64_t> data(static_cast<std::size_t>(words), 1);
  const Sweep sweep{data.data(), item};
  const Body body = [](const void* context, Work& work) noexcept {
    const Sweep& s = *static_cast<const Sweep*>(context);
    std::uint64_t sum[8] = {};
    while (work.next())
      for (std::int64_t at = work.begin * s.item; at < work.end * s.item; at += 8)
        for (int j = 0; j < 8; ++j) sum[j] += s.data[at + j];
    for (std::uint64_t part : sum) sink = part;
  };
  double best = 0;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const auto start = Clock::now();
    parallel(words / item, 1, threads, body, &sweep);
    const double rate = static_cast<double>(words) * 8 / seconds_since(start);
    best = rate > best ? rate : best;
  }
  return best;
}

}  // namespace unshared
