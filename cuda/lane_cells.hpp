// Cells (cpp/cells.hpp) for kernels whose lanes are cells: what a thread must know of its own
// output place or input pixel, found once, without loops over taps and without a division.
// Everything that all lanes have in common is worked out on the host.
//
// Offsets are in bytes. A lane adds them modulo 2^32 to an address that all lanes share, where the
// host has proven that what it reads lies within 4 GiB of there; else (wide) in 64 bits.
#pragma once

#include <type_traits>

#include "../cpp/cells.hpp"
#include "device.hpp"

namespace unshared::cuda {

constexpr std::int64_t size_of_axis(const Axis& axis, Face face) {
  return face == Face::grad_input ? axis.input : axis.output;
}

// Division by a number known at launch: a multiplication and a shift for numbers below 2^31.
template <bool wide>
struct Divider {
  std::int64_t by = 1;
  std::uint32_t factor = 1u << 31;
  int shift = 31;  // 0: there are larger numbers

  // Of numbers from 0 to `most`. With 2^l >= by, factor = 2^(31 + l) / by, rounded up, is too large
  // by less than 1 / by in 2^31 of its units.
  static Divider of(std::int64_t by, std::int64_t most) {
    Divider d{by < 1 ? 1 : by};
    int l = 0;
    while (std::int64_t{1} << l < d.by) ++l;
    const std::uint64_t power = std::uint64_t{1} << (31 + (l < 32 ? l : 0));
    const auto divisor = static_cast<std::uint64_t>(d.by);
    d.factor = static_cast<std::uint32_t>((power + divisor - 1) / divisor);
    d.shift = most <= max_extent && l < 32 ? 31 + l : 0;
    return d;
  }
  template <class N>
  UNSHARED_DEVICE N operator()(N n) const {
    if (wide && shift == 0) return static_cast<N>(n / by);
    return static_cast<N>((std::uint64_t{static_cast<std::uint32_t>(n)} * factor) >> shift);
  }
};

inline constexpr int reaching_axes = max_spatial;  // those that may have taps, or padding

// One axis as lanes see it. Tap number j, in chain order, joins a cell to the partner
// (cell * rate + shift + j * dilation) / spacing, if that is a whole number up to last / spacing.
template <bool wide>
struct LaneAxis {
  using Index = std::conditional_t<wide, std::int64_t, std::int32_t>;
  using Offset = std::conditional_t<wide, std::int64_t, std::uint32_t>;

  bool present = false;
  bool plain = true;  // the partner is the cell
  Divider<wide> before, cells;  // how a cell's number is split
  Divider<wide> by_dilation, by_spacing, by_step, by_run;
  Index rate = 1, shift = 0, dilation = 1, spacing = 1, last = 0, kernel = 1;
  Index step = 1;  // between taps that reach
  // Strides of the first operand by partner, of the second (weights; in grad_weight dy) by cell -
  // in grad_input by partner - and by tap, and of the result by cell.
  Offset first = 0, second = 0, tap = 0, result = 0;

  // The pairs (tap, partner) of a cell: `count` of them from the first.
  struct Reach {
    Index count, tap, partner;
  };
  UNSHARED_DEVICE Reach reach(Index cell, bool may_miss) const {
    if (!may_miss || plain) return {1, 0, cell};
    Index at = cell * rate + shift, j = 0;
    if (at < 0) {
      j = by_dilation(dilation - 1 - at);
      at += j * dilation;
    }
    Index partner = by_spacing(at);
    if (spacing != 1)
      for (Index tries = 1; partner * spacing != at; ++tries) {
        if (tries == step) return {0, 0, 0};
        ++j;
        at += dilation;
        partner = by_spacing(at);
      }
    if (j >= kernel || at > last) return {0, 0, 0};
    const Index fit = by_run(last - at), left = by_step(kernel - 1 - j);
    return {(fit < left ? fit : left) + 1, j, partner};
  }
};

// The cells of a face. Neighbouring lanes are neighbours along the axis that weights are closest
// along in memory.
template <bool wide>
struct LaneCells {
  using Line = LaneAxis<wide>;
  using Index = typename Line::Index;
  using Offset = typename Line::Offset;

