// Kernel "lanes" (cuda/lanes.hpp), each of its tiles, run by the emulator: the reference's bits on
// all small cases and on others that only this kernel finds hard. Small problems would select the
// small tile alone; here every tile gets every problem.
#include <doctest/doctest.h>

#include <string>

#include "../cuda/lanes.hpp"
#include "arrays.hpp"
#include "cases.hpp"
#include "emulator/thread.hpp"

using namespace unshared;
using cuda::LaneTile;

namespace {

template <class T, Face face>
void define(const Problem& problem, const Call& call) {
  const auto operands = cuda::operands_of<T>(call);
  const std::int64_t elements = problem.layout(result_of(face)).elements();
  for (std::int64_t e = 0; e < elements; ++e) {
    if constexpr (face == Face::forward) reference::forward(problem, operands, e);
    if constexpr (face == Face::grad_input) reference::grad_input(problem, operands, e);
    if constexpr (face == Face::grad_weight) reference::grad_weight(problem, operands, e);
  }
}

template <class T, Face face>
void compare(const Problem& problem, DType dtype) {
  if (problem.layout(result_of(face)).elements() == 0) return;
  std::mt19937_64 random(hash(problem));
  Array<T> first(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
      second(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
      start(problem.layout(result_of(face)));
  for (Array<T>* array : {&first, &second, &start}) array->fill(random);
  for (bool accumulate : {false, true}) {
    Call call{face, dtype, Place::cuda};
    call.first = first.data();
    call.second = second.data();
    call.accumulate = accumulate;
    call.conjugate_second = accumulate;
    Array<T> expected = start;
    call.result = expected.data();
    define<T, face>(problem, call);
    const auto run = [&]<LaneTile tile>() {
      if (!cuda::lanes_fit<T, face>(tile, problem)) return;
      Array<T> found = start;
      call.result = found.data();
      cuda::launch_lanes<emulator::Emulator, T, face, tile>(problem, call);
      CHECK_MESSAGE(found.same_bits(expected), "tile ", static_cast<int>(tile), " ",
                    std::string(name_of(face)), " ", std::string(name_of(dtype)),
                    " accumulate=", accumulate, " on ", to_string(problem));
    };
    run.template operator()<LaneTile::few>();
    run.template operator()<LaneTile::single>();
    run.template operator()<LaneTile::small>();
  }
}

}  // namespace

TEST_CASE("every tile of kernel lanes equals the reference bit for bit") {
  constexpr double most_flops = 4e4;
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
