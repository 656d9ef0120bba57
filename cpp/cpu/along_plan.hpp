// Kernel "along", its plan: the axis that lanes run along, and how cells are cut into blocks.
//
// Lanes are neighbouring cells along one axis, whose partners (inputs of an output, outputs of an
// input) are neighbours, too. Three things make more of such an axis than meets the eye:
//   - groups that lie innermost in x and y, and the last spatial axis, are one axis: a step of that
//     one is a step of as many cells as there are groups;
//   - pixels that a stride apart see the same taps: one phase of the pixels after the other;
//   - groups further out are taken in companies, if they have one channel: what is to be found out
//     of a block is found for all of a company, and their weights are transposed at once.
#pragma once

#include "along_tile.hpp"
#include "stage.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

// Scratch: of the small tensor, and as much of weights; and of sums.
inline constexpr int64_t along_bytes = 64 * 1024, along_sum_bytes = 16 * 1024;
inline constexpr int along_steps = 192;  // of a pass
inline constexpr int64_t along_reach = 64, along_lanes = 512, along_wide = 8;
inline constexpr int64_t least_blocks = 8;  // to share out

// Whether the samples' elements that belong to a cell lie in the same sets of a cache whose sets repeat
// after so many bytes: of a first-level cache, or of a second-level one.
inline constexpr int64_t first_cache_repeats = 4096, second_cache_repeats = 64 * 1024;
template <class T>
UNSHARED_INLINE bool samples_collide(const Problem& p, int64_t batch_stride,
                                     int64_t repeats = first_cache_repeats) {
  constexpr int64_t ways = 8;
  return p.batch > ways && batch_stride * int64_t{sizeof(T)} % repeats == 0;
}

// Whether so many cells leave at most a third of their vectors empty.
template <class Real>
UNSHARED_INLINE bool fill_lanes(int64_t cells) {
  return 3 * cells >= 2 * padded<Real>(cells);
}

// Whether weight gradients are of so few pairs of channels that lanes over channels take more time to bring
// them side by side than to multiply them: of fewer, if places leave much of their last vector empty, if
// lanes over channels write dw as it lies, or if there are samples enough. Measured with 1 to 64 samples.
template <class T>
UNSHARED_INLINE bool few_weights(const Problem& p) {
  constexpr int64_t lanes = Lanes<Moved<T>>::count;
  const int64_t in = p.in_channels, out = p.out_channels, taps = taps_of(p);
  const Axis& last = p.axes[p.axis_count - 1];
  if (taps == 1 || last.stride != 1) return false;  // not measured
  const bool few_samples = 2 * p.batch <= lanes;
  const bool direct = (in >= out && p.w_in_stride == 1) || (out >= in && p.w_out_stride == 1);
  int64_t most = few_samples                 ? (direct ? 16 + 2 * lanes : 24 + 3 * lanes)
                 : in > out                  ? 2 * lanes
                 : p.batch <= int64_t{lanes} ? (direct ? 11 : 12) * lanes / 4
                                             : (direct ? 8 : 10) * lanes / 4;
  const bool filled = fill_lanes<Moved<T>>(last.output);
  if (!few_samples && in <= out && filled && sizeof(T) < sizeof(Moved<T>)) most += lanes;
  if (taps < 9) most = most * 3 / 2;  // with fewer taps what was staged is used less
  if (taps > 16 && few_samples) most = most * 2 / 3;
  if (!filled) most = most * 3 / 4;
  return lesser(in * out, max_extent) <= most;
}

template <class T, Face face>
struct AlongPlan {
  using Real = Moved<T>;
  static constexpr int lanes = Lanes<Real>::count;
  static constexpr bool by_input = face == Face::grad_input, complex = Scalar<T>::parts == 2;
  static constexpr int64_t scratch_reals = along_bytes / sizeof(Real),
                           sum_reals = along_sum_bytes / sizeof(Real);
  // The same of several rows of cells: beyond a first-level cache, since each row is read in turn.
  static constexpr int64_t pile_reals = 272 * 1024 / sizeof(Real),
                           pile_stage_reals = 96 * 1024 / sizeof(Real);
  static constexpr int64_t least_samples = 4,
                           most_columns = 2;  // with which it was measured faster
  // Taps of a cell: two vectors of each fit into scratch, and their offsets into tables.
  static constexpr int64_t most_rows =
      scratch_reals / (2 * lanes) < 1024 ? scratch_reals / (2 * lanes) : 1024;