  std::int64_t count = 1;
  Line line[max_axes];  // those that reach end at reaching_axes - 1, in chain order
  int first_reaching = reaching_axes;
  Offset first = 0, second = 0, result = 0;  // where offsets begin: strides may be negative

  UNSHARED_DEVICE Index index(const Line& along, Index cell) const {
    const Index n = along.before(cell);
    return n - along.cells(n) * static_cast<Index>(along.cells.by);
  }
};

// What lanes do with a problem's axes, before it is known how wide offsets must be.
class LaneOrder {
 public:
  LaneOrder(const Problem& problem, Face face, std::int64_t bytes);

  bool narrow() const { return narrow_; }
  std::int64_t cells() const { return cells_; }
  int lane_axis() const { return lane_axis_; }  // along which neighbouring lanes are neighbours
  int slot(int axis) const { return slot_[axis]; }  // where cells_as() puts it

  // The address narrow offsets count from: the lowest. Operands in the order of a call, the result
  // last.
  template <bool wide, class V>
  V* origin(V* zero, int operand) const {
    return wide ? zero : zero + low_[operand];
  }

  // The partner of every cell is the input, or output, of the same index.
  static bool plain(const Axis& axis) {
    return axis.kernel == 1 && axis.stride == 1 && axis.input_dilation == 1 &&
           axis.padding_low == 0 && axis.input == axis.output;
  }

  template <bool wide>
  LaneCells<wide> cells_as() const;

 private:
  // The lowest of the offsets along one extent, added to `low`; the span, to `span`.
  static void extend(std::int64_t extent, std::int64_t stride, std::int64_t& low,
                     std::int64_t& span) {
    if (extent < 2) return;
    low += stride < 0 ? (extent - 1) * stride : 0;
    span += (extent - 1) * (stride < 0 ? -stride : stride);
  }
  std::int64_t second_stride(const Axis& axis) const {
    return face_ == Face::grad_weight ? axis.y_stride : axis.w_place_stride;
  }
  std::int64_t result_stride(const Axis& axis) const {
    return face_ == Face::forward      ? axis.y_stride
           : face_ == Face::grad_input ? axis.x_stride
                                       : axis.w_place_stride;
  }

