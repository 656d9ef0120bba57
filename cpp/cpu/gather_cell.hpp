// Kernel "gather", one cell: a small matrix product whose steps run over the cell's chain.
//
// Over columns, the small tensor is broadcast and vectors are weights: read in place, once as a
// stream or again from a cache, or rearranged as a panel. Over samples, weights are broadcast from
// where they are, or, of half types, from where they are widened, and vectors are samples of the staged
// small tensor; complex sums are two chains then, one for either part. Steps are cut so that what is used
// again stays in a cache; what is needed next is fetched meanwhile.
// Accumulator: float32 for half types, else the element type. Order: that of the nest. Deterministic.
#pragma once

#include "gather_plan.hpp"
#include "lines.hpp"
#include "parts.hpp"
#include "widened.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
class GatherCell {
 protected:
  using Plan = GatherPlan<T, face>;
  using Real = typename Plan::Real;
  using L = typename Plan::L;
  static constexpr int reals = Plan::reals;
  static constexpr bool plain = Plan::plain;
  static constexpr int64_t scratch_reals = Plan::scratch_reals;
  static constexpr int table_steps = Plan::table_steps, steps_ahead = Plan::steps_ahead,
                       steps_near = Plan::steps_near, widest_in_place = 2;
  static constexpr int brief =
      16;  // steps, of which a panel for each vector of columns does not pay

  UNSHARED_INLINE GatherCell(const Problem& problem, const Call& call, const Plan& plan)
      : p(problem),
        g(gathering<face>(problem)),
        call_(call),
        plan_(plan),
        parts_(call),
        signs_(call.conjugate_first, call.conjugate_second) {}

  // Rows: samples, broadcast; vectors: the weights of columns. `w_next`: where those of the next
  // cell begin, from w; `fresh`: whether w was not read before.
  UNSHARED_INLINE void over_columns(const Nest& nest, const Real* a, int64_t a_row, const T* w,
                                    int64_t w_next, Real* c, int64_t c_row, bool from_zero,
                                    bool fresh) {
    if constexpr (Plan::turns)
      if (plan_.turned && rows_ <= most_rows_turned)
        return columns_turned(nest, a, a_row, w, w_next, c, c_row, from_zero);
    const int64_t vectors = Plan::vectors_of(columns_);
    const int most = deepest(rows_, vectors);  // vectors of a tile
    const bool whole = columns_ * reals % L::count == 0;
    const bool along_memory = g.w_column == 1;
    // Weights that lie along the lanes are read in place: as a stream, if each is used once; else if
    // all columns of a few steps lie together. Otherwise a panel is made of some of the columns.
    const bool once = rows_ <= tallest_rows(1);
    const bool stream = along_memory && (plain || whole) &&
                        rows_ <= plan_.streamed(vectors < most ? static_cast<int>(vectors) : most,
                                                nest.total() * columns_);
    // Steps whole lines apart would share few sets of a cache; of wider ones, few have room there.
    const bool spread_out = !Plan::by_input && columns_ * int64_t{sizeof(T)} % 64 != 0 &&
                            vectors * L::count * 64 <= Plan::wide_reals;
    const bool in_place = stream || (along_memory && plain && reals == 1 &&
                                     (vectors <= widest_in_place || spread_out));
    const bool keeps =
        reals == 1 && along_memory && whole;  // ragged ones: no faster, and slower once
    const int64_t group = in_place ? vectors
                          : once && !along_memory && nest.total() > brief
                              ? 1
                              : ceil_div(vectors, ceil_div(vectors, most));
    const int64_t all_room = stage_ + scratch_reals - panel_;
    int64_t room = all_room;
    if (!once && nest.total() * group * L::count * reals > room)
      room = group > most_vectors ? Plan::wide_reals : Plan::panel_reals;
    int64_t limit = stream ? Plan::stream_steps(vectors, most) : room / (group * L::count * reals);
    if (stream && plan_.alike > 0 && nest.total() > limit)
      limit = lesser(limit, plan_.alike * (nest.total() / nest.loop[0].count));
    if (!in_place)
      limit = greater(limit, lesser(plan_.whole_lines, all_room / (group * L::count * reals)));
    // Columns whose lines are asked for together, even of the last ones: one list then serves all.
    const int64_t at_once = lesser(columns_, group * L::count / reals);
    const int deep = static_cast<int>(lesser(group, most));
    const int64_t tiles = tiles_of(rows_, deep);
    Pieces pieces(nest, lesser(limit, table_steps), along_memory ? 1 : int64_t{64 / sizeof(T)});
    while (pieces.more()) {
      const Nest part = pieces.part;
      const int64_t steps = part.total();
      const T* const from = w + pieces.second;
      tabulate(part);
      if (!in_place && !keeps) packer_.find_runs(part);
      const Real* const rows = a + pieces.first * (plan_.staged ? 1 : reals);
      Micro<T> t{};
      t.a_row = a_row;
      t.c_row = c_row;
      t.steps = steps * reals;
      t.from_zero = from_zero;
      t.a_step = small_step_;
      t.b_step = w_step_;
      pieces.next();
      const int64_t next = (pieces.more() ? pieces.second : w_next) - (from - w);
      if (in_place || keeps) look_beyond(steps, next, stream ? steps_ahead : steps_near);
      for (int64_t first = 0; first < vectors; first += group) {
        const int64_t here = lesser(group, vectors - first), width = here * L::count;
        const int64_t column = first * L::count / reals;
        const int64_t count = lesser(columns_ - column, width / reals);
        if (fresh && !stream && plan_.fetches) {
          if (first + group < vectors)
            fetch(part, at_once, from + (column + width / reals) * g.w_column, tiles);
          else
            fetch(pieces.part, at_once, from + next, tiles);
        }
        if (!in_place) {
          t.a = rows;
          t.c = c + first * L::count;
          t.c_last = lanes_of_c(first + here);
          by_panel(t, from + column * g.w_column, count, here, keeps);
        } else {
          t.steps = steps;
          if constexpr (reals == 2) t.signs = &signs_;
          for (int64_t v = 0, wide; v < here; v += wide) {
            wide = ceil_div(here - v, ceil_div(here - v, most));
            t.a = rows;
            t.c = c + (first + v) * L::count;
            t.c_last = lanes_of_c(first + v + wide);
            t.b = from + v * L::count / reals;
            t.ahead = lesser(steps, stream ? steps_ahead : steps_near);
            t.again = stream && plan_.beyond ? t.ahead / 2 : 0;
            t.last = v + wide < vectors || whole ? L::count
                                                 : static_cast<int>(columns_ * reals % L::count);
            micro_rows<true>(t, rows_, wide, ahead_, near_lines());
          }
        }
      }
      from_zero = false;
    }
  }

