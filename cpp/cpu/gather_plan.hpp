// Kernel "gather", its plan: which index lanes run over, and how a call is cut into strips of cells,
// blocks of samples, parts of columns and pieces of chains. A small model of what these cost decides; its
// constants were measured on Zen 4 and on a Xeon of two AVX-512 units, those of 16 registers on Zen 3.
#pragma once

#include "gathering.hpp"
#include "micro.hpp"
#include "panel.hpp"
#include "turned.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
struct GatherPlan {
  using Real = typename Scalar<T>::Real;
  using L = Lanes<Real>;
  static constexpr int reals = Scalar<T>::parts;  // of an element
  static constexpr bool by_input = face == Face::grad_input;
  static constexpr bool plain = sizeof(T) == reals * sizeof(Real);
  // Over samples, of an element of the small tensor: its parts, and room for them with their signs turned over.
  static constexpr int planes = reals == 2 ? 4 : 1;
  static constexpr int64_t line = 64 / sizeof(Real);
  // Chains may ascend in memory, and weights have lanes.
  static constexpr bool turns = !by_input && has_lanes<T>;
  static constexpr int longest_strip = 32, highest_strip = 8;
  static constexpr int table_steps = Panel<T>::most_steps;  // that are done together
  // Weights are asked for so many steps ahead: from memory, or where a list has asked for them before.
  static constexpr int steps_ahead = 128, steps_near = 12;
  // Scratch: what is staged, and behind it a panel, which should stay in a first-level cache if it
  // is used by more than one tile; and sums.
  static constexpr int64_t panel_reals = 16 * 1024 / sizeof(Real);
  static constexpr int64_t wide_reals = 64 * 1024 / sizeof(Real);  // of w, read in place
  static constexpr int64_t most_panel_reals = 96 * 1024 / sizeof(Real);
  static constexpr int64_t scratch_reals = 316 * 1024 / sizeof(Real);
  static constexpr int64_t sums_reals = 72 * 1024 / sizeof(Real);

  bool over_samples = false;  // lanes; else over the result's channels
  bool turned = false;  // whether weights may be transposed as they are used
  bool direct = false;  // whether sums are kept in the result
  bool staged = true;  // whether the small tensor is
  bool by_channel = false;  // staged so that what a channel's taps read lies together
  bool fetches = false;  // whether what comes next is worth asking for
  bool beyond = false;  // whether weights come from memory, not from a cache
  int64_t rows = 1;  // samples of a block
  int64_t wide = 1, high = 1;  // strips: of a row of cells, and of a column of them
  // Of the outermost loop of chains, over channels in forward and over partners along axis `cut` in
  // grad_input, as many as are staged together, and all there are at most.
  int64_t outer = 1, outermost = 1;
  int cut = 0;
  int64_t width = 1, parts = 1;  // columns done together; how many times
  int64_t items = 0;  // strips, times parts
  int64_t whole_lines = 0;  // steps of which a panel uses whole lines of w, if there are such
  int64_t stage_reals = scratch_reals - panel_reals;  // of scratch, for the small tensor
  int64_t taps = 1;  // of a cell, at most
  int64_t alike = 0;  // channels of pieces so that one table of steps serves all; 0: no such

