// The tensor-core modes, their kernels' own text run by the emulator (emulator/mma.hpp), which is as
// inaccurate as hardware may be: exact on small integers, within the bounds of theory on real
// data, in every tile alike, whatever the batch and its other samples hold; what is infinite or NaN
// reaches no result element that the definition keeps it from.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <string>

#include "../cuda/mma.hpp"
#include "arrays.hpp"
#include "cases.hpp"
#include "definition.hpp"
#include "emulator/thread.hpp"
#include "unshared.hpp"

using namespace unshared;

namespace {

constexpr Face faces[] = {Face::forward, Face::grad_input, Face::grad_weight};
constexpr double most_flops = 2e4;

Seat first_of(Face face) { return face == Face::grad_input ? Seat::y : Seat::x; }
Seat second_of(Face face) { return face == Face::grad_weight ? Seat::y : Seat::w; }

// The operands and the result of a call.
template <class T>
struct Tensors {
  Array<T> first, second, result;
  Tensors(const Problem& p, Face face)
      : first(p.layout(first_of(face))),
        second(p.layout(second_of(face))),
        result(p.layout(result_of(face))) {}
  Call call(Face face, bool accumulate = false) {
    Call call{face, dtype_of<T>, Place::cuda};
    call.first = first.data();
    call.second = second.data();
    call.result = result.data();
    call.accumulate = accumulate;
    return call;
  }
};

template <class F>
void for_each_face(F&& f) {
  f(std::integral_constant<Face, Face::forward>{});
  f(std::integral_constant<Face, Face::grad_input>{});
  f(std::integral_constant<Face, Face::grad_weight>{});
}

template <class Product, Face face>
void run_tile(int tile, const Problem& p, const Call& call,
              emulator::Order order = emulator::orders[0]) {
  using emulator::Emulator;
  emulator::Watch watch(p, call, order);
  if (tile == 0) cuda::launch_mma<Emulator, Product, face, cuda::WideTile>(p, call);
  if (tile == 1) cuda::launch_mma<Emulator, Product, face, cuda::ThinTile>(p, call);
  if (tile == 2) cuda::launch_mma<Emulator, Product, face, cuda::FlatTile>(p, call);
  if (tile == 3) cuda::run_mma<Emulator, Product, face>(p, call);  // as chosen
  if (!watch.failure().empty())
    FAIL_CHECK(name_of(face) << " tile=" << tile << " on " << to_string(p) << ": "
                             << watch.failure());
}
constexpr int tiles = 3;

using F16 = cuda::HalfProduct<Half>;
using BF16 = cuda::HalfProduct<BFloat16>;
#define UNSHARED_MODES F16, BF16, cuda::Tf32Product, cuda::Tf32x3Product

std::vector<Problem> small_cases(double flops) {
  std::vector<Problem> found;
  for (const std::string& line : cases_of(UNSHARED_CASES)) {
    const Problem problem = parse_problem(line);
    if (problem.flops() <= flops && cuda::mma_can(problem)) found.push_back(problem);
  }
  return found;
}

template <class T>
void fill_integers(Array<T>& array, std::mt19937_64& random) {
  for (T& cell : array.cells())
    cell = round_to<T>(static_cast<float>(static_cast<int>(random() % 9) - 4));
}

}  // namespace

TEST_CASE_TEMPLATE("tensor cores: every tile is exact on small integers", Product, UNSHARED_MODES) {
  using T = typename Product::Element;
  for (const Problem& problem : small_cases(most_flops))
    for_each_face([&](auto constant) {
      constexpr Face face = decltype(constant)::value;
      if (problem.layout(result_of(face)).elements() == 0) return;
      Tensors<T> tensors(problem, face);
      std::mt19937_64 random(hash(problem));
      fill_integers(tensors.first, random);
      fill_integers(tensors.second, random);
      fill_integers(tensors.result, random);
      const Array<T> start = tensors.result;
      const bool accumulate = random() % 2 == 1;
      const Call call = tensors.call(face, accumulate);
      define<T>(problem, call);
      const Array<T> expected = tensors.result;
      const int tile = static_cast<int>(random() % tiles);
      tensors.result = start;
      run_tile<Product, face>(tile, problem, call, emulator::orders[random() % 3]);
      CHECK_MESSAGE(tensors.result.same_bits(expected), std::string(name_of(face)), " tile=", tile,
                    " accumulate=", accumulate, " on ", to_string(problem));
    });
}

