// On a GPU: every kernel of the CUDA table equals the CPU bit for bit on all it can do, also where
// another kernel would be chosen: all cases, dtypes, faces, accumulation and conjugation. Those of
// the tensor cores do so on small integers.
// Nothing outside the result is written. Without a GPU this says so and is skipped, or
// fails if UNSHARED_REQUIRE_GPU=1. Memory comes from the driver itself, found at run time: no CUDA header.
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "arrays.hpp"
#include "cases.hpp"
#include "kernels.hpp"

using namespace unshared;

namespace {

class Driver {
 public:
  Driver() : library_(dlopen("libcuda.so.1", RTLD_NOW)) {
    int device = 0;
    void* context = nullptr;
    check(call<int>("cuInit", 0u));
    check(call<int>("cuDeviceGet", &device, 0));
    check(call<int>("cuDevicePrimaryCtxRetain", &context, device));
    check(call<int>("cuCtxSetCurrent", context));
  }
  unsigned long long put(const void* data, std::size_t bytes) {
    unsigned long long address = 0;
    check(call<int>("cuMemAlloc_v2", &address, bytes));
    check(call<int>("cuMemcpyHtoD_v2", address, data, bytes));
    return address;
  }
  void take(unsigned long long address, void* data, std::size_t bytes) {
    check(call<int>("cuMemcpyDtoH_v2", data, address, bytes));
  }
  void free(unsigned long long address) { check(call<int>("cuMemFree_v2", address)); }

 private:
  template <class Result, class... Arguments>
  Result call(const char* name, Arguments... arguments) {
    void* const function = library_ != nullptr ? dlsym(library_, name) : nullptr;
    REQUIRE_MESSAGE(function != nullptr, std::string(name));
    return reinterpret_cast<Result (*)(Arguments...)>(function)(arguments...);
  }
  static void check(int error) { REQUIRE(error == 0); }

  void* library_;
};

// An array and its copy on the device, margins and all.
template <class T>
class Copied {
 public:
  Copied(Driver& driver, Array<T>& array) : driver_(driver), array_(array) {
    address_ = driver.put(array.cells().data(), bytes());
  }
  ~Copied() { driver_.free(address_); }
  Copied(const Copied&) = delete;
  Copied& operator=(const Copied&) = delete;

  void* data() const {
    const auto zero = array_.data() - array_.cells().data();
    return reinterpret_cast<void*>(address_ + static_cast<unsigned long long>(zero) * sizeof(T));
  }
  void fetch() { driver_.take(address_, array_.cells().data(), bytes()); }

 private:
  std::size_t bytes() const { return array_.cells().size() * sizeof(T); }

  Driver& driver_;
  Array<T>& array_;
  unsigned long long address_;
};

std::string name_in_full(const Kernel& kernel, Face face) {
  const char* const modes[] = {"", " tf32", " tf32x3", " fast"};
  return std::string(name_of(face)) + " " + kernel.name + modes[static_cast<int>(kernel.precision)];
}

template <class T>
void compare_all(Driver& driver, const Problem& problem, DType dtype, Face face,
                 Precision precision, std::map<std::string, int>& compared) {
  const Seat result_seat = result_of(face);
  const Kernel* const list = cuda_table().list[static_cast<int>(dtype)][static_cast<int>(face)];
  bool any = false;
  for (const Kernel* kernel = list; kernel->name != nullptr; ++kernel)
    any = any || kernel->precision == precision;
  if (!any || problem.layout(result_seat).elements() == 0) return;
  std::mt19937_64 random(hash(problem));
  Array<T> first(problem.layout(face == Face::grad_input ? Seat::y : Seat::x)),
      second(problem.layout(face == Face::grad_weight ? Seat::y : Seat::w)),
      start(problem.layout(result_seat));
  for (Array<T>* array : {&first, &second, &start})
    if (precision == Precision::ieee)
      array->fill(random);
    else  // small integers: exact in every mode
      for (T& cell : array->cells()) {
        cell = T{};
        if constexpr (Scalar<T>::parts == 1)
          cell = round_to<T>(
              static_cast<typename Scalar<T>::Real>(static_cast<int>(random() % 9) - 4));
      }
  const Copied<T> first_there(driver, first), second_there(driver, second);

  const int conjugations = Scalar<T>::parts == 2 ? 4 : 1;
  for (int manner = 0; manner < 2 * conjugations; ++manner) {
    Call call{face, dtype};
    call.first = first.data();
    call.second = second.data();
    call.accumulate = manner % 2 == 1;
    call.conjugate_first = manner / 2 % 2 == 1;
    call.conjugate_second = manner / 4 == 1;
    Array<T> expected = start;
    call.result = expected.data();
    run(problem, call);

    call.place = Place::cuda;
    call.first = first_there.data();
    call.second = second_there.data();
    for (const Kernel* kernel = list; kernel->name != nullptr; ++kernel) {
      const bool takes =
          kernel->able != nullptr ? kernel->able(problem) : kernel->declines(problem) == nullptr;
      if (kernel->precision != precision || !takes) continue;
      Array<T> got = start;
      Copied<T> got_there(driver, got);
      call.result = got_there.data();
      cuda_run(*kernel, problem, call);
      got_there.fetch();
      const std::string name = name_in_full(*kernel, face);
      CHECK_MESSAGE(got.same_bits(expected), name, " ", std::string(name_of(dtype)),
                    " manner=", manner, " on ", to_string(problem));
      ++compared[name];
    }
  }
}

}  // namespace

TEST_CASE("every kernel of the GPU equals the CPU bit for bit") {
  if (!cuda_state().available) {
    const char* required = std::getenv("UNSHARED_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1")
      FAIL(std::string(cuda_state().sentence));
    MESSAGE("not run: ", std::string(cuda_state().sentence));
    return;
  }
  Driver driver;
  std::map<std::string, int> compared;
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    for (int d = 0; d < dtype_count; ++d)
      visit(static_cast<DType>(d), [&](auto type) {
        using T = typename decltype(type)::type;
        for (int f = 0; f < face_count; ++f)
          for (Precision precision :
               {Precision::ieee, Precision::tf32, Precision::tf32x3, Precision::fast})
            compare_all<T>(driver, problem, static_cast<DType>(d), static_cast<Face>(f), precision,
                           compared);
      });
  }
  std::string all;
  for (const auto& [name, count] : compared)
    all += (all.empty() ? "" : ", ") + name + " " + std::to_string(count);
  MESSAGE(all);
  for (int d = 0; d < dtype_count; ++d)
    for (int f = 0; f < face_count; ++f)
      for (const Kernel* kernel = cuda_table().list[d][f]; kernel->name != nullptr; ++kernel)
        CHECK_MESSAGE(compared.contains(name_in_full(*kernel, static_cast<Face>(f))),
                      name_in_full(*kernel, static_cast<Face>(f)), " takes none of the cases");
}