  UNSHARED_INLINE GatherPlan(const Problem& problem, const Call& call)
      : p(problem),
        g(gathering<face>(problem)),
        z(problem.axis_count - 1),
        row(cells_of(p.axes[z])),
        column(z > 0 ? cells_of(p.axes[z - 1]) : 1),
        cells(Cell::count(p, face)),
        n(greater(p.batch, 1)),
        vectors(vectors_of(g.columns)),
        least_items(least_items_of(problem, call)) {
    taps = taps_of(p);
    terms = g.summed * taps;
    while (cut < z && p.axes[cut].kernel == 1) ++cut;
    outermost = !by_input ? g.summed : cut < z ? window_of(p.axes[cut], by_input, 1) : 1;
    turned = turns && g.w_column != 1 && taps <= table_steps && taps_lie_side_by_side(p);
    // Taps outside of channels in w, inside of them in a chain.
    if (!by_input && g.w_column != 1 && g.w_summed == 1 && taps > 1) {
      whole_lines = lesser(g.summed, 64 / sizeof(T)) * taps;
      stage_reals =
          scratch_reals - greater(panel_reals, lesser(whole_lines * L::count, most_panel_reals));
    }
    by_channel = !by_input && g.small_channel == 1 && 2 * g.summed > line &&
                 lesser(n, most_rows(vectors > 1 ? 2 : 1)) * taps * 64 > first_cache * 3 / 4;
    fetches = cells * terms * g.columns * int64_t{sizeof(T)} > first_cache;
    beyond = weights_beyond_caches<T>(p);
    Cut best = strips(false);
    if (n > L::count / 2) {
      if (!by_input && g.w_summed == 1 && fetches)  // beyond half, a tile loses more than it finds
        lost = collisions(lesser(g.columns, broadcast_rows), g.w_column, true) - 0.5;
      if (lost < 0) lost = 0;
      const Cut samples = strips(true);
      over_samples = samples.cost < best.cost;
      if (over_samples) best = samples;
    }
    direct = !over_samples && keeps_sums();
    staged = best.staged;
    by_channel = by_channel && staged && !over_samples;
    rows = best.rows;
    wide = best.wide;
    high = best.high;
    outer = best.outer;
    cut_columns();
    if (!by_input)
      alike = pieces_alike(lesser(g.summed, stream_steps(vectors, most_vectors) / taps));
    items = cells / (row * column) * wide * high * parts;
  }

  // Rows that a stream of so many weights serves: the first tile's, and, where tiles have few rows, those
  // of others that find in a cache what it brought there.
  static UNSHARED_INLINE int64_t streamed(int vectors, int64_t weights) {
    const int tiles = !plain || !few_registers                   ? 1
                      : weights * int64_t{sizeof(T)} > 96 * 1024 ? 5
                                                                 : 2;
    return tiles * tallest_rows(vectors);
  }
  // Steps of a stream of so many vectors, `most` of them in a tile, that are done together.
  static UNSHARED_INLINE int64_t stream_steps(int64_t vectors, int64_t most) {
    return vectors <= most ? 256 / vectors : steps_ahead;
  }
  static UNSHARED_INLINE int64_t vectors_of(int64_t columns) {
    return ceil_div(columns * reals, L::count);
  }
  static UNSHARED_INLINE int64_t cells_of(const Axis& axis) {
    return by_input ? axis.input : axis.output;
  }

 private:
  static constexpr int64_t first_cache = 32 * 1024, second_cache = 512 * 1024,
                           third_cache = 8 * 1024 * 1024;  // about half of each
  static constexpr int64_t page = 4096;  // bytes after which the sets of a first-level cache repeat
  static constexpr int64_t most_rows_packed = 128;
  static constexpr int64_t most_terms_in_place = 1536;
  // What short tiles make dearer, or, since fewer lines pass under one, cheaper.
  static constexpr int64_t broadcast_rows = few_registers ? tallest_rows(3) : most_rows(1);
  static constexpr int64_t most_taps_near = few_registers ? 80 : 16;
  static constexpr double packing = few_registers ? 28 : 16;  // a vector of a panel
  static constexpr double kept_row = few_registers ? 8 : 0;  // of sums in the result, in lines

  // Channels staged together, if not all: as many as keep to whole lines of the weights, or half of few.
  UNSHARED_INLINE int64_t least_summed() const {
    return g.w_summed == 1 ? lesser(2 * line, greater(line, g.summed) / 2) : line / 2;
  }

  // Whether sums may stay in the result, with lanes over columns.
  UNSHARED_INLINE bool keeps_sums() const { return plain && g.result_channel == 1; }

