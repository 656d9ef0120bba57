// The cost model of choice.hpp. Per kernel the longest of three times: of the multiplications and
// the copies a processor issues, of what it reads through L2, and of what device memory must move at
// least. None of the fractions below has been measured yet.
#include "choice.hpp"

#include <algorithm>
#include <cmath>

#include "../cpp/kernels.hpp"
#include "staging.hpp"
#include "statement.hpp"

namespace unshared::cuda {
namespace {

// An H200. Memory: copying at 4.3e12 bytes/s was measured on one. L2: published measurements of an
// H100. Multiplications: 128 lanes x 132 processors x 1.755 GHz, of which a pure loop of them gets
// 60e12 operations/s; half as many in double precision. Launch: an empty kernel's time on the device.
constexpr double processors = 132, clock = 1.755e9, schedulers = 4;
constexpr double memory_rate = 4.3e12 * 0.85, l2_rate = 5.5e12 * 0.8;
constexpr double fma_rate = 30e12, launch_seconds = 2e-6;
constexpr double sector = 32;  // bytes that L2 moves at least

// Of a cell from its place to its first copies' arrival: a chain of shared and global latencies.
constexpr double item_latency = 2.5e-6;
// Instructions around one copy of a warp, counted in the machine code.
constexpr double copy_instructions = 9;
// A warp's term in the reference: index arithmetic, two loads, one multiplication.
constexpr double reference_instructions = 40;
// Of one term of a thread's chain until the next: the reference waits for two loads, lanes have
// several under way.
constexpr double reference_latency = 600 / clock, lanes_latency = 100 / clock;
// It has to be clearly the fastest to be chosen: it alone reuses nothing.
constexpr double last_resort = 1.5;

struct ShapeNumbers {
  double rows, columns, threads, blocks, fraction;  // of fma_rate
};

template <int bytes>
ShapeNumbers shape_numbers(TileKind kind) {
  const auto of = [](auto shape, double fraction) {
    using S = decltype(shape);
    return ShapeNumbers{S::rows, S::columns, S::threads, S::blocks_per_processor, fraction};
  };
  // The share of multiplications in the loop's instructions, less a tenth.
  switch (kind) {
    case TileKind::wide: return of(ShapeOf<TileKind::wide, bytes>{}, 0.80);
    case TileKind::flat: return of(ShapeOf<TileKind::flat, bytes>{}, 0.72);
    case TileKind::small: return of(ShapeOf<TileKind::small, bytes>{}, 0.60);
    case TileKind::stream8: return of(ShapeOf<TileKind::stream8, bytes>{}, 0.60);
    case TileKind::stream16: break;
  }
  return of(ShapeOf<TileKind::stream16, bytes>{}, 0.72);
}

ShapeNumbers shape_numbers(TileKind kind, int bytes) {
  return bytes <= 4   ? shape_numbers<4>(kind)
         : bytes == 8 ? shape_numbers<8>(kind)
                      : shape_numbers<16>(kind);
}

struct Model {
  const Problem& problem;
  const Face face;
  const int size;  // of an element, in bytes
  const double fmas;  // of real numbers per product
  const double rate;  // of those
  const double compulsory;  // bytes
  const Product p;
  const double steps;  // of a cell, on average
  const Staging first, second;

  Model(const Problem& q, Face f, DType dtype)
      : problem(q),
        face(f),
        size(static_cast<int>(size_of(dtype))),
        fmas(parts_of(dtype) == 2 ? 4 : 1),
        rate(dtype == DType::float64 || dtype == DType::complex128 ? fma_rate / 2 : fma_rate),
        compulsory(q.bytes(dtype)),
        p(product_of(q, f)),
        steps(p.taps_are_steps ? q.flops() / 2 / (cells() * rows() * columns()) : batch()),
        first(staging_of_first(p, nullptr, size)),
        second(staging_of_second(p, nullptr, size)) {}

  double cells() const { return static_cast<double>(p.cells); }
  double rows() const { return static_cast<double>(p.rows); }
  double columns() const { return static_cast<double>(p.columns); }
  double batch() const { return static_cast<double>(problem.batch); }

  // How many bytes L2 moves per byte an operand needs, from how many elements lie side by side.
  double waste(double side_by_side) const {
    return sector / std::min(sector, std::max(side_by_side, 1.0) * size);
  }
  double waste_of(const Staging& staging, int64_t line_stride, int64_t lines) const {
    if (staging.way == Way::vectors) return 1;
    if (staging.way == Way::across) return waste(line_stride == 1 ? static_cast<double>(lines) : 1);
    if (staging.unit_loop != step_loop)
      return waste(static_cast<double>(p.axes[staging.unit_loop].axis.kernel));
    double period = 1;
    if (p.taps_are_steps && p.taps_inside)
      for (int s = 0; s < p.axis_count; ++s) period *= static_cast<double>(p.axes[s].axis.kernel);
    double run = 8;
    while (period > 1 && run > 1 && run * period > 36) run /= 2;
    return waste(std::min(run, static_cast<double>(p.steps)));
  }
  double first_waste() const {
    for (int d = 0; d < p.column_depth; ++d)
      if (p.column[d].first == 1) return waste_of(first, 1, p.column[d].count);
    return waste_of(first, 0, 1);
  }
  double second_waste() const { return waste_of(second, p.row_second, p.rows); }

