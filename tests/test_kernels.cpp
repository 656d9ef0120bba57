// Every kernel of every level equals the reference bit for bit on random real data: all cases of
// cases.txt, all dtypes, faces, thread counts, accumulation and conjugation. No tolerance. Nothing
// outside the result is written.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <new>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "cases.hpp"
#include "levels.hpp"
#include "scalar.hpp"

using namespace unshared;

namespace {

const Kernel& reference_of(const KernelTable& level, DType dtype, Face face) {
  const Kernel* kernel = list_of(level, dtype, face);
  while (std::string(kernel->name) != "reference") ++kernel;
  return *kernel;
}

template <class T>
void compare_all(const Problem& problem, DType dtype, Face face, std::set<std::string>& compared) {
  const std::vector<const KernelTable*>& all = levels();  // the first defines the others
  const Seat result_seat = result_of(face);
  const Seat first_seat = face == Face::grad_input ? Seat::y : Seat::x;
  const Seat second_seat = face == Face::grad_weight ? Seat::y : Seat::w;
  if (problem.layout(result_seat).elements() == 0) return;

  std::mt19937_64 random(hash(problem));
  Array<T> first(problem.layout(first_seat)), second(problem.layout(second_seat)),
      start(problem.layout(result_seat));
  first.fill(random);
  second.fill(random);
  start.fill(random);

  const int conjugations = Scalar<T>::parts == 2 ? 4 : 1;
  for (int manner = 0; manner < 2 * conjugations; ++manner) {
    Call call{face, dtype};
    call.first = first.data();
    call.second = second.data();
    call.accumulate = manner % 2 == 1;
    call.conjugate_first = manner / 2 % 2 == 1;
    call.conjugate_second = manner / 4 == 1;
    call.threads = 1;
    Array<T> expected = start;
    call.result = expected.data();
    reference_of(*all[0], dtype, face).run(problem, call);

    for (const KernelTable* level : all)
      for (const Kernel* kernel = list_of(*level, dtype, face); kernel->name != nullptr; ++kernel) {
        if (!can_run(*kernel, problem)) continue;
        for (int threads : {1, 3}) {
          Array<T> found = start;
          call.result = found.data();
          call.threads = threads;
          kernel->run(problem, call);
          compared.insert(std::string(level->level) + " " + kernel->name);
          CHECK_MESSAGE(found.same_bits(expected), std::string(level->level), " ",
                        std::string(kernel->name), " ", std::string(name_of(face)), " ",
                        std::string(name_of(dtype)), " threads=", threads, " manner=", manner,
                        " on ", to_string(problem));
        }
      }
  }
}

}  // namespace

TEST_CASE("every kernel equals the reference bit for bit") {
  // Larger cases are compared in float32 alone, the largest from Python, level against level.
  constexpr double most_flops = 1e8, most_in_all_types = 3e6;
  std::set<std::string> compared;
  int cases = 0;
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    if (problem.flops() > most_flops) continue;
    ++cases;
    for (int d = 0; d < dtype_count; ++d) {
      if (problem.flops() > most_in_all_types && static_cast<DType>(d) != DType::float32) continue;
      for (Face face : {Face::forward, Face::grad_input, Face::grad_weight})
        visit(static_cast<DType>(d), [&](auto type) {
          compare_all<typename decltype(type)::type>(problem, static_cast<DType>(d), face,
                                                     compared);
        });
    }
  }
  CHECK(cases >= 30);
  for (const KernelTable* level : levels())
    for (const char* kernel :
         {"scatter", "patch", "along", "gather", "weigh", "tiles", "reference"})
      if (std::string(level->level) != "v2" || std::string(kernel) == "reference")
        CHECK_MESSAGE(compared.contains(std::string(level->level) + " " + kernel),
                      std::string(level->level), " ", std::string(kernel));
}

