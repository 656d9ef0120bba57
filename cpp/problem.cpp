// make_problem: the one place where a stated call is checked and every size is derived. Each size
// has one source; all other mentions of it are compared with that source, and the error says how
// the expectation came about.
#include "problem.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "footprint.hpp"
#include "scalar.hpp"

namespace unshared {

Error::Error(Kind kind_, std::string operation_, std::string argument_, std::string expected_,
             std::string found_)
    : std::runtime_error("unshared." + operation_ + ": argument '" + argument_ + "': expected " +
                         expected_ + ", found " + found_),
      kind(kind_),
      operation(std::move(operation_)),
      argument(std::move(argument_)),
      expected(std::move(expected_)),
      found(std::move(found_)) {}

const char* name_of(Face face) {
  return face == Face::forward      ? "forward"
         : face == Face::grad_input ? "grad_input"
                                    : "grad_weight";
}

const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32",  "float64",   "float16",
                                   "bfloat16", "complex64", "complex128"};
  return names[static_cast<int>(dtype)];
}

const char* argument_of(Face face, Seat seat) {
  if (result_of(face) == seat) return "out";
  return seat == Seat::x ? "x" : seat == Seat::w ? "w" : face == Face::forward ? "y" : "dy";
}

namespace {

using Sizes = std::array<std::int64_t, max_spatial>;

std::string number(std::int64_t v) {
  if (v == INT64_MAX) return "a number of 2^63-1 or more";
  if (v == INT64_MIN) return "a number of -2^63 or less";
  return std::to_string(v);
}

std::string joined(const std::int64_t* v, int count, const char* separator) {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i != 0 ? separator : "") + std::to_string(v[i]);
  return text;
}

std::string by_axis(const Sizes& v, int count) { return joined(v.data(), count, "x"); }

std::string tuple(const Layout& layout) {
  return "(" + joined(layout.shape, layout.rank, ", ") + (layout.rank == 1 ? ",)" : ")");
}

std::string dims(int rank) {
  return std::to_string(rank) + (rank == 1 ? " dimension" : " dimensions");
}

// The checks proper; one object per call so that every message can name the operation and the
// geometry.
class Maker {
 public:
  explicit Maker(const Arguments& given)
      : given_(given), face_(given.face), lead_(given.mapped ? 1 : 0) {}

  Problem make() {
    check_operands();
    read_options();
    read_sizes();
    read_channels();
    compute_output();
    for (Seat seat : operands_first()) {
      if (const auto& layout = given_of(seat)) compare(seat, *layout);
      strides_[static_cast<int>(seat)] = given_of(seat) ? *given_of(seat) : preferred(seat);
      normalise(seat);
    }
    return assemble();
  }

 private:
  const std::optional<Layout>& given_of(Seat seat) const {
    return seat == Seat::x ? given_.x : seat == Seat::w ? given_.w : given_.y;
  }
  // So that an operand is blamed before a result that was made for another one.
  std::array<Seat, 3> operands_first() const {
    if (face_ == Face::forward) return {Seat::x, Seat::w, Seat::y};
    if (face_ == Face::grad_input) return {Seat::y, Seat::w, Seat::x};
    return {Seat::x, Seat::y, Seat::w};
  }
  const char* argument(Seat seat) const { return argument_of(face_, seat); }
  [[noreturn]] void fail(const std::string& argument, std::string expected,
                         std::string found) const {
    throw Error(Error::Kind::value, given_.operation.empty() ? name_of(face_) : given_.operation,
                argument, std::move(expected), std::move(found));
  }
  std::string geometry() const {
    return "from input " + by_axis(input_, spatial_) + ", kernel " + by_axis(kernel_, spatial_) +
           ", stride " + by_axis(stride_, spatial_) + ", padding " + padding_text() +
           ", dilation " + by_axis(dilation_, spatial_) +
           (std::any_of(input_dilation_.begin(), input_dilation_.begin() + spatial_,
                        [](auto v) { return v != 1; })
                ? ", input_dilation " + by_axis(input_dilation_, spatial_)
                : "");
  }
  std::string padding_text() const {
    std::string text;
    for (int s = 0; s < spatial_; ++s)
      text += (s != 0 ? "x" : "") +
              (low_[s] == high_[s] ? std::to_string(low_[s])
                                   : std::to_string(low_[s]) + ":" + std::to_string(high_[s]));
    return text;
  }

