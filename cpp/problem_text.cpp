// The text form of a Problem: one line that is a test case, a test's name, a benchmark row and the
// tail of an error.
//
//   [m2] n4 a3>b8 [g1] i32x32 k4x4 [s2] [p0] [d1] [e1] [x:nai] [w:obak] [y:nbo]
//
// m mapped extent, n batch, a>b channels in and out (all groups together), g groups, i input, k
// kernel, s stride, p padding (low, or low:high), d dilation, e input dilation: one number for
// every spatial axis, or one each joined by "x". Then the memory order of each tensor, slowest
// first: n, a, b, i, o (all places), k (all taps), m. Strides no order can say stand in brackets,
// one per logical dimension. What equals the default (in brackets above) is left out.
#include <algorithm>
#include <charconv>
#include <numeric>
#include <vector>

#include "problem.hpp"

namespace unshared {
namespace {

constexpr Seat seats[] = {Seat::x, Seat::w, Seat::y};
constexpr std::string_view seat_names[] = {"x", "w", "y"};
constexpr std::string_view logical_order[] = {"nai", "obak", "nbo"};

// The logical dimensions that a letter of a memory order stands for, as [first, first + count).
struct Span {
  int first, count;
};

Span dimensions(Seat seat, char letter, int spatial, bool mapped) {
  const int lead = mapped ? 1 : 0;
  if (letter == 'm') return {0, lead};
  if (seat == Seat::w) switch (letter) {
      case 'o': return {lead, spatial};
      case 'b': return {lead + spatial, 1};
      case 'a': return {lead + spatial + 1, 1};
      case 'k': return {lead + spatial + 2, spatial};
      default: return {0, 0};
    }
  if (letter == 'n') return {lead, 1};
  if (letter == (seat == Seat::x ? 'a' : 'b')) return {lead + 1, 1};
  if (letter == (seat == Seat::x ? 'i' : 'o')) return {lead + 2, spatial};
  return {0, 0};
}

// Dense strides in the given order; false if the order does not name every dimension once.
bool lay_out(Layout& layout, Seat seat, std::string_view order, int spatial, bool mapped) {
  std::int64_t stride = 1;
  int named = 0;
  std::fill_n(layout.stride, layout.rank, -1);
  for (auto letter = order.rbegin(); letter != order.rend(); ++letter) {
    const Span span = dimensions(seat, *letter, spatial, mapped);
    if (span.count == 0) return false;
    for (int d = span.first + span.count - 1; d >= span.first; --d) {
      if (layout.stride[d] != -1) return false;
      layout.stride[d] = stride;
      if (__builtin_mul_overflow(stride, std::max<std::int64_t>(layout.shape[d], 1), &stride))
        stride = INT64_MAX;
      ++named;
    }
  }
  return named == layout.rank;
}

// As make_problem leaves them: strides that cannot matter are 0.
Layout without_idle_strides(Layout layout) {
  const bool empty = layout.elements() == 0;
  for (int d = 0; d < layout.rank; ++d)
    if (empty || layout.shape[d] == 1) layout.stride[d] = 0;
  return layout;
}

// " w:oakb", or strides in brackets, or nothing for the default order.
std::string order_text(const Problem& p, int seat) {
  const Layout layout = p.layout(seats[seat]);
  const std::string logical = (p.mapped ? "m" : "") + std::string(logical_order[seat]);
  const std::string prefix = " " + std::string(seat_names[seat]) + ":";
  std::string order = logical;
  Layout candidate = layout;
  const auto fits = [&] {
    return lay_out(candidate, seats[seat], order, p.spatial, p.mapped) &&
           without_idle_strides(candidate) == layout;
  };
  if (fits()) return "";
  std::sort(order.begin(), order.end());
  do {
    if (fits()) return prefix + order;
  } while (std::next_permutation(order.begin(), order.end()));
  std::string text = prefix + "[";
  for (int d = 0; d < layout.rank; ++d)
    text += (d != 0 ? "," : "") + std::to_string(layout.stride[d]);
  return text + "]";
}

[[noreturn]] void bad(std::string_view token, const std::string& expected) {
  throw Error(Error::Kind::value, "parse_problem", "text", expected,
              "'" + std::string(token) + "'");
}

std::int64_t whole(std::string_view token, std::string_view digits) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) bad(token, "a whole number");
  return value;
}