  Problem p;  // as lanes see it
  int axis = -1;  // of p: lanes run along it
  // Weights of cell j along it: inner of them w_inner apart, then on by its w_place_stride.
  int64_t inner = 1, w_inner = 0;
  // Phases of the pixels along it, and where the one that was entered begins.
  int64_t phases = 1, x_offset = 0, w_offset = 0;
  int company_axis = -1;  // of groups
  int64_t company = 1, companies = 1;
  // Several rows of cells in a block, where samples are enough for it: floors along another axis.
  int rows_axis = -1;
  int64_t floors = 1;
  int64_t strips = 1;  // of cells along the axis
  const char* reason = nullptr;  // why not

  explicit UNSHARED_INLINE AlongPlan(const Problem& problem) : p(problem) {
    if (filled()) {
      reason = "there are channels enough to fill lanes with";
      return;
    }
    if (long_chains()) {
      reason = "chains are long enough for channels that fill half of the lanes";
      return;
    }
    choose();
    if (axis < 0) {
      reason = "no axis of at least half a vector of places or groups with stride 1";
      return;
    }
    if (p.grouped && group_axis() == axis && one_axis(axis))
      join();
    else if (p.axes[axis].stride != 1)
      phases = p.axes[axis].stride;
    whole_ = p.axes[axis];
    taps_ = ceil_div(whole_.kernel, phases);
    reach_ = (taps_ - 1) * (phases > 1 ? 1 : whole_.dilation);
    enter(0);
    if (reach_ > along_reach * joined_ || others() * (reach_ + 3 * lanes) > scratch_reals ||
        others() * taps_ > most_rows) {
      reason = "the kernel is too large for the scratch of lanes over places";
      return;
    }
    cut();
  }

  UNSHARED_INLINE const Axis& along() const { return p.axes[axis]; }
  static UNSHARED_INLINE int64_t cells(const Axis& a) { return by_input ? a.input : a.output; }
  UNSHARED_INLINE int64_t unit() const { return inner == 1 ? lanes : inner; }

  UNSHARED_INLINE int64_t blocks_of_phase() const {
    int64_t n = strips;
    for (int s = 0; s < p.axis_count; ++s)
      if (s != axis)
        n *= s == company_axis ? companies : s == rows_axis ? floors : cells(p.axes[s]);
    return n;
  }

  UNSHARED_INLINE int64_t blocks() const { return phases * blocks_of_phase(); }

  // How many partners along an axis so many neighbouring cells span, padding and gaps included.
  static UNSHARED_INLINE int64_t window_of_cells(const Axis& a, int64_t cells) {
    return (cells - 1) * (by_input ? 1 : a.stride) + (a.kernel - 1) * a.dilation + 1;
  }

  // Pixels r, r + stride, ... see the taps k, k + stride, ... with k = r + padding modulo stride.
  UNSHARED_INLINE void enter(int64_t r) {
    if (phases == 1) return;
    Axis& a = p.axes[axis];
    const int64_t first = (r + whole_.padding_low) % phases;
    a.kernel = first < whole_.kernel ? ceil_div(whole_.kernel - first, phases) : 0;
    a.input = r < whole_.input ? ceil_div(whole_.input - r, phases) : 0;
    a.stride = 1;
    a.dilation = 1;
    a.padding_low = (r + whole_.padding_low - first) / phases;
    a.x_stride = whole_.x_stride * phases;
    a.w_tap_stride = whole_.w_tap_stride * phases;
    x_offset = r * whole_.x_stride;
    w_offset = first * whole_.w_tap_stride;
  }