  // The `count` columns of w in so many vectors by way of a panel: of whole vectors that lie in memory the
  // first tile makes it as it reads them; others are packed before.
  [[gnu::noinline]] void by_panel(Micro<T>& t, const T* w, int64_t count, int64_t vectors,
                                  bool keeps) {
    const int64_t width = vectors * L::count;
    place_steps(width, t.steps);
    int64_t done = 0;
    if (!keeps) {
      packer_.pack(w, g.w_column, count, w_step_, t.steps / reals, panel_, width, call_);
    } else if constexpr (reals == 1) {
      t.b = w;
      t.last = L::count;
      t.ahead = lesser(t.steps, steps_near);
      t.kept = panel_;
      done = keep_rows(t, rows_, vectors, ahead_[of_w]);
    }
    Micro<Real> rest{
        t.a + done * t.a_row, panel_,     t.c + done * t.c_row, t.a_row, t.c_row, t.steps, t.a_step,
        panel_step_,          t.from_zero};
    rest.c_last = t.c_last;
    if (done < rows_) micro_rows<false>(rest, rows_ - done, vectors, ahead_, near_lines());
  }

  // Rows: the weights of columns, broadcast; vectors: samples. Weights are asked for by every block of
  // samples: what the one before brought may have left its cache.
  UNSHARED_INLINE void over_samples(const Nest& nest, const Real* b, const T* w, int64_t w_next,
                                    Real* c, int64_t c_row, bool from_zero) {
    const int64_t vectors = ceil_div(rows_, L::count);
    // Of half types, columns of whole tiles at a time are widened, for which there must be room.
    const int64_t room = stage_ + scratch_reals - panel_;
    const int64_t tile = ceil_div(columns_, tiles_of(columns_, static_cast<int>(vectors)));
    const bool ask = plan_.fetches, many = plain && many_columns();
    Pieces pieces(nest, !plain       ? lesser(table_steps, room / tile)
                        : reals == 2 ? complex_steps
                                     : table_steps);
    while (pieces.more()) {
      const int64_t steps = pieces.part.total();
      tabulate(pieces.part);
      const T* const from = w + pieces.second;
      Micro<Real> t{nullptr,       b + pieces.first, c,           g.w_column * reals, c_row * reals,
                    steps * reals, w_step_,          small_step_, from_zero};
      const auto turn_page = [&]() __attribute__((always_inline)) {
        pieces.next();
        // Of many columns each tile asks for the next one's weights; of few, if they are a run of
        // lines, for the next cell's.
        constexpr int64_t worth_it = 4096 / sizeof(T);
        if (ask && !many && steps * columns_ >= worth_it)
          fetch(pieces.part, columns_, w + (pieces.more() ? pieces.second : w_next));
      };
      if constexpr (plain) {
        turn_page();
        for (int part = 0; part < reals; ++part) {
          t.a = reinterpret_cast<const Real*>(from);
          t.c = c + part * c_row;
          if (reals == 2) {
            t.a_step = part == 0 ? panel_step_ : im_w_step_;
            t.b_step = part == 0 ? small_step_ : im_small_step_;
          }
          micro_rows<false>(t, columns_, vectors, ahead_,
                            ask && many && part + 1 == reals ? near_ : nullptr);
        }
      } else {
        Box weights;
        for (int d = 0; d < pieces.part.depth; ++d)
          weights.add(pieces.part.loop[d].count, pieces.part.loop[d].second, 0);
        weights.lane_memory = g.w_column;
        turn_page();
        const int64_t most = greater(tile, room / steps / tile * tile);
        t.a_step = panel_step_;
        for (int64_t column = 0; column < columns_; column += weights.lanes) {
          weights.lanes = lesser(most, columns_ - column);
          t.a_row = widen_columns(weights, from + column * g.w_column, room);
          t.a = panel_;
          t.c = c + column * c_row;
          micro_rows<false>(t, weights.lanes, vectors, ahead_, nullptr);
        }
      }
      from_zero = false;
    }
  }
  // Of the vector that so many vectors of a row end with: sums in the result end with the columns.
  UNSHARED_INLINE int lanes_of_c(int64_t vectors) const {
    const int64_t beyond = plan_.direct ? vectors * L::count - columns_ * reals : 0;
    return static_cast<int>(L::count - greater(beyond, 0));
  }