std::int64_t number(std::string_view token, std::string_view digits) {
  const std::int64_t value = whole(token, digits);
  if (value < 0 || value > max_extent) bad(token, "a whole number of 0 to 2147483647");
  return value;
}

template <class Each>
int for_each_part(std::string_view list, char separator, Each each) {
  int count = 0;
  for (;; ++count) {
    const std::size_t cut = list.find(separator);
    each(count, list.substr(0, cut));
    if (cut == std::string_view::npos) return count + 1;
    list.remove_prefix(cut + 1);
  }
}

Extents extents(std::string_view token, std::string_view list) {
  Extents e;
  e.count = for_each_part(list, 'x', [&](int s, std::string_view part) {
    if (s >= max_spatial) bad(token, "at most three spatial axes");
    e.value[s] = number(token, part);
  });
  e.single = e.count == 1;
  return e;
}

Padding padding(std::string_view token, std::string_view list) {
  Padding p;
  p.low.count = for_each_part(list, 'x', [&](int s, std::string_view part) {
    if (s >= max_spatial) bad(token, "at most three spatial axes");
    const std::size_t colon = part.find(':');
    p.low.value[s] = number(token, part.substr(0, colon));
    p.high.value[s] =
        colon == std::string_view::npos ? p.low.value[s] : number(token, part.substr(colon + 1));
  });
  p.high.count = p.low.count;
  p.low.single = p.high.single = p.low.count == 1;
  return p;
}

}  // namespace

std::string to_string(const Problem& p) {
  // Numbers per spatial axis, shortened to one where all agree (extents of one axis alone never
  // mislead).
  const auto per_axis = [&](char letter, auto text_of, bool shorten) {
    std::vector<std::string> parts;
    for (int s = 0; s < p.spatial; ++s) parts.push_back(text_of(p.spatial_axis(s)));
    std::string text = std::string(" ") + letter + parts[0];
    if (shorten &&
        std::all_of(parts.begin(), parts.end(), [&](const auto& part) { return part == parts[0]; }))
      return text;
    for (std::size_t s = 1; s < parts.size(); ++s) text += "x" + parts[s];
    return text;
  };
  const auto option = [&](char letter, auto text_of, const char* idle) {
    const std::string text = per_axis(letter, text_of, true);
    return text.substr(2) == idle ? "" : text;
  };
  const auto text = [](std::int64_t v) { return std::to_string(v); };

  std::string line = p.mapped ? "m" + text(p.axes[0].input) + " " : "";
  line += "n" + text(p.batch) + " a" + text(p.in_channels * p.groups()) + ">b" +
          text(p.out_channels * p.groups());
  if (p.grouped) line += " g" + text(p.groups());
  line += per_axis('i', [&](const Axis& a) { return text(a.input); }, false);
  line += per_axis('k', [&](const Axis& a) { return text(a.kernel); }, false);
  line += option('s', [&](const Axis& a) { return text(a.stride); }, "1");
  line += option(
      'p',
      [&](const Axis& a) {
        return text(a.padding_low) +
               (a.padding_low == a.padding_high ? "" : ":" + text(a.padding_high));
      },
      "0");
  line += option('d', [&](const Axis& a) { return text(a.dilation); }, "1");
  line += option('e', [&](const Axis& a) { return text(a.input_dilation); }, "1");
  for (int seat = 0; seat < 3; ++seat) line += order_text(p, seat);
  return line;
}

