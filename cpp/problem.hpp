// The geometry of a locally connected layer, parsed once and trusted afterwards.
//
// An Axis is one separable dimension (height, width, depth, groups, a mapped extent); a Problem is
// a few axes, the batch, two channel counts and the element strides of x, w and y. make_problem is
// the only validator; kernels trust what it returns. No pointers, no dtype, no device: those belong
// to a Call (unshared.hpp).
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

// Code that is compiled once per instruction set must leave no shared inline function behind: the
// linker would keep one copy, maybe of a level this machine lacks. Hence "always inline", which
// leaves none.
#if defined(__CUDACC__)
#define UNSHARED_INLINE __host__ __device__ __forceinline__
#else
#define UNSHARED_INLINE inline __attribute__((always_inline))
#endif

#if defined(_WIN32)
#define UNSHARED_API
#else
#define UNSHARED_API [[gnu::visibility("default")]]
#endif

namespace unshared {

// The three partial derivatives of T(x, w, y) = sum of y * x * w: each face fills the seat it is
// named after.
enum class Face { forward, grad_input, grad_weight };
enum class Seat { x, w, y };
enum class DType { float32, float64, float16, bfloat16, complex64, complex128 };

inline constexpr int face_count = 3;
inline constexpr int dtype_count = 6;
inline constexpr int max_spatial = 3;
inline constexpr int max_axes = 5;  // a mapped axis, groups, three spatial
inline constexpr int max_dims =
    1 + max_spatial + 2 + max_spatial;  // a mapped weight: m, o, b, a, k
inline constexpr std::int64_t max_extent = 2147483647;  // of any single size or option

constexpr Seat result_of(Face face) {
  return face == Face::forward ? Seat::y : face == Face::grad_input ? Seat::x : Seat::w;
}

// One separable dimension. The functions below hold all index arithmetic of the library.
struct Axis {
  std::int64_t input = 1, output = 1, kernel = 1;
  std::int64_t stride = 1, dilation = 1, input_dilation = 1, padding_low = 0, padding_high = 0;
  std::int64_t x_stride = 0, w_place_stride = 0, w_tap_stride = 0, y_stride = 0;  // in elements

  // The input index that feeds output o through tap k; -1 if that tap falls into padding (or
  // between dilated inputs).
  UNSHARED_INLINE constexpr std::int64_t source(std::int64_t o, std::int64_t k) const {
    const std::int64_t at = o * stride + k * dilation - padding_low;
    if (at < 0) return -1;
    const std::int64_t i = input_dilation == 1 ? at : at / input_dilation;
    return i < input && i * input_dilation == at ? i : -1;
  }

  // The output index that input i reaches through tap k; -1 if none.
  UNSHARED_INLINE constexpr std::int64_t reached(std::int64_t i, std::int64_t k) const {
    const std::int64_t at = i * input_dilation + padding_low - k * dilation;
    if (at < 0) return -1;
    const std::int64_t o = stride == 1 ? at : at / stride;
    return o < output && o * stride == at ? o : -1;
  }

  // How many places there are; zero or less if the dilated kernel does not fit into the padded,
  // dilated input.
  constexpr std::int64_t outputs() const {
    const std::int64_t padded =
        (input == 0 ? 0 : (input - 1) * input_dilation + 1) + padding_low + padding_high;
    const std::int64_t spare = padded - ((kernel - 1) * dilation + 1);
    return spare < 0 ? 0 : spare / stride + 1;
  }

  bool operator==(const Axis&) const = default;
};

// Shape and element strides of one tensor in logical order (api.md): x (N, C_in, *in), y (N, C_out,
// *out), w (*out, C_out, C_in/groups, *kernel), each with a leading mapped extent if the problem is
// mapped.
struct Layout {
  int rank = 0;
  std::int64_t shape[max_dims] = {};
  std::int64_t stride[max_dims] = {};

  UNSHARED_API std::int64_t elements() const;
  bool operator==(const Layout&) const = default;
};

struct Problem {
  int axis_count = 0;
  int spatial = 0;  // the last `spatial` axes are spatial;
  bool mapped = false;  // the first is the mapped one, if there is one;
  bool grouped = false;  // between them stands the axis of groups, if there are several
  Axis axes[max_axes];  // order: mapped, groups, spatial (row-major: the last runs fastest)

