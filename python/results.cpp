// How each library's arrays are made. Their memory is uninitialised; every element is written.
//
// On CUDA a library's allocator hands out memory in the order of its current stream of the array's
// device, which is where the kernel is queued: freed memory that comes back as a result is not yet
// written before its last use, and whoever drops a result or an operand right after the call frees
// it behind the kernel. No stream need be recorded, nothing be waited for.
#include <algorithm>
#include <cstdlib>

#include "arrays.hpp"
#include "libraries.hpp"
#include "scalar.hpp"

namespace unshared::python {
namespace {

// The dimensions of a layout, slowest first; those whose stride says nothing stay where they are.
struct Order {
  explicit Order(const Layout& layout) {
    int places[max_dims], count = 0;
    for (int d = 0; d < layout.rank; ++d) {
      dims[d] = d;
      if (layout.stride[d] != 0) places[count++] = d;
    }
    int sorted[max_dims];
    for (int i = 0; i < count; ++i) {
      int at = i;
      for (; at > 0 && slower(layout, places[i], sorted[at - 1]); --at) sorted[at] = sorted[at - 1];
      sorted[at] = places[i];
    }
    for (int i = 0; i < count; ++i) {
      dims[places[i]] = sorted[i];
      logical = logical && places[i] == sorted[i];
    }
  }

  static bool slower(const Layout& layout, int a, int b) {
    return std::abs(layout.stride[a]) > std::abs(layout.stride[b]);
  }

  bool logical = true;
  int dims[max_dims];
};

template <class Number>
nb::object tuple_of(int count, Number number) {
  nb::object tuple = nb::steal(PyTuple_New(count));
  for (int i = 0; i < count; ++i) PyTuple_SetItem(tuple.ptr(), i, PyLong_FromLongLong(number(i)));
  return tuple;
}

// Not as a permuted view: to PyTorch, a view is something that must not be changed in place.
nb::object make_tensor(const Array& like, const Layout& layout, const Order& order) {
  const nb::object shape = tuple_of(layout.rank, [&](int d) { return layout.shape[d]; });
  try {
    const Layout dense = ordered(layout, order.dims);
    // A lazily conjugated tensor would be copied for it; the tensor it conjugates is not.
    const nb::object plain =
        like.conjugated() ? nb::object(like.object().attr("conj")()) : nb::borrow(like.object());
    return plain.attr("new_empty_strided")(
        shape, tuple_of(layout.rank, [&](int d) { return dense.stride[d]; }));
  } catch (nb::python_error& e) {  // all that can go wrong here
    if (e.matches(PyExc_RuntimeError))
      nb::raise_from(e, PyExc_MemoryError, "no memory for a result");
    throw;
  }
}

// On the array's device, which need not be the current one.
nb::object make_cupy(const Array& like, const nb::object& shape) {
  const nb::object device = like.object().attr("device");
  device.attr("__enter__")();
  nb::object made;
  try {
    made = nb::handle(cupy_if_loaded()->empty)(shape, like.object().attr("dtype"));
  } catch (nb::python_error&) {
    device.attr("__exit__")(nb::none(), nb::none(), nb::none());
    throw;
  }
  device.attr("__exit__")(nb::none(), nb::none(), nb::none());
  return made;
}

nb::object numpy_dtype(const Array& like) {
  if (like.dtype() != DType::bfloat16)
    return nb::borrow(numpy().dtypes[static_cast<int>(like.dtype())]);
  if (like.library() == Library::numpy || like.library() == Library::jax)
    return like.object().attr("dtype");
  return nb::module_::import_("numpy").attr("dtype")(
      nb::module_::import_("ml_dtypes").attr("bfloat16"));
}

// A large one begins with a line of memory, as NumPy's own do not: kernels write whole lines around the
// caches, which weight gradients of few samples gain most from.
nb::object make_numpy(const Array& like, const Layout& layout, const nb::object& shape) {
  constexpr std::int64_t large = std::int64_t{1} << 20, line = 64;
  const nb::object dtype = numpy_dtype(like);
  const nb::handle empty = numpy().empty;
  std::int64_t bytes = size_of(like.dtype());
  bool countable = true;
  for (int d = 0; d < layout.rank; ++d)
    countable = countable && !__builtin_mul_overflow(bytes, layout.shape[d], &bytes);
  std::int64_t room = 0;
  if (!countable || bytes < large || __builtin_add_overflow(bytes, line, &room))
    return empty(shape, dtype);
  const nb::object memory = empty(room, "uint8");
  const nb::object data = memory.attr("__array_interface__")["data"];
  const auto begin = nb::cast<std::uint64_t>(data[0]) % line;
  return handle_of(numpy().ndarray)(shape, nb::arg("dtype") = dtype, nb::arg("buffer") = memory,
                                    nb::arg("offset") = (line - begin) % line);
}

}  // namespace

nb::object make_array(const Array& like, const Layout& layout) {
  const Order order(layout);
  if (like.library() == Library::torch) return make_tensor(like, layout, order);
  const nb::object shape =
      tuple_of(layout.rank, [&](int i) { return layout.shape[order.dims[i]]; });
  nb::object axes;
  if (!order.logical)
    axes = tuple_of(layout.rank, [&](int d) {
      return std::find(order.dims, order.dims + layout.rank, d) - order.dims;
    });

  const auto in_order = [&](nb::object made, const char* permute) {
    return axes.is_valid() ? nb::object(made.attr(permute)(axes)) : made;
  };

  if (like.library() == Library::cupy) return in_order(make_cupy(like, shape), "transpose");
  if (like.library() == Library::other && !like.immutable() &&
      nb::hasattr(like.object(), "__array_namespace__")) {
    const nb::object library = like.object().attr("__array_namespace__")();
    nb::object made = library.attr("empty")(shape, nb::arg("dtype") = like.object().attr("dtype"),
                                            nb::arg("device") = like.object().attr("device"));
    return axes.is_valid() ? nb::object(library.attr("permute_dims")(made, axes)) : made;
  }
  if (like.place() == Place::cuda)
    like.where().fail(
        Error::Kind::unsupported,
        like.library() == Library::jax
            ? "unshared.jax, which has JAX make the result, or out="
            : "an array whose library can make another one (__array_namespace__), or out=",
        describe(like.object()));
  return in_order(make_numpy(like, layout, shape), "transpose");
}

nb::object hand_over(const Array& like, nb::object made) {
  if (like.library() != Library::jax) return made;
  const nb::object device = like.object().attr("device");
  nb::object theirs = nb::module_::import_("jax").attr("device_put")(made, device);
  if (!theirs.attr("dtype").equal(made.attr("dtype")))
    like.where().fail(Error::Kind::unsupported, "jax_enable_x64 set, or out=, for a 64-bit result",
                      "JAX set to 32 bits");
  return theirs;
}

}  // namespace unshared::python