namespace {

// Fills with numbers of one kind.
enum class Kind { normal, positive, logarithmic, cancelling };
constexpr Kind kinds[] = {Kind::normal, Kind::positive, Kind::logarithmic, Kind::cancelling};

template <class T>
void fill_kind(Array<T>& array, std::mt19937_64& random, Kind kind) {
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  double before = 0;
  bool odd = false;
  for (T& cell : array.cells()) {
    double v = 0;
    if (kind == Kind::normal) {
      for (int i = 0; i < 12; ++i) v += uniform() - 0.5;
    } else if (kind == Kind::positive) {
      v = uniform();
    } else if (kind == Kind::logarithmic) {
      constexpr int range = std::is_same_v<T, Half> ? 3 : 8;  // no result overflows
      v = std::ldexp(uniform() < 0.5 ? -1 : 1, static_cast<int>(random() % (2 * range)) - range) *
          (1 + uniform());
    } else {  // neighbours all but cancel
      v = odd ? -before * (1 + uniform() * 0x1p-6) : uniform() + 0.5;
      before = v;
      odd = !odd;
    }
    cell = round_to<T>(static_cast<float>(v));
  }
}

template <class T, class F>
Array<double> widened(const Layout& layout, Array<T>& array, F&& f) {
  Array<double> wide(layout);
  for (std::size_t i = 0; i < array.cells().size(); ++i)
    wide.cells()[i] = f(static_cast<double>(widen(array.cells()[i])));
  return wide;
}

// Every element's sum, the sum of its terms' magnitudes, or their number, in double; -1 where the
// result has no element.
template <class T, class F>
Array<double> sums_of(const Problem& p, Face face, Tensors<T>& tensors, F&& f) {
  Array<double> first = widened(p.layout(first_of(face)), tensors.first, f),
                second = widened(p.layout(second_of(face)), tensors.second, f),
                result(p.layout(result_of(face)));
  for (double& cell : result.cells()) cell = -1;
  Call call{face, DType::float64};
  call.first = first.data();
  call.second = second.data();
  call.result = result.data();
  define<double>(p, call);
  return result;
}

// What theory allows for a sum of `terms` products whose magnitudes add up to `magnitude`: 2^-23 for
// each product that is added to a partial sum, 2^-24 for each promotion, and the rounding of the
// operands. (u = 2^-24, u_t = 2^-11 that of TF32.)
constexpr double u = 0x1p-24, u_t = 0x1p-11;
double sum_bound(double terms, double magnitude, int partial, int products_per_term) {
  return (2 * products_per_term * std::fmin(partial, terms) + std::ceil(terms / partial)) * u *
         magnitude;
}
template <class T>
double bound(cuda::HalfProduct<T>, double terms, double magnitude) {
  return sum_bound(terms, magnitude, 64, 1);
}
double bound(cuda::Tf32Product, double terms, double magnitude) {
  return (2 * u_t + u_t * u_t) * magnitude + (1 + 2 * u_t) * sum_bound(terms, magnitude, 32, 1);
}
double bound(cuda::Tf32x3Product, double terms, double magnitude) {
  // What the second parts lose, and the product that is left out: u_t^2 each.
  return 3 * u_t * u_t * (1 + u_t) * magnitude + (1 + 4 * u_t) * sum_bound(terms, magnitude, 16, 3);
}

template <class T>
struct Rounding {
  static constexpr double unit = 0, least = 0;
};
template <>
struct Rounding<Half> {
  static constexpr double unit = 0x1p-11, least = 0x1p-25;
};
template <>
struct Rounding<BFloat16> {
  static constexpr double unit = 0x1p-8, least = 0x1p-134;
};

}  // namespace