 private:
  UNSHARED_INLINE int64_t columns() const {
    return face == Face::forward      ? p.out_channels
           : face == Face::grad_input ? p.in_channels
                                      : greater(p.in_channels, p.out_channels);
  }
  // Whether lanes over channels are filled, and take less time than lanes over places.
  UNSHARED_INLINE bool filled() const {
    if (thin()) return false;
    const bool half = 2 * columns() > lanes;
    if (complex) return half && !few_pairs();
    if (face != Face::grad_weight) return half && !short_chains();
    if (taps_of(p) == 1 || p.axes[p.axis_count - 1].stride != 1) return half && !brief();
    return !few_weights<T>(p);
  }
  // Whether lanes over channels would spend their time on bringing them side by side: for a few
  // multiplications with each element, and channels that do not lie so.
  UNSHARED_INLINE bool thin() const {
    constexpr int64_t few = 8;
    const int64_t side = face == Face::forward      ? p.in_channels
                         : face == Face::grad_input ? p.out_channels
                                                    : lesser(p.in_channels, p.out_channels);
    const int64_t channel = face == Face::forward ? p.y_channel_stride : p.x_channel_stride;
    return side * taps_of(p) < few && (face == Face::grad_weight || channel != 1);
  }
  // Whether lanes over complex channels, which fill at least half of a vector, take more time all the same:
  // for weights that they must turn, or for few products with what is staged. Measured on Zen 4.
  UNSHARED_INLINE bool few_pairs() const {
    constexpr int64_t few_samples = 8, many_products = 1100;
    const int64_t taps = taps_of(p), out = p.out_channels;
    if (face == Face::grad_weight) return p.in_channels * out < (taps == 1 ? 32 * lanes : 28);
    const bool apart = (by_input ? p.y_channel_stride : p.x_channel_stride) != 1;
    const int64_t terms = lesser((by_input ? out : p.in_channels) * taps, max_extent);
    if ((by_input ? p.w_in_stride : p.w_out_stride) == 1)
      return taps == 1 && columns() <= lanes && terms <= 4 * lanes;
    if (taps == 1 && columns() <= 2 * lanes) return true;
    return columns() <= 5 * lanes &&
           (p.batch < few_samples / 2 || (p.batch <= few_samples && apart)) &&
           terms * columns() <= (p.batch < few_samples / 2 ? 2 : 1) * many_products;
  }
  // Whether chains of few samples are so short that lanes over channels, which must turn their weights, take
  // more time all the same. Measured on Zen 4.
  UNSHARED_INLINE bool short_chains() const {
    constexpr int64_t few_samples = lanes / 2, fewer_samples = 3, few_products = 64 * lanes;
    if (p.batch > few_samples) return false;
    const int64_t summed = by_input ? p.out_channels : p.in_channels, taps = taps_of(p);
    const Axis& last = p.axes[p.axis_count - 1];
    if (last.stride != 1 || (taps == 1 && !fill_lanes<Real>(cells(last)))) return false;
    const bool fewer = p.batch <= fewer_samples;
    if (taps == 1 || by_input) {
      if (summed == 1 && taps == 1) return true;
      if ((by_input ? p.w_in_stride : p.w_out_stride) == 1) return false;
      if (taps > 1) return summed == 1;
      if (fewer) return summed <= (by_input ? 16 : 5);
      return by_input && summed <= 5 && 2 * columns() <= 3 * lanes;
    }
    const bool apart = p.x_channel_stride != 1;
    return p.w_out_stride != 1 && p.w_in_stride == 1 && (apart || fewer) &&
           (summed == 1 ? apart && taps < 16
                        : lesser(summed * taps, max_extent) * columns() <= few_products);
  }
  // Whether weight gradients are chains of few samples, and so few output channels that the products of a
  // place take no longer than to begin them. Measured on Zen 4.
  UNSHARED_INLINE bool brief() const {
    const bool apart = p.x_channel_stride != 1;
    return p.out_channels <= 5 && columns() <= 2 * lanes && p.batch <= lanes / (apart ? 2 : 4);
  }
  // Whether chains are so long that gather takes less time for results of as many channels as fill half a
  // vector: long ones, if it must turn their weights. Measured on Zen 4 with 1 to 8 samples.
  UNSHARED_INLINE bool long_chains() const {
    if (face == Face::grad_weight || 2 * columns() != lanes || sizeof(T) != sizeof(Real))
      return false;
    const int64_t taps = taps_of(p);
    const int64_t terms = lesser((by_input ? p.out_channels : p.in_channels) * taps, max_extent);
    if (taps == 1 || (by_input ? p.w_in_stride : p.w_out_stride) == 1)
      return terms >= (vector_registers == 16 ? (by_input ? 128 : 192) : by_input ? 32 : 64);
    return !by_input && taps > 9 && terms >= 192;
  }
  UNSHARED_INLINE int group_axis() const { return p.mapped ? 1 : 0; }
  UNSHARED_INLINE int64_t others() const {  // taps along the other axes
    int64_t n = 1;
    for (int s = 0; s < p.axis_count; ++s)
      if (s != axis) n = lesser(n * p.axes[s].kernel, max_extent);
    return n;
  }