Problem parse_problem(std::string_view text) {
  Arguments arguments;
  std::int64_t batch = -1, in = -1, out = -1, mapped = -1;
  std::optional<Extents> input, kernel;
  std::string_view orders[3] = {};

  while (true) {
    text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
    if (text.empty()) break;
    const std::string_view token = text.substr(0, text.find_first_of(" \t\r\n"));
    text.remove_prefix(token.size());
    const std::string_view rest = token.substr(1);
    if (token.size() > 2 && token[1] == ':') {
      const auto seat = std::find(std::begin(seat_names), std::end(seat_names), token.substr(0, 1));
      if (seat == std::end(seat_names)) bad(token, "a memory order of x, w or y");
      orders[seat - std::begin(seat_names)] = token.substr(2);
      continue;
    }
    switch (token[0]) {
      case 'm': mapped = number(token, rest); break;
      case 'n': batch = number(token, rest); break;
      case 'a': {
        const std::size_t arrow = rest.find(">b");
        if (arrow == std::string_view::npos) bad(token, "channels as a3>b8");
        in = number(token, rest.substr(0, arrow));
        out = number(token, rest.substr(arrow + 2));
        break;
      }
      case 'g': arguments.groups = number(token, rest); break;
      case 'i': input = extents(token, rest); break;
      case 'k': kernel = extents(token, rest); break;
      case 's': arguments.stride = extents(token, rest); break;
      case 'p': arguments.padding = padding(token, rest); break;
      case 'd': arguments.dilation = extents(token, rest); break;
      case 'e': arguments.input_dilation = extents(token, rest); break;
      default:
        bad(token, "a token of the text form, such as n4, a3>b8, i32x32, k4x4, s2, p0, w:oakb");
    }
  }
  if (batch < 0 || in < 0 || out < 0 || !input || !kernel) bad("...", "at least n, a>b, i and k");
  input->single = false;
  if (kernel->single)
    *kernel = {input->count, false, {kernel->value[0], kernel->value[0], kernel->value[0]}};
  for (const Extents* e : {&*kernel, &arguments.stride, &arguments.dilation,
                           &arguments.input_dilation, &arguments.padding.low})
    if (!e->single && e->count != input->count) bad("...", "as many numbers per axis as i has");

  // First the sizes alone, then the memory order of each tensor.
  arguments.mapped = mapped >= 0;
  arguments.sizes = {in, out, batch, arguments.mapped ? mapped : 1};
  arguments.input_size = input;
  arguments.kernel_size = kernel;
  const Problem sizes = make_problem(arguments);
  arguments.sizes.reset();
  const auto stated = [&](int seat) {
    Layout layout = sizes.layout(seats[seat]);
    const std::string_view order = orders[seat];
    if (order.starts_with('[')) {
      if (!order.ends_with(']')) bad(order, "strides in brackets");
      const int count =
          for_each_part(order.substr(1, order.size() - 2), ',', [&](int d, std::string_view part) {
            if (d < layout.rank) layout.stride[d] = whole(order, part);
          });
      if (count != layout.rank) bad(order, std::to_string(layout.rank) + " strides");
    } else {
      const std::string logical = (arguments.mapped ? "m" : "") + std::string(logical_order[seat]);
      if (!lay_out(layout, seats[seat], order.empty() ? logical : order, sizes.spatial,
                   arguments.mapped))
        bad(order, "each letter of " + logical + " once");
    }
    return layout;
  };
  arguments.x = stated(0);
  arguments.w = stated(1);
  arguments.y = stated(2);
  // A tensor whose elements share memory can be an operand only: the face is one that fills another.
  const auto repeats = [](const Layout& layout) {
    for (int d = 0; d < layout.rank; ++d)
      if (layout.shape[d] > 1 && layout.stride[d] == 0) return layout.elements() != 0;
    return false;
  };
  if (repeats(*arguments.y))
    arguments.face = repeats(*arguments.x) ? Face::grad_weight : Face::grad_input;
  return make_problem(arguments);
}

}  // namespace unshared