  // Ranks, and that every size is one we can compute with.
  void check_operands() {
    if (given_.sizes) return check_sizes();
    const Seat leader = face_ == Face::grad_input ? Seat::y : Seat::x;
    const int rank = given_of(leader)->rank - lead_;
    if (rank < 3 || rank > 2 + max_spatial)
      fail(argument(leader), "3 to 5 dimensions: (N, C, *spatial) with 1 to 3 spatial axes",
           dims(rank + lead_));
    spatial_ = rank - 2;
    for (Seat seat : operands_first()) {
      const auto& layout = given_of(seat);
      if (!layout) continue;
      const int expected = lead_ + (seat == Seat::w ? 2 * spatial_ + 2 : spatial_ + 2);
      if (layout->rank != expected)
        fail(argument(seat),
             dims(expected) +
                 (seat == Seat::w   ? ": (*out, C_out, C_in/groups, *kernel)"
                  : seat == Seat::x ? ": (N, C_in, *in)"
                                    : ": (N, C_out, *out)") +
                 ", as '" + argument(leader) + "' has " + dims(rank + lead_),
             dims(layout->rank));
      for (int d = 0; d < layout->rank; ++d)
        if (layout->shape[d] < 0 || layout->shape[d] > max_extent)
          fail(argument(seat), "sizes of 0 to 2147483647", "shape " + tuple(*layout));
    }
  }

  void check_sizes() {
    spatial_ = given_.input_size->count;
    if (spatial_ < 1 || spatial_ > max_spatial)
      fail("input_size", "1 to 3 spatial extents", std::to_string(spatial_));
    const auto check = [&](const char* name, std::int64_t size) {
      if (size < 0 || size > max_extent)
        fail(name, "a whole number of 0 to 2147483647", number(size));
    };
    check("in_channels", given_.sizes->in_channels);
    check("out_channels", given_.sizes->out_channels);
  }

  Sizes read(const char* name, const Extents& given, std::int64_t least) const {
    if (!(given.single && given.count == 1) && given.count != spatial_)
      fail(name,
           std::to_string(spatial_) + (spatial_ == 1 ? " value" : " values") +
               ", one per spatial axis",
           std::to_string(given.count));
    Sizes sizes{};
    for (int s = 0; s < spatial_; ++s) {
      sizes[s] = given.value[given.single ? 0 : s];
      if (sizes[s] < least || sizes[s] > max_extent)
        fail(name, "a whole number of " + std::to_string(least) + " to 2147483647",
             number(sizes[s]));
    }
    return sizes;
  }

  void read_options() {
    stride_ = read("stride", given_.stride, 1);
    dilation_ = read("dilation", given_.dilation, 1);
    input_dilation_ = read("input_dilation", given_.input_dilation, 1);
    if (given_.padding.rule == Padding::Rule::explicit_sizes) {
      low_ = read("padding", given_.padding.low, 0);
      high_ = read("padding", given_.padding.high, 0);
    }
    if (given_.groups < 1 || given_.groups > max_extent)
      fail("groups", "a whole number of 1 to 2147483647", number(given_.groups));
  }

