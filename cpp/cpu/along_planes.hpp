// Kernel "along", computing several rows of cells at once (along_pile.hpp).
//
// PlanesGather: forward and grad_input, a tile for every vector of every row and a few samples; weights
// are staged for all samples. PlanesWeights: grad_weight, a tile for every vector of every row and some
// taps; sums are written when all samples have been.
// Accumulator: float32 for half types, else the element type. Order: the canonical one of each
// face. Deterministic: each result element is one chain in one worker.
#pragma once

#include "along_pile.hpp"

#if defined(UNSHARED_LANES)

namespace unshared {
namespace {

template <class T, Face face>
class PlanesGather : AlongPile<T, face> {
  using Base = AlongPile<T, face>;
  using Base::accumulate_, Base::a_step_, Base::b_step_, Base::g, Base::high_, Base::lanes_,
      Base::members_, Base::p, Base::panel_, Base::row_, Base::steps_, Base::sum_reals, Base::w_;
  using typename Base::L;
  using typename Base::Real;
  using typename Base::Span;

 public:
  UNSHARED_INLINE PlanesGather(const Problem&, const Call& call, const typename Base::Plan& plan)
      : Base(call, plan) {}

  // Blocks [begin, end).
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (; begin < end; ++begin)
      if (this->enter(begin)) gather();
  }

 private:
  UNSHARED_INLINE void gather() {
    if (steps_ > 0) this->template move_weights<true>(this->second_ + this->w_at_);
    if (this->missing_) cross_out();
    const int64_t columns = along_width(g.columns);
    int64_t tall = lesser(along_rows(static_cast<int>(columns)), this->most_samples());
    if (!this->other_here()) tall = lesser(tall, sum_reals / (g.columns * row_));
    const Heights heights(p.batch, tall);
    for (int64_t t = 0; t < steps_; ++t) ahead_step_[t] = t % heights.of(0) * g.small_batch;
    const int64_t step = this->member_step(Base::by_input ? &Axis::x_stride : &Axis::y_stride);
    T* const result = this->result_ + this->other_at_;
    const auto each = [&](int64_t member, int64_t n, int64_t count, const Real* next) {
      samples(panel_ + member * w_.stride(Base::of_members),
              result + member * step + n * g.result_batch, count, columns, next);
    };
    this->each_part(heights, this->first_ + this->small_at_, each);
  }

  // -0 for weights of taps in padding.
  UNSHARED_INLINE void cross_out() {
    const int64_t w_member = w_.stride(Base::of_members), w_column = w_.stride(Base::of_columns),
                  w_row = w_.stride(Base::of_rows);
    for (int64_t t = 0; t < steps_; ++t) {
      const Span lanes = this->span_of(this->tap_of_[t]), rows = this->rows_of(this->row_of_[t]);
      if (lanes.first <= 0 && lanes.last >= lanes_ && rows.first == 0 && rows.last == high_)
        continue;
      for (int64_t member = 0; member < members_; ++member)
        for (int64_t v = 0; v < g.columns; ++v)
          for (int64_t r = 0; r < high_; ++r) {
            Real* const to = panel_ + member * w_member + v * w_column + r * w_row + b_step_[t];
            const bool in_chain = r >= rows.first && r < rows.last && lanes.first < lanes.last;
            const int64_t first = in_chain ? lanes.first : lanes_;
            for (int64_t l = 0; l < first; ++l) to[l] = -Real{};
            for (int64_t l = greater(first, lanes.last); l < lanes_; ++l) to[l] = -Real{};
          }
    }
  }

  UNSHARED_INLINE void samples(const Real* w, T* result, int64_t count, int64_t columns,
                               const Real* next) {
    const bool here = this->other_here();
    const int64_t result_row = this->other_stride_of(this->across());
    AlongTile<Real> t{};
    t.products = &this->products_;
    t.a_row = this->size_;
    t.b_column = w_.stride(Base::of_columns);
    t.c_row = here ? g.result_batch : g.columns * row_;
    t.c_column = here ? g.result_channel : row_;
    t.c_fetch = here ? result_row : 0;
    t.steps = steps_;
    t.a_step = a_step_;
    t.b_step = b_step_;
    t.staged = true;
    t.ahead_step = ahead_step_;
    t.from_zero = !accumulate_;
    Box out;
    out.add(count, g.result_batch, t.c_row);
    out.add(g.columns, g.result_channel, t.c_column);
    out.lanes = lanes_;
    out.lane_memory = this->other_stride_of(this->along_);
    for (int64_t r = 0; r < high_; ++r, result += result_row, next += this->small_row()) {
      Real* const c = here ? reinterpret_cast<Real*>(result) : sums_;
      if (!here && accumulate_) stage(out, result, sums_);
      const Real* const b = w + r * w_.stride(Base::of_rows);
      for (int64_t l = 0; l < lanes_; l += L::count) {
        t.last = static_cast<int>(lesser(L::count, lanes_ - l));
        t.a = this->staged(r) + l;
        t.ahead = next + l * this->small_lane();
        for (int64_t v = 0, some; v < g.columns; v += some) {
          some = lesser(columns, g.columns - v);
          t.b = b + l + v * t.b_column;
          t.c = c + l + v * t.c_column;
          run_tile(t, count, some);
        }
      }
      if (!here) unstage(out, result, sums_);
    }
  }

