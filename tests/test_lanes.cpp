// Kernel "lanes" (cuda/lanes.hpp), each of its tiles, run by the emulator: the reference's bits on
// all small cases and on others that only this kernel finds hard. Small problems would select the
// small tile alone; here every tile gets every problem.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "../cuda/lanes.hpp"
#include "arrays.hpp"
#include "cases.hpp"
#include "definition.hpp"
#include "emulator/thread.hpp"
#include "sparse.hpp"

using namespace unshared;
using cuda::LaneTile;

namespace {

using emulator::Order;
using emulator::Watch;

template <class T, Face face>
class Bench {
 public:
  Bench(const Problem& problem, DType dtype)
      : problem_(problem),
        dtype_(dtype),
        first_(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
        second_(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
        sums_(problem.layout(result_of(face))),
        nothing_(sums_) {
    std::mt19937_64 random(hash(problem));
    for (Array<T>* array : {&first_, &second_, &sums_}) array->fill(random);
    nothing_.fill_with_nan();
  }

  void compare() {
    if (problem_.layout(result_of(face)).elements() == 0) return;
    for (bool accumulate : {false, true}) {
      Call call{face, dtype_, Place::cuda};
      call.first = first_.data();
      call.second = second_.data();
      call.accumulate = accumulate;
      call.conjugate_second = accumulate;
      Array<T> expected = accumulate ? sums_ : nothing_;
      call.result = expected.data();
      define<T>(problem_, call);
      compare<LaneTile::few>(call, expected);
      compare<LaneTile::single>(call, expected);
      if constexpr (cuda::has_pairs<T>) compare<LaneTile::paired>(call, expected);
      compare<LaneTile::small>(call, expected);
    }
  }

  // What a call without accumulation would cost.
  template <LaneTile tile>
  emulator::Counters count() {
    Call call{face, dtype_, Place::cuda};
    call.first = first_.data();
    call.second = second_.data();
    Array<T> found = nothing_;
    call.result = found.data();
    Watch watch(problem_, call, Order::forward, Watch::Counting::on);
    cuda::launch_lanes<emulator::Emulator, T, face, tile>(problem_, call);
    CHECK(watch.failure() == "");
    return watch.counters();
  }

 private:
  template <LaneTile tile>
  void compare(Call call, const Array<T>& expected) {
    if (!cuda::lanes_fit<T, face>(tile, problem_)) return;
    Array<T> found = call.accumulate ? sums_ : nothing_;
    call.result = found.data();
    Watch watch(problem_, call, call.accumulate ? Order::backward : Order::forward);
    cuda::launch_lanes<emulator::Emulator, T, face, tile>(problem_, call);
    const auto about = [&] {
      return "tile " + std::to_string(static_cast<int>(tile)) + " " + name_of(face) + " " +
             name_of(dtype_) + (call.accumulate ? " accumulating" : "") + " on " +
             to_string(problem_);
    };
    if (!watch.failure().empty()) FAIL_CHECK(about() << ": " << watch.failure());
    if (!found.same_bits(expected)) FAIL_CHECK(about() << ": other bits than the definition's");
  }

  const Problem problem_;
  const DType dtype_;
  Array<T> first_, second_, sums_, nothing_;
};

template <class T, Face face>
void compare(const Problem& problem, DType dtype) {
  Bench<T, face>(problem, dtype).compare();
}

}  // namespace

TEST_CASE("every tile of kernel lanes equals the reference bit for bit") {
  constexpr double most_flops = 3e5;
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    if (problem.flops() > most_flops) continue;
    for (int d = 0; d < dtype_count; ++d)
      visit(static_cast<DType>(d), [&](auto type) {
        using T = typename decltype(type)::type;
        compare<T, Face::forward>(problem, static_cast<DType>(d));
        compare<T, Face::grad_input>(problem, static_cast<DType>(d));
        compare<T, Face::grad_weight>(problem, static_cast<DType>(d));
      });
  }
}

// Weights cross once where the batch fits a tile, in whole sectors; samples beyond cost one reading
// more for every block of them.
TEST_CASE("kernel lanes reads each weight once, and neighbours in memory together") {
  const auto counts = [](const char* text) {
    const Problem p = parse_problem(text);
    struct {
      emulator::Counters forward, grad_input, grad_weight;
    } found{Bench<float, Face::forward>(p, DType::float32).template count<LaneTile::few>(),
            Bench<float, Face::grad_input>(p, DType::float32).template count<LaneTile::few>(),
            Bench<float, Face::grad_weight>(p, DType::float32).template count<LaneTile::few>()};
    return found;
  };
  // 4 x 64 places, 6 x 66 pixels: places are whole warps, pixels are not.
  const auto places = counts("n8 a4>b8 i6x66 k3x3 w:bako");
  CHECK(places.forward.second.most == 1);
  CHECK(places.forward.second.moved_per_byte() == 1);
  CHECK(places.forward.stores.moved_per_byte() == 1);
  CHECK(places.forward.first.moved_per_byte() < 1.4);
  CHECK(places.grad_input.second.most == 1);
  CHECK(places.grad_input.second.moved_per_byte() < 1.6);
  CHECK(places.grad_input.stores.moved_per_byte() < 1.3);
  CHECK(places.grad_weight.stores.most == 1);
  CHECK(places.grad_weight.stores.moved_per_byte() == 1);
  CHECK(places.grad_weight.second.moved_per_byte() == 1);
  // Depthwise with channels innermost: lanes are groups.
  const auto groups = counts("n8 a64>b64 g64 i5x6 k3x3 x:nia y:nob w:oakb");
  CHECK(groups.forward.second.most == 4);  // the tile's four columns coincide, in one cache line
  CHECK(groups.forward.second.moved_per_byte() == 1);
  CHECK(groups.forward.first.moved_per_byte() == 1);
  CHECK(groups.forward.stores.moved_per_byte() == 1);
  CHECK(groups.grad_input.second.moved_per_byte() == 1);
  CHECK(groups.grad_input.stores.moved_per_byte() == 1);
  CHECK(groups.grad_weight.stores.moved_per_byte() == 1);
  // Pairs of groups, and of pixels with one tap: half as many accesses, of twice the width.
  for (const char* text :
       {"n8 a64>b64 g64 i5x6 k3x3 x:nia y:nob w:oakb", "n8 a32>b32 g32 i4x32 k1x1 w:bako"}) {
    const Problem p = parse_problem(text);
    REQUIRE(cuda::paired(p, Face::forward).has_value());
    Bench<float, Face::forward> bench(p, DType::float32);
    const auto one = bench.count<LaneTile::single>(), two = bench.count<LaneTile::paired>();
    CHECK(2 * two.first.accesses == one.first.accesses);
    CHECK(2 * two.stores.accesses == one.stores.accesses);
    CHECK(two.second.most == 1);
    CHECK(two.second.moved_per_byte() == 1);
    CHECK(two.first.moved_per_byte() == 1);
    CHECK(two.stores.moved_per_byte() == 1);
  }
  // Two and a half blocks of samples.
  CHECK(counts("n20 a2>b4 i6x34 k3x3 w:bako").forward.second.most == 3);
}

// Strides of any sign, and of none: views that a text form cannot state.
TEST_CASE("kernel lanes follows negative and zero strides") {
  for (const char* text : {"n3 a2>b3 i9x10 k3x2 s2x1 d1x2 p1 w:bako", "n5 a4>b6 g2 i33 k4 e2 p3",
                           "n2 a5>b4 i6x7 k1x1 w:bako", "n4 a1>b2 i3x4x5 k2x1x3 p1x0x2"}) {
    Problem problem = parse_problem(text);
    for (int s = 0; s < problem.axis_count; ++s) {
      Axis& axis = problem.axes[s];
      if (s == 0 && problem.grouped) {  // goes with the channels
        axis.y_stride = -axis.y_stride;
        continue;
      }
      if (s % 2 == 0) axis.x_stride = -axis.x_stride;
      axis.w_tap_stride = -axis.w_tap_stride;
      if (s % 2 == 1) axis.w_place_stride = -axis.w_place_stride;
      axis.y_stride = -axis.y_stride;
    }
    problem.w_in_stride = -problem.w_in_stride;
    problem.y_channel_stride = -problem.y_channel_stride;
    compare<float, Face::forward>(problem, DType::float32);
    compare<Complex<float>, Face::grad_input>(problem, DType::complex64);
    compare<Half, Face::grad_weight>(problem, DType::float16);
    problem.x_batch_stride = 0;
    compare<double, Face::forward>(problem, DType::float64);
    compare<BFloat16, Face::grad_weight>(problem, DType::bfloat16);
  }
}

namespace {

template <Face face, LaneTile tile>
void compare_far(const Problem& problem) {
  Sparse first(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
      second(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
      expected(problem.layout(result_of(face))), found(problem.layout(result_of(face)));
  first.fill();
  second.fill();
  Call call{face, DType::float32, Place::cuda};
  call.first = first.data();
  call.second = second.data();
  call.result = expected.data();
  define<float>(problem, call);
  call.result = found.data();
  Watch watch(problem, call, Order::forward);
  cuda::launch_lanes<emulator::Emulator, float, face, tile>(problem, call);
  CHECK(watch.failure() == "");
  CHECK(found.values() == expected.values());
}

}  // namespace

// Offsets of lanes beyond 2^31 bytes, which still count from one address modulo 2^32, and beyond.
TEST_CASE("kernel lanes reaches further than 4 GiB") {
  for (const std::int64_t apart : {std::int64_t{180} << 20, std::int64_t{1} << 31}) {
    Problem p = parse_problem("n2 a2>b3 i5x6 k2x3 p1x0 w:bako");
    Axis& axis = p.axes[0];
    axis.x_stride = axis.y_stride = axis.w_place_stride = apart;
    axis.w_tap_stride = apart / 4;
    const bool narrow = cuda::lanes_fit<float, Face::forward>(LaneTile::few, p);
    CHECK(narrow == (apart < 1 << 30));
    compare_far<Face::forward, LaneTile::small>(p);
    compare_far<Face::grad_input, LaneTile::small>(p);
    compare_far<Face::grad_weight, LaneTile::small>(p);
    if (!narrow) continue;
    compare_far<Face::forward, LaneTile::few>(p);
    compare_far<Face::grad_input, LaneTile::few>(p);
    compare_far<Face::grad_weight, LaneTile::few>(p);
  }
}

TEST_CASE("a Divider divides") {
  for (std::int64_t by : {1, 2, 3, 7, 28, 64, 641, 65537, 1 << 30, 2147483647})
    for (std::int64_t near : {std::int64_t{0}, by, 7 * by, max_extent / by * by, max_extent})
      for (std::int64_t n = near - 2; n <= near + 2; ++n)
        if (n >= 0 && n <= max_extent)
          CHECK(cuda::Divider<false>::of(by, max_extent)(static_cast<std::int32_t>(n)) == n / by);
  const std::int64_t large = std::int64_t{1} << 40;
  for (std::int64_t by : {std::int64_t{1}, std::int64_t{3}, large - 1})
    CHECK(cuda::Divider<true>::of(by, large)(large) == large / by);
}

TEST_CASE("kernel lanes chooses among its tiles") {
  alignas(16) static float memory[4];
  const auto tile = [](const char* text, int apart) {
    Call call;
    call.first = memory;
    call.second = memory + apart;
    call.result = memory;
    return cuda::lanes_tile<float, Face::forward>(parse_problem(text), call);
  };
  CHECK(tile("n8 a3>b16 i226x226 k3x3 w:bako", 2) == LaneTile::few);
  CHECK(tile("n2 a3>b16 i226x226 k3x3 w:bako", 2) == LaneTile::small);
  CHECK(tile("n8 a3>b1 i2260x226 k3x3 w:bako", 2) == LaneTile::single);
  CHECK(tile("n16 a64>b64 g64 i58x58 k3x3 x:nia y:nob w:oakb", 2) == LaneTile::paired);
  CHECK(tile("n16 a64>b64 g64 i58x58 k3x3 x:nia y:nob w:oakb", 1) == LaneTile::single);
  CHECK(tile("n16 a64>b64 g64 i58x58 k3x3 w:bako", 2) == LaneTile::single);
  CHECK(tile("n16 a1>b2 i2048 k3 w:bako", 2) == LaneTile::small);
  CHECK(tile("n4 a3>b4 i40000x40000 k1x1 w:bako", 2) == LaneTile::small);  // more than 4 GiB
}
