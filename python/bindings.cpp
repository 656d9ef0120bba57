// The Python module unshared._core: what users typed becomes (Problem, pointers), then run().
// A call is a Job (job.hpp), its options are read in options.hpp. Sizes and geometry are
// make_problem's affair; its errors become those of unshared.errors.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <climits>
#include <optional>

#include "arrays.hpp"
#include "ceilings.hpp"
#include "job.hpp"
#include "options.hpp"
#include "restate.hpp"
#if defined(UNSHARED_XLA_API)
#include "xla.hpp"
#endif

namespace unshared::python {
namespace {

using Kind = Error::Kind;

// The problem of a call whose operands are not arrays yet but shapes and dtypes; row-major.
Problem described(Face face, const std::vector<std::int64_t>& first, const std::string& dtype,
                  const std::vector<std::int64_t>& second, const std::string& second_dtype,
                  const Options& options) {
  const auto layout = [](const std::vector<std::int64_t>& shape) {
    Layout l;
    l.rank = static_cast<int>(std::min<std::size_t>(shape.size(), INT_MAX));
    std::copy_n(shape.begin(), std::min<std::size_t>(shape.size(), max_dims), l.shape);
    return row_major(l);
  };
  const Seat first_seat = face == Face::grad_input ? Seat::y : Seat::x;
  const Seat second_seat = face == Face::grad_weight ? Seat::y : Seat::w;
  check_dtype({name_of(face), argument_of(face, first_seat)}, dtype);
  if (second_dtype != dtype)
    Where{name_of(face), argument_of(face, second_seat)}.fail(
        Kind::type, "dtype " + dtype + ", as '" + argument_of(face, first_seat) + "' has it",
        "dtype " + second_dtype);
  Arguments arguments;
  read_geometry(arguments, face, options);
  (face == Face::grad_input ? arguments.y : arguments.x) = layout(first);
  (face == Face::grad_weight ? arguments.y : arguments.w) = layout(second);
  return restate(make_problem(arguments), {});
}

static_assert(static_cast<int>(Kind::type) == 0 && static_cast<int>(Kind::value) == 1 &&
              static_cast<int>(Kind::unsupported) == 2 && static_cast<int>(Kind::device) == 3);

void raise(const Error& error, nb::handle cause) {
  const char* const classes[] = {"ArgumentTypeError", "ArgumentValueError", "UnsupportedError",
                                 "DeviceError"};
  const nb::object type =
      nb::module_::import_("unshared.errors").attr(classes[static_cast<int>(error.kind)]);
  const nb::object raised =
      type.attr("of")(error.operation, error.argument, error.expected, error.found);
  if (cause.is_valid()) PyException_SetCause(raised.ptr(), cause.inc_ref().ptr());
  PyErr_SetObject(type.ptr(), raised.ptr());
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const ErrorFromPython& error) {
    raise(error, error.cause.value());
  } catch (const Error& error) {
    raise(error, {});
  }
}

// The value among 0 .. count-1 that goes by this name.
template <class Value, class Name>
Value named(const std::string& name, int count, const char* what, Name name_of_value) {
  std::string known;
  for (int i = 0; i < count; ++i) {
    const auto value = static_cast<Value>(i);
    if (name == name_of_value(value)) return value;
    known += std::string(i != 0 ? ", " : "") + name_of_value(value);
  }
  throw nb::value_error((std::string(what) + " '" + name + "' is none of " + known).c_str());
}

Seat seat_named(const std::string& name) {
  return named<Seat>(name, 3, "seat", [](Seat seat) {
    return seat == Seat::x ? "x" : seat == Seat::w ? "w" : "y";
  });
}
Face face_named(const std::string& name) {
  return named<Face>(name, face_count, "face", [](Face face) { return name_of(face); });
}
DType dtype_named(const std::string& name) {
  return named<DType>(name, dtype_count, "dtype", [](DType dtype) { return name_of(dtype); });
}

nb::tuple tuple_of(const std::int64_t* numbers, int count) {
  return nb::tuple(nb::cast(std::vector<std::int64_t>(numbers, numbers + count)));
}

nb::dict build_info_dict() {
  const BuildInfo info = build_info();
  nb::dict d;
  d["version"] = info.version;
  d["isa_built"] = info.levels_built;
  d["isa_usable"] = info.levels_usable;
  d["isa"] = info.level;
  d["openmp"] = info.openmp;
  d["cuda_built"] = info.cuda_built;
  d["threads"] = info.threads;
#if defined(UNSHARED_XLA_API)
  d["xla_ffi"] = UNSHARED_XLA_API;
#else
  d["xla_ffi"] = nb::none();
#endif
  return d;
}

nb::dict options_of(const Problem& p) {
  const auto per_axis = [&](auto get) {
    nb::list numbers;
    for (int s = 0; s < p.spatial; ++s) numbers.append(get(p.spatial_axis(s)));
    return nb::tuple(numbers);
  };
  nb::dict d;
  d["stride"] = per_axis([](const Axis& a) { return a.stride; });
  d["padding"] = per_axis([](const Axis& a) { return std::pair(a.padding_low, a.padding_high); });
  d["dilation"] = per_axis([](const Axis& a) { return a.dilation; });
  d["input_dilation"] = per_axis([](const Axis& a) { return a.input_dilation; });
  d["groups"] = p.groups();
  return d;
}

void bind_problem(nb::module_& m) {
  nb::class_<Problem>(
      m, "Problem",
      "The geometry of one layer: extents, options and memory orders, parsed from its text form\n"
      "such as ``Problem(\"n4 a3>b8 i32x32 k4x4 s2\")``. A value: comparable, hashable, picklable.")
      .def(
          "__init__",
          [](Problem* p, const std::string& text) { new (p) Problem(parse_problem(text)); },
          nb::sig("def __init__(self, text: str) -> None"))
      .def(
          "shape",
          [](const Problem& p, const std::string& seat) {
            const Layout layout = p.layout(seat_named(seat));
            return tuple_of(layout.shape, layout.rank);
          },
          nb::sig("def shape(self, seat: str) -> tuple[int, ...]"),
          "The logical shape of ``\"x\"``, ``\"w\"`` or ``\"y\"``.")
      .def(
          "strides",
          [](const Problem& p, const std::string& seat) {
            const Layout layout = p.layout(seat_named(seat));
            return tuple_of(layout.stride, layout.rank);
          },
          nb::sig("def strides(self, seat: str) -> tuple[int, ...]"),
          "Its strides in elements; those without effect are 0.")
      .def(
          "terms",
          [](const Problem& p, const std::string& face) { return p.terms(face_named(face)); },
          nb::sig("def terms(self, face: str) -> int"),
          "How many products the longest sum of one result element has.")
      .def(
          "bytes",
          [](const Problem& p, const std::string& dtype) { return p.bytes(dtype_named(dtype)); },
          nb::sig("def bytes(self, dtype: str) -> float"), "Bytes of x, w and y together.")
      .def_prop_ro(
          "flops", [](const Problem& p) { return p.flops(); }, nb::sig("def flops(self) -> float"),
          "Multiplications and additions of real numbers that fall inside the input.")
      .def_prop_ro(
          "mapped",
          [](const Problem& p) {
            return p.mapped ? std::optional<std::int64_t>(p.axes[0].input) : std::nullopt;
          },
          nb::sig("def mapped(self) -> int | None"),
          "The leading extent that every tensor carries, each index a problem of its own.")
      .def_prop_ro("options", options_of, nb::sig("def options(self) -> dict[str, typing.Any]"),
                   "Stride, padding and the rest, as the three faces take them.")
      .def(
          "restate",
          [](const Problem& p, std::optional<std::int64_t> mapped,
             std::optional<std::int64_t> batch, std::optional<std::int64_t> in_channels,
             std::optional<std::int64_t> out_channels, std::optional<std::int64_t> groups,
             const std::vector<int>& x, const std::vector<int>& w, const std::vector<int>& y,
             const std::string& shared) {
            Restatement wish{mapped, batch, in_channels, out_channels, groups, {x, w, y}, {}};
            if (!shared.empty()) wish.shared = seat_named(shared);
            return restate(p, wish);
          },
          nb::kw_only(), nb::arg("mapped") = nb::none(), nb::arg("batch") = nb::none(),
          nb::arg("in_channels") = nb::none(), nb::arg("out_channels") = nb::none(),
          nb::arg("groups") = nb::none(), nb::arg("x") = nb::tuple(), nb::arg("w") = nb::tuple(),
          nb::arg("y") = nb::tuple(), nb::arg("shared") = "",
          nb::sig("def restate(self, *, mapped: int | None = None, batch: int | None = None, "
                  "in_channels: int | None = None, out_channels: int | None = None, "
                  "groups: int | None = None, x: typing.Sequence[int] = (), "
                  "w: typing.Sequence[int] = (), y: typing.Sequence[int] = (), "
                  "shared: str = '') -> Problem"),
          "The same layer with other extents (``mapped``: of a leading one that all tensors but\n"
          "``shared`` carry) and the memory orders ``x``, ``w``, ``y``, slowest dimension first.")
      .def(
          "__eq__",
          [](const Problem& p, nb::handle other) {
            return nb::isinstance<Problem>(other) && p == nb::cast<const Problem&>(other);
          },
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def(
          "__hash__", [](const Problem& p) { return static_cast<Py_ssize_t>(hash(p)); },
          nb::sig("def __hash__(self) -> int"))
      .def(
          "__str__", [](const Problem& p) { return to_string(p); },
          nb::sig("def __str__(self) -> str"))
      .def(
          "__repr__", [](const Problem& p) { return "Problem(\"" + to_string(p) + "\")"; },
          nb::sig("def __repr__(self) -> str"))
      .def(
          "__reduce__",
          [](nb::handle self) {
            return nb::make_tuple(self.type(), nb::make_tuple(nb::str(self)));
          },
          nb::sig("def __reduce__(self) -> tuple[type[Problem], tuple[str]]"));
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The compiled half of unshared. Use the package; this module may change at any time.";
  nb::register_exception_translator(translate);
  bind_problem(m);
  m.def(
      "make_problem",
      [](int face, const std::vector<std::int64_t>& first, const std::string& dtype,
         const std::vector<std::int64_t>& second, const std::string& second_dtype, nb::handle sizes,
         nb::handle stride, nb::handle padding, nb::handle dilation, nb::handle input_dilation,
         nb::handle groups) {
        const Options options{sizes, stride, padding, dilation, input_dilation, groups, {},
                              {},    {},     {},      {}};
        return described(face_of(face), first, dtype, second, second_dtype, options);
      },
      nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(),
      nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
      nb::sig("def make_problem(face: int, first: typing.Sequence[int], dtype: str, "
              "second: typing.Sequence[int], second_dtype: str, sizes: object, stride: object, "
              "padding: object, dilation: object, input_dilation: object, groups: object, /) "
              "-> Problem"),
      "The problem of a call whose operands are not arrays yet but shapes, row-major.");
#if defined(UNSHARED_XLA_API)
  bind_xla(m);
#endif
  m.def(
      "dtypes",
      [] {
        nb::list names;
        for (int d = 0; d < dtype_count; ++d) names.append(name_of(static_cast<DType>(d)));
        return nb::tuple(names);
      },
      nb::sig("def dtypes() -> tuple[str, ...]"), "The names of the dtypes there are kernels for.");
  m.def("build_info", build_info_dict, nb::sig("def build_info() -> dict[str, typing.Any]"));
  m.def("cuda_available", &cuda_available, nb::sig("def cuda_available() -> bool"),
        "Whether there is a GPU for the kernels of this build. Wakes CUDA's driver.");

  m.def(
      "measure_flops",
      [](const std::string& dtype, int threads) {
        return measure_flops(dtype_named(dtype), threads);
      },
      nb::sig("def measure_flops(dtype: str, num_threads: int, /) -> float"),
      "Floating-point operations per second of multiply-adds in registers: the ceiling.",
      nb::call_guard<nb::gil_scoped_release>());
  m.def("measure_bandwidth", &measure_bandwidth,
        nb::sig("def measure_bandwidth(num_threads: int, /) -> float"),
        "Bytes per second read from memory.", nb::call_guard<nb::gil_scoped_release>());

  using H = nb::handle;
  constexpr auto a = nb::arg().none();  // None, too, is an argument to be named in an error
  m.def(
      "call",
      [](int face, H first, H second, H sizes, H stride, H padding, H dilation, H input_dilation,
         H groups, H out, H accumulate, H num_threads, H precision, int how) {
        const Options options{sizes,          stride,    padding, dilation,
                              input_dilation, groups,    out,     accumulate,
                              num_threads,    precision, {}};
        return Job(face, first, second, options, how, Purpose::run).run();
      },
      nb::arg(), a, a, a, a, a, a, a, a, a, a, a, a, nb::arg(),
      nb::sig("def call(face: int, first: object, second: object, sizes: object, stride: object, "
              "padding: object, dilation: object, input_dilation: object, groups: object, "
              "out: object, accumulate: object, num_threads: object, precision: object, "
              "how: int, /) -> typing.Any"),
      R"(Compute face 0 (forward), 1 (grad_input) or 2 (grad_weight) and return its result.

`how` is 0, or for adapters a sum of 1 (all arrays have a mapped leading extent), 2 and 4 (take the
conjugate of the first, of the second operand), 8 (PyTorch's gradients are the adapter's care).)");
  m.def(
      "apply",
      [](int face, H first, H second, const Problem& options, const std::string& order,
         H num_threads,
         int how) { return Job(face, first, second, options, order, num_threads, how).run(); },
      nb::arg(), a, a, nb::arg(), nb::arg(), a, nb::arg(),
      nb::sig("def apply(face: int, first: object, second: object, options: Problem, order: str, "
              "num_threads: object, how: int, /) -> typing.Any"),
      R"(The same for adapters: the options are those of a Problem, of whatever channels, batch and
memory orders. `order` names the dimensions of the result, slowest first, such as "0231"; "" is
row-major. `how` may also hold 32 times the number of a precision.)");
  m.def(
      "precision",
      [](int face, H word, const std::string& dtype) {
        const Where where{name_of(face_of(face)), "precision"};
        const Precision asked = precision(where, word);
        check_precision(where, asked, Place::cuda, dtype_named(dtype));
        return static_cast<int>(asked);
      },
      nb::arg(), a, nb::arg(),
      nb::sig("def precision(face: int, word: object, dtype: str, /) -> int"),
      "The number of a precision for a call on CUDA; a word that dtype does not go with is "
      "refused.");
  m.def(
      "layer",
      [](const std::string& operation, H in_channels, H out_channels, H input_size, H kernel_size,
         H stride, H pad, H output_padding, H dilation, H groups) {
        const auto where = [&](const char* argument) { return Where{operation.c_str(), argument}; };
        const auto number = [&](const char* name, H value) {
          return whole_number(where(name), value, "a whole number");
        };
        Arguments arguments;
        arguments.operation = operation;
        arguments.sizes = {number("in_channels", in_channels),
                           number("out_channels", out_channels)};
        arguments.input_size = extents(where("input_size"), input_size);
        arguments.kernel_size = extents(where("kernel_size"), kernel_size);
        arguments.stride = extents(where("stride"), stride);
        arguments.padding = padding(where("padding"), pad);
        if (!output_padding.is_none())
          arguments.output_padding = extents(where("output_padding"), output_padding);
        arguments.dilation = extents(where("dilation"), dilation);
        arguments.groups = number("groups", groups);
        return make_problem(arguments);
      },
      nb::arg(), a, a, a, a, a, a, a, a, a,
      nb::sig("def layer(operation: str, in_channels: object, out_channels: object, "
              "input_size: object, kernel_size: object, stride: object, padding: object, "
              "output_padding: object, dilation: object, groups: object, /) -> Problem"),
      R"(Make the Problem of a layer, of a batch of one, from what its constructor takes. `operation`
names the caller in errors; input_size has one number per spatial axis; with an output_padding it is
a transposed layer, whose input sits in the seat of y.)");
  m.def(
      "explain",
      [](int face, H first, H second, H sizes, H stride, H padding, H dilation, H input_dilation,
         H groups, H out, H accumulate, H num_threads, H precision, H place) {
        const Options options{sizes, stride,     padding,     dilation,  input_dilation, groups,
                              out,   accumulate, num_threads, precision, place};
        return Job(face, first, second, options, ignore_gradients, Purpose::explain).explain();
      },
      nb::arg(), a, a, a, a, a, a, a, a, a, a, a, a, a,
      nb::sig(
          "def explain(face: int, first: object, second: object, sizes: object, "
          "stride: object, padding: object, dilation: object, input_dilation: object, "
          "groups: object, out: object, accumulate: object, num_threads: object, "
          "precision: object, place: object, /) -> tuple[str, str, float, float, int, str, str, "
          "tuple[tuple[str, str], ...], float | None]"),
      R"(Tell what the same call would do: its problem as text, dtype, flops, bytes, terms, kernel,
level, the kernels that declined, each with its reason, and how long it should take, where a model
chose.)");
}

}  // namespace unshared::python
