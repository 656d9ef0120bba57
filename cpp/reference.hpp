// The definition. Each face as a plain gather: one function computes one result element as one
// chain of fused multiply-adds in the canonical order, for any strides and any dtype. Every other
// kernel must equal it bit for bit. Host and device text in one: the last kernel of every list, and
// the naive device kernel.
//
// Accumulator: float32 for half types (widened exactly, rounded once at the end), else the element
// type. Order: forward - input channels a ascending, within each the taps k ascending; grad_input -
// the output places that reach i ascending, within each b ascending; grad_weight - the batch n
// ascending. Places and taps are row-major.
#pragma once

#include "scalar.hpp"

namespace unshared::reference {

template <class T>
struct Operands {
  const T* first;
  const T* second;
  T* result;
  bool accumulate, conjugate_first, conjugate_second;
};

// One result element's sum on its way.
template <class T>
struct Chain {
  using Sum = decltype(widen(T{}));
  const Operands<T>& t;
  Sum sum;

  UNSHARED_INLINE Chain(const Operands<T>& operands, std::int64_t at)
      : t(operands), sum(operands.accumulate ? widen(operands.result[at]) : Sum{}) {}
  UNSHARED_INLINE void add(std::int64_t first, std::int64_t second) {
    sum = chain(conjugate(widen(t.first[first]), t.conjugate_first),
                conjugate(widen(t.second[second]), t.conjugate_second), sum);
  }
};

// A multi-index over the axes of a problem, the last running fastest.
struct Index {
  std::int64_t at[max_axes];
};

// Splits `flat` into a multi-index over the given extents and returns what remains.
UNSHARED_INLINE std::int64_t unravel(const Problem& p, std::int64_t flat, Index& index,
                                     std::int64_t Axis::* extent) {
  for (int s = p.axis_count - 1; s >= 0; --s) {
    const std::int64_t n = p.axes[s].*extent;
    index.at[s] = flat % n;
    flat /= n;
  }
  return flat;
}

// Steps to the next tap, row-major; false after the last. `previous` does the same backwards.
UNSHARED_INLINE bool next(const Problem& p, Index& k) {
  for (int s = p.axis_count - 1; s >= 0; --s) {
    if (++k.at[s] < p.axes[s].kernel) return true;
    k.at[s] = 0;
  }
  return false;
}
UNSHARED_INLINE bool previous(const Problem& p, Index& k) {
  for (int s = p.axis_count - 1; s >= 0; --s) {
    if (--k.at[s] >= 0) return true;
    k.at[s] = p.axes[s].kernel - 1;
  }
  return false;
}

// y[n, o, b], element e = (o, n, b) with b fastest.
template <class T>
UNSHARED_INLINE void forward(const Problem& p, const Operands<T>& t, std::int64_t e) {
  const std::int64_t b = e % p.out_channels, n = e / p.out_channels % p.batch;
  Index o;
  unravel(p, e / p.out_channels / p.batch, o, &Axis::output);
  std::int64_t y = n * p.y_batch_stride + b * p.y_channel_stride;
  for (int s = 0; s < p.axis_count; ++s) y += o.at[s] * p.axes[s].y_stride;

  Chain<T> sum(t, y);
  for (std::int64_t a = 0; a < p.in_channels; ++a) {
    Index k{};
    do {
      std::int64_t x = n * p.x_batch_stride + a * p.x_channel_stride;
      std::int64_t w = a * p.w_in_stride + b * p.w_out_stride;
      bool inside = true;
      for (int s = 0; s < p.axis_count; ++s) {
        const Axis& axis = p.axes[s];
        const std::int64_t i = axis.source(o.at[s], k.at[s]);
        inside = inside && i >= 0;
        x += i * axis.x_stride;
        w += o.at[s] * axis.w_place_stride + k.at[s] * axis.w_tap_stride;
      }
      if (inside) sum.add(x, w);
    } while (next(p, k));
  }
  t.result[y] = round_to<T>(sum.sum);
}

// dx[n, i, a], element e = (i, n, a) with a fastest. Along an axis the places reaching i ascend as
// the taps descend.
template <class T>
UNSHARED_INLINE void grad_input(const Problem& p, const Operands<T>& t, std::int64_t e) {
  const std::int64_t a = e % p.in_channels, n = e / p.in_channels % p.batch;
  Index i, k;
  unravel(p, e / p.in_channels / p.batch, i, &Axis::input);
  std::int64_t x = n * p.x_batch_stride + a * p.x_channel_stride;
  for (int s = 0; s < p.axis_count; ++s) {
    x += i.at[s] * p.axes[s].x_stride;
    k.at[s] = p.axes[s].kernel - 1;
  }

  Chain<T> sum(t, x);
  do {
    std::int64_t y = n * p.y_batch_stride, w = a * p.w_in_stride;
    bool inside = true;
    for (int s = 0; s < p.axis_count; ++s) {
      const Axis& axis = p.axes[s];
      const std::int64_t o = axis.reached(i.at[s], k.at[s]);
      inside = inside && o >= 0;
      y += o * axis.y_stride;
      w += o * axis.w_place_stride + k.at[s] * axis.w_tap_stride;
    }
    if (!inside) continue;
    for (std::int64_t b = 0; b < p.out_channels; ++b)
      sum.add(y + b * p.y_channel_stride, w + b * p.w_out_stride);
  } while (previous(p, k));
  t.result[x] = round_to<T>(sum.sum);
}

// dw[o, k, a, b], element e = (o, k, a, b) with b fastest. A tap in padding has an empty chain.
template <class T>
UNSHARED_INLINE void grad_weight(const Problem& p, const Operands<T>& t, std::int64_t e) {
  const std::int64_t b = e % p.out_channels, a = e / p.out_channels % p.in_channels;
  Index k, o;
  const std::int64_t place = unravel(p, e / p.out_channels / p.in_channels, k, &Axis::kernel);
  unravel(p, place, o, &Axis::output);
  std::int64_t x = a * p.x_channel_stride, y = b * p.y_channel_stride;
  std::int64_t w = a * p.w_in_stride + b * p.w_out_stride;
  bool inside = true;
  for (int s = 0; s < p.axis_count; ++s) {
    const Axis& axis = p.axes[s];
    const std::int64_t i = axis.source(o.at[s], k.at[s]);
    inside = inside && i >= 0;
    x += i * axis.x_stride;
    y += o.at[s] * axis.y_stride;
    w += o.at[s] * axis.w_place_stride + k.at[s] * axis.w_tap_stride;
  }

  Chain<T> sum(t, w);
  if (inside)
    for (std::int64_t n = 0; n < p.batch; ++n)
      sum.add(x + n * p.x_batch_stride, y + n * p.y_batch_stride);
  t.result[w] = round_to<T>(sum.sum);
}

}  // namespace unshared::reference