  // input = (output - 1) * stride - padding + dilated kernel + output_padding, which is what
  // compute_output takes back.
  void transpose_sizes() {
    const Sizes more = read("output_padding", *given_.output_padding, 0);
    if (given_.padding.rule == Padding::Rule::same)
      fail("padding", "whole numbers: a transposed layer has no 'same'", "'same'");
    for (int s = 0; s < spatial_; ++s) {
      if (more[s] >= stride_[s])
        fail("output_padding", "less than stride " + by_axis(stride_, spatial_),
             by_axis(more, spatial_));
      const std::int64_t output = input_[s];
      input_[s] = (output - 1) * stride_[s] - low_[s] - high_[s] + (kernel_[s] - 1) * dilation_[s] +
                  1 + more[s];
      if (output < 1 || input_[s] < 1 || input_[s] > max_extent)
        fail(output < 1 ? "input_size" : "padding",
             "an output of 1 to 2147483647 along spatial axis " + std::to_string(s),
             output < 1 ? "input " + std::to_string(output)
                        : "output " + std::to_string(input_[s]) + " = (" + std::to_string(output) +
                              " - 1) * stride " + std::to_string(stride_[s]) + " - padding " +
                              std::to_string(low_[s] + high_[s]) + " + dilated kernel " +
                              std::to_string((kernel_[s] - 1) * dilation_[s] + 1) +
                              " + output_padding " + std::to_string(more[s]));
    }
  }

  void read_sizes() {
    if (face_ == Face::grad_input || given_.sizes) {
      if (!given_.input_size) fail("input_size", "the spatial extents of x", "none");
      input_ = read("input_size", *given_.input_size, 0);
    } else {
      for (int s = 0; s < spatial_; ++s) input_[s] = given_.x->shape[lead_ + 2 + s];
    }
    if (face_ == Face::grad_weight || given_.sizes) {
      if (!given_.kernel_size) fail("kernel_size", "the extents of the kernel", "none");
      kernel_ = read("kernel_size", *given_.kernel_size, 1);
    } else {
      for (int s = 0; s < spatial_; ++s) {
        kernel_[s] = given_.w->shape[lead_ + spatial_ + 2 + s];
        if (kernel_[s] < 1)
          fail("w", "a kernel of at least 1 along every axis",
               "kernel " + by_axis_of(*given_.w, spatial_ + 2));
      }
    }
    if (given_.output_padding) transpose_sizes();
  }

  std::string by_axis_of(const Layout& layout, int from) const {
    return joined(layout.shape + lead_ + from, spatial_, "x");
  }

  // The channel counts and the batch, each from the operand that comes first.
  void read_channels() {
    const std::int64_t groups = given_.groups;
    if (given_.sizes) {
      const auto share = [&](const char* name, std::int64_t channels) {
        if (channels % groups != 0)
          fail("groups", std::string("a divisor of ") + name + "=" + std::to_string(channels),
               std::to_string(groups));
        return channels / groups;
      };
      in_ = share("in_channels", given_.sizes->in_channels);
      out_ = share("out_channels", given_.sizes->out_channels);
      if (given_.output_padding) std::swap(in_, out_);
      batch_ = given_.sizes->batch;
      mapped_ = given_.sizes->mapped;
      return;
    }
    const Layout& leader = face_ == Face::grad_input ? *given_.y : *given_.x;
    mapped_ = given_.mapped ? leader.shape[0] : 1;
    batch_ = leader.shape[lead_];
    const auto split = [&](Seat seat, const char* what, std::int64_t channels) {
      if (channels % groups != 0)
        fail("groups",
             std::string("a divisor of ") + what + "=" + std::to_string(channels) + " of '" +
                 argument(seat) + "'",
             std::to_string(groups));
      return channels / groups;
    };
    if (face_ == Face::forward) {
      in_ = split(Seat::x, "C_in", given_.x->shape[lead_ + 1]);
      out_ = split(Seat::w, "C_out", given_.w->shape[lead_ + spatial_]);
    } else if (face_ == Face::grad_input) {
      out_ = split(Seat::y, "C_out", given_.y->shape[lead_ + 1]);
      in_ = given_.w->shape[lead_ + spatial_ + 1];
      if (groups > 1 && in_ > max_extent / groups)
        fail("groups", "C_in = groups * C_in/groups of at most 2147483647",
             std::to_string(groups) + " * " + std::to_string(in_));
    } else {
      in_ = split(Seat::x, "C_in", given_.x->shape[lead_ + 1]);
      out_ = split(Seat::y, "C_out", given_.y->shape[lead_ + 1]);
    }
  }

