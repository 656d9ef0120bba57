// The emulator (emulator/) has teeth: small kernels that each break one rule of cuda/device.hpp, and
// what it says of them; kernels that keep the rules in every way it must not mistake for a breach;
// and its counts of accesses whose cost is known.
#include <doctest/doctest.h>

#include <array>
#include <string>

#include "arrays.hpp"
#include "emulator/thread.hpp"

using namespace unshared;
using emulator::Counters;
using emulator::Order;
using emulator::Watch;

namespace {

constexpr int warp = emulator::Block::warp;

// A kernel of the test: any function of a thread.
template <class Body, int threads_>
struct Kernel {
  static constexpr int threads = threads_;
  static constexpr int blocks_per_processor = 1;
  Body body;
  template <class Thread>
  void operator()(Thread& t) const {
    body(t);
  }
};

// Two operands of `size` floats and a result as long: y[o] = x[o] * w[o].
template <int threads>
class Bench {
 public:
  explicit Bench(std::int64_t size, bool accumulate = false)
      : x(make(size)),
        w(make(size)),
        y(make(size)),
        problem_(parse_problem("n1 a1>b1 i" + std::to_string(size) + " k1")) {
    call_.first = x.data();
    call_.second = w.data();
    call_.result = y.data();
    call_.accumulate = accumulate;
  }

  // What the emulator says of a kernel in an order of turns.
  template <class Body>
  std::string says(Order order, std::int64_t blocks, std::int64_t shared, Body body) {
    Watch watch(problem_, call_, order, Watch::Counting::on);
    emulator::Emulator::launch(Kernel<Body, threads>{body}, blocks, shared, call_);
    counters = watch.counters();
    return watch.failure();
  }
  // In all orders: must be one and the same verdict.
  template <class Body>
  bool rejects(const std::string& reason, std::int64_t shared, Body body) {
    bool all = true;
    for (const Order order : emulator::orders) {
      const std::string verdict = says(order, 1, shared, body);
      const bool found = verdict.find(reason) != std::string::npos;
      if (!found) MESSAGE("expected: " << reason << "; found: " << verdict);
      all = all && found;
    }
    return all;
  }
  template <class Body>
  bool accepts(std::int64_t shared, Body body) {
    bool all = true;
    for (const Order order : emulator::orders) {
      const std::string verdict = says(order, 1, shared, body);
      if (!verdict.empty()) MESSAGE(verdict);
      all = all && verdict.empty();
    }
    return all;
  }

  Cells<float> x, w, y;
  Counters counters;

 private:
  static Cells<float> make(std::int64_t size) {
    Cells<float> cells(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < cells.size(); ++i) cells[i] = static_cast<float>(i);
    return cells;
  }
  Problem problem_;
  Call call_;
};

float* floats(std::byte* at) { return reinterpret_cast<float*>(at); }

}  // namespace

TEST_CASE("a kernel that keeps the rules is accepted, and computes") {
  Bench<64> bench(64);
  const float *x = bench.x.data(), *w = bench.w.data();
  float* y = bench.y.data();
  // The warps turn their values round, each lane takes its neighbour's, and a copy brings in w.
  CHECK(bench.accepts(512, [=](auto& t) {
    float* in = floats(t.shared());
    float* other = in + 64;
    const int i = t.index();
    t.template copy<4>(other + i, w + i);
    t.commit();
    t.store_shared(in + i, t.load(x + i));
    t.sync_warp();
    const float turned = t.load_shared(in + i / warp * warp + (warp - 1 - i % warp));
    t.template wait<0>();
    t.sync();
    const float neighbour = t.shuffle(turned, (i + 1) % warp);
    t.store_shared(in + i, t.load_shared(other + 63 - i));
    t.sync();
    t.store(y + i, neighbour + t.load_shared(in + (i + 40) % 64));
  }));
  for (int i = 0; i < 64; ++i) {
    const int lane = (i + 1) % warp;
    CHECK(bench.y[static_cast<std::size_t>(i)] ==
          static_cast<float>(i / warp * warp + warp - 1 - lane + (63 - (i + 40) % 64)));
  }
}