TEST_CASE_TEMPLATE("tensor cores: errors are within the bounds of theory", Product,
                   UNSHARED_MODES) {
  using T = typename Product::Element;
  double worst = 0;
  for (const char* text : {"n9 a40>b9 i4x3 k3x3 p1 x:nia y:nob w:obka", "n70 a9>b17 i5 k3 s2 p1"})
    for (const Kind kind : kinds)
      for_each_face([&](auto constant) {
        constexpr Face face = decltype(constant)::value;
        const Problem problem = parse_problem(text);
        Tensors<T> tensors(problem, face);
        std::mt19937_64 random(hash(problem));
        fill_kind(tensors.first, random, kind);
        fill_kind(tensors.second, random, kind);
        fill_kind(tensors.result, random, kind);
        const bool accumulate = kind == Kind::normal;
        Array<T> start = tensors.result;
        const auto same = [](double v) { return v; };
        Array<double> exact = sums_of(problem, face, tensors, same);
        Array<double> magnitudes =
            sums_of(problem, face, tensors, [](double v) { return std::fabs(v); });
        Array<double> terms = sums_of(problem, face, tensors, [](double) { return 1.0; });
        run_tile<Product, face>(tiles, problem, tensors.call(face, accumulate));
        for (std::size_t i = 0; i < terms.cells().size(); ++i) {
          const T found = tensors.result.cells()[i];
          if (terms.cells()[i] < 0) {
            if (std::memcmp(&found, &start.cells()[i], sizeof found) != 0)
              FAIL_CHECK("written beside the result");
            continue;
          }
          double expected = exact.cells()[i];
          double allowed = bound(Product{}, terms.cells()[i], magnitudes.cells()[i]);
          if (accumulate) {
            expected += static_cast<double>(widen(start.cells()[i]));
            allowed += u * (std::fabs(expected) + allowed);
          }
          allowed += Rounding<T>::unit * (std::fabs(expected) + allowed) + Rounding<T>::least;
          const double error = std::fabs(static_cast<double>(widen(found)) - expected);
          if (!(error <= allowed))
            FAIL_CHECK(name_of(face) << " kind=" << static_cast<int>(kind) << " cell=" << i
                                     << " on " << text << ": " << error << " > " << allowed);
          if (allowed > 0) worst = std::fmax(worst, error / allowed);
        }
      });
  MESSAGE("largest error as a share of its bound: ", worst);
}

TEST_CASE_TEMPLATE("tensor cores: a sample does not depend on its batch", Product, UNSHARED_MODES) {
  using T = typename Product::Element;
  const std::string geometry = " a9>b18 i4x3 k2x3 p1 x:nia y:nob w:obka";
  const Problem alone = parse_problem("n1" + geometry), batch = parse_problem("n100" + geometry);
  for_each_face([&](auto constant) {
    constexpr Face face = decltype(constant)::value;
    if constexpr (face != Face::grad_weight) {
      std::mt19937_64 random(1);
      Tensors<T> one(alone, face), many(batch, face);
      one.first.fill(random);
      one.second.fill(random);
      std::memcpy(many.second.data(), one.second.data(),
                  sizeof(T) * static_cast<std::size_t>(alone.layout(Seat::w).elements()));
      run_tile<Product, face>(tiles, alone, one.call(face));
      const auto reads = alone.layout(first_of(face)).elements(),
                 writes = alone.layout(result_of(face)).elements();
      for (const int sample : {0, 57, 99}) {
        for (T& cell : many.first.cells()) cell = round_to<T>(NAN);
        std::memcpy(many.first.data() + sample * reads, one.first.data(),
                    sizeof(T) * static_cast<std::size_t>(reads));
        for (int tile = 0; tile <= tiles; ++tile) {
          run_tile<Product, face>(tile, batch, many.call(face));
          CHECK_MESSAGE(std::memcmp(many.result.data() + sample * writes, one.result.data(),
                                    sizeof(T) * static_cast<std::size_t>(writes)) == 0,
                        std::string(name_of(face)), " sample=", sample, " tile=", tile);
          if (sample != 57) break;
        }
      }
    }
  });
}