  // out = floor((dilated input + padding - dilated kernel) / stride) + 1 along every axis.
  void compute_output() {
    for (int s = 0; s < spatial_; ++s) {
      const std::int64_t input = input_[s] == 0 ? 0 : (input_[s] - 1) * input_dilation_[s] + 1;
      const std::int64_t kernel = (kernel_[s] - 1) * dilation_[s] + 1;
      if (given_.padding.rule == Padding::Rule::same) {
        const std::int64_t output = (input + stride_[s] - 1) / stride_[s];
        const std::int64_t total =
            std::max<std::int64_t>((output - 1) * stride_[s] + kernel - input, 0);
        low_[s] = total / 2;
        high_[s] = total - low_[s];
      }
      const Axis axis{input_[s],          0,       kernel_[s], stride_[s], dilation_[s],
                      input_dilation_[s], low_[s], high_[s]};
      output_[s] = axis.outputs();
      if (output_[s] < 1)
        fail(face_ == Face::grad_weight || given_.sizes ? "kernel_size" : "w",
             "a (dilated) kernel within the padded input of " +
                 std::to_string(input + low_[s] + high_[s]) + " along spatial axis " +
                 std::to_string(s) + " (" + geometry() + ")",
             "a (dilated) kernel of " + std::to_string(kernel));
      if (output_[s] > max_extent)
        fail("padding", "an output of at most 2147483647 (" + geometry() + ")",
             std::to_string(output_[s]));
    }
  }

  std::int64_t channels_in() const { return in_ * given_.groups; }
  std::int64_t channels_out() const { return out_ * given_.groups; }

  // The logical shape the sizes above imply.
  Layout expected(Seat seat) const {
    Layout layout;
    const auto add = [&](std::int64_t size) { layout.shape[layout.rank++] = size; };
    const auto add_all = [&](const Sizes& sizes) {
      for (int s = 0; s < spatial_; ++s) add(sizes[s]);
    };
    if (given_.mapped) add(mapped_);
    if (seat == Seat::w) {
      add_all(output_);
      add(channels_out());
      add(in_);
      add_all(kernel_);
    } else {
      add(batch_);
      add(seat == Seat::x ? channels_in() : channels_out());
      add_all(seat == Seat::x ? input_ : output_);
    }
    return layout;
  }

  // Compares a given layout with the expected shape, the most telling difference first.
  void compare(Seat seat, const Layout& layout) const {
    const Layout want = expected(seat);
    const char* name = argument(seat);
    const auto differ = [&](int from, int count) {
      return !std::equal(layout.shape + from, layout.shape + from + count, want.shape + from);
    };
    const auto size = [&](const char* what, int at, const std::string& why) {
      if (layout.shape[at] != want.shape[at])
        fail(name, std::string(what) + "=" + std::to_string(want.shape[at]) + " (" + why + ")",
             std::string(what) + "=" + std::to_string(layout.shape[at]) + " in shape " +
                 tuple(layout));
    };
    if (given_.mapped) size("mapped extent", 0, "as the other operand has");
    if (face_ == Face::grad_input && seat == Seat::y && differ(lead_ + 2, spatial_) &&
        std::equal(layout.shape + lead_ + 2, layout.shape + lead_ + 2 + spatial_,
                   given_.w->shape + lead_))
      fail("input_size",
           "spatial extents of x that give out " + by_axis_of(layout, 2) + ", as 'dy' and 'w' have",
           by_axis(input_, spatial_) + ", which gives out " + by_axis(output_, spatial_) + " (" +
               geometry() + ")");
    if (seat == Seat::w) {
      if (differ(lead_, spatial_))
        fail(name, "out " + by_axis(output_, spatial_) + " (" + geometry() + ")",
             "out " + by_axis_of(layout, 0) + " in shape " + tuple(layout));
      size("C_out", lead_ + spatial_, "as the other operand has");
      size("C_in/groups", lead_ + spatial_ + 1,
           "C_in=" + std::to_string(channels_in()) + " in " + std::to_string(given_.groups) +
               " group(s)");
      if (differ(lead_ + spatial_ + 2, spatial_))
        fail(name, "kernel " + by_axis(kernel_, spatial_),
             "kernel " + by_axis_of(layout, spatial_ + 2));
    } else {
      size("N", lead_, "as the other operand has");
      size(seat == Seat::x ? "C_in" : "C_out", lead_ + 1, "from the weights and groups");
      if (differ(lead_ + 2, spatial_))
        fail(name,
             std::string(seat == Seat::x ? "in " : "out ") +
                 by_axis(seat == Seat::x ? input_ : output_, spatial_) + " (" + geometry() + ")",
             (seat == Seat::x ? "in " : "out ") + by_axis_of(layout, 2) + " in shape " +
                 tuple(layout));
    }
  }