TEST_CASE("global memory: only the operands are read, every result is written once") {
  Bench<64> bench(64);
  const float *x = bench.x.data(), *w = bench.w.data();
  float* y = bench.y.data();
  const auto rejects = [&](const char* reason, auto body) {
    return bench.rejects(reason, 0, body);
  };
  CHECK(rejects("test_emulator.cpp:", [=](auto& t) { t.load(x + t.index() + 1); }));
  CHECK(rejects("neither operand", [=](auto& t) { t.load(x + t.index() + 1); }));
  CHECK(rejects("neither operand", [=](auto& t) { t.load_once(w + t.index() - 1); }));
  CHECK(rejects("neither operand", [=](auto& t) { t.load(y + t.index()); }));
  CHECK(rejects("accumulate", [=](auto& t) { t.load_result(y + t.index()); }));
  CHECK(rejects("not the result", [=](auto& t) { t.store(y + t.index() + 1, 1.f); }));
  CHECK(rejects("not the result", [=](auto& t) { t.store(const_cast<float*>(x), 1.f); }));
  CHECK(rejects("a second time", [=](auto& t) { t.store(y + t.index() / 2, 1.f); }));
  CHECK(rejects("is not written", [=](auto& t) {
    if (t.index() != 63) t.store(y + t.index(), 1.f);
  }));
  CHECK(rejects("not aligned", [=](auto& t) {
    using Four = cuda::Pack<float, 4>;
    if (t.index() < 15) t.load(reinterpret_cast<const Four*>(x + 4 * t.index() + 1));
  }));
  CHECK(rejects("not aligned", [=](auto& t) {
    using Two = cuda::Pack<float, 2>;
    if (t.index() < 31) t.store(reinterpret_cast<Two*>(y + 2 * t.index() + 1), Two{});
  }));
}

TEST_CASE("global memory: a result is read before it is written, when accumulating") {
  Bench<64> bench(64, true);
  float* y = bench.y.data();
  CHECK(bench.rejects("that is written", 0, [=](auto& t) {
    t.store(y + t.index(), 1.f);
    t.load_result(y + t.index());
  }));
  Bench<64> once(64, true);
  float* sums = once.y.data();
  CHECK(once.accepts(
      0, [=](auto& t) { t.store(sums + t.index(), t.load_result(sums + t.index()) + 1); }));
  CHECK(once.y[5] == 8);  // three times, once for each order
}

TEST_CASE("shared memory: its bounds, its alignment, and NaN until it is written") {
  Bench<32> bench(32);
  float* y = bench.y.data();
  CHECK(bench.rejects("132", 132,
                      [](auto& t) { t.store_shared(floats(t.shared()) + t.index() + 2, 1.f); }));
  CHECK(bench.rejects("not aligned", 256, [](auto& t) {
    using Two = cuda::Pack<float, 2>;
    t.store_shared(reinterpret_cast<Two*>(t.shared() + 4), Two{});
  }));
  for (int time = 0; time < 2; ++time) {
    CHECK(bench.accepts(128, [=](auto& t) {
      float* at = floats(t.shared()) + t.index();
      t.store(y + t.index(), t.load_shared(at));
      t.store_shared(at, 1.f);
    }));
    for (const float each : bench.y) CHECK(each != each);
  }
}

TEST_CASE("shared memory: races are found in every order of turns") {
  Bench<64> bench(64);
  const auto rejects = [&](auto body) {
    return bench.rejects("without a barrier between", 1024, body);
  };
  // Read what another thread wrote.
  CHECK(rejects([](auto& t) {
    float* at = floats(t.shared());
    t.store_shared(at + t.index(), 1.f);
    t.load_shared(at + (t.index() + 1) % 64);
  }));
  // The barrier of a warp does not order the other warp's.
  CHECK(rejects([](auto& t) {
    float* at = floats(t.shared());
    t.store_shared(at + t.index(), 1.f);
    t.sync_warp();
    t.load_shared(at + (t.index() + warp) % 64);
  }));
  // An exchange orders nothing.
  CHECK(rejects([](auto& t) {
    float* at = floats(t.shared());
    t.store_shared(at + t.index(), 1.f);
    t.shuffle(1.f, 0);
    t.load_shared(at + (t.index() ^ 1));
  }));
  // Write what others have read.
  CHECK(rejects([](auto& t) {
    float* at = floats(t.shared());
    t.load_shared(at + t.index() / 2);
    t.sync_warp();
    if (t.index() % warp == 0) t.store_shared(at + (t.index() + warp) % 64 / 2, 1.f);
  }));
  // Two writers.
  CHECK(rejects([](auto& t) { t.store_shared(floats(t.shared()) + t.index() / 2, 1.f); }));
  // A copy into what others still read, and one that landed for its own thread only.
  Bench<64> copies(64);
  const float* x = copies.x.data();
  CHECK(copies.rejects("shared memory, ", 1024, [=](auto& t) {
    float* at = floats(t.shared());
    t.load_shared(at + (t.index() ^ 1));
    t.template copy<4>(at + t.index(), x + t.index());
    t.commit();
    t.template wait<0>();
  }));
  CHECK(copies.rejects("shared memory, ", 1024, [=](auto& t) {
    float* at = floats(t.shared());
    t.template copy<4>(at + t.index(), x + t.index());
    t.commit();
    t.template wait<0>();
    t.load_shared(at + (t.index() ^ 1));
  }));
}

