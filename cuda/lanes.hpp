// Kernel "lanes": the lanes of a warp are cells - output places, input pixels, groups - for weights
// whose memory runs along places or groups, and for few channels. Nothing is shared between lanes:
// a thread keeps a tile of results of its own cell in registers, samples by channels (grad_weight:
// taps and input channels by output channels). Any strides, any dtype, every option.
// Accumulator, order and determinism: lanes_gather.hpp, lanes_weight.hpp.
//
// Weights go from memory to registers once per block of samples. Blocks of samples are neighbours
// in the grid, and not a loop of the thread: L2 serves the second reading either way, and there
// are more threads.
//
// Predictions for one H200, float32, weights with places innermost (not run). A step of the loop is
// one tap of one channel: 75 instructions for 32 multiplications (tile few), 41 for 8 (single), 49
// for 16 (paired), besides 250 to 400 per thread; 85 % of 29.6e12 instructions of a lane per second
// and of 4.3 TB/s, and 2 us:
//
//     us                                     forward  grad_input  grad_weight  floor  bound by
//     32x32 3>64 k3 n32                          9        50          10         3.3  instructions
//     224x224 3>16 k3 n8                        34        40          38          27  weights
//     128x256 8>8 k3 n4                         25        25          27          20  weights
//     56x56x64 depthwise k3 n16                 14        14          14         7.6  instructions
//     the same, channels innermost (paired)     11        11          11         7.6  memory
//     1-D 2048, 1>2 k3 n16                       4         4           4         0.1  launch
//     weather 260x240 40>2 k1 n8                30        30          30          24  x
//
// (The 50 are latency: two warps for every scheduler, each with 192 rounds of three steps.)
//
// Neighbouring lanes read x one tap apart. Handing it on by shuffles would not pay: a shuffle moves
// 32 words a clock, as does the load from L1 that it replaces; it would save two additions of 41.
#pragma once

#include <optional>

#include "lanes_gather.hpp"
#include "lanes_weight.hpp"