  // Groups and the last axis, as one.
  UNSHARED_INLINE bool one_axis(int s) const {
    if (!p.grouped || s != group_axis() || p.spatial == 0) return false;
    const Axis& g = p.axes[s];
    const Axis& line = p.axes[p.axis_count - 1];
    const int64_t n = g.output, reach = (line.kernel - 1) * line.dilation;
    if (g.x_stride != 1 || g.y_stride != 1 || line.x_stride != n || line.y_stride != n ||
        line.stride != 1 || line.input_dilation != 1 || reach > along_reach || n > 1000)
      return false;
    int64_t above = 1;
    for (int o = s + 1; o + 1 < p.axis_count; ++o)
      above = lesser(above * p.axes[o].kernel, max_extent);
    const int64_t least = (n % lanes == 0 ? n : lanes) + lanes;
    return above * (reach * n + least + 2 * lanes) <= scratch_reals &&
           above * line.kernel * least <= scratch_reals &&
           (line.w_place_stride == n * g.w_place_stride || n % lanes == 0);
  }
  UNSHARED_INLINE void join() {
    const Axis g = p.axes[axis];
    const int64_t n = g.output;
    for (int s = axis; s + 1 < p.axis_count; ++s) p.axes[s] = p.axes[s + 1];
    axis = --p.axis_count - 1;
    p.grouped = false;
    Axis& a = p.axes[axis];
    joined_ = n;
    if (a.w_place_stride == n * g.w_place_stride) {
      a.w_place_stride = g.w_place_stride;
    } else {
      inner = n;
      w_inner = g.w_place_stride;
    }
    a.input *= n;
    a.output *= n;
    a.dilation *= n;
    a.padding_low *= n;
    a.padding_high *= n;
    a.x_stride = a.y_stride = 1;
  }

