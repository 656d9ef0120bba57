// The door: pointer checks before the first write, empty problems, explain, the floating-point
// environment, fork.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

#include "unshared.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace unshared;

namespace {

std::atomic<std::int64_t> allocations{0};

}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

struct Tensors {
  explicit Tensors(const Problem& p)
      : x(size(p, Seat::x)), w(size(p, Seat::w)), y(size(p, Seat::y), -7.0f) {
    std::iota(x.begin(), x.end(), 1.0f);
    std::iota(w.begin(), w.end(), -3.0f);
  }
  static std::size_t size(const Problem& p, Seat seat) {
    return static_cast<std::size_t>(p.layout(seat).elements());
  }
  Call forward() {
    Call call;
    call.first = x.data();
    call.second = w.data();
    call.result = y.data();
    return call;
  }
  std::vector<float> x, w, y;
};

std::string refusal(const Problem& problem, const Call& call) {
  try {
    run(problem, call);
  } catch (const Error& error) {
    return error.argument;
  }
  return "accepted";
}

}  // namespace

TEST_CASE("pointers are checked before anything is written") {
  const Problem problem = parse_problem("n2 a3>b4 i5x5 k3x3");
  Tensors t(problem);
  const auto with = [&](auto change) {
    Call call = t.forward();
    change(call);
    const std::string argument = refusal(problem, call);
    CHECK(t.y == std::vector<float>(t.y.size(), -7.0f));
    return argument;
  };
  CHECK(with([](Call& c) { c.first = nullptr; }) == "x");
  CHECK(with([](Call& c) { c.second = nullptr; }) == "w");
  CHECK(with([](Call& c) { c.result = nullptr; }) == "out");
  CHECK(with([](Call& c) { c.second = static_cast<const char*>(c.second) + 2; }) == "w");
  CHECK(with([&](Call& c) { c.result = t.x.data() + t.x.size() - 1; }) == "out");
  CHECK(with([&](Call& c) { c.result = t.w.data(); }) == "out");
  CHECK(with([](Call& c) { c.threads = -1; }) == "num_threads");
  CHECK(with([](Call& c) { c.place = Place::cuda; }) == "x");
  CHECK(refusal(problem, t.forward()) == "accepted");
}

TEST_CASE("a call allocates nothing") {
  for (const char* line : {"n130 a5>b9 i7x6 k3x3 p1", "n3 a80>b40 i5x5 k3x3 x:nia y:nob w:oakb"}) {
    const Problem problem = parse_problem(line);
    Tensors t(problem);
    const std::int64_t before = allocations;
    run(problem, t.forward());
    CHECK(allocations == before);
  }
}

TEST_CASE("empty problems have defined results") {
  Tensors none(parse_problem("n0 a3>b4 i5x5 k3x3"));
  run(parse_problem("n0 a3>b4 i5x5 k3x3"), none.forward());
  for (const char* line :
       {"n2 a0>b4 i5x5 k3x3", "n2 a3>b4 i0x0 k3x3 p2"}) {  // results with elements, but empty sums
    const Problem problem = parse_problem(line);
    Tensors t(problem);
    Call call = t.forward();
    call.accumulate = true;
    run(problem, call);
    CHECK(t.y == std::vector<float>(t.y.size(), -7.0f));
    run(problem, t.forward());
    CHECK(t.y == std::vector<float>(t.y.size(), 0.0f));
  }
}

