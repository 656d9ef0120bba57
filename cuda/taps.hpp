// The taps that one cell (cpp/cells.hpp) sums over, listed in shared memory by the threads of its
// block: how far each moves the partner (x, or dy for grad_input) and the weight. In chain order.
// For grad_weight, whose taps are columns of the result, all taps of the kernel stand in the list,
// and those that fall into padding say so.
#pragma once

#include "../cpp/cells.hpp"
#include "device.hpp"

namespace unshared::cuda {

inline constexpr std::int64_t outside = std::int64_t{1} << 62;  // no offset: nothing is there

struct alignas(16) Offsets {
  std::int64_t first, second;
};

// What does not depend on the cell, found on the host.
struct TapRule {
  std::int64_t after[max_axes] = {};  // cells per step of an axis
  std::int64_t tap_step[max_axes] = {}, partner_step[max_axes] = {};
};
inline TapRule tap_rule(const Problem& p, Face face) {
  TapRule rule;
  const Cell cell(p, face, 0);  // all cells have these steps
  std::int64_t cells = 1;
  for (int s = p.axis_count - 1; s >= 0; --s) {
    rule.after[s] = cells;
    cells *= face == Face::grad_input ? p.axes[s].input : p.axes[s].output;
    rule.tap_step[s] = cell.tap_step[s];
    rule.partner_step[s] = cell.partner_step[s];
  }
  return rule;
}
inline std::int64_t tap_count(const Problem& p) {
  std::int64_t taps = 1;
  for (int s = 0; s < p.axis_count; ++s) taps *= p.axes[s].kernel;
  return taps;
}

template <Face face>
struct Taps {
  // Along one axis.
  struct Joint {
    std::int64_t index;
    Reach reach;
  };
  Joint joints[max_axes];

  // Thread s finds axis s. A barrier must follow.
  template <class Thread>
  UNSHARED_DEVICE void join(Thread& t, const Problem& p, const TapRule& rule, std::int64_t cell) {
    const int s = t.index();
    if (s >= p.axis_count) return;
    const Axis& axis = p.axes[s];
    constexpr bool by_input = face == Face::grad_input;
    const std::int64_t index = cell / rule.after[s] % (by_input ? axis.input : axis.output);
    t.store_shared(&joints[s].index, index);
    Reach reach{axis.kernel, 0, 0};
    if (face != Face::grad_weight) reach = reach_of(axis, by_input, index, rule.tap_step[s]);
    t.store_shared(&joints[s].reach.count, reach.count);
    t.store_shared(&joints[s].reach.tap, reach.tap);
    t.store_shared(&joints[s].reach.partner, reach.partner);
  }

  template <class Thread>
  UNSHARED_DEVICE int count(Thread& t, const Problem& p) const {
    int taps = 1;
    for (int s = 0; s < p.axis_count; ++s)
      taps *= static_cast<int>(t.load_shared(&joints[s].reach.count));
    return taps;
  }

  // Where the cell itself lies: in y (forward), x (grad_input), dy (grad_weight).
  template <class Thread>
  UNSHARED_DEVICE std::int64_t cell_offset(Thread& t, const Problem& p) const {
    std::int64_t at = 0;
    for (int s = 0; s < p.axis_count; ++s)
      at += t.load_shared(&joints[s].index) *
            (face == Face::grad_input ? p.axes[s].x_stride : p.axes[s].y_stride);
    return at;
  }

  // All threads fill in the list. A barrier must follow.
  template <class Thread>
  UNSHARED_DEVICE void list(Thread& t, const Problem& p, const TapRule& rule, int threads,
                            Offsets* to) const {
    const int taps = count(t, p);
    for (int tap = t.index(); tap < taps; tap += threads) {
      Offsets offsets{0, 0};
      bool inside = true;
      auto flat = static_cast<unsigned>(tap);
      for (int s = p.axis_count - 1; s >= 0; --s) {
        const Axis& axis = p.axes[s];
        const std::int64_t index = t.load_shared(&joints[s].index);
        const auto count = static_cast<unsigned>(t.load_shared(&joints[s].reach.count));
        const std::int64_t at = flat % count;
        flat /= count;
        std::int64_t partner, k;
        if (face == Face::grad_weight) {
          k = at;
          partner = axis.source(index, k);
          inside = inside && partner >= 0;
        } else {
          k = t.load_shared(&joints[s].reach.tap) + at * rule.tap_step[s];
          partner = t.load_shared(&joints[s].reach.partner) + at * rule.partner_step[s];
        }
        const std::int64_t place = face == Face::grad_input ? partner : index;
        offsets.first += partner * (face == Face::grad_input ? axis.y_stride : axis.x_stride);
        offsets.second += place * axis.w_place_stride + k * axis.w_tap_stride;
      }
      if (!inside) offsets.first = outside;
      t.store_shared(&to[tap], offsets);
    }
  }
};

}  // namespace unshared::cuda