  // One whose neighbours shift by one, best one that memory follows.
  UNSHARED_INLINE void choose() {
    int best = -1;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& a = p.axes[s];
      const bool phased = by_input && (a.dilation == 1 || a.kernel == 1) && a.padding_low >= 0;
      if ((a.stride != 1 && !phased) || a.input_dilation != 1) continue;
      int64_t n = ceil_div(cells(a), by_input ? a.stride : 1);
      if (one_axis(s)) n *= cells(p.axes[p.axis_count - 1]);
      if (2 * n < lanes && (4 * n < lanes || n <= columns())) continue;
      const int score = (a.x_stride == 1 && a.stride == 1 ? 4 : 0) + (a.y_stride == 1 ? 4 : 0) +
                        (a.w_place_stride == 1 ? 3 : 0) + (a.stride == 1 ? 1 : 0) +
                        (s == p.axis_count - 1 ? 1 : 0);
      if (score > best) {
        axis = s;
        best = score;
      }
    }
  }

  // Companies of groups, and strips as long as scratch has room for.
  UNSHARED_INLINE void cut() {
    const int64_t window = others(), taps = window * taps_;
    const int64_t n = cells(along());
    const int64_t wide = lesser(columns(), along_wide);
    const int64_t summed = by_input ? p.out_channels : p.in_channels;
    const int64_t weights =  // of a lane
        greater(1, face == Face::grad_weight ? taps * p.in_channels * p.out_channels
                                             : lesser(taps * summed, along_steps) * wide);
    int64_t most = lesser(along_lanes + lanes, scratch_reals / weights);
    most = lesser(most, sum_reals / greater(wide, 1));
    most = lesser(most, scratch_reals / window - reach_ - 2 * lanes);
    const int groups = group_axis();
    if (p.grouped && axis != groups && p.in_channels == 1 && p.out_channels == 1 &&
        taps <= along_steps) {
      const int64_t all = cells(p.axes[groups]);
      const int64_t room = scratch_reals / (weights * (lesser(n, 4 * lanes) + 2 * lanes));
      // Where samples lie in the same sets of a first-level cache no more than share lines of w, so
      // that the next row of places still finds there what it shares with this one.
      const bool apart = p.axes[groups].w_place_stride != 1;
      const int64_t most_groups = apart && samples_collide<T>(p, p.x_batch_stride)
                                      ? ceil_div(int64_t{128 / sizeof(T)}, greater(1, taps))
                                      : lanes;
      company_axis = groups;
      companies = ceil_div(all, greater(1, lesser(room, most_groups)));
      company = ceil_div(all, companies);
      companies = ceil_div(all, company);
      most = lesser(most, scratch_reals / (weights * company));
    }
    pile_up();
    const int64_t units = ceil_div(n, unit());
    const int64_t lines = greater(1, blocks_of_phase());  // of one strip each, so far
    strips = greater(1, lesser(units, ceil_div(least_blocks, lines)));
    if (rows_axis < 0)
      strips = greater(strips, ceil_div(units, greater(1, (most - lanes) / unit())));
  }

  // Rows of cells together, if the weights of all their chains find room, and some samples of what they
  // see. Companies are then of as many groups as share a line of the weights.
  UNSHARED_INLINE void pile_up() {
    if (complex) return;  // padding's products would not all be -0
    constexpr int64_t some_rows = 4, line = 64 / sizeof(T);
    constexpr int64_t most_samples = face == Face::grad_weight ? 32 : along_rows(1);
    int rows = p.axis_count - 1;
    if (rows == axis) --rows;
    if (rows < p.axis_count - p.spatial || phases != 1 || p.batch < least_samples) return;
    const Axis& a = p.axes[rows];
    const int64_t n = cells(a), lanes_padded = padded<Real>(cells(along()));
    const int64_t steps = taps_of(p) * (by_input ? p.out_channels : p.in_channels);
    const bool in_place = (inner == 1 ? along().w_place_stride : w_inner) == 1;
    if (a.kernel == 1 || n < 2 || a.input_dilation != 1 || (by_input && a.stride != 1) ||
        in_place || columns() > most_columns ||
        columns() * lanes_padded > lesser(sum_reals, along_lanes) || steps > along_steps)
      return;
    // Weights of a row of cells, and what is staged of a sample for each row of partners.
    const int64_t row = greater(1, steps * columns() * lanes_padded);
    const int64_t seen = steps / a.kernel / along().kernel * (lanes_padded + reach_ + 2 * lanes);
    const int64_t together = company_axis < 0 ? 1
                             : p.axes[company_axis].w_place_stride == 1
                                 ? lesser(cells(p.axes[company_axis]), line)
                                 : company;
    int64_t high = lesser(n, pile_reals / (row * together));
    while (high > 1 &&
           lesser(p.batch, most_samples) * seen * window_of_cells(a, high) > pile_stage_reals)
      --high;
    if (high < lesser(n, some_rows)) return;
    rows_axis = rows;
    floors = ceil_div(n, high);
    if (company_axis < 0) return;
    companies = ceil_div(cells(p.axes[company_axis]), together);
    company = ceil_div(cells(p.axes[company_axis]), companies);
  }

  Axis whole_;  // the axis of all phases
  int64_t taps_ = 0, reach_ = 0;  // along it, of a phase
  int64_t joined_ = 1;  // cells that are a step of the axis
};

// Where lanes over samples (gather.hpp) were measured faster: channels that are summed over and lie
// side by side, places that do not fill lanes, or enough multiplications for each element staged.
template <class T, Face face>
UNSHARED_INLINE bool many_samples(const Problem& p) {
  using Real = typename Scalar<T>::Real;
  constexpr bool forward = face == Face::forward;
  const Axis& last = p.axes[p.axis_count - 1];
  const int64_t summed = forward ? p.in_channels : p.out_channels,
                columns = forward ? p.out_channels : p.in_channels;
  const int64_t terms = lesser(summed * taps_of(p), max_extent);
  if (face == Face::grad_weight || p.batch < Lanes<Real>::count || summed <= 1 ||
      terms < Lanes<Real>::count)
    return false;
  if (last.stride != 1 || (forward ? last.output : last.input) < Lanes<Real>::count) return true;
  const bool apart = (forward ? p.x_channel_stride : p.y_channel_stride) != 1;
  if (Scalar<T>::parts == 2) return !apart && columns > 2 && taps_of(p) > 1;
  return !apart || (columns >= 4 && terms >= 2 * Lanes<Real>::count);
}

template <class T, Face face>
const char* along_declines(const Problem& p) noexcept {
  if constexpr (!has_lanes<T>)
    return without_lanes;
  else if (many_samples<T, face>(p))
    return "there are samples enough to fill lanes with";
  else
    return AlongPlan<T, face>(p).reason;
}

}  // namespace
}  // namespace unshared

#endif
