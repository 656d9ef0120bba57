// From a call to its kernel, resolved once and in this order: place, instruction set (once per
// process, capped by UNSHARED_ISA), dtype and face. The rest of what run() does is the check of
// pointers, which a Problem cannot know.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "default_floats.hpp"
#include "footprint.hpp"
#include "kernels.hpp"
#include "scalar.hpp"
#include "threads.hpp"

#if !defined(UNSHARED_VERSION)
#define UNSHARED_VERSION "0.0.0"
#endif

// UNSHARED_LEVELS is UNSHARED_LEVEL(v2) UNSHARED_LEVEL(v3) ...: what was compiled, ascending
// (CMakeLists.txt).
#if defined(__x86_64__)
#define UNSHARED_USABLE(level) (__builtin_cpu_supports("x86-64-" #level) != 0)
#else
#define UNSHARED_USABLE(level) true
#endif

namespace unshared {

// Each level is compiled width by width (cpu/kernels.cpp).
#define UNSHARED_LEVEL(level)                        \
  void fill_##level##_narrow(KernelTable&) noexcept; \
  void fill_##level##_wide(KernelTable&) noexcept;
UNSHARED_LEVELS
#undef UNSHARED_LEVEL

namespace {

struct Level {
  const char* name;
  void (*fill_narrow)(KernelTable&) noexcept;
  void (*fill_wide)(KernelTable&) noexcept;
  bool (*usable)();
};

// The last usable one is taken.
#define UNSHARED_LEVEL(level) \
  {#level, fill_##level##_narrow, fill_##level##_wide, [] { return UNSHARED_USABLE(level); }},
constexpr Level levels[] = {UNSHARED_LEVELS};
#undef UNSHARED_LEVEL

const KernelTable& table_of(const Level& level) {
  static const auto tables = [] {
    std::array<KernelTable, std::size(levels)> all{};
    for (std::size_t i = 0; i < std::size(levels); ++i) {
      all[i].level = levels[i].name;
      levels[i].fill_narrow(all[i]);
      levels[i].fill_wide(all[i]);
    }
    return all;
  }();
  return tables[static_cast<std::size_t>(&level - levels)];
}

// nullptr if this machine lacks even the lowest level. An unknown UNSHARED_ISA caps nothing.
const Level* choose_level() {
  const char* cap = std::getenv("UNSHARED_ISA");
  const Level* chosen = nullptr;
  for (const Level& level : levels) {
    if (!level.usable()) break;
    chosen = &level;
    if (cap != nullptr && std::strcmp(cap, level.name) == 0) break;
  }
  return chosen;
}

const Level* level_in_use() {
  static const Level* const level = choose_level();
  return level;
}

const KernelTable& table_of(Place place) {
  return place == Place::cuda ? cuda_table() : kernel_table();
}

// The first kernel of the list that accepts. Those of another precision than was asked for are not
// worth a word.
template <class Declined>
const Kernel& choose(const KernelTable& table, const Problem& problem, Face face, DType dtype,
                     Precision precision, Declined declined) {
  const Kernel* kernel = table.list[static_cast<int>(dtype)][static_cast<int>(face)];
  for (;; ++kernel) {
    if (kernel->precision != Precision::ieee && kernel->precision != precision) continue;
    const char* reason = kernel->declines(problem);
    if (reason == nullptr) return *kernel;
    declined(kernel->name, reason);
  }
}

struct Tensor {
  Seat seat;
  const void* data;
};

void check_pointers(const Problem& problem, const Call& call) {
  const Face face = call.face;
  const Tensor result{result_of(face), call.result};
  const Tensor operands[] = {{face == Face::grad_input ? Seat::y : Seat::x, call.first},
                             {face == Face::grad_weight ? Seat::y : Seat::w, call.second}};
  const std::int64_t size = size_of(call.dtype);
  const auto alignment = static_cast<std::uintptr_t>(size / parts_of(call.dtype));
  const Layout result_layout = problem.layout(result.seat);
  const bool writes = result_layout.elements() != 0;
  const Bytes written = writes ? bytes_of(result.data, result_layout, size) : Bytes{0, 0};
  const auto fail = [&](Seat seat, const char* expected, const char* found) {
    throw Error(Error::Kind::value, name_of(face), argument_of(face, seat), expected, found);
  };

  for (const Tensor& t : {operands[0], operands[1], result}) {
    const Layout layout = problem.layout(t.seat);
    if (layout.elements() == 0) continue;
    if (t.data == nullptr)
      fail(t.seat, "memory behind an array that has elements", "a null pointer");
    if (reinterpret_cast<std::uintptr_t>(t.data) % alignment != 0)
      fail(t.seat, "data aligned to its element type", "a misaligned pointer");
    if (t.seat == result.seat || !writes) continue;
    const Bytes read = bytes_of(t.data, layout, size);
    if (read.low < written.high && written.low < read.high)
      fail(result.seat,
           (std::string("memory apart from '") + argument_of(face, t.seat) + "'").c_str(),
           "an overlap of the two");
  }
}

}  // namespace

const KernelTable& kernel_table() {
  if (const Level* level = level_in_use()) return table_of(*level);
  throw Error(Error::Kind::unsupported, "build_info", "processor",
              "the instruction set of level " + std::string(levels[0].name),
              "a processor without it");
}

std::vector<const KernelTable*> usable_kernel_tables() {
  std::vector<const KernelTable*> tables;
  for (const Level& level : levels)
    if (level.usable()) tables.push_back(&table_of(level));
  return tables;
}

void run(const Problem& problem, const Call& call) {
  if (call.threads < 0)
    throw Error(Error::Kind::value, name_of(call.face), "num_threads",
                "a whole number of 1 or more", std::to_string(call.threads));
  check_pointers(problem, call);
  check_place(call.face, call.place);
  if (problem.layout(result_of(call.face)).elements() == 0) return;
  const Kernel& kernel =
      choose(table_of(call.place), problem, call.face, call.dtype, call.precision, [](auto...) {});
  if (call.place == Place::cuda) return cuda_run(kernel, problem, call);
  const DefaultFloats floats;
  kernel.run(problem, call);
}

void check_place(Face face, Place place) {
  if (place == Place::cpu) return;  // and CUDA's driver is left asleep
  const CudaState state = cuda_state();
  if (state.available) return;
  throw Error(Error::Kind::unsupported, name_of(face),
              argument_of(face, face == Face::grad_input ? Seat::y : Seat::x),
              "arrays in CPU memory: " + std::string(state.sentence), "a CUDA array");
}

Explanation explain(const Problem& problem, Face face, DType dtype, Place place,
                    Precision precision) {
  const KernelTable& table = table_of(place);
  Explanation explanation;
  explanation.level = table.level;
  const Kernel& kernel =
      choose(table, problem, face, dtype, precision, [&](const char* name, const char* reason) {
        explanation.declined.emplace_back(name, reason);
      });
  explanation.kernel = kernel.name;
  if (place == Place::cuda && kernel.precision == Precision::ieee)
    explanation.predicted_seconds = cuda_predicted_seconds(problem, face, dtype);
  return explanation;
}

bool cuda_available() { return cuda_state().available; }

BuildInfo build_info() {
  BuildInfo info;
  info.version = UNSHARED_VERSION;
  for (const Level& level : levels) {
    info.levels_built.emplace_back(level.name);
    if (level.usable()) info.levels_usable.emplace_back(level.name);
  }
  if (const Level* level = level_in_use()) info.level = level->name;
  info.openmp = built_with_openmp();
  info.cuda_built = cuda_built();
  info.threads = default_threads();
  return info;
}

}  // namespace unshared
