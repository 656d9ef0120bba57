// Kernels against the definition where computing the whole of it would take too long: layers of the
// benchmark as they are, and random problems of many channels. Of each result 50 to 4,000 elements,
// fewer where their sums are long, are computed by the reference and must be the same bits.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "cases.hpp"
#include "definition.hpp"
#include "levels.hpp"

using namespace unshared;

namespace {

struct Chosen {
  bool all_kernels;  // that can do it, of every level; else the one that is chosen, of the highest
  double terms;  // computed by the reference, about
};

// The three tensors are filled once; a face overwrites the one it results in, which is then as good
// an operand of the next as any.
template <class T>
void compare(const Problem& p, DType dtype, std::mt19937_64& random, const Chosen& chosen,
             std::set<std::string>& compared) {
  Array<T> x(p.layout(Seat::x)), w(p.layout(Seat::w)), y(p.layout(Seat::y));
  for (Array<T>* array : {&x, &w, &y}) array->fill(random);
  for (Face face : {Face::forward, Face::grad_input, Face::grad_weight}) {
    const Seat seat = result_of(face);
    Array<T>& result = seat == Seat::x ? x : seat == Seat::w ? w : y;
    const std::int64_t elements = p.layout(seat).elements();
    if (elements == 0) continue;
    const double chain = std::max<double>(1, static_cast<double>(p.terms(face)));
    std::vector<std::int64_t> samples{0, elements - 1};
    while (static_cast<double>(samples.size()) < std::clamp(chosen.terms / chain, 50.0, 4000.0))
      samples.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(elements)));

    Call call{face, dtype};
    call.first = face == Face::grad_input ? y.data() : x.data();
    call.second = face == Face::grad_weight ? y.data() : w.data();
    call.threads = random() % 4 == 0 ? 3 : 1;
    std::vector<const KernelTable*> all = levels();
    if (!chosen.all_kernels) all = {all.back()};
    for (const KernelTable* level : all)
      for (const Kernel* kernel = list_of(*level, dtype, face);
           std::string(kernel->name) != "reference"; ++kernel) {
        if (chosen.all_kernels ? !can_run(*kernel, p) : kernel->declines(p) != nullptr) continue;
        call.result = result.data();
        kernel->run(p, call);
        compared.insert(kernel->name);
        Array<T> expected = result;
        call.result = expected.data();
        for (const std::int64_t element : samples) define<T>(p, call, element);
        CHECK_MESSAGE(result.same_bits(expected), std::string(level->level), " ",
                      std::string(kernel->name), " ", std::string(name_of(face)), " ",
                      std::string(name_of(dtype)), " threads=", call.threads, " on ", to_string(p));
        if (!chosen.all_kernels) break;
      }
  }
}

// A problem nobody thought of, most of them with more channels than those of cases.txt; none if what
// was drawn is too large or cannot be.
std::optional<Problem> draw(std::mt19937_64& random) {
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random() % n); };
  const auto some = [&](double most) {  // from 1 on, small ones more often
    const double part = static_cast<double>(random() >> 11) * 0x1p-53;
    return static_cast<std::int64_t>(std::exp(part * std::log(most + 1)));
  };
  const auto number = [](std::int64_t n) { return std::to_string(n); };
  std::string text = "n" + number(some(below(4) == 0 ? 600 : 70));
  std::int64_t a = some(700), b = some(1200), groups = 1;
  if (below(6) == 0) {
    groups = some(70);
    a = groups * some(4);
    b = groups * some(4);
  }
  text += " a" + number(a) + ">b" + number(b) + " g" + number(groups);
  const std::int64_t spatial = below(6) == 0 ? 1 : below(6) == 0 ? 3 : 2;
  const auto each = [&](const char* letter, auto draw_one) {
    text += letter;
    for (std::int64_t s = 0; s < spatial; ++s) text += (s > 0 ? "x" : "") + number(draw_one());
  };
  each(" i", [&] { return some(spatial == 1 ? 300 : 24); });
  each(" k", [&] { return some(7); });
  if (below(3) == 0) each(" s", [&] { return some(3); });
  if (below(2) == 0) each(" p", [&] { return below(3); });
  if (below(6) == 0) each(" d", [&] { return some(3); });
  if (below(8) == 0) each(" e", [&] { return some(3); });
  const char* const orders[][2] = {{"nia", "nob"}, {"nai", "nbo"}, {"ian", "obn"}, {"nia", "nbo"}};
  const char* const weights[] = {"oakb", "obka", "obak", "okab", "okba", "bako", "kaob"};
  const auto& order = orders[std::min<std::int64_t>(below(8) / 2, 3)];
  text += std::string(" x:") + order[0] + " y:" + order[1] + " w:" + weights[below(9) % 7];
  try {
    const Problem p = parse_problem(text);
    if (p.flops() == 0 || p.flops() > 2e8 || p.bytes(DType::float64) > 2e8) return {};
    return p;
  } catch (const Error&) {
    return {};
  }
}

// Where the highest level has vectors.
void check_all_took_part(const std::set<std::string>& compared) {
  if (std::string(levels().back()->level) == "v2" || levels().back()->level[0] == 'b') return;
  for (const char* kernel : {"scatter", "patch", "along", "gather", "weigh"})
    CHECK_MESSAGE(compared.contains(kernel), std::string(kernel));
}

}  // namespace

TEST_CASE("layers of the benchmark, as they are") {
  std::mt19937_64 random(1);
  std::set<std::string> compared;
  for (const std::string& line : cases_of(UNSHARED_SUITE))
    for (const char* activations : {" x:nia y:nob", " x:nai y:nbo"})
      for (const char* weights : {" w:oakb", " w:obka", " w:obak"}) {
        const Problem p = parse_problem(line + activations + weights);
        if (p.bytes(DType::float32) > 3e8) continue;
        compare<float>(p, DType::float32, random, {false, 4e6}, compared);
      }
  check_all_took_part(compared);
}

// UNSHARED_RANDOM=seed:problems draws others, and as many as there is time for.
TEST_CASE("random problems") {
  std::uint64_t seed = 1;
  long problems = 60;
  if (const char* given = std::getenv("UNSHARED_RANDOM")) {
    char* end = nullptr;
    seed = std::strtoull(given, &end, 10);
    if (*end == ':') problems = std::strtol(end + 1, nullptr, 10);
  }
  std::mt19937_64 random(seed);
  std::set<std::string> compared;
  for (long done = 0; done < problems;) {
    const std::optional<Problem> p = draw(random);
    if (!p) continue;
    const auto dtype = static_cast<DType>(random() % 3 == 0 ? random() % dtype_count : 0);
    visit(dtype, [&](auto type) {
      compare<typename decltype(type)::type>(*p, dtype, random, {true, 1e6}, compared);
    });
    ++done;
  }
  if (problems >= 60) check_all_took_part(compared);
}