namespace unshared::cuda {

// The tiles: for few channels, for a single one, and a small one for small batches, few cells and
// problems whose offsets need 64 bits. The paired one is for a single channel where two lanes'
// cells may move together. Sizes by how many 4-byte words a sum has: as much as fits into registers
// without spilling.
enum class LaneTile { few, single, paired, small };
struct TileSize {
  int rows, columns, pack;
};
constexpr TileSize size_of(LaneTile tile, Face face, int words) {
  const bool single = tile != LaneTile::few;
  const int pack = tile == LaneTile::paired ? 2 : 1;
  if (tile == LaneTile::small) return {2, 2, 1};
  if (face == Face::grad_weight) return {words == 4 ? 4 : 9, single ? 1 : words == 1 ? 4 : 2, pack};
  return {words == 1 || (words == 2 && single) ? 8 : 4, single ? 1 : words == 4 ? 2 : 4, pack};
}
template <class T>
inline constexpr int sum_words = sizeof(decltype(widen(T{}))) / 4;
template <class T>
inline constexpr bool has_pairs = sum_words<T> == 1;

// The problem whose cells are pairs of p's, next to each other in all three tensors: half as many
// along the axis of lanes. Nothing if there are none.
inline std::optional<Problem> paired(Problem p, Face face) {
  const LaneOrder order(p, face, 1);
  Axis& along = p.axes[order.lane_axis()];
  if (!LaneOrder::plain(along) || along.input % 2 != 0 || along.x_stride != 1 ||
      along.w_place_stride != 1 || along.y_stride != 1)
    return {};
  along.input /= 2;
  along.output /= 2;
  along.x_stride = along.w_place_stride = along.y_stride = 2;
  bool even = true;
  const auto check = [&](std::int64_t extent, auto... strides) {
    even = even && (extent < 2 || ((strides % 2 == 0) && ...));
  };
  check(p.batch, p.x_batch_stride, p.y_batch_stride);
  check(p.in_channels, p.x_channel_stride, p.w_in_stride);
  check(p.out_channels, p.y_channel_stride, p.w_out_stride);
  for (int s = 0; s < p.axis_count; ++s) {
    check(p.axes[s].input, p.axes[s].x_stride);
    check(p.axes[s].output, p.axes[s].y_stride, p.axes[s].w_place_stride);
    check(p.axes[s].kernel, p.axes[s].w_tap_stride);
  }
  if (!even) return {};
  return p;
}

// Whether a tile takes the problem; the small one takes all. The paired one takes it if pointers
// are aligned to pairs, too.
template <class T, Face face>
bool lanes_fit(LaneTile tile, const Problem& p) {
  if (tile == LaneTile::small) return true;
  if (tile == LaneTile::paired && !(has_pairs<T> && paired(p, face))) return false;
  const LaneOrder order(p, face, sizeof(T));
  // There are no more blocks than results.
  return order.narrow() && p.layout(result_of(face)).elements() <= max_extent;
}

template <class T, Face face>
LaneTile lanes_tile(const Problem& p, const Call& call) {
  // A few warps for every scheduler of a large device.
  constexpr std::int64_t enough_threads = 256 * 132;
  const std::int64_t columns = face == Face::grad_input ? p.in_channels : p.out_channels;
  const std::int64_t rows = face == Face::grad_weight ? p.in_channels * taps_of(p) : p.batch;
  const LaneTile large = columns == 1 ? LaneTile::single : LaneTile::few;
  const TileSize size = size_of(large, face, sum_words<T>);
  const std::int64_t threads =
      Cell::count(p, face) * ceil_div(rows, size.rows) * ceil_div(columns, size.columns);
  if (rows <= 2 || threads < enough_threads || !lanes_fit<T, face>(large, p))
    return LaneTile::small;
  const auto aligned = [](const void* at) {
    return reinterpret_cast<std::uintptr_t>(at) % (2 * sizeof(T)) == 0;
  };
  return columns == 1 && threads >= 2 * enough_threads && aligned(call.first) &&
                 aligned(call.second) && aligned(call.result) &&
                 lanes_fit<T, face>(LaneTile::paired, p)
             ? LaneTile::paired
             : large;
}

// Bytes of so many elements.
template <class T>
constexpr std::int64_t bytes_of(std::int64_t elements) {
  return elements * std::int64_t{sizeof(T)};
}

template <class K, class T>
void fill_common(K& k, const LaneOrder& order, const Call& call, std::int64_t row_blocks) {
  k.cells = order.cells_as<K::wide>();
  k.operands = operands_of<T>(call);
  k.operands.first = order.origin<K::wide>(k.operands.first, 0);
  k.operands.second = order.origin<K::wide>(k.operands.second, 1);
  k.operands.result = order.origin<K::wide>(k.operands.result, 2);
  k.units = ceil_div(order.cells(), K::threads) * row_blocks * k.channels.blocks.by;
  k.channels.blocks = Divider<K::wide>::of(k.channels.blocks.by, k.units);
}

template <class K, class T, Face face>
K gather_of(const Problem& p, const LaneOrder& order, const Call& call) {
  constexpr bool forward = face == Face::forward;
  K k{};
  k.samples = decltype(k.samples)::of(p.batch);
  k.channels = decltype(k.channels)::of(forward ? p.out_channels : p.in_channels);
  fill_common<K, T>(k, order, call, k.samples.blocks.by);
  k.read_once = k.samples.blocks.by == 1 && !k.channels.repeats();
  k.samples.blocks = Divider<K::wide>::of(k.samples.blocks.by, k.units);
  k.first_sample = bytes_of<T>(forward ? p.x_batch_stride : p.y_batch_stride);
  k.second_channel = bytes_of<T>(forward ? p.w_out_stride : p.w_in_stride);
  k.result_sample = bytes_of<T>(forward ? p.y_batch_stride : p.x_batch_stride);
  k.result_channel = bytes_of<T>(forward ? p.y_channel_stride : p.x_channel_stride);
  k.first_rows = Distances::of(k.samples, k.first_sample);
  k.second_columns = Distances::of(k.channels, k.second_channel);
  k.summed = static_cast<typename K::Index>(forward ? p.in_channels : p.out_channels);

  // With a single tap, or a single channel, either order of the two is canonical: the longer loop
  // is the inner one.
  k.summed_inside = forward ? taps_of(p) == 1 : k.summed != 1;
  k.loop[k.summed_inside ? reaching_axes : 0] = {
      bytes_of<T>(forward ? p.x_channel_stride : p.y_channel_stride),
      bytes_of<T>(forward ? p.w_in_stride : p.w_out_stride)};
  const Cell cell(p, face, 0);  // all cells have its steps
  for (int s = 0; s < p.axis_count; ++s) {
    if (order.slot(s) >= reaching_axes) continue;
    const Axis& a = p.axes[s];
    const std::int64_t taps = cell.tap_step[s], partners = cell.partner_step[s];
    k.loop[order.slot(s) + (k.summed_inside ? 0 : 1)] = {
        bytes_of<T>(partners * (forward ? a.x_stride : a.y_stride)),
        bytes_of<T>((forward ? 0 : partners * a.w_place_stride) + taps * a.w_tap_stride)};
  }
  return k;
}

template <class K, class T>
K weight_of(const Problem& p, const LaneOrder& order, const Call& call) {
  K k{};
  const std::int64_t rows = p.in_channels * taps_of(p), blocks = ceil_div(rows, K::rows);
  k.channels = decltype(k.channels)::of(p.out_channels);
  fill_common<K, T>(k, order, call, blocks);
  k.all_rows = static_cast<typename K::Index>(rows);
  k.row_blocks = Divider<K::wide>::of(blocks, k.units);
  k.samples = p.layout(Seat::x).elements() == 0 ? 0 : p.batch;
  k.first_sample = bytes_of<T>(p.x_batch_stride);
  k.second_sample = bytes_of<T>(p.y_batch_stride);
  k.second_channel = bytes_of<T>(p.y_channel_stride);
  k.second_columns = Distances::of(k.channels, k.second_channel);
  k.result_channel = bytes_of<T>(p.w_out_stride);
  k.result_in = bytes_of<T>(p.w_in_stride);
  k.first_in = static_cast<typename K::Offset>(bytes_of<T>(p.x_channel_stride));
  for (int s = 0; s < p.axis_count; ++s) {
    if (order.slot(s) >= reaching_axes) continue;
    k.result_tap[order.slot(s)] = bytes_of<T>(p.axes[s].w_tap_stride);
    k.split[order.slot(s)] = Divider<K::wide>::of(p.axes[s].kernel, rows);
  }
  return k;
}

template <class Device, class T, Face face, LaneTile tile>
void launch_lanes(const Problem& problem, const Call& call) noexcept {
  constexpr TileSize size = size_of(tile, face, sum_words<T>);
  constexpr bool wide = tile == LaneTile::small;
  const Problem p = size.pack == 2 ? *paired(problem, face) : problem;
  const LaneOrder order(p, face, sizeof(T));
  const auto launch = [&](const auto& kernel) {
    Device::launch(kernel, lesser(kernel.units, max_blocks), 0, call);
  };
  if constexpr (face == Face::grad_weight)
    launch(weight_of<LanesWeight<T, size.rows, size.columns, size.pack, wide>, T>(p, order, call));
  else
    launch(gather_of<LanesGather<T, face, size.rows, size.columns, size.pack, wide>, T, face>(
        p, order, call));
}

template <class Device, class T, Face face>
void run_lanes(const Problem& p, const Call& call) noexcept {
  switch (lanes_tile<T, face>(p, call)) {
    case LaneTile::few: return launch_lanes<Device, T, face, LaneTile::few>(p, call);
    case LaneTile::single: return launch_lanes<Device, T, face, LaneTile::single>(p, call);
    case LaneTile::small: return launch_lanes<Device, T, face, LaneTile::small>(p, call);
    case LaneTile::paired:
      if constexpr (has_pairs<T>) launch_lanes<Device, T, face, LaneTile::paired>(p, call);
  }
}

template <class T, Face face>
bool lanes_able(const Problem&) noexcept {
  return true;
}

}  // namespace unshared::cuda