TEST_CASE_TEMPLATE("tensor cores: the memory order changes no bit", Product, UNSHARED_MODES) {
  using T = typename Product::Element;
  // Samples, then channels, then places; the same values at the same indices.
  const Problem plain = parse_problem("n9 a16>b24 i5 k3 p1");
  for (const char* orders : {" x:nia y:nob w:obka", " x:nia y:nob w:oakb", " x:ian y:obn w:bako"}) {
    const Problem other = parse_problem(std::string("n9 a16>b24 i5 k3 p1") + orders);
    for_each_face([&](auto constant) {
      constexpr Face face = decltype(constant)::value;
      Tensors<T> here(plain, face), there(other, face);
      std::mt19937_64 random(2);
      here.first.fill(random);
      here.second.fill(random);
      const auto copy = [](const Layout& from_layout, Array<T>& from, const Layout& to_layout,
                           Array<T>& to) {
        for (std::int64_t e = 0; e < from_layout.elements(); ++e) {
          std::int64_t flat = e, source = 0, target = 0;
          for (int d = from_layout.rank - 1; d >= 0; --d) {
            const std::int64_t at = flat % from_layout.shape[d];
            flat /= from_layout.shape[d];
            source += at * from_layout.stride[d];
            target += at * to_layout.stride[d];
          }
          to.data()[target] = from.data()[source];
        }
      };
      const Seat first = first_of(face), second = second_of(face), result = result_of(face);
      copy(plain.layout(first), here.first, other.layout(first), there.first);
      copy(plain.layout(second), here.second, other.layout(second), there.second);
      run_tile<Product, face>(tiles, plain, here.call(face));
      run_tile<Product, face>(tiles, other, there.call(face));
      Array<T> back(plain.layout(result));
      copy(other.layout(result), there.result, plain.layout(result), back);
      for (std::int64_t e = 0; e < plain.layout(result).elements(); ++e)
        if (std::memcmp(&back.data()[e], &here.result.data()[e], sizeof(T)) != 0)
          FAIL_CHECK(name_of(face) << " element=" << e << orders);
    });
  }
}

TEST_CASE_TEMPLATE("tensor cores: what no chain reads reaches no result", Product, UNSHARED_MODES) {
  using T = typename Product::Element;
  for (const char* text : {"n3 a9>b10 i4x3 k3x2 p1:2x1 d1x2 x:nia y:nob w:obka",
                           "n10 a3>b9 i9 k4 s2 e2 p3", "n17 a8>b20 i3x2 k2x3 s3x2 p1 w:oakb"}) {
    const Problem problem = parse_problem(text);
    for_each_face([&](auto constant) {
      constexpr Face face = decltype(constant)::value;
      std::mt19937_64 random(hash(problem));
      for (int trial = 0; trial < 6; ++trial) {
        Tensors<T> tensors(problem, face);
        fill_integers(tensors.first, random);
        fill_integers(tensors.second, random);
        const T bad = round_to<T>(trial % 2 == 0 ? NAN : -INFINITY);
        const auto reads = static_cast<std::uint64_t>(
            problem.layout(trial < 3 ? first_of(face) : second_of(face)).elements());
        (trial < 3 ? tensors.first : tensors.second).data()[random() % reads] = bad;
        if (trial == 5 && face != Face::grad_weight) {  // all weights of taps in padding
          Tensors<T> counted(problem, Face::grad_weight);
          Array<double> terms =
              sums_of(problem, Face::grad_weight, counted, [](double) { return 1.0; });
          for (std::size_t i = 0; i < terms.cells().size(); ++i)
            if (terms.cells()[i] <= 0) tensors.second.cells()[i] = bad;
        }
        define<T>(problem, tensors.call(face));
        Array<T> expected = tensors.result;
        run_tile<Product, face>(tiles, problem, tensors.call(face));
        for (std::size_t i = 0; i < expected.cells().size(); ++i) {
          const float one = widen(expected.cells()[i]), other = widen(tensors.result.cells()[i]);
          if (std::isfinite(one) ? one != other : std::isfinite(other))
            FAIL_CHECK(name_of(face) << " trial=" << trial << " cell=" << i << " on " << text);
        }
      }
    });
  }
}