  // A dense layout in the order `slowest first` of the dimensions.
  static Layout dense(Layout layout, const std::vector<int>& order) {
    std::int64_t stride = 1;
    for (auto d = order.rbegin(); d != order.rend(); ++d) {
      layout.stride[*d] = stride;
      if (__builtin_mul_overflow(stride, std::max<std::int64_t>(layout.shape[*d], 1), &stride))
        stride = INT64_MAX;
    }
    return layout;
  }

  // y in the memory order of x and x in that of y; weights as [out][C_in][kernel][C_out].
  Layout preferred(Seat seat) const {
    Layout layout = expected(seat);
    std::vector<int> order(static_cast<std::size_t>(layout.rank));
    std::iota(order.begin(), order.end(), 0);
    if (given_.sizes) {
      // nothing to go by: logical order
    } else if (seat == result_of(face_) && given_.result_order) {
      read_order(order);
    } else if (seat == Seat::w) {
      const int out_channels = lead_ + spatial_;
      order.erase(order.begin() + out_channels);
      order.push_back(out_channels);
    } else if (const auto& given = given_of(seat == Seat::x ? Seat::y : Seat::x)) {
      const Layout& partner = *given;
      // Sorted by stride, slowest first; dimensions whose stride says nothing stay where they are.
      std::vector<int> telling;
      for (int d = 0; d < layout.rank; ++d)
        if (partner.shape[d] > 1 && partner.stride[d] != 0) telling.push_back(d);
      std::vector<int> sorted = telling;
      std::stable_sort(sorted.begin(), sorted.end(), [&](int p, int q) {
        return std::abs(partner.stride[p]) > std::abs(partner.stride[q]);
      });
      for (std::size_t i = 0; i < telling.size(); ++i)
        order[static_cast<std::size_t>(telling[i])] = sorted[i];
    }
    return dense(layout, order);
  }

  void read_order(std::vector<int>& order) const {
    const std::string& digits = *given_.result_order;
    if (digits.empty()) return;
    std::vector<int> read;
    for (char digit : digits) read.push_back(digit - '0');
    if (!std::is_permutation(read.begin(), read.end(), order.begin(), order.end()))
      fail("order", "each dimension of the result once, as a digit", "'" + digits + "'");
    order = std::move(read);
  }