  // What it takes to bring the weights of a cell to where they are multiplied with `rows` samples, in
  // multiplications of vectors.
  UNSHARED_INLINE double weights_cost(bool samples, int64_t rows) const {
    const auto lines = static_cast<double>(terms * reals * vectors);
    const int64_t bytes = terms * g.columns * int64_t{sizeof(T)};
    const bool whole = g.columns % L::count == 0;
    const auto part = static_cast<double>(g.columns * reals) /  // of the lanes of vectors
                      static_cast<double>(greater(vectors, 1) * L::count);
    if (samples && !plain) {
      // Widened, run by run; against what it takes to bring them to columns' lanes.
      const bool runs = !by_input && p.axes[z].w_tap_stride == 1;
      const double run = g.w_column == 1   ? (whole ? 30 : 16)
                         : g.w_summed == 1 ? 20 * (part < 0.5 ? 1 : part)
                         : runs            ? 12
                                           : 60 * part;
      return lines * (run + (bytes > second_cache ? 12 : 0)) * (few_registers ? 1.5 : 1);
    }
    if (samples) {
      // Broadcast one by one: well if the chain follows them in memory, or if their lines stay.
      const bool follows =
          by_input ? g.w_summed == 1 || g.summed == 1 : p.axes[z].w_tap_stride == 1 && taps > 1;
      const bool scattered = by_input && taps > 1;  // over places
      const bool near = !by_input && g.w_summed == 1 && taps <= most_taps_near;
      const bool beside = by_input && g.w_column == 1 && n > L::count && bytes <= 2 * first_cache;
      return lines * part *
             (follows && scattered && few_registers ? 24
              : follows || bytes <= first_cache     ? 8
              : near                                ? 12 + 40 * lost
              : beside                              ? 12
                                                    : 40);
    }
    if (turned && rows <= most_rows_turned) return lines * 4;
    if (reals == 1 && g.w_column == 1 && !plain && !whole) return lines * 8;
    const bool streams = rows <= streamed(3, terms * g.columns);
    if (g.w_column == 1 && (reals == 1 || streams))
      return lines * (streams ? 6 : vectors <= 2 ? 0 : 14);
    // A panel whose steps are far apart in memory, too, should stay in a first-level cache.
    const bool leaves = few_registers && !by_input && g.w_summed == 1 && 64 * terms > first_cache;
    return lines * (leaves ? 2 : 1) * packing *
           static_cast<double>(ceil_div(rows, most_rows_packed));
  }