  int64_t ahead_step_[along_steps];
  alignas(64) Real sums_[sum_reals + L::count];
};

template <class T>
class PlanesWeights : AlongPile<T, Face::grad_weight> {
  using Base = AlongPile<T, Face::grad_weight>;
  using Base::accumulate_, Base::g, Base::high_, Base::lanes_, Base::members_, Base::p,
      Base::panel_, Base::row_, Base::steps_, Base::w_;
  using typename Base::L;
  using typename Base::Plan;
  using typename Base::Real;

 public:
  UNSHARED_INLINE PlanesWeights(const Problem&, const Call& call, const Plan& plan)
      : Base(call, plan) {}

  // Blocks [begin, end).
  UNSHARED_INLINE void run(int64_t begin, int64_t end) {
    for (; begin < end; ++begin)
      if (this->enter(begin)) weights();
  }

 private:
  static constexpr int64_t y_reals = 48 * 1024 / sizeof(Real);
  // A sample's rows of dy find room, since those of x do, of as many samples and one channel.
  static_assert(y_reals * Plan::least_samples >= Plan::pile_stage_reals * Plan::most_columns);

  UNSHARED_INLINE void weights() {
    if (this->missing_ && !accumulate_) clear_padding();
    if (steps_ == 0) return;
    T* const w = this->result_ + this->w_at_;
    if (accumulate_) this->template move_weights<true>(w);
    int64_t tall = this->most_samples();
    if (!this->other_here()) tall = lesser(tall, y_reals / (g.columns * high_ * row_));
    const Heights heights(p.batch, tall);
    const int64_t step = this->member_step(&Axis::y_stride);
    const T* const y = this->second_ + this->other_at_;
    const auto each = [&](int64_t member, int64_t n, int64_t count, const Real* next) {
      samples(y + member * step + n * p.y_batch_stride,
              panel_ + member * w_.stride(Base::of_members), count, n == 0 && !accumulate_, next);
    };
    this->each_part(heights, this->first_ + this->small_at_, each);
    this->template move_weights<false>(w);
  }

  // Zero for every tap in padding.
  UNSHARED_INLINE void clear_padding() {
    const int64_t step = this->member_step(&Axis::w_place_stride);
    int64_t& row = this->at_[this->plan_.rows_axis];
    T* place = this->result_ + this->place_at_;
    for (int64_t r = 0; r < high_; ++r, ++row, place += this->across().w_place_stride)
      for (int64_t member = 0; member < members_; ++member) this->clear(place + member * step);
    row -= high_;
  }

  UNSHARED_INLINE void samples(const T* y, Real* sums, int64_t count, bool from_zero,
                               const Real* next) {
    const bool here = this->other_here();
    const int64_t columns = along_width(g.columns), y_row = this->across().y_stride;
    if (!here) {
      Box in;
      in.add(count, p.y_batch_stride, g.columns * high_ * row_);
      in.add(g.columns, p.y_channel_stride, high_ * row_);
      in.add(high_, y_row, row_);
      in.lanes = lanes_;
      in.lane_memory = this->along_.y_stride;
      stage(in, y, y_);
    }
    BatchTile<Real> t{};
    t.products = &this->products_;
    t.b_column = here ? p.y_channel_stride : high_ * row_;
    t.c_column = w_.stride(Base::of_columns);
    t.steps = count;
    t.a_step = this->size_;
    t.b_step = here ? p.y_batch_stride : g.columns * high_ * row_;
    t.b_fetch = here ? y_row : 0;
    t.staged = true;
    t.ahead_step = g.small_batch;
    t.from_zero = from_zero;
    const Heights heights(steps_, along_rows(static_cast<int>(columns)));
    for (int64_t r = 0; r < high_; ++r, next += this->small_row()) {
      const Real* const b = here ? reinterpret_cast<const Real*>(y + r * y_row) : y_ + r * row_;
      for (int64_t l = 0; l < lanes_; l += L::count) {
        t.last = static_cast<int>(lesser(L::count, lanes_ - l));
        t.a = this->staged(r) + l;
        t.ahead = next + l * this->small_lane();
        t.a_row = this->a_step_;
        t.c_row = this->b_step_;
        for (int64_t tile = 0; tile < heights.tiles; ++tile) {
          const int64_t height = heights.of(tile);
          for (int64_t v = 0, some; v < g.columns; v += some) {
            some = lesser(columns, g.columns - v);
            t.b = b + l + v * t.b_column;
            t.c = sums + r * w_.stride(Base::of_rows) + l + v * t.c_column;
            run_tile(t, height, some);
          }
          t.a_row += height;
          t.c_row += height;
        }
      }
    }
  }

  alignas(64) Real y_[y_reals + L::count];
};

}  // namespace
}  // namespace unshared

#endif