  // Strides that cannot matter become 0; all offsets and byte sizes must fit in 64 bits; a result
  // must not overlap itself.
  void normalise(Seat seat) {
    Layout& layout = strides_[static_cast<int>(seat)];
    const bool empty =
        std::find(layout.shape, layout.shape + layout.rank, 0) != layout.shape + layout.rank;
    std::int64_t elements = 1, extent = 0;
    bool fits = true;
    for (int d = 0; d < layout.rank; ++d) {
      if (empty || layout.shape[d] == 1) layout.stride[d] = 0;
      std::int64_t reach = 0;
      fits = fits && layout.stride[d] != INT64_MIN &&
             !__builtin_mul_overflow(elements, layout.shape[d], &elements) &&
             !__builtin_mul_overflow(std::abs(layout.stride[d]),
                                     std::max<std::int64_t>(layout.shape[d], 1), &reach) &&
             !__builtin_add_overflow(extent, reach, &extent);
    }
    constexpr std::int64_t most =
        INT64_MAX / 64;  // 16 bytes each, and room for sums of two strides
    if (!fits || elements > most || extent > most)
      fail(argument(seat), "sizes and strides whose products stay below 2^57 elements",
           "shape " + tuple(layout));
    if (!empty && seat == result_of(face_) && given_of(seat) && overlaps_itself(layout))
      fail("out", "an array no two of whose elements share memory",
           "shape " + tuple(layout) + " with strides (" + joined(layout.stride, layout.rank, ", ") +
               ")");
  }

  Problem assemble() const {
    const Layout &x = strides_[0], &w = strides_[1], &y = strides_[2];
    Problem p;
    p.spatial = spatial_;
    p.mapped = given_.mapped;
    p.grouped = given_.groups > 1;
    p.batch = batch_;
    p.in_channels = in_;
    p.out_channels = out_;
    p.x_batch_stride = x.stride[lead_];
    p.x_channel_stride = x.stride[lead_ + 1];
    p.y_batch_stride = y.stride[lead_];
    p.y_channel_stride = y.stride[lead_ + 1];
    p.w_out_stride = w.stride[lead_ + spatial_];
    p.w_in_stride = w.stride[lead_ + spatial_ + 1];
    const auto parallel_axis = [&](std::int64_t extent, std::int64_t xs, std::int64_t ws,
                                   std::int64_t ys) {
      Axis& axis = p.axes[p.axis_count++];
      axis.input = axis.output = extent;
      axis.x_stride = xs;
      axis.w_place_stride = ws;
      axis.y_stride = ys;
    };
    if (p.mapped) parallel_axis(mapped_, x.stride[0], w.stride[0], y.stride[0]);
    if (p.grouped)
      parallel_axis(given_.groups, in_ * p.x_channel_stride, out_ * p.w_out_stride,
                    out_ * p.y_channel_stride);
    for (int s = 0; s < spatial_; ++s) {
      Axis& axis = p.axes[p.axis_count++];
      axis = {input_[s],
              output_[s],
              kernel_[s],
              stride_[s],
              dilation_[s],
              input_dilation_[s],
              low_[s],
              high_[s],
              x.stride[lead_ + 2 + s],
              w.stride[lead_ + s],
              w.stride[lead_ + spatial_ + 2 + s],
              y.stride[lead_ + 2 + s]};
    }
    return p;
  }

  const Arguments& given_;
  const Face face_;
  const int lead_;  // dimensions ahead of the logical ones
  int spatial_ = 0;
  std::int64_t mapped_ = 1, batch_ = 0, in_ = 0, out_ = 0;
  Sizes input_{}, kernel_{}, output_{}, stride_{}, dilation_{}, input_dilation_{}, low_{}, high_{};
  Layout strides_[3];
};

// Over the outputs (or inputs) of one axis: how many (place, tap) pairs fall inside, and the most
// at one index.
struct Count {
  std::int64_t pairs = 0, most = 0;
};

Count count_sources(const Axis& axis) {
  Count count;
  for (std::int64_t o = 0; o < axis.output; ++o) {
    std::int64_t here = 0;
    for (std::int64_t k = 0; k < axis.kernel; ++k) here += axis.source(o, k) >= 0;
    count.pairs += here;
    count.most = std::max(count.most, here);
  }
  return count;
}

