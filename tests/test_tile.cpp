// Every shape of tile (cuda/tile.hpp) with every dtype, whichever of them the cost model would take
// (test_cuda.cpp runs that one on all cases): the same bits as the definition, under the emulator's
// rules.
#include <doctest/doctest.h>

#include <string>

#include "../cuda/tiling.hpp"
#include "arrays.hpp"
#include "definition.hpp"
#include "emulator/thread.hpp"

using namespace unshared;
using cuda::TileKind;

namespace {

template <class T, TileKind kind>
void compare(const Problem& problem, Call call, const Array<T>& start, const Array<T>& expected) {
  for (const emulator::Order order : emulator::orders) {
    Array<T> found = start;
    call.result = found.data();
    emulator::Watch watch(problem, call, order);
    cuda::run_shape<emulator::Emulator, T, kind>(cuda::product_of(problem, call.face), call);
    const auto about = [&] {
      return std::string(name_of(call.face)) + " " + name_of(call.dtype) + " shape " +
             std::to_string(static_cast<int>(kind)) + " on " + to_string(problem);
    };
    if (!watch.failure().empty()) FAIL_CHECK(about() << ": " << watch.failure());
    if (!found.same_bits(expected)) FAIL_CHECK(about() << ": other bits than the definition's");
  }
}

template <class T>
void compare_shapes(const Problem& problem, Face face, bool onto) {
  std::mt19937_64 random(hash(problem));
  Array<T> first(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
      second(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
      start(problem.layout(result_of(face)));
  for (Array<T>* array : {&first, &second, &start}) array->fill(random);
  if (!onto) start.fill_with_nan();
  Call call{face, dtype_of<T>, Place::cuda};
  call.first = first.data();
  call.second = second.data();
  call.accumulate = call.conjugate_first = onto;
  Array<T> expected = start;
  call.result = expected.data();
  define<T>(problem, call);
  compare<T, TileKind::wide>(problem, call, start, expected);
  compare<T, TileKind::flat>(problem, call, start, expected);
  compare<T, TileKind::small>(problem, call, start, expected);
  compare<T, TileKind::stream8>(problem, call, start, expected);
  compare<T, TileKind::stream16>(problem, call, start, expected);
}

}  // namespace

TEST_CASE("every shape of tile equals the reference bit for bit") {
  bool onto = false;
  for (const char* text :
       {"n65 a3>b33 i3x2 k2x1 x:nia y:nob w:oakb", "n33 a2>b65 i2x3 k1x2 p1 x:nai y:nbo w:obka",
        "n129 a2>b16 i2x3 k2x2 x:ian y:obn w:oakb", "n16 a40>b12 i2x4 k2x2 x:nia y:nob w:obka",
        "n3 a58>b5 i3x3 k3x3 x:nia y:nob w:obka", "n2 a3>b130 i3x3 k2x2 s2x1 p1 d1x2 w:bako"}) {
    for (int d = 0; d < dtype_count; ++d)
      for (Face face : {Face::forward, Face::grad_input, Face::grad_weight})
        visit(static_cast<DType>(d), [&](auto type) {
          compare_shapes<typename decltype(type)::type>(parse_problem(text), face, onto = !onto);
        });
    onto = !onto;
  }
}