  // A cut into strips and blocks of samples, and what a cell takes, in multiplications of vectors.
  struct Cut {
    double cost = 0;
    bool staged = true;
    int64_t rows = 1, wide = 1, high = 1, outer = 1;
  };
  UNSHARED_INLINE Cut strips(bool samples) const {
    const bool sums_stay = !samples && keeps_sums();
    const int64_t most_cells = greater(1, cells / least_items);
    const int64_t most_samples = samples ? most_vectors * L::count : n;
    const int64_t w_bytes = terms * g.columns * int64_t{sizeof(T)};
    const auto work = samples ? static_cast<double>(ceil_div(n, L::count) *
                                                    (terms * reals * greater(g.columns * reals, 4) +
                                                     8 * g.columns * reals))
                              : static_cast<double>(n * terms * reals * vectors) *
                                    (vectors == 1 ? one_vector_cost() : 1);
    Cut best;
    for (int64_t across = ceil_div(row, longest_strip), last = 0;
         across > last && (fetches || best.cost == 0);
         last = across, across = lesser(row, across + 1 + across / 2))
      for (int64_t height = lesser(column, highest_strip); height > 0; height -= 1 + height / 4) {
        const int64_t down = ceil_div(column, height);
        const int64_t w = ceil_div(row, across), h = ceil_div(column, down), strip = w * h;
        if (strip > most_cells && strip > 1) continue;
        const auto consider = [&](int64_t outer, int64_t pieces) {
          const int64_t window =
              greater(1, window_of_strip(w, h, outer, by_channel && !samples && strip > 1) *
                             (samples ? planes : reals));
          int64_t block = stage_reals / (samples ? window : spaced<Real>(window));
          if (!sums_stay) block = lesser(block, sums_reals / (w * L::count));
          if (samples) block = block / L::count * L::count;
          if (block < 1 && strip > 1) return true;
          if (strip == 1) block = greater(block, lesser(n, most_rows_packed));
          block = greater(1, lesser(block, most_samples));
          const int64_t blocks = ceil_div(n, block);
          block =
              samples ? ceil_div(ceil_div(n, L::count), blocks) * L::count : ceil_div(n, blocks);
          const int64_t run = lesser(run_of_strip(w, h, outer), window);
          const double per_cell = 1 / static_cast<double>(strip);
          // What is staged for each part of the columns that sums have room for.
          const int64_t times =
              sums_stay ? 1 : ceil_div(vectors * L::count * w * block, sums_reals);
          if (pieces > 1 && times > 1) return false;
          const auto copies = static_cast<double>(times * n * pieces * (window / run) *
                                                  (ceil_div(run, L::count) + 2)) *
                              per_cell;
          const double lines = sums_stay
                                   ? kept_row * static_cast<double>(n)
                                   : static_cast<double>(n * lines_of_result(w, h)) * per_cell;
          // Blocks of samples that read the weights of the strip again; broadcasts hide some of it.
          const int64_t near_by = samples ? 4 * second_cache : second_cache;
          const double again = strip * w_bytes <= near_by || blocks == 1 ? 1
                               : strip * w_bytes <= third_cache          ? 6
                                                                         : 16;
          // Pieces break the runs in which a cell's weights are read, and so do parts of its columns,
          // which share lines if columns do not fill them.
          const bool ragged = times > 1 && !samples && g.columns * int64_t{sizeof(T)} % 64 != 0;
          const auto part = static_cast<double>(greater(1, sums_reals / (L::count * w * block)));
          const double broken = (pieces > 1 ? 2 : 0) + (ragged ? 15 / part : 0);
          const double weights =
              weights_cost(samples, block) +
              (samples ? again - 1 : again) * static_cast<double>(terms * vectors);
          // Sums of columns that must be turned on their way out: measured for pixels, and to matter where
          // weights cost little.
          const bool turns_sums = by_input && g.w_column == 1 && !samples && !sums_stay;
          const double turning = turns_sums ? 48 * static_cast<double>(n * vectors) : 0;
          // A tile of one vector of samples, where there are more.
          const bool one = samples && block <= L::count && n > L::count;
          const double cost = work * (one ? one_vector_cost() : 1) + copies * (samples ? 12 : 14) +
                              lines * 5 + turning +
                              static_cast<double>(2 * (pieces - 1) * n * vectors) +
                              broken * static_cast<double>(terms * vectors) +
                              static_cast<double>(blocks * pieces) * 200 * per_cell +
                              static_cast<double>(blocks) * weights;
          if (best.cost == 0 || cost < best.cost) best = {cost, true, block, across, down, outer};
          return blocks > 1;
        };
        // Some of the outermost loop, if that leaves room for more samples, which then use the weights
        // while they are at hand.
        const bool cuts = fetches && strip > 1 && (h == 1 || (!by_input && sums_stay));
        const int64_t most_pieces = by_input ? outermost : g.summed / least_summed();
        int64_t pieces = 1;
        while (consider(ceil_div(outermost, pieces), pieces) && cuts && pieces < most_pieces &&
               (by_input || 2 * pieces <= most_pieces))
          pieces = lesser(2 * pieces, most_pieces);
        if (!fetches) break;  // what is small takes no longer than to look for better
      }

    // Or no strips, and the small tensor read where it is, if whole lines of it serve a cell.
    if (!plain || samples || g.small_channel != 1 || g.summed * reals % line != 0 ||
        terms > most_terms_in_place)
      return best;
    const int64_t block = sums_stay ? n : lesser(n, greater(1, sums_reals / L::count));
    const int64_t blocks = ceil_div(n, block);
    const bool crowded = collisions(lesser(block, tallest_rows(2)), g.small_batch, false) > 0.25;
    const bool near_by = n * terms * int64_t{sizeof(T)} <= second_cache;  // from cell to cell
    const double cost = work * (by_channel ? 2
                                : crowded  ? 1.5
                                           : 1) +
                        static_cast<double>(n * terms * reals / line) * (near_by ? 2 : 4) +
                        static_cast<double>(blocks) * (weights_cost(false, block) +
                                                       static_cast<double>(terms * vectors) + 200);
    return cost < best.cost ? Cut{cost, false, block, row, column, outermost} : best;
  }