TEST_CASE("large weight gradients, which are written around the caches, have the same bits") {
  constexpr std::align_val_t line{64};
  // Of the last ones, rows of 24 columns begin on lines, 32 elements apart; what lies between stays.
  constexpr std::int64_t columns = 24, apart = 32;
  struct Large {
    const char* text;
    std::vector<DType> dtypes = {DType::float32, DType::float64};
  };
  for (const auto& [text, dtypes] :
       {Large{"n1 a64>b64 i13x13 k3x3 w:obak"}, Large{"n1 a64>b64 i13x13 k3x3 w:oakb"},
        Large{"n1 a24>b64 i30x30 k2x2 w:obka"}, Large{"n1 a64>b24 i30x30 k2x2 w:oakb"},
        Large{"n4 a4>b64 i45x45 k3x3 p1 w:obka"}, Large{"n4 a4>b48 i52x52 k3x3 w:obak"},
        Large{"n4 a3>b64 i30x30 k7x7 w:obka"}, Large{"n17 a64>b64 i13x13 k3x3 w:obka"},
        Large{"n4 a16>b81 i25x25 k3x3 p1 w:oakb"}, Large{"n2 a129>b16 i22x22 k3x3 w:obka"},
        Large{"n2 a16>b81 i33x33 k3x3 w:oakb", {DType::bfloat16}}})
    for (DType dtype : dtypes) {
      Problem problem = parse_problem(text);
      auto count = static_cast<std::size_t>(problem.layout(Seat::w).elements());
      const auto spread = [&](std::int64_t& stride) {
        if (stride != 1) stride = stride / columns * apart;
      };
      if (problem.in_channels == columns || problem.out_channels == columns) {
        count = count / columns * apart;
        spread(problem.w_in_stride);
        spread(problem.w_out_stride);
        for (int s = 0; s < problem.axis_count; ++s) {
          spread(problem.axes[s].w_place_stride);
          spread(problem.axes[s].w_tap_stride);
        }
      }
      const auto check = [&]<class T>(T) {
        std::mt19937_64 random(1);
        Array<T> x(problem.layout(Seat::x)), y(problem.layout(Seat::y));
        x.fill(random);
        y.fill(random);
        Call call{Face::grad_weight, dtype};
        call.first = x.data();
        call.second = y.data();
        REQUIRE(count * sizeof(T) > 16 * 1024 * 1024);
        std::vector<T> expected(count);
        std::memset(expected.data(), 1, count * sizeof(T));
        call.result = expected.data();
        reference_of(*levels()[0], dtype, Face::grad_weight).run(problem, call);
        constexpr std::size_t beyond = 3;  // elements that a result may begin after a line
        T* const memory = static_cast<T*>(::operator new((count + beyond) * sizeof(T), line));
        for (std::size_t after : {std::size_t{0}, beyond})
          for (const KernelTable* level : levels())
            for (const Kernel* kernel = list_of(*level, dtype, Face::grad_weight);
                 kernel->name != nullptr; ++kernel) {
              if (kernel->declines(problem) != nullptr) continue;
              T* const found = memory + after;
              call.result = found;
              std::memset(memory, 1, (count + beyond) * sizeof(T));
              kernel->run(problem, call);
              CHECK_MESSAGE(std::memcmp(found, expected.data(), count * sizeof(T)) == 0,
                            std::string(level->level), " ", std::string(kernel->name), " ",
                            std::string(name_of(dtype)), " ", std::string(text), " ", after);
            }
        ::operator delete(memory, line);
      };
      visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        if constexpr (Scalar<T>::parts == 1) check(T{});
      });
    }
}

TEST_CASE("the bits are the same on every platform") {
  std::uint64_t digest = 0xcbf29ce484222325u;  // FNV-1a over every byte of every result
  for (const char* line :
       {"n3 a5>b6 i7x6 k3x2 s2x1 p1 d1x2", "n14 a18>b17 i5x5 k3x3 x:nia y:nob w:oakb",
        "n2 a6>b4 g2 i4x3x5 k2x1x3 e1x2x1 p1"})
    for (int d = 0; d < dtype_count; ++d)
      for (Face face : {Face::forward, Face::grad_input, Face::grad_weight})
        visit(static_cast<DType>(d), [&](auto type) {
          using T = typename decltype(type)::type;
          const Problem problem = parse_problem(line);
          std::mt19937_64 random(1);
          Array<T> x(problem.layout(Seat::x)), w(problem.layout(Seat::w)),
              y(problem.layout(Seat::y));
          for (Array<T>* array : {&x, &w, &y}) array->fill(random);
          Array<T>& result = face == Face::forward ? y : face == Face::grad_input ? x : w;
          Call call{face, static_cast<DType>(d)};
          call.first = face == Face::grad_input ? y.data() : x.data();
          call.second = face == Face::grad_weight ? y.data() : w.data();
          call.result = result.data();
          run(problem, call);
          const auto* bytes = reinterpret_cast<const unsigned char*>(result.cells().data());
          for (std::size_t i = 0; i < result.cells().size() * sizeof(T); ++i)
            digest = (digest ^ bytes[i]) * 0x100000001b3u;
        });
  CHECK(digest == 1553978235483512976u);
}

TEST_CASE("half types: widening is exact and rounding is to nearest even, for every bit pattern") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto h = static_cast<std::uint16_t>(bits);
    const float f = widen(Half{h});
    const std::uint16_t exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31 && fraction != 0) {
      CHECK(std::isnan(f));
      CHECK(std::isnan(widen(round_to<Half>(f))));
    } else {
      const float magnitude = exponent == 31 ? INFINITY
                              : exponent == 0
                                  ? std::ldexp(static_cast<float>(fraction), -24)
                                  : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
      CHECK(f == (h & 0x8000 ? -magnitude : magnitude));
      CHECK(round_to<Half>(f).bits == h);
      if (exponent < 31) {  // halfway to the next number: to even; a hair beyond: up
        const float next = exponent == 30 && fraction == 1023
                               ? 65536.0f
                               : widen(Half{static_cast<std::uint16_t>((h & 0x7fff) + 1)});
        const float middle = (magnitude + next) / 2;
        const auto up = static_cast<std::uint16_t>((h & 0x7fff) + 1);
        CHECK(round_to<Half>(middle).bits == ((h & 1) != 0 ? up : (h & 0x7fff)));
        CHECK(round_to<Half>(std::nextafter(middle, 1e9f)).bits == up);
        CHECK(round_to<Half>(std::nextafter(middle, 0.0f)).bits == (h & 0x7fff));
      }
    }
    const float b = widen(BFloat16{h});
    if (std::isnan(b)) {
      CHECK(std::isnan(widen(round_to<BFloat16>(b))));
      continue;
    }
    CHECK(round_to<BFloat16>(b).bits == h);
    if (std::isinf(b)) continue;
    const float middle = std::bit_cast<float>(bits << 16 | 0x8000u);
    CHECK(round_to<BFloat16>(middle).bits == static_cast<std::uint16_t>(h + (h & 1)));
    CHECK(round_to<BFloat16>(std::bit_cast<float>(bits << 16 | 0x8001u)).bits ==
          static_cast<std::uint16_t>(h + 1));
    CHECK(round_to<BFloat16>(std::bit_cast<float>(bits << 16 | 0x7fffu)).bits == h);
  }
}