std::int64_t most_reached(const Axis& axis) {
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < axis.input; ++i) {
    std::int64_t here = 0;
    for (std::int64_t k = 0; k < axis.kernel; ++k) here += axis.reached(i, k) >= 0;
    most = std::max(most, here);
  }
  return most;
}

}  // namespace

Problem make_problem(const Arguments& arguments) { return Maker(arguments).make(); }

std::int64_t Layout::elements() const {
  return std::accumulate(shape, shape + rank, std::int64_t{1}, std::multiplies<>());
}

Layout Problem::layout(Seat seat) const {
  Layout layout;
  const auto add = [&](std::int64_t size, std::int64_t stride) {
    layout.shape[layout.rank] = size;
    layout.stride[layout.rank++] = stride;
  };
  if (mapped)
    add(axes[0].input, seat == Seat::x   ? axes[0].x_stride
                       : seat == Seat::w ? axes[0].w_place_stride
                                         : axes[0].y_stride);
  if (seat == Seat::w) {
    for (int s = 0; s < spatial; ++s) add(spatial_axis(s).output, spatial_axis(s).w_place_stride);
    add(out_channels * groups(), w_out_stride);
    add(in_channels, w_in_stride);
    for (int s = 0; s < spatial; ++s) add(spatial_axis(s).kernel, spatial_axis(s).w_tap_stride);
  } else if (seat == Seat::x) {
    add(batch, x_batch_stride);
    add(in_channels * groups(), x_channel_stride);
    for (int s = 0; s < spatial; ++s) add(spatial_axis(s).input, spatial_axis(s).x_stride);
  } else {
    add(batch, y_batch_stride);
    add(out_channels * groups(), y_channel_stride);
    for (int s = 0; s < spatial; ++s) add(spatial_axis(s).output, spatial_axis(s).y_stride);
  }
  return layout;
}

std::int64_t Problem::terms(Face face) const {
  if (face == Face::grad_weight) return batch;
  std::int64_t terms = face == Face::forward ? in_channels : out_channels;
  for (int s = 0; s < axis_count; ++s)
    terms *= face == Face::forward ? count_sources(axes[s]).most : most_reached(axes[s]);
  return terms;
}

double Problem::flops() const {
  double pairs = 2.0 * static_cast<double>(batch) * static_cast<double>(in_channels) *
                 static_cast<double>(out_channels);
  for (int s = 0; s < axis_count; ++s) pairs *= static_cast<double>(count_sources(axes[s]).pairs);
  return pairs;
}

double Problem::flops(DType dtype) const { return flops() * (parts_of(dtype) == 2 ? 4 : 1); }

double Problem::bytes(DType dtype) const {
  double elements = 0;
  for (Seat seat : {Seat::x, Seat::w, Seat::y})
    elements += static_cast<double>(layout(seat).elements());
  return elements * static_cast<double>(size_of(dtype));
}

std::size_t hash(const Problem& p) {
  std::size_t h = 0;
  const auto mix = [&](std::int64_t v) {
    h = (h ^ static_cast<std::size_t>(v)) * 0x9e3779b97f4a7c15u + (h >> 29);
  };
  for (std::int64_t v :
       {p.batch, p.in_channels, p.out_channels, p.x_batch_stride, p.x_channel_stride, p.w_in_stride,
        p.w_out_stride, p.y_batch_stride, p.y_channel_stride, std::int64_t{p.axis_count},
        std::int64_t{p.mapped}, std::int64_t{p.grouped}})
    mix(v);
  for (int s = 0; s < p.axis_count; ++s) {
    const Axis& a = p.axes[s];
    for (std::int64_t v :
         {a.input, a.output, a.kernel, a.stride, a.dilation, a.input_dilation, a.padding_low,
          a.padding_high, a.x_stride, a.w_place_stride, a.w_tap_stride, a.y_stride})
      mix(v);
  }
  return h;
}

}  // namespace unshared