  double tile(TileKind kind) const {
    const ShapeNumbers s = shape_numbers(kind, size);
    const double across = std::ceil(rows() / s.rows), along = std::ceil(columns() / s.columns);
    const double items = cells() * across * along;
    const double reads_first = columns() / along * steps, reads_second = rows() / across * steps;
    const auto copies = [&](double elements, const Staging& staging) {
      return elements / 32 / (staging.way == Way::vectors ? 16 / size : 1) * copy_instructions;
    };
    const double compute = s.rows * s.columns * steps * fmas / (rate / processors * s.fraction);
    const double copy =
        (copies(reads_first, first) + copies(reads_second, second)) / (schedulers * clock);
    const double rounds = std::ceil(items / processors);
    const double resident = std::min(s.blocks, rounds);
    // A block alone keeps no more schedulers busy than it has warps, and waits for its first copies.
    const double alone = (compute + copy) * std::max(1.0, schedulers / (s.threads / 32));
    const double busy = rounds * std::max(compute + copy, (alone + item_latency) / resident);
    const double l2 =
        items * (reads_first * first_waste() + reads_second * second_waste()) * size / l2_rate;
    return launch_seconds + std::max({busy, l2, compulsory / memory_rate});
  }

  // Cycles of a warp's load whose lanes lie that far apart: one per sector.
  double sectors(int64_t stride) const {
    const auto apart = static_cast<double>(greater(stride, -stride));
    return std::min(32.0, std::max(1.0, apart * size / 4));
  }

  // Lanes over the cells along an axis.
  double lanes_along(int64_t cells_along, int64_t weights, int64_t others) const {
    const auto along = static_cast<double>(cells_along);
    const double warps = std::ceil(along / 32) * cells() / along;
    const double columns_held = std::ceil(columns() / 4), rows_held = std::ceil(rows() / 4);
    const bool result = face == Face::grad_weight;  // weights are the result
    const double loads = steps * (columns_held * rows() * sectors(result ? others : weights) +
                                  rows_held * columns() * sectors(others)) +
                         rows() * columns() * sectors(result ? weights : others);
    const double load = warps * loads * std::max(1.0, size / 4.0) / (processors * clock);
    const double compute =
        warps * 32 * columns_held * 4 * rows_held * 4 * steps * fmas / (rate / 2);
    const double idle = std::max(1.0, processors * 8 / (warps * columns_held * rows_held));
    return launch_seconds + std::max({std::max(load, compute) * idle, steps * lanes_latency,
                                      compulsory / memory_rate});
  }
  double lanes() const {
    double least = lanes_along(1, 1, 1);
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& a = p.axes[s].axis;
      if (p.axes[s].cells > 1)
        least = std::min(least, lanes_along(p.axes[s].cells, a.w_place_stride,
                                            face == Face::grad_input ? a.y_stride : a.x_stride));
    }
    return least;
  }

  // Lanes over rows, as long as these are many.
  double reference() const {
    const double terms = cells() * rows() * columns() * std::max(steps, 1.0) / 32;
    const double issue = terms * (reference_instructions + 4 * fmas) / (schedulers * clock);
    const double load = terms * (rows() < 32 ? 64 : 1 + sectors(p.row_second)) / clock;
    const auto apart = static_cast<double>(greater(p.row_second, -p.row_second));
    const double l2 = cells() * rows() * steps * size * std::clamp(apart, 1.0, sector / size);
    return launch_seconds +
           last_resort * std::max({std::max(issue, load) / processors, l2 / l2_rate,
                                   steps * reference_latency, compulsory / memory_rate});
  }
};

Prediction predict_anew(const Problem& problem, Face face, DType dtype) noexcept {
  Prediction prediction{{}, TileKind::small, TileKind::stream8, Family::reference};
  if (problem.layout(result_of(face)).elements() == 0) return prediction;
  const Model model(problem, face, dtype);
  double seconds[tile_kinds];
  for (int k = 0; k < tile_kinds; ++k) seconds[k] = model.tile(static_cast<TileKind>(k));
  const auto least = [&](TileKind from, TileKind to) {
    const double* best =
        std::min_element(seconds + static_cast<int>(from), seconds + static_cast<int>(to) + 1);
    return static_cast<TileKind>(best - seconds);
  };
  prediction.tile = least(TileKind::wide, TileKind::small);
  prediction.stream = least(TileKind::stream8, TileKind::stream16);
  const double each[] = {seconds[static_cast<int>(prediction.tile)],
                         seconds[static_cast<int>(prediction.stream)], model.lanes(),
                         model.reference()};
  for (int f = 0; f < family_count; ++f) prediction.microseconds[f] = each[f] * 1e6;
  prediction.best = static_cast<Family>(std::min_element(each, each + family_count) - each);
  return prediction;
}

}  // namespace

// A call asks several times, once for each kernel of its list.
Prediction predict(const Problem& problem, Face face, DType dtype) noexcept {
  struct Answer {
    bool given = false;
    Problem problem;
    Face face;
    DType dtype;
    Prediction prediction;
  };
  thread_local Answer last;
  if (!last.given || last.face != face || last.dtype != dtype || last.problem != problem)
    last = {true, problem, face, dtype, predict_anew(problem, face, dtype)};
  return last.prediction;
}

}  // namespace unshared::cuda

double unshared::cuda_predicted_seconds(const Problem& problem, Face face, DType dtype) noexcept {
  const cuda::Prediction prediction = cuda::predict(problem, face, dtype);
  return prediction.of(prediction.best) / 1e6;
}
