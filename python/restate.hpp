// A Problem stated anew: other extents, other memory orders, the same layer. Adapters whose arrays
// are only described (no memory yet) say what they want in these words; make_problem judges it, as
// it judges everything.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "problem.hpp"

namespace unshared::python {

// What is not given stays as it is. Channel counts are totals, of all groups together.
struct Restatement {
  std::optional<std::int64_t> mapped, batch, in_channels, out_channels, groups;
  // Dimensions of each tensor, slowest in memory first; row-major if empty. The mapped one does not
  // count: it is the slowest.
  std::array<std::vector<int>, 3> order;
  // The operand that has no mapped extent: every index of the others meets all of it.
  std::optional<Seat> shared;
};

inline Problem restate(const Problem& problem, const Restatement& wish) {
  const auto fail = [](const char* argument, std::string expected, std::string found) {
    throw Error(Error::Kind::value, "restate", argument, std::move(expected), std::move(found));
  };
  Arguments stated;
  stated.mapped = problem.mapped || wish.mapped;
  stated.groups = wish.groups.value_or(problem.groups());
  const int lead = stated.mapped ? 1 : 0, spatial = problem.spatial;
  for (Extents* e : {&stated.stride, &stated.dilation, &stated.input_dilation, &stated.padding.low,
                     &stated.padding.high}) {
    e->single = false;
    e->count = spatial;
  }
  for (int s = 0; s < spatial; ++s) {
    const Axis& axis = problem.spatial_axis(s);
    stated.stride.value[s] = axis.stride;
    stated.dilation.value[s] = axis.dilation;
    stated.input_dilation.value[s] = axis.input_dilation;
    stated.padding.low.value[s] = axis.padding_low;
    stated.padding.high.value[s] = axis.padding_high;
  }
  const std::int64_t batch = wish.batch.value_or(problem.batch);
  const std::int64_t in = wish.in_channels.value_or(problem.in_channels * problem.groups());
  const std::int64_t out = wish.out_channels.value_or(problem.out_channels * problem.groups());
  if (stated.groups < 1 || in % stated.groups != 0)
    fail("groups", "a divisor of the input channels", std::to_string(stated.groups));

  const auto layout = [&](Seat seat) {
    const char* const name = seat == Seat::x ? "x" : seat == Seat::w ? "w" : "y";
    Layout l;
    if (stated.mapped) l.shape[l.rank++] = wish.mapped.value_or(problem.axes[0].input);
    const auto add = [&](auto extent) {
      for (int s = 0; s < spatial; ++s) l.shape[l.rank++] = extent(problem.spatial_axis(s));
    };
    if (seat == Seat::w) add([](const Axis& a) { return a.output; });
    l.shape[l.rank++] = seat == Seat::w ? out : batch;
    l.shape[l.rank++] = seat == Seat::w ? in / stated.groups : seat == Seat::x ? in : out;
    if (seat == Seat::x) add([](const Axis& a) { return a.input; });
    if (seat == Seat::w) add([](const Axis& a) { return a.kernel; });
    if (seat == Seat::y) add([](const Axis& a) { return a.output; });

    const std::vector<int>& order = wish.order[static_cast<std::size_t>(seat)];
    const int dims = l.rank - lead;
    if (!order.empty() && static_cast<int>(order.size()) != dims)
      fail(name, "an order of its " + std::to_string(dims) + " dimensions",
           std::to_string(order.size()));
    std::int64_t stride = 1;
    const auto lay = [&](int d) {
      l.stride[d] = stride;
      if (__builtin_mul_overflow(stride, std::max<std::int64_t>(l.shape[d], 1), &stride))
        stride = INT64_MAX;
    };
    std::array<bool, max_dims> seen{};
    for (int i = dims - 1; i >= 0; --i) {
      const int d = order.empty() ? i : order[static_cast<std::size_t>(i)];
      if (d < 0 || d >= dims || std::exchange(seen[static_cast<std::size_t>(d)], true))
        fail(name, "each dimension once, counted from 0", std::to_string(d));
      lay(lead + d);
    }
    if (stated.mapped && wish.shared != seat) lay(0);
    return l;
  };
  stated.x = layout(Seat::x);
  stated.w = layout(Seat::w);
  stated.y = layout(Seat::y);
  if (wish.shared == Seat::y) {  // then y is no result, and the face is one that fills another seat
    stated.face = Face::grad_input;
    stated.input_size = Extents{spatial, false, {}};
    for (int s = 0; s < spatial; ++s) stated.input_size->value[s] = problem.spatial_axis(s).input;
  }
  return make_problem(stated);
}

}  // namespace unshared::python
