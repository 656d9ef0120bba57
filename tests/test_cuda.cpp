// The CUDA kernels' own text, run by the emulator (emulator/), equals the reference bit for bit on
// random real data: all cases that are small enough, all dtypes, faces, accumulation, conjugation,
// and orders in which threads take turns. No tolerance. Nothing outside the result is written.
#include <doctest/doctest.h>

#include <set>
#include <string>

#include "../cuda/kernels.hpp"
#include "arrays.hpp"
#include "cases.hpp"
#include "emulator/thread.hpp"

using namespace unshared;

namespace {

const KernelTable& emulated() {
  static const KernelTable table = [] {
    KernelTable t{"emulated", {}, nullptr};
    cuda::fill<emulator::Emulator, Face::forward>(t);
    cuda::fill<emulator::Emulator, Face::grad_input>(t);
    cuda::fill<emulator::Emulator, Face::grad_weight>(t);
    return t;
  }();
  return table;
}

template <class T>
void define(const Problem& problem, const Call& call) {
  const auto operands = cuda::operands_of<T>(call);
  const std::int64_t elements = problem.layout(result_of(call.face)).elements();
  for (std::int64_t e = 0; e < elements; ++e) {
    if (call.face == Face::forward) reference::forward(problem, operands, e);
    if (call.face == Face::grad_input) reference::grad_input(problem, operands, e);
    if (call.face == Face::grad_weight) reference::grad_weight(problem, operands, e);
  }
}

// What one kernel does with one call: it keeps all rules of the emulator and leaves the bits that
// the definition leaves. Returns whether the order of turns matters to it.
template <class T>
bool compare(const Kernel& kernel, const Problem& problem, Call call, const Array<T>& start,
             const Array<T>& expected, emulator::Order order) {
  Array<T> found = start;
  call.result = found.data();
  emulator::Watch watch(problem, call, order);
  kernel.run(problem, call);
  const auto about = [&] {
    return std::string(kernel.name) + " " + name_of(call.face) + " " + name_of(call.dtype) +
           (call.accumulate ? " accumulating" : "") + (call.conjugate_first ? " conj1" : "") +
           (call.conjugate_second ? " conj2" : "") + " on " + to_string(problem);
  };
  if (!watch.failure().empty()) FAIL_CHECK(about() << ": " << watch.failure());
  if (!found.same_bits(expected)) FAIL_CHECK(about() << ": other bits than the definition's");
  return watch.order_matters();
}

template <class T>
void compare_all(const Problem& problem, DType dtype, Face face, std::set<std::string>& compared) {
  const Seat result_seat = result_of(face);
  if (problem.layout(result_seat).elements() == 0) return;
  std::mt19937_64 random(hash(problem));
  Array<T> first(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
      second(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
      sums(problem.layout(result_seat)), nothing = sums;
  for (Array<T>* array : {&first, &second, &sums}) array->fill(random);
  nothing.fill_with_nan();

  const int conjugations = Scalar<T>::parts == 2 ? 4 : 1;
  for (int manner = 0; manner < 2 * conjugations; ++manner) {
    Call call{face, dtype, Place::cuda};
    call.first = first.data();
    call.second = second.data();
    call.accumulate = manner % 2 == 1;
    call.conjugate_first = manner / 2 % 2 == 1;
    call.conjugate_second = manner / 4 == 1;
    const Array<T>& start = call.accumulate ? sums : nothing;
    Array<T> expected = start;
    call.result = expected.data();
    define<T>(problem, call);

    const Kernel* kernel = emulated().list[static_cast<int>(dtype)][static_cast<int>(face)];
    for (; kernel->name != nullptr; ++kernel) {
      if (kernel->precision != Precision::ieee) continue;
      if (kernel->able ? !kernel->able(problem) : kernel->declines(problem) != nullptr) continue;
      compared.insert(kernel->name);
      for (int turn = 0; turn < 3; ++turn) {
        const bool matters = compare<T>(*kernel, problem, call, start, expected,
                                        emulator::orders[(manner + turn) % 3]);
        if (!matters || manner > 0) break;
      }
    }
  }
}

}  // namespace

TEST_CASE("every CUDA kernel equals the reference bit for bit") {
  constexpr double most_flops = 3e5;
  std::set<std::string> compared;
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    if (problem.flops() > most_flops) continue;
    for (int d = 0; d < dtype_count; ++d)
      for (Face face : {Face::forward, Face::grad_input, Face::grad_weight})
        visit(static_cast<DType>(d), [&](auto type) {
          compare_all<typename decltype(type)::type>(problem, static_cast<DType>(d), face,
                                                     compared);
        });
  }
  for (const char* kernel : {"reference"})
    CHECK_MESSAGE(compared.contains(kernel), std::string(kernel));
}
