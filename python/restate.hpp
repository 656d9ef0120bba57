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

// The sizes and options of a problem, which are all of it but channels, batch and memory orders.
inline void copy_options(const Problem& problem, Arguments& to) {
  const auto per_axis = [&](std::int64_t Axis::* member) {
    Extents extents{problem.spatial, false, {}};
    for (int s = 0; s < problem.spatial; ++s) extents.value[s] = problem.spatial_axis(s).*member;
    return extents;
  };
  to.input_size = per_axis(&Axis::input);
  to.kernel_size = per_axis(&Axis::kernel);
  to.stride = per_axis(&Axis::stride);
  to.dilation = per_axis(&Axis::dilation);
  to.input_dilation = per_axis(&Axis::input_dilation);
  to.padding.low = per_axis(&Axis::padding_low);
  to.padding.high = per_axis(&Axis::padding_high);
  to.groups = problem.groups();
}

inline Problem restate(const Problem& problem, const Restatement& wish) {
  const auto fail = [](const char* argument, std::string expected, std::string found) {
    throw Error(Error::Kind::value, "restate", argument, std::move(expected), std::move(found));
  };
  Arguments stated;
  stated.operation = "restate";
  stated.mapped = problem.mapped || wish.mapped;
  copy_options(problem, stated);
  if (wish.groups) stated.groups = *wish.groups;
  stated.sizes = {wish.in_channels.value_or(problem.in_channels * problem.groups()),
                  wish.out_channels.value_or(problem.out_channels * problem.groups()),
                  wish.batch.value_or(problem.batch),
                  wish.mapped.value_or(problem.mapped ? problem.axes[0].input : 1)};
  const Problem sizes = make_problem(stated);
  stated.sizes.reset();

  const int lead = stated.mapped ? 1 : 0;
  const auto layout = [&](Seat seat) {
    const char* const name = seat == Seat::x ? "x" : seat == Seat::w ? "w" : "y";
    Layout l = sizes.layout(seat);
    std::fill_n(l.stride, l.rank, 0);
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
  if (wish.shared == Seat::y)  // then y is no result, and the face is one that fills another seat
    stated.face = Face::grad_input;
  return make_problem(stated);
}

}  // namespace unshared::python