  const Problem& p;
  const Gathering g;
  const Call& call_;
  const Plan& plan_;
  int64_t rows_ = 0, columns_ = 0;  // of the block at hand
  enum { of_small, of_w };
  Lines ahead_[2];  // what will be read next
  alignas(64) Real stage_[scratch_reals + 2 * L::count];
  Real* panel_ = stage_;  // behind what is staged
  SampleParts<Real> parts_;  // over samples, of complex elements

 private:
  UNSHARED_INLINE bool many_columns() const { return columns_ > 2 * most_rows(1); }
  UNSHARED_INLINE void place_steps(int64_t width, int64_t steps) {
    if (width == panel_width_ && steps <= panel_steps_) return;
    for (int64_t t = 0; t < steps; ++t) panel_step_[t] = t * width;
    panel_width_ = width;
    panel_steps_ = steps;
  }

  // Some columns of w into the panel, and its steps there into their table; returns the distance of columns.
  UNSHARED_INLINE int64_t widen_columns(const Box& box, const T* w, int64_t room) {
    if (widened_.find(box, room)) {
      Nest steps;
      for (int d = 0; d < box.depth; ++d)
        steps.add(box.loop[d].count, widened_.packed().loop[d].memory, 0);
      int64_t* at = panel_step_;
      steps.walk([&](int64_t a, int64_t) __attribute__((always_inline)) { *at++ = a; });
    }
    widened_.bring(w, panel_);
    return widened_.packed().lane_memory;
  }

  // As much of w again as a nest's steps and `count` columns take, from `next` on.
  UNSHARED_INLINE void fetch(const Nest& nest, int64_t count, const T* next, int64_t tiles = 1) {
    Box box;
    for (int d = 0; d < nest.depth; ++d)
      box.add(nest.loop[d].count, nest.loop[d].second, nest.loop[d].second);
    box.lanes = count;
    box.lane_memory = g.w_column;
    ahead_[of_w] = w_lines_.of(box, next, nest.total() * reals * tiles);
  }

  // Weights of forward whose chain ascends in memory, each column's: its channels, and of each its taps.
  UNSHARED_INLINE void columns_turned(const Nest& nest, const Real* a, int64_t a_row, const T* w,
                                      int64_t w_next, Real* c, int64_t c_row, bool from_zero) {
    const Nest::Loop& channels = nest.loop[0];
    Nest part = nest;
    constexpr int64_t lanes = Turned<T>::lanes_of_w;
    const int64_t most = table_steps / plan_.taps;  // whole squares, if there is room for some
    part.loop[0].count = lesser(channels.count, most < lanes ? most : most / lanes * lanes);
    const bool gaps = spread(part) != part.total();
    const int64_t tail = positions_ - (part.loop[0].count - 1) * plan_.taps;  // of the last channel
    Turned<T> t{a, w, c, a_row, c_row, g.w_column, 0, small_step_, gaps, false};
    const bool small = lanes * magnitude(g.w_column) * int64_t{sizeof(T)} <= Turned<T>::near_bytes;
    if constexpr (reals == 2) t.signs = &signs_;
    for (int64_t first = 0; first < columns_; first += lanes) {
      const bool more = first + lanes < columns_;
      t.lanes = static_cast<int>(lesser(lanes, columns_ - first));
      t.c = c + first * reals;
      t.c_last = lanes_of_c(first / lanes + 1);
      t.ahead = !small ? Turned<T>::some_ahead
                : more ? lanes * g.w_column
                       : w_next - first * g.w_column;
      t.from_zero = from_zero;
      for (int64_t from = 0; from < channels.count; from += part.loop[0].count) {
        const int64_t here = lesser(part.loop[0].count, channels.count - from);
        t.a = a + from * channels.first * (plan_.staged ? 1 : reals);
        t.w = w + first * g.w_column + from * channels.second;
        t.steps = (here - 1) * plan_.taps + tail;
        turned_rows(t, rows_);
        t.from_zero = false;
      }
    }
  }
  // The offsets of a nest's steps in the small tensor by where their weights lie; gaps between them.
  // Returns how many positions that are.
  UNSHARED_INLINE int64_t spread(const Nest& nest) {
    if (positions_ > 0 && nest.same(nest_)) return positions_;
    nest_ = nest;
    positions_ = 1;
    for (int d = 0; d < nest.depth; ++d)
      positions_ += (nest.loop[d].count - 1) * nest.loop[d].second;
    for (int64_t j = 0; j < positions_; ++j) small_step_[j] = Turned<T>::gap;
    const int scale = plan_.staged ? 1 : reals;
    nest.walk([&](int64_t a, int64_t b)
                  __attribute__((always_inline)) { small_step_[b] = a * scale; });
    return positions_;
  }