TEST_CASE("shared memory: halves of a word are different things") {
  Bench<32> bench(32);
  CHECK(bench.accepts(64, [](auto& t) {
    t.store_shared(reinterpret_cast<std::uint16_t*>(t.shared()) + t.index(), std::uint16_t{1});
  }));
}

TEST_CASE("asynchronous copies land at the wait that covers them") {
  Bench<32> bench(64);
  const float* x = bench.x.data();
  float* y = bench.y.data();
  // Two groups; a wait for all but the latest brings the first.
  const auto pipeline = [=](auto& t, int read, auto pending) {
    float* at = floats(t.shared());
    for (int stage = 0; stage < 2; ++stage) {
      t.template copy<4>(at + stage * warp + t.index(), x + stage * warp + t.index());
      t.commit();
    }
    t.template wait<pending()>();
    t.store(y + t.index(), t.load_shared(at + read * warp + t.index()));
    t.template wait<0>();
    t.store(y + warp + t.index(), t.load_shared(at + warp + t.index()));
  };
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  CHECK(bench.accepts(256, [=](auto& t) { pipeline(t, 0, One()); }));
  CHECK(bench.y == bench.x);
  CHECK(bench.rejects("in flight", 256, [=](auto& t) { pipeline(t, 1, One()); }));
  CHECK(bench.rejects("in flight", 256, [=](auto& t) { pipeline(t, 0, Two()); }));
  CHECK(bench.rejects("in flight", 256, [=](auto& t) {  // never committed
    t.template copy<4>(floats(t.shared()) + t.index(), x + t.index());
    t.template wait<0>();
    t.load_shared(floats(t.shared()) + t.index());
  }));
  CHECK(bench.rejects("in flight", 256, [=](auto& t) {  // written over
    t.template copy<4>(floats(t.shared()) + t.index(), x + t.index());
    t.store_shared(floats(t.shared()) + t.index(), 1.f);
  }));
  CHECK(bench.rejects("leaves while", 256, [=](auto& t) {
    t.template copy<4>(floats(t.shared()) + t.index(), x + t.index());
    t.commit();
  }));
  CHECK(bench.rejects("neither operand", 256, [=](auto& t) {
    t.template copy<16>(floats(t.shared()) + 4 * t.index(), x + 64);
  }));
  CHECK(bench.rejects("not aligned", 256, [=](auto& t) {
    t.template copy<8>(floats(t.shared()) + 2 * t.index(), x + 1);
  }));
}

TEST_CASE("barriers are reached by all, in one place") {
  Bench<64> bench(64);
  const auto rejects = [&](const char* reason, auto body) {
    return bench.rejects(reason, 0, body);
  };
  CHECK(rejects("not all reach", [](auto& t) {
    if (t.index() == 7) return;  // early
    t.sync();
  }));
  CHECK(rejects("not all reach", [](auto& t) {
    if (t.index() < 40) t.sync();
  }));
  CHECK(rejects("not all reach", [](auto& t) {
    for (int i = 0; i < 3 + t.index() / warp; ++i) t.sync();
  }));
  CHECK(rejects("not all reach", [](auto& t) {
    if (t.index() % 2 == 0) t.sync_warp();
  }));
  CHECK(rejects("not all reach", [](auto& t) {
    if (t.index() != 3) t.shuffle(1, 0);
  }));
  const auto parted = [](auto& t) {
    if (t.index() < warp)
      t.sync();
    else
      t.sync();
  };
  CHECK(rejects("different places", parted));
  CHECK(rejects("a lane that is not there", [](auto& t) { t.shuffle(1, warp); }));
}

