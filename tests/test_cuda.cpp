// The CUDA kernels' own text, run by the emulator (emulator/), equals the reference bit for bit on
// random real data: all cases that are small enough, all dtypes, faces, accumulation, conjugation,
// arrays that begin anywhere, threads that take turns in any order. No tolerance.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "../cuda/kernels.hpp"
#include "arrays.hpp"
#include "cases.hpp"
#include "definition.hpp"
#include "emulator/thread.hpp"
#include "sparse.hpp"

using namespace unshared;

namespace {

const KernelTable& emulated() {
  static const KernelTable table = [] {
    KernelTable t{"emulated", {}, {}};
    cuda::fill<emulator::Emulator, Face::forward>(t);
    cuda::fill<emulator::Emulator, Face::grad_input>(t);
    cuda::fill<emulator::Emulator, Face::grad_weight>(t);
    return t;
  }();
  return table;
}

std::string about(const Kernel& kernel, const Problem& problem, const Call& call) {
  return std::string(kernel.name) + " " + name_of(call.face) + " " + name_of(call.dtype) +
         (call.accumulate ? ", accumulating," : "") +
         (call.conjugate_first ? ", first conjugated," : "") +
         (call.conjugate_second ? ", second conjugated," : "") + " on " + to_string(problem);
}

// All kernels of a list that can do the problem.
template <class Visit>
void each_kernel(const Problem& problem, Face face, DType dtype, const Visit& visit) {
  const Kernel* kernel = emulated().list[static_cast<int>(dtype)][static_cast<int>(face)];
  for (; kernel->name != nullptr; ++kernel)
    if (kernel->precision == Precision::ieee &&
        (kernel->able ? kernel->able(problem) : kernel->declines(problem) == nullptr))
      visit(*kernel);
}

// Small problems run in all manners, large ones in two dtypes, in two manners, each in another order
// of turns: or this test would take minutes.
bool large(const Problem& problem) { return problem.flops() > 2e4; }

// A call's arrays: the operands, what the result holds before, and what after.
template <class T>
struct Arrays {
  Array<T> first, second, start, expected;
};

// A kernel keeps all rules of the emulator and leaves the bits that the definition leaves; `turn`
// says in which order threads take turns, and where in memory the arrays begin.
template <class T>
void compare(const Kernel& kernel, const Problem& problem, Call call, const Arrays<T>& arrays,
             int turn, int order) {
  const auto place = [&, shift = hash(problem)](std::size_t array) {
    return static_cast<int>((shift + array) % 3) == turn % 3 ? turn : 0;
  };
  Array<T> first = arrays.first.moved(place(0)), second = arrays.second.moved(place(1)),
           found = arrays.start.moved(place(2));
  call.first = first.data();
  call.second = second.data();
  call.result = found.data();
  emulator::Watch watch(problem, call, emulator::orders[order % 3]);
  kernel.run(problem, call);
  if (!watch.failure().empty())
    FAIL_CHECK(about(kernel, problem, call) << ": " << watch.failure());
  else if (!found.same_bits(arrays.expected))
    FAIL_CHECK(about(kernel, problem, call) << ": other bits than the definition's");
}

template <class T>
void compare_all(const Problem& problem, DType dtype, Face face, std::set<std::string>& compared) {
  const Layout result = problem.layout(result_of(face));
  if (result.elements() == 0) return;
  std::mt19937_64 random(hash(problem));
  Arrays<T> arrays{Array<T>(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
                   Array<T>(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
                   Array<T>(result), Array<T>(result)};
  Array<T> sums = arrays.start;
  for (Array<T>* array : {&arrays.first, &arrays.second, &sums}) array->fill(random);

  const int manners = Scalar<T>::parts == 2 ? 8 : 2;
  for (int manner = 0; manner < manners; manner += large(problem) ? manners - 1 : 1) {
    Call call{face, dtype, Place::cuda};
    call.accumulate = manner % 2 == 1;
    call.conjugate_first = manner / 2 % 2 == 1;
    call.conjugate_second = manner / 4 == 1;
    arrays.start.fill_with_nan();
    if (call.accumulate) arrays.start = sums;
    arrays.expected = arrays.start;
    call.first = arrays.first.data();
    call.second = arrays.second.data();
    call.result = arrays.expected.data();
    define<T>(problem, call);
    each_kernel(problem, face, dtype, [&](const Kernel& kernel) {
      compared.insert(kernel.name);
      for (int turn = 0; turn < (manner < 2 && !large(problem) ? 3 : 1); ++turn)
        compare<T>(kernel, problem, call, arrays, turn, manner + turn);
    });
  }
}

}  // namespace

TEST_CASE("every CUDA kernel equals the reference bit for bit") {
  constexpr double most_flops = 3e5;
  int turn = 0;
  std::set<std::string> compared;
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    if (problem.flops() > most_flops) continue;
    ++turn;
    for (int d = 0; d < dtype_count; ++d) {
      if (large(problem) && d != 0 && d != turn % dtype_count) continue;
      for (Face face : {Face::forward, Face::grad_input, Face::grad_weight})
        visit(static_cast<DType>(d), [&](auto type) {
          compare_all<typename decltype(type)::type>(problem, static_cast<DType>(d), face,
                                                     compared);
        });
    }
  }
  for (const char* kernel : {"tile", "stream", "lanes", "reference"})
    CHECK_MESSAGE(compared.contains(kernel), std::string(kernel));
}

// --- what memory has to do
TEST_CASE("tile and stream read each weight once, and all of every sector") {
  const Problem problem = parse_problem("n8 a16>b32 i6x7 k3x3 x:nia y:nob w:oakb");
  Array<float> x(problem.layout(Seat::x)), w(problem.layout(Seat::w)), y(problem.layout(Seat::y));
  for (const Face face : {Face::forward, Face::grad_input, Face::grad_weight})
    each_kernel(problem, face, DType::float32, [&](const Kernel& kernel) {
      if (std::string(kernel.name) != "tile" && std::string(kernel.name) != "stream") return;
      Call call{face, DType::float32, Place::cuda};
      call.first = face == Face::grad_input ? y.data() : x.data();
      call.second = face == Face::grad_weight ? y.data() : w.data();
      call.result = (face == Face::forward ? y : face == Face::grad_input ? x : w).data();
      emulator::Watch watch(problem, call, emulator::Order::random, emulator::Watch::Counting::on);
      kernel.run(problem, call);
      INFO(about(kernel, problem, call));
      CHECK(watch.failure() == "");
      const emulator::Counters counters = watch.counters();
      if (face != Face::grad_weight) CHECK(counters.second.most == 1);
      CHECK(counters.first.most <= 9);  // once per tap
      CHECK(counters.second.moved_per_byte() == 1);
      CHECK(counters.stores.moved_per_byte() == 1);
      CHECK(counters.stores.most == 1);
      const auto rounds = [](const emulator::Banks& banks) {
        return static_cast<double>(banks.rounds) / static_cast<double>(banks.least);
      };
      CHECK(rounds(counters.shared_loads) < 1.1);  // 1: no bank conflict
      CHECK(rounds(counters.shared_copies) < 1.25);
    });
}

// --- offsets beyond 32 bits
TEST_CASE("CUDA kernels compute offsets in 64 bits") {
  // A stride that does not fit into 32 bits, and one that does, while its multiples do not.
  for (const std::int64_t far : {(std::int64_t{1} << 32) + 64, (std::int64_t{1} << 30) + 64})
    for (int which = 0; which < 10; ++which)
      for (const Face face : {Face::forward, Face::grad_input, Face::grad_weight}) {
        Problem problem = parse_problem("n4 a3>b4 i4x6 k2x3 p0x1 x:nia y:nob w:oakb");
        Axis& axis = problem.axes[0];
        std::int64_t* const strides[] = {
            &problem.x_batch_stride, &problem.x_channel_stride, &axis.x_stride,
            &problem.w_in_stride,    &problem.w_out_stride,     &axis.w_place_stride,
            &axis.w_tap_stride,      &problem.y_batch_stride,   &problem.y_channel_stride,
            &axis.y_stride};
        *strides[which] = which % 2 == 0 ? far : -far;
        Sparse first(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
            second(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
            expected(problem.layout(result_of(face)));
        first.fill();
        second.fill();
        Call call{face, DType::float32, Place::cuda};
        call.first = first.data();
        call.second = second.data();
        call.result = expected.data();
        define<float>(problem, call);
        const std::vector<float> right = expected.values();
        each_kernel(problem, face, call.dtype, [&](const Kernel& kernel) {
          Sparse found(problem.layout(result_of(face)));
          call.result = found.data();
          emulator::Watch watch(problem, call, emulator::Order::forward);
          kernel.run(problem, call);
          INFO(about(kernel, problem, call), ", stride ", which, " = ", *strides[which]);
          CHECK(watch.failure() == "");
          CHECK(found.values() == right);
        });
      }
}