  // The offsets of a nest's steps in the small tensor and in w; kept while the nest is the same.
  UNSHARED_INLINE void tabulate(const Nest& nest) {
    if (positions_ == 0 && nest.same(nest_) && parts_.turned == known_turned_) return;
    nest_ = nest;
    known_turned_ = parts_.turned;
    beyond_ = positions_ = 0;
    const int scale = plan_.staged ? 1 : reals;  // scratch is counted in reals
    int64_t count = 0;
    nest.walk([&](int64_t a, int64_t b) __attribute__((always_inline)) {
      if (reals == 2 && plan_.over_samples)
        parts_.step(count, a, b, small_step_, panel_step_, im_small_step_, im_w_step_);
      else
        for (int q = 0; q < reals; ++q) small_step_[reals * count + q] = a * scale + q;
      w_step_[count++] = b;
    });
    if (plan_.over_samples && many_columns() && plan_.fetches)
      find_near(nest, &Nest::Loop::second, g.w_column, count);
    if (!plan_.staged) find_near(nest, &Nest::Loop::first, g.small_batch, count * reals);
  }
  // Beyond the last step follow the first ones of the next cell, to be fetched ahead.
  UNSHARED_INLINE void look_beyond(int64_t steps, int64_t next, int64_t ahead) {
    if (steps == beyond_ && next == next_ && ahead <= listed_) return;
    for (int64_t j = 0; j < ahead; ++j) w_step_[steps + j] = w_step_[lesser(j, steps - 1)] + next;
    listed_ = ahead;
    beyond_ = steps;
    next_ = next;
  }
  // The lines that the rows of a tile lie in, all of one row before those of the next, where they
  // are read in place.
  UNSHARED_INLINE const std::int32_t* near_lines() const { return plan_.staged ? nullptr : near_; }
  void find_near(const Nest& nest, int64_t Nest::Loop::* stride, int64_t row, int64_t steps) {
    Box box;
    for (int d = 0; d < nest.depth; ++d)
      box.add(nest.loop[d].count, nest.loop[d].*stride * reals, 0);
    box.lanes = reals;
    const int64_t lines = lines_of<Real>(box, near_, steps);
    row *= int64_t{sizeof(T)};
    for (int64_t s = lines; s < steps; ++s) {
      const int64_t byte = near_[s - lines] + row;
      near_[s] = byte > max_extent || byte < -max_extent ? 0 : static_cast<std::int32_t>(byte);
    }
  }

  int64_t known_turned_ = 0;
  const Signs<Real> signs_;
  Panel<T> packer_;
  Widened<T> widened_;
  LineList<table_steps * reals, table_steps * reals> w_lines_;
  Nest nest_;  // of the tables
  int64_t beyond_ = 0, next_ = 0, listed_ = 0, panel_width_ = 0, panel_steps_ = 0;
  int64_t positions_ = 0;  // of small_step_, if it is that of a chain that ascends in memory
  std::int32_t near_[table_steps * reals];
  int64_t small_step_[table_steps * reals], w_step_[table_steps + steps_ahead];
  int64_t panel_step_[table_steps * reals];
  // Over samples, of the imaginary parts of sums; those of the real parts: small_step_, panel_step_.
  static constexpr int complex_steps = 256;
  int64_t im_small_step_[reals == 2 ? 2 * complex_steps : 1],
      im_w_step_[reals == 2 ? 2 * complex_steps : 1];
};

}  // namespace
}  // namespace unshared

#endif