  // How much of what the rows of a tile read in place for a channel, of the weights or of the small tensor,
  // is pushed out before the next channel is read, since it shares few sets of a first-level cache.
  UNSHARED_INLINE double collisions(int64_t rows, int64_t apart, bool of_weights) const {
    constexpr int64_t sets = page / 64, ways = 8;
    std::int16_t lines[sets] = {};
    int64_t all = 0, beyond = 0;
    reference::Index tap{};
    do {
      int64_t at = 0;
      for (int s = 0; s <= z; ++s)
        at += tap.at[s] *
              (of_weights ? p.axes[s].w_tap_stride
                          : spacing_of(p.axes[s], by_input).partner * p.axes[s].*g.small_stride);
      for (int64_t row = 0; row < rows; ++row, at += apart, ++all)
        if (++lines[(at * int64_t{sizeof(T)} & (page - 1)) / 64] > ways) ++beyond;
    } while (all < 512 && reference::next(p, tap));
    return static_cast<double>(beyond) / static_cast<double>(greater(all, 1));
  }

  // The most channels, at most so many, that divide all; 0, if they are less than half as many.
  UNSHARED_INLINE int64_t pieces_alike(int64_t most) const {
    for (int64_t channels = most; 2 * channels > most; --channels)
      if (g.summed % channels == 0) return channels;
    return 0;
  }

  // Columns together: what the sums have room for; less if there are too few cells for the threads.
  UNSHARED_INLINE void cut_columns() {
    constexpr int64_t whole = L::count / reals;
    width = g.columns;
    if (!direct)
      width = lesser(width,
                     greater(1, sums_reals / rows / ceil_div(row, wide) / whole / reals) * whole);
    if (cells < least_items)
      width = lesser(width, ceil_div(g.columns, ceil_div(least_items, cells)));
    width = greater(1, width);
    if (width < g.columns)
      width = ceil_div(ceil_div(g.columns, ceil_div(g.columns, width)), whole) * whole;
    parts = greater(1, ceil_div(g.columns, width));
  }

  // How many elements of one sample a strip of so many cells reads of the small tensor, at most.
  // padded: with the last axis in whole vectors.
  UNSHARED_INLINE int64_t window_of_strip(int64_t w, int64_t h, int64_t outer, bool padded) const {
    const bool some = by_input && outer < outermost;
    int64_t elements = by_input ? g.summed : outer;
    for (int s = 0; s <= z; ++s) {
      const int64_t many = s == z ? w : s == z - 1 ? h : 1;
      const int64_t here = some && s == cut ? outer : window_of(p.axes[s], by_input, many);
      elements = lesser(elements * (padded && s == z ? ceil_div(here, L::count) * L::count : here),
                        max_extent);
    }
    return elements;
  }
  // How many of them lie side by side in memory.
  UNSHARED_INLINE int64_t run_of_strip(int64_t w, int64_t h, int64_t outer) const {
    int64_t run = g.small_channel == 1 ? (by_input ? g.summed : outer) * reals : 1;
    if (!by_input && outer < g.summed && run > 1) return run;
    for (int s = z; s >= 0 && s >= z - 1; --s) {
      const Axis& axis = p.axes[s];
      if (axis.*g.small_stride * reals != run) break;
      const int64_t here = window_of(axis, by_input, s == z ? w : h);
      run *= here;
      if (here != (by_input ? axis.output : axis.input)) break;
    }
    return greater(run, 1);
  }

  // How many lines of the result a strip writes for each sample, about, if channels lie apart.
  UNSHARED_INLINE int64_t lines_of_result(int64_t w, int64_t h) const {
    if (g.result_channel == 1) return 0;
    const bool runs = p.axes[z].*g.result_stride == 1;
    return g.columns * h * (runs ? ceil_div(w * reals, line) + 1 : w);
  }

  const Problem& p;
  const Gathering g;
  const int z;  // the last axis
  const int64_t row, column, cells;  // cells along the last axis, along the one before, in all
  const int64_t n, vectors;  // samples, and columns in vectors; at least one
  int64_t terms = 0;  // of a chain, at most
  // Of the lines of w that a tile of samples broadcasts from, those read too often.
  double lost = 0;
  const int64_t least_items;
};

}  // namespace
}  // namespace unshared

#endif