TEST_CASE_TEMPLATE("tensor cores: weights cross once, in whole sectors, banks do not clash",
                   Product, UNSHARED_MODES) {
  using T = typename Product::Element;
  for (const char* text :
       {"n64 a16>b64 i3 k3 x:nia y:nob w:obka", "n64 a64>b64 i2 k2 x:nia y:nob w:oakb",
        "n8 a16>b64 i3 k3 x:nia y:nob w:obka", "n128 a16>b16 i3 k3 x:nia y:nob w:obka"}) {
    const Problem problem = parse_problem(text);
    for_each_face([&](auto constant) {
      constexpr Face face = decltype(constant)::value;
      Tensors<T> tensors(problem, face);
      std::mt19937_64 random(4);
      tensors.first.fill(random);
      tensors.second.fill(random);
      const Call call = tensors.call(face);
      emulator::Watch watch(problem, call, emulator::Order::forward, emulator::Watch::Counting::on);
      cuda::run_mma<emulator::Emulator, Product, face>(problem, call);
      CHECK(watch.failure() == "");
      const emulator::Counters c = watch.counters();
      INFO(name_of(face) << " on " << to_string(problem));
      if (face != Face::grad_weight) CHECK(c.second.times_fetched() == 1);  // weights
      for (const emulator::Traffic& traffic : {c.first, c.second, c.stores})
        CHECK(traffic.moved_per_byte() == 1);  // whole sectors
      const auto conflicts = [](const emulator::Banks& banks) {
        return static_cast<double>(banks.rounds) / static_cast<double>(banks.least);
      };
      // The main loop has none; in the end a tile of sums is read by rows and columns of any type.
      CHECK(conflicts(c.shared_loads) <= 1.6);
      CHECK(conflicts(c.shared_stores) <= 1.1);
      CHECK(conflicts(c.shared_copies) <= 1.25);
    });
  }
}

namespace {

// One warp multiplies A (16 x K) by B (K x 8), with fragments filled in word by word as PTX
// documents them, and says whether ldmatrix finds the same words.
template <class Product>
struct Probe {
  using T = typename Product::Element;
  static constexpr int threads = 32, words = 4 / sizeof(T), depth = 8 * words;
  const T* a;
  const T* b;
  float* c;
  int* different;

  template <class Thread>
  void operator()(Thread& t) const {
    const int lane = t.index(), g = lane / 4, w = lane % 4;
    const auto word = [&](auto&& element) {
      std::uint32_t bits = 0;
      for (int h = 0; h < words; ++h) {
        const T v = element(h);
        std::uint32_t raw = 0;
        std::memcpy(&raw, &v, sizeof v);
        bits |= raw << 16 * h;
      }
      return bits;
    };
    std::uint32_t p[4], q[2];
    for (int i = 0; i < 4; ++i)
      p[i] = word([&](int h) { return a[(g + i % 2 * 8) * depth + (w + i / 2 * 4) * words + h]; });
    for (int i = 0; i < 2; ++i)
      q[i] = word([&](int h) { return b[((w + i * 4) * words + h) * 8 + g]; });

    // A row by row; for 16-bit elements then column by column.
    T* shared = reinterpret_cast<T*>(t.shared());
    std::uint32_t found[4], across[4];
    for (int i = lane; i < 16 * depth; i += 32) t.store_shared(&shared[i], a[i]);
    t.sync();
    const int row = lane % 8, one = lane / 8 % 2, two = lane / 16;
    t.template load_matrices<false>(&shared[(row + 8 * one) * depth + two * depth / 2], found);
    std::memcpy(across, found, sizeof found);
    t.sync();
    if constexpr (sizeof(T) == 2) {
      for (int i = lane; i < 16 * depth; i += 32)
        t.store_shared(&shared[i % depth * 16 + i / depth], a[i]);
      t.sync();
      t.template load_matrices<true>(&shared[(row + 8 * two) * 16 + 8 * one], across);
    }
    different[lane] = std::memcmp(found, p, sizeof p) != 0 || std::memcmp(across, p, sizeof p) != 0;

    float sum[4] = {};
    Product::multiply(t, sum, Product::left(t, p), Product::right(t, q[0], q[1]));
    for (int i = 0; i < 4; ++i) t.store(&c[(g + i / 2 * 8) * 8 + 2 * w + i % 2], sum[i]);
  }
};

}  // namespace