TEST_CASE("explain names the kernel and what declined before it") {
  const BuildInfo info = build_info();
  REQUIRE(!info.levels_usable.empty());
  const Explanation e = explain(parse_problem("n2 a3>b4 i5x5 k3x3"), Face::forward, DType::float32);
  CHECK(e.level == info.level);
  if (info.level == "v2" || info.level == "baseline") {
    CHECK(e.kernel == "reference");
    REQUIRE(e.declined.size() == 1);
    CHECK(e.declined[0].first == "gather");
    CHECK(!e.declined[0].second.empty());
  } else {
    CHECK(e.kernel == "gather");
    REQUIRE(e.declined.size() == 1);
    CHECK(e.declined[0].first == "along");
    CHECK(!e.declined[0].second.empty());
    for (const char* few :
         {"n2 a64>b64 g64 i9x9 k3x3 p1 x:nia y:nob", "n2 a64>b64 g64 i9x9 k3x3 p1",
          "n3 a1>b1 i2048 k3", "n2 a2>b1 i20x20 k1x1"})
      for (Face face : {Face::forward, Face::grad_input, Face::grad_weight})
        CHECK(explain(parse_problem(few), face, DType::float32).kernel == "along");
    const Problem wide = parse_problem("n70 a40>b80 i7x7 k3x3 w:oakb");
    for (DType dtype : {DType::float32, DType::bfloat16})
      for (Face face : {Face::forward, Face::grad_input})
        CHECK(explain(wide, face, dtype).kernel == "gather");
    CHECK(explain(wide, Face::forward, DType::complex64).kernel == "gather");
    for (const char* one : {"n1 a32>b80 i7x7 k3x3 w:oakb", "n1 a12>b80 i7x7 k3x3 w:obka",
                            "n1 a32>b80 i7x7 k3x3 w:obak", "n1 a3>b80 i7x7 k3x3 w:oakb"})
      for (DType dtype : {DType::float32, DType::bfloat16})
        CHECK(explain(parse_problem(one), Face::grad_input, dtype).kernel == "scatter");
    const auto complex_input = [](const char* line) {
      return explain(parse_problem(line), Face::grad_input, DType::complex64).kernel;
    };
    CHECK(complex_input("n1 a32>b80 i7x7 k3x3 w:oakb") == "scatter");  // turned in registers
    CHECK(complex_input("n1 a32>b80 i7x7 k3x3 w:obka") == "gather");  // read in place
    CHECK(complex_input("n1 a4>b80 i7x7 k3x3 w:obka") ==
          "scatter");  // less than lines of each place
    for (DType dtype : {DType::float32, DType::complex64})
      CHECK(explain(parse_problem("n1 a40>b80 i7x7 k3x3"), Face::grad_weight, dtype).kernel ==
            "patch");
    CHECK(
        explain(parse_problem("n4 a1>b12 i28x28 k3x3"), Face::grad_weight, DType::float32).kernel ==
        "along");
    // A stride leaves five pixels to a phase.
    CHECK(explain(parse_problem("n1 a1>b50 i20x20 k12x12 s4 w:oakb"), Face::grad_input,
                  DType::float32)
              .kernel == "scatter");
    for (DType dtype : {DType::float64, DType::complex64})
      CHECK(explain(wide, Face::grad_weight, dtype).kernel == "weigh");
    CHECK(explain(wide, Face::grad_weight, DType::complex128).kernel == "tiles");
    CHECK(explain(parse_problem("n2 a1>b1 i2048 k3"), Face::forward, DType::complex64).kernel ==
          "along");
  }
  CHECK(e.predicted_seconds == 0);
}

TEST_CASE("explain tells how long a GPU's kernel should take, where a model chose it") {
  const Problem problem = parse_problem("n100 a16>b16 i28x28 k3x3 x:nia y:nob w:oakb");
  const auto seconds = [&](Precision precision) {
    return explain(problem, Face::forward, DType::float32, Place::cuda, precision)
        .predicted_seconds;
  };
  CHECK(seconds(Precision::ieee) > 3e-6);  // less would be less than the memory's time
  CHECK(seconds(Precision::ieee) < 1e-3);
  CHECK(seconds(Precision::tf32) == 0);
}

#if defined(__x86_64__)
TEST_CASE("the caller's floating-point environment neither matters nor changes") {
  const Problem problem = parse_problem("n40 a8>b8 i9x9 k3x3");
  Tensors t(problem);
  for (float& v : t.x) v *= 0x1p-140f;  // subnormal products
  for (float& v : t.w) v *= 1.0f / 3;
  run(problem, t.forward());
  const std::vector<float> expected = t.y;
  const unsigned before = _mm_getcsr();
  for (unsigned odd : {0x9fc0u, 0x7f80u, 0xffc0u}) {  // flush to zero, round to zero, both
    for (int threads : {1, 2}) {
      std::fill(t.y.begin(), t.y.end(), -7.0f);
      Call call = t.forward();
      call.threads = threads;
      _mm_setcsr(odd);
      run(problem, call);
      const unsigned after = _mm_getcsr();
      _mm_setcsr(before);
      CHECK(after == odd);
      CHECK(t.y == expected);
    }
  }
}
#endif

#if defined(__unix__)
TEST_CASE("a forked child computes, although its parent used threads") {
  const Problem problem = parse_problem("n64 a8>b8 i20x20 k3x3");
  Tensors t(problem);
  Call call = t.forward();
  call.threads = 4;
  run(problem, call);
  const std::vector<float> expected = t.y;
  for (int trial = 0; trial < 5; ++trial) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(10);  // a hang ends the child, not the test
      std::fill(t.y.begin(), t.y.end(), -7.0f);
      run(problem, call);
      _exit(t.y == expected ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
  }
}
#endif