  const Problem& p_;
  const Face face_;
  const std::int64_t bytes_;
  std::int64_t before_[max_axes];  // of each axis: how many cells are split off by faster ones
  int slot_[max_axes];
  std::int64_t cells_ = 1;
  int lane_axis_ = 0;
  std::int64_t low_[3] = {}, most_ = 0;  // of first, second, result, in elements
  int first_reaching_ = reaching_axes;
  bool narrow_;
};

inline LaneOrder::LaneOrder(const Problem& problem, Face face, std::int64_t bytes)
    : p_(problem), face_(face), bytes_(bytes) {
  const int axes = p_.axis_count;
  const auto magnitude = [](std::int64_t n) { return n < 0 ? -n : n; };
  // The order of lanes: by stride of the weights; of equals, the later axis runs faster.
  bool taken[max_axes] = {};
  for (int turn = 0; turn < axes; ++turn) {
    int next = -1;
    for (int s = 0; s < axes; ++s) {
      if (taken[s]) continue;
      const bool one = size_of_axis(p_.axes[s], face) == 1;
      const bool next_one = next >= 0 && size_of_axis(p_.axes[next], face) == 1;
      if (next < 0 || (one == next_one ? magnitude(p_.axes[s].w_place_stride) <=
                                             magnitude(p_.axes[next].w_place_stride)
                                       : next_one))
        next = s;
    }
    taken[next] = true;
    before_[next] = cells_;
    cells_ *= size_of_axis(p_.axes[next], face);
    if (turn == 0) lane_axis_ = next;
  }
  // Slots: axes with taps in chain order, the last in the last slot (so that the innermost loop is
  // one); before them those with one tap that may miss; the others where there is room.
  int slot = reaching_axes;
  for (int s = axes - 1; s >= 0; --s)
    if (p_.axes[s].kernel != 1) slot_[s] = --slot;
  for (int s = axes - 1; s >= 0; --s)
    if (p_.axes[s].kernel == 1 && !plain(p_.axes[s])) slot_[s] = --slot;
  first_reaching_ = slot;
  int beyond = reaching_axes;
  for (int s = 0; s < axes; ++s)
    if (plain(p_.axes[s])) slot_[s] = beyond < max_axes ? beyond++ : --slot;

  std::int64_t span[3] = {};
  for (int s = 0; s < axes; ++s) {
    const Axis& a = p_.axes[s];
    const bool by_input = face == Face::grad_input;
    extend(by_input ? a.output : a.input, by_input ? a.y_stride : a.x_stride, low_[0], span[0]);
    extend(a.output, second_stride(a), low_[1], span[1]);
    extend(a.kernel, face == Face::grad_weight ? 0 : a.w_tap_stride, low_[1], span[1]);
    extend(size_of_axis(a, face), result_stride(a), low_[2], span[2]);
    const std::int64_t rate = by_input ? a.input_dilation : a.stride;
    const std::int64_t other = by_input ? a.stride : a.input_dilation;
    const std::int64_t at = greater(a.input, a.output) * (greater(rate, other) + 1) +
                            (a.kernel + 1) * a.dilation + magnitude(a.padding_low);
    most_ = greater(most_, at);
  }
  const bool forward = face == Face::forward;
  if (face == Face::grad_input) {
    extend(p_.out_channels, p_.y_channel_stride, low_[0], span[0]);
    extend(p_.out_channels, p_.w_out_stride, low_[1], span[1]);
  } else {
    extend(p_.in_channels, p_.x_channel_stride, low_[0], span[0]);
    extend(p_.in_channels, forward ? p_.w_in_stride : 0, low_[1], span[1]);
  }
  constexpr std::int64_t reach = std::int64_t{1} << 32;
  narrow_ = most_ <= max_extent / 2 && cells_ <= max_extent - 1024;
  for (const std::int64_t elements : span) narrow_ = narrow_ && elements < reach / bytes_ - 1;
}

template <bool wide>
LaneCells<wide> LaneOrder::cells_as() const {
  using Index = typename LaneCells<wide>::Index;
  const auto offset = [&](std::int64_t elements) {
    return static_cast<typename LaneCells<wide>::Offset>(elements * bytes_);
  };
  const bool by_input = face_ == Face::grad_input;
  LaneCells<wide> all;
  all.count = cells_;
  all.first_reaching = first_reaching_;
  // Narrow offsets count from the lowest address, wide ones from the element of index zero.
  all.first = wide ? 0 : offset(-low_[0]);
  all.second = wide ? 0 : offset(-low_[1]);
  all.result = wide ? 0 : offset(-low_[2]);
  for (int s = 0; s < p_.axis_count; ++s) {
    const Axis& a = p_.axes[s];
    LaneAxis<wide>& line = all.line[slot_[s]];
    const std::int64_t spacing = by_input ? a.stride : a.input_dilation;
    const std::int64_t step = spacing / greatest_divisor(spacing, a.dilation);
    line.present = true;
    line.plain = plain(a);
    line.before = Divider<wide>::of(before_[s], cells_);
    line.cells = Divider<wide>::of(size_of_axis(a, face_), cells_);
    line.by_dilation = Divider<wide>::of(a.dilation, most_);
    line.by_spacing = Divider<wide>::of(spacing, most_);
    line.by_step = Divider<wide>::of(step, most_);
    line.by_run = Divider<wide>::of(step * a.dilation, most_);
    line.rate = static_cast<Index>(by_input ? a.input_dilation : a.stride);
    line.shift =
        static_cast<Index>(by_input ? a.padding_low - (a.kernel - 1) * a.dilation : -a.padding_low);
    line.dilation = static_cast<Index>(a.dilation);
    line.spacing = static_cast<Index>(spacing);
    line.last = static_cast<Index>(((by_input ? a.output : a.input) - 1) * spacing);
    line.kernel = static_cast<Index>(a.kernel);
    line.step = static_cast<Index>(step);
    line.first = offset(by_input ? a.y_stride : a.x_stride);
    line.second = offset(second_stride(a));
    line.tap = offset(by_input ? -a.w_tap_stride : a.w_tap_stride);
    line.result = offset(result_stride(a));
    if (by_input) all.second += offset((a.kernel - 1) * a.w_tap_stride);
  }
  return all;
}

}  // namespace unshared::cuda