TEST_CASE_TEMPLATE("the emulated tensor core multiplies matrices", Product, UNSHARED_MODES) {
  using T = typename Product::Element;
  constexpr int depth = Probe<Product>::depth;
  std::mt19937_64 random(3);
  T a[16 * depth], b[depth * 8];
  const auto draw = [&](T& v) { v = round_to<T>(static_cast<float>(random() % 99) - 49); };
  for (T& v : a) draw(v);
  for (T& v : b) draw(v);
  float c[16 * 8] = {};
  int different[32] = {};
  Call call{Face::forward, DType::float32, Place::cuda};  // whose result looks like c
  call.first = a;
  call.second = b;
  call.result = c;
  emulator::Watch watch(parse_problem("n16 a1>b8 i1 k1"), call, emulator::Order::forward);
  emulator::Emulator::launch(Probe<Product>{a, b, c, different}, 1, 2048, call);
  CHECK(watch.failure() == "");
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += widen(a[i * depth + k]) * widen(b[k * 8 + j]);
      CHECK(c[i * 8 + j] == sum);
    }
  for (const int lane : different) CHECK(lane == 0);
}

TEST_CASE("the emulated tensor core truncates, and rounds to TF32 away from zero at ties") {
  using emulator::truncated_sum;
  CHECK(truncated_sum<1>(1.0f, {0x1p-12f}, {0x1p-12f}) == 1.0f);
  CHECK(truncated_sum<2>(1.0f, {0x1p-13f, 0x1p-13f}, {0x1p-12f, 0x1p-12f}) == 1.0f);
  CHECK(truncated_sum<1>(-1.0f, {-0x1.fp-12f}, {0x1p-12f}) == -1.0f);
  CHECK(truncated_sum<1>(1.0f, {-0x1p-13f}, {0x1p-12f}) == 1.0f);  // aligned: nothing is left of it
  CHECK(truncated_sum<1>(1.0f, {-0x1p-12f}, {0x1p-12f}) == 1.0f - 0x1p-24f);
  CHECK(std::isnan(truncated_sum<1>(INFINITY, {-INFINITY}, {1.0f})));
  struct Core : emulator::TensorCore<Core> {
    float round(float v) {
      return std::bit_cast<float>(round_tf32(std::bit_cast<std::uint32_t>(v)));
    }
  } core;
  CHECK(core.round(1 + 0x1p-11f) == 1 + 0x1p-10f);
  CHECK(core.round(-1 - 0x1p-11f) == -1 - 0x1p-10f);
  CHECK(core.round(1 + 0x1.ffp-12f) == 1.0f);
  CHECK(std::isnan(core.round(NAN)));
  CHECK(core.round(INFINITY) == INFINITY);
}

TEST_CASE("tensor cores: taken where they are asked for, and where they pay") {
  const auto chosen = [](const char* text, DType dtype, Precision precision) {
    return explain(parse_problem(text), Face::forward, dtype, Place::cuda, precision).kernel;
  };
  constexpr const char* text = "n4 a16>b16 i5x5 k3x3";
  CHECK(chosen(text, DType::float32, Precision::tf32) == "mma");
  CHECK(chosen(text, DType::float32, Precision::tf32x3) == "mma");
  CHECK(chosen(text, DType::float16, Precision::fast) == "mma");
  CHECK(chosen(text, DType::bfloat16, Precision::fast) == "mma");
  CHECK(chosen(text, DType::float32, Precision::ieee) != "mma");
  CHECK(chosen(text, DType::bfloat16, Precision::ieee) != "mma");
  CHECK(chosen(text, DType::float32, Precision::fast) != "mma");
  CHECK(chosen(text, DType::float64, Precision::tf32) != "mma");
  CHECK(chosen("n4 a16>b7 i5x5 k3x3", DType::bfloat16, Precision::fast) != "mma");
  CHECK(chosen("n4 a7>b16 i5 k1", DType::bfloat16, Precision::fast) != "mma");
  CHECK(chosen("n4 a8>b16 i40x40 k19x27", DType::bfloat16, Precision::fast) != "mma");
}