  std::int64_t batch = 0, in_channels = 0, out_channels = 0;  // channels of one group
  std::int64_t x_batch_stride = 0, x_channel_stride = 0;
  std::int64_t w_in_stride = 0, w_out_stride = 0;
  std::int64_t y_batch_stride = 0, y_channel_stride = 0;

  std::int64_t groups() const { return grouped ? axes[mapped ? 1 : 0].input : 1; }
  const Axis& spatial_axis(int s) const { return axes[axis_count - spatial + s]; }

  UNSHARED_API Layout layout(Seat seat) const;

  // What the problem asks for: the longest chain of one result element, all multiplications and
  // additions that fall inside the input (of real numbers; a complex product counts four times),
  // and x, w and y moved once each.
  UNSHARED_API std::int64_t terms(Face face) const;
  UNSHARED_API double flops() const;
  UNSHARED_API double flops(DType dtype) const;
  UNSHARED_API double bytes(DType dtype) const;

  bool operator==(const Problem&) const = default;
};

// One exception type: which operation and argument, what was expected and why, what was found.
struct UNSHARED_API Error : std::runtime_error {
  enum class Kind { type, value, unsupported, device };

  Error(Kind kind, std::string operation, std::string argument, std::string expected,
        std::string found);

  Kind kind;
  std::string operation, argument, expected, found;
};

// One integer per spatial axis, as a user types them: a single number stands for every axis.
struct Extents {
  int count = 0;  // how many were given, even if more than fit below
  bool single = true;
  std::int64_t value[max_spatial] = {};

  static Extents all(std::int64_t v) { return {1, true, {v}}; }
};

struct Padding {
  enum class Rule { explicit_sizes, valid, same };
  Rule rule = Rule::explicit_sizes;
  Extents low = Extents::all(0), high = Extents::all(0);
};

// What a user states; make_problem turns it into a Problem or throws. The layouts of the face's two
// operands are required. That of its result is optional: left out, the result gets a dense layout
// in the memory order of its partner (y of x, x of y), and a weight gradient the order
// [out][C_in][kernel][C_out].
//
// Or, for a layer that has no tensors yet: `sizes` instead of any layout, input_size (one number per
// axis) and kernel_size. With output_padding, too, it is a transposed layer: input_size is that of
// y, in_channels are those of y, and the extents of x follow (as many as reach y, and that many more).
struct Arguments {
  struct Sizes {
    std::int64_t in_channels, out_channels;  // of all groups
    std::int64_t batch = 1, mapped = 1;
  };

  Face face = Face::forward;
  std::string operation;  // who is calling, for errors; empty: the face
  std::optional<Layout> x, w, y;
  std::optional<std::string>
      result_order;  // its dimensions as digits, slowest first; "": row-major
  std::optional<Sizes> sizes;
  std::optional<Extents> input_size;  // grad_input: spatial extents of x
  std::optional<Extents> kernel_size;  // grad_weight: extents of the kernel
  std::optional<Extents> output_padding;  // of a transposed layer
  Extents stride = Extents::all(1), dilation = Extents::all(1), input_dilation = Extents::all(1);
  Padding padding;
  std::int64_t groups = 1;
  bool mapped = false;  // all three tensors carry a leading extent, each index a problem of its own
};

UNSHARED_API Problem make_problem(const Arguments& arguments);

// The text form, e.g. "n4 a3>b8 i32x32 k4x4 s2 p0"; parse_problem(to_string(p)) == p. See
// problem_text.cpp.
UNSHARED_API std::string to_string(const Problem& problem);
UNSHARED_API Problem parse_problem(std::string_view text);
UNSHARED_API std::size_t hash(const Problem& problem);

UNSHARED_API const char* name_of(Face face);
UNSHARED_API const char* name_of(DType dtype);
UNSHARED_API const char* argument_of(
    Face face, Seat seat);  // what users call that tensor: "x", "w", "dy" or "out"

}  // namespace unshared