TEST_CASE("launches have limits") {
  Bench<64> bench(64);
  const auto nothing = [](auto&) {};
  CHECK(bench.says(Order::forward, 0, 0, nothing).find("2^31 - 1 blocks") != std::string::npos);
  CHECK(bench.says(Order::forward, std::int64_t{1} << 31, 0, nothing).find("2^31 - 1 blocks") !=
        std::string::npos);
  CHECK(bench.says(Order::forward, 1, (227 << 10) + 1, nothing).find("227 KiB") !=
        std::string::npos);
  CHECK(Bench<48>(48).says(Order::forward, 1, 0, nothing).find("whole warps") != std::string::npos);
  CHECK(Bench<2048>(48).says(Order::forward, 1, 0, nothing).find("whole warps") !=
        std::string::npos);
  CHECK(bench.says(Order::forward, 1, 0, [many = std::array<char, 4097>()](auto&) {})
            .find("4096 bytes") != std::string::npos);
}

TEST_CASE("counters of global memory") {
  Bench<64> bench(256);
  const float *x = bench.x.data(), *w = bench.w.data();
  float* y = bench.y.data();
  // Coalesced, 4 and 16 bytes a lane; every eighth float; one for all.
  bench.says(Order::random, 2, 0, [=](auto& t) {
    const std::int64_t i = t.block() * 64 + t.index();
    t.store(y + i, t.load(x + i));
    if (t.block() == 0) t.load(reinterpret_cast<const cuda::Pack<float, 4>*>(w) + t.index());
  });
  CHECK(bench.counters.first.accesses == 4);
  CHECK(bench.counters.first.requested == 512);
  CHECK(bench.counters.first.moved == 512);
  CHECK(bench.counters.first.touched == 512);
  CHECK(bench.counters.stores.moved == 512);
  CHECK(bench.counters.second.accesses == 2);
  CHECK(bench.counters.second.moved == 1024);
  CHECK(bench.counters.blocks == 2);
  bench.says(Order::backward, 1, 0, [=](auto& t) {
    if (t.index() < warp) t.load(x + 8 * t.index());
    t.load(w);
  });
  CHECK(bench.counters.first.moved_per_byte() == 8);
  CHECK(bench.counters.second.requested == 256);
  CHECK(bench.counters.second.fetched == 8);
  CHECK(bench.counters.second.times_fetched() == 2);
  CHECK(bench.counters.second.most == 2);
  // Lanes that part ways: those that meet in one place of the text go together.
  bench.says(Order::random, 1, 0, [=](auto& t) {
    for (int i = 0; i < t.index() % 2; ++i) t.load(w + t.index());
    t.load(x + t.index());
  });
  CHECK(bench.counters.first.accesses == 2);
  CHECK(bench.counters.first.moved_per_byte() == 1);
  CHECK(bench.counters.second.moved_per_byte() == 2);
}

TEST_CASE("counters of shared memory") {
  Bench<32> bench(32);
  const auto rounds = [&](int stride, auto type) {
    using V = decltype(type);
    bench.says(Order::random, 1, 64 << 10, [=](auto& t) {
      t.store_shared(reinterpret_cast<V*>(t.shared()) + stride * t.index(), V{});
      t.load_shared(reinterpret_cast<const V*>(t.shared()) + stride * t.index());
    });
    CHECK(bench.counters.shared_stores.rounds == bench.counters.shared_loads.rounds);
    return std::pair(bench.counters.shared_loads.rounds, bench.counters.shared_loads.least);
  };
  using Pair = std::pair<std::int64_t, std::int64_t>;
  using Four = cuda::Pack<float, 4>;
  CHECK(rounds(1, 1.f) == Pair(1, 1));
  CHECK(rounds(2, 1.f) == Pair(2, 1));
  CHECK(rounds(32, 1.f) == Pair(32, 1));
  CHECK(rounds(33, 1.f) == Pair(1, 1));
  CHECK(rounds(1, 1.) == Pair(2, 2));
  CHECK(rounds(1, Four()) == Pair(4, 4));
  CHECK(rounds(8, Four()) == Pair(32, 4));
  CHECK(rounds(9, Four()) == Pair(4, 4));
  CHECK(rounds(1, std::uint16_t{}) == Pair(1, 1));
}
