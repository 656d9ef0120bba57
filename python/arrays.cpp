// How each library's arrays are recognised, read and made. What an array says of itself is taken as
// said, except where a library is known to keep something to itself (PyTorch's lazy bits).
#include "arrays.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "libraries.hpp"

namespace unshared::python {
namespace {

using Kind = Error::Kind;

constexpr const char* dtype_names =
    "dtype float32, float64, float16, bfloat16, complex64 or complex128";

bool is_a(PyTypeObject* type, PyTypeObject* base) {
  return type == base || PyType_IsSubtype(type, base) != 0;
}

std::optional<DType> dtype_of(const dlpack::Tensor& t) {
  if (t.lanes != 1) return {};
  if (t.code == dlpack::real && t.bits == 32) return DType::float32;
  if (t.code == dlpack::real && t.bits == 64) return DType::float64;
  if (t.code == dlpack::real && t.bits == 16) return DType::float16;
  if (t.code == dlpack::bfloat && t.bits == 16) return DType::bfloat16;
  if (t.code == dlpack::complex && t.bits == 64) return DType::complex64;
  if (t.code == dlpack::complex && t.bits == 128) return DType::complex128;
  return {};
}

// Of a buffer's format, as the struct module writes it; foreign byte order is not among them.
std::optional<DType> dtype_of(const char* format) {
  if (format == nullptr) return {};
  if (*format == '@' || *format == '=' || *format == '^') ++format;
  if (std::strcmp(format, "f") == 0) return DType::float32;
  if (std::strcmp(format, "d") == 0) return DType::float64;
  if (std::strcmp(format, "e") == 0) return DType::float16;
  if (std::strcmp(format, "Zf") == 0) return DType::complex64;
  if (std::strcmp(format, "Zd") == 0) return DType::complex128;
  return {};
}

// "ValueError: text", the first line of it.
std::string summary(nb::handle exception) {
  const std::string text = text_of(exception);
  return text_of(nb::object(exception.type().attr("__name__"))) + ": " +
         text.substr(0, text.find('\n'));
}

std::string device_name(std::int32_t type) {
  switch (type) {
    case 2: return "a CUDA device";
    case 4: return "an OpenCL device";
    case 7: return "a Vulkan device";
    case 8: return "a Metal device";
    case 10: return "a ROCm device";
    case 11: return "pinned memory of ROCm";
    case 14: return "a oneAPI device";
    default: return "a device of DLPack type " + std::to_string(type);
  }
}

}  // namespace

void Where::fail(Kind kind, std::string expected, std::string found) const {
  throw Error(kind, operation, argument, std::move(expected), std::move(found));
}

std::string describe(nb::handle value) {
  PyObject* const v = value.ptr();
  int too_long = 0;  // for a decimal text, which Python refuses to make of very long numbers
  if (PyLong_CheckExact(v)) PyLong_AsLongLongAndOverflow(v, &too_long);
  const bool simple = value.is_none() || PyBool_Check(v) || PyLong_CheckExact(v) ||
                      PyFloat_CheckExact(v) || PyUnicode_CheckExact(v);
  if (!simple || too_long != 0) return "an object of type '" + text_of(nb::inst_name(value)) + "'";
  const std::string text = text_of(value, PyObject_ASCII);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

Array::Array(nb::handle object, Where where, Gradients gradients) : where_(where), object_(object) {
  PyTypeObject* const type = Py_TYPE(object.ptr());
  const NumPy* const np = numpy_if_loaded();
  if (np != nullptr && is_a(type, np->ndarray)) {
    library_ = Library::numpy;
    if (type == np->ndarray) return;
    if (const nb::object masked = loaded("numpy.ma");
        masked.is_valid() && nb::isinstance(object, masked.attr("MaskedArray")))
      where_.fail(Kind::type, "an array all of whose elements count", "a masked array");
    return;
  }
  const Torch* const torch = torch_if_loaded();
  if (torch != nullptr && is_a(type, torch->tensor)) {
    library_ = Library::torch;
    settle_torch(gradients);
    return;
  }
  const CuPy* const cupy = cupy_if_loaded();
  const std::string root = root_of(type);
  if (cupy != nullptr && is_a(type, cupy->ndarray)) library_ = Library::cupy;
  if (root == "jax" || root == "jaxlib") library_ = Library::jax;
  immutable_ = library_ == Library::jax || root == "tensorflow" || root == "mlx";
  if (!borrow(exchange_api(type))) ask_device();
}

Array::~Array() {
  if (buffered_) PyBuffer_Release(&buffer_);
  if (managed_ != nullptr && managed_->deleter != nullptr) managed_->deleter(managed_);
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
}

void Array::fail_type() const {
  if (library_ == Library::jax)
    where_.fail(Kind::type,
                "an array with values (under jax.jit, jax.grad and jax.vmap: unshared.jax)",
                describe(object_));
  where_.fail(Kind::type, "an array (an object with __dlpack__ and __dlpack_device__)",
              describe(object_));
}

void Array::fail_dtype() const {
  std::string found = "code " + std::to_string(tensor_.code) + " of " +
                      std::to_string(tensor_.bits) + " bits in " + std::to_string(tensor_.lanes) +
                      " lane(s)";
  try {
    found = text_of(nb::object(object_.attr("dtype")));
  } catch (nb::python_error&) {  // then the numbers must do
  }
  where_.fail(Kind::type, dtype_names, "dtype " + found);
}

// Whatever an export raises becomes a TypeError of ours, except what has nothing to do with the array.
void Array::fail_unreadable(const nb::python_error& cause) const {
  if (!cause.matches(PyExc_Exception) || cause.matches(PyExc_MemoryError))
    throw nb::python_error(cause);
  throw ErrorFromPython(Error(Kind::type, where_.operation, where_.argument,
                              "an array that can be read through DLPack",
                              describe(object_) + " which says: " + summary(cause.value())),
                        cause);
}

// A tensor's bits are not all there is to it: it may record gradients, carry a tangent, stand for its
// own negative or conjugate, or be something else entirely behind a __torch_dispatch__.
void Array::settle_torch(Gradients gradients) {
  const Torch& torch = *torch_if_loaded();
  PyTypeObject* const type = Py_TYPE(object_.ptr());
  const bool plain = type == torch.tensor || type == torch.parameter;
  if (!plain && object_.type().attr("__torch_dispatch__").ptr() != torch.dispatch)
    where_.fail(Kind::type, "a plain torch.Tensor (unshared.torch takes all kinds)",
                describe(object_));

  if (gradients == Gradients::refuse) {
    const auto refuse = [&](const char* found) {
      where_.fail(Kind::type,
                  std::string("a tensor without gradients: ") + where_.argument +
                      ".detach(), torch.no_grad() or unshared.torch",
                  found);
    };
    if (object_.attr("requires_grad").ptr() != Py_False &&
        nb::module_::import_("torch").attr("is_grad_enabled")().ptr() != Py_False)
      refuse("one that requires grad");
    const nb::handle forward_ad = torch.forward_ad;
    const nb::object level = nb::getattr(forward_ad, "_current_level", nb::none());
    if ((!PyLong_Check(level.ptr()) || PyLong_AsLong(level.ptr()) >= 0) &&
        !forward_ad.attr("unpack_dual")(object_).attr("tangent").is_none())
      refuse("one with a forward-mode tangent");
  }

  // Adapters stand behind PyTorch's dispatcher, which lets no lazy negation through.
  if (gradients == Gradients::refuse && object_.attr("is_neg")().ptr() != Py_False) {
    replacement_ = object_.attr("resolve_neg")();
    copied_ = true;
  }
  if (!borrow(plain ? torch.api : exchange_api(type))) {  // before PyTorch 2.10
    replacement_ = source().attr("detach")().attr("resolve_conj")();
    copied_ = copied_ || object_.attr("is_conj")().ptr() != Py_False;
    return ask_device();
  }
  conjugated_ = tensor_.code == dlpack::complex && source().attr("is_conj")().ptr() != Py_False;
}

bool Array::borrow(const dlpack::ExchangeApi* api) {
  if (api == nullptr || api->tensor_from_object == nullptr) return false;
  if (api->tensor_from_object(source().ptr(), &tensor_) != 0) fail_unreadable(nb::python_error());
  borrowed_ = true;
  api_ = api;
  set_device(tensor_.device_type, tensor_.device_id);
  return true;
}

void Array::ask_device() {
  if (!nb::hasattr(source(), "__dlpack_device__") || !nb::hasattr(source(), "__dlpack__"))
    fail_type();
  long numbers[2] = {};
  try {
    const nb::object answer = source().attr("__dlpack_device__")();
    for (int i = 0; i < 2; ++i) {
      const nb::object number = nb::steal(PyNumber_Index(nb::object(answer[i]).ptr()));
      if (!number.is_valid()) throw nb::python_error();
      numbers[i] = PyLong_AsLong(number.ptr());
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
    }
  } catch (nb::python_error& e) {
    fail_unreadable(e);
  }
  set_device(static_cast<std::int32_t>(numbers[0]), static_cast<std::int32_t>(numbers[1]));
}

void Array::set_device(std::int32_t type, std::int32_t id) {
  const bool on_gpu = type == dlpack::cuda || type == dlpack::cuda_managed;
  place_ = on_gpu ? Place::cuda : Place::cpu;
  device_ = place_ == Place::cuda ? id : 0;
  if (place_ == Place::cpu && type != dlpack::cpu && type != dlpack::cuda_pinned)
    where_.fail(Kind::unsupported, "memory of the CPU or of CUDA", device_name(type));
}

void Array::read(std::int64_t reader) {
  if (borrowed_) return take(tensor_);
  if (library_ == Library::numpy) return read_buffer();
  read_capsule(reader);
}

void Array::read_buffer() {
  std::optional<DType> dtype;
  if (PyObject_GetBuffer(object_.ptr(), &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) == 0) {
    buffered_ = true;
    dtype = dtype_of(buffer_.format);
  } else {  // bfloat16 of ml_dtypes is a dtype that NumPy cannot export
    nb::python_error cause;
    if (cause.matches(PyExc_MemoryError)) throw cause;
    const nb::object own = object_.attr("dtype");
    if (text_of(own) == name_of(DType::bfloat16)) {
      dtype = DType::bfloat16;
      replacement_ = object_.attr("view")(nb::handle(numpy().uint16));
      if (PyObject_GetBuffer(source().ptr(), &buffer_, PyBUF_STRIDES) != 0)
        throw nb::python_error();
      buffered_ = true;
    }
  }
  if (!dtype) fail_dtype();
  dtype_ = *dtype;
  data_ = buffer_.buf;
  read_only_ = buffer_.readonly != 0;
  layout_.rank = buffer_.ndim;
  const int kept = std::min(layout_.rank, max_dims);
  std::copy_n(buffer_.shape, kept, layout_.shape);
  std::copy_n(buffer_.strides, kept, layout_.stride);
  drop_strides_without_effect();
  for (int d = 0; d < kept; ++d) {
    if (layout_.stride[d] % buffer_.itemsize != 0)
      where_.fail(Kind::value,
                  "strides of whole elements of " + std::to_string(buffer_.itemsize) + " bytes",
                  "a stride of " + std::to_string(layout_.stride[d]) + " bytes");
    layout_.stride[d] /= buffer_.itemsize;
  }
}

void Array::read_capsule(std::int64_t reader) {
  nb::object capsule;
  try {
    const nb::object method = source().attr("__dlpack__");
    const auto ask = [&](auto... version) {
      if (place_ == Place::cpu) return method(version...);
      return method(nb::arg("stream") = reader, version...);
    };
    try {
      capsule = ask(nb::arg("max_version") = nb::make_tuple(dlpack::major_version, 1));
    } catch (nb::python_error& e) {  // an exporter from before versions were thought of
      if (!e.matches(PyExc_TypeError)) throw;
      capsule = ask();
    }
  } catch (nb::python_error& e) {
    fail_unreadable(e);
  }
  PyObject* const c = capsule.ptr();
  if (PyCapsule_IsValid(c, "dltensor_versioned") != 0) {
    versioned_ =
        static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(c, "dltensor_versioned"));
    PyCapsule_SetName(c, "used_dltensor_versioned");
    if (versioned_->version.major != dlpack::major_version)
      where_.fail(Kind::value, "DLPack of major version " + std::to_string(dlpack::major_version),
                  "major version " + std::to_string(versioned_->version.major));
    read_only_ = (versioned_->flags & dlpack::read_only) != 0;
    copied_ = copied_ || (versioned_->flags & dlpack::copied) != 0;
    tensor_ = versioned_->tensor;
  } else if (PyCapsule_IsValid(c, "dltensor") != 0) {
    managed_ = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(c, "dltensor"));
    PyCapsule_SetName(c, "used_dltensor");
    tensor_ = managed_->tensor;
  } else {
    const char* name = PyCapsule_CheckExact(c) ? PyCapsule_GetName(c) : nullptr;
    PyErr_Clear();
    where_.fail(
        Kind::type, "a fresh DLPack capsule from __dlpack__",
        name != nullptr ? std::string("a capsule named '") + name + "'" : describe(capsule));
  }
  const Place said = place_;
  set_device(tensor_.device_type, tensor_.device_id);
  if (place_ != said)
    where_.fail(Kind::value, "a capsule from the device that __dlpack_device__ names",
                device_name(tensor_.device_type));
  take(tensor_);
}

void Array::take(const dlpack::Tensor& t) {
  const std::optional<DType> dtype = dtype_of(t);
  if (!dtype) fail_dtype();
  dtype_ = *dtype;
  layout_.rank = t.ndim;
  if (t.ndim > 0 && t.shape == nullptr) where_.fail(Kind::value, "a shape", "a null pointer");
  const int kept = std::clamp(t.ndim, 0, max_dims);
  std::copy_n(t.shape, kept, layout_.shape);
  if (t.strides != nullptr) {
    std::copy_n(t.strides, kept, layout_.stride);
  } else {
    layout_ = row_major(layout_);
  }
  drop_strides_without_effect();
  data_ = t.data == nullptr ? nullptr : static_cast<char*>(t.data) + t.byte_offset;
}

// Of an extent of one, and of an array without elements, a stride means nothing and may be anything.
void Array::drop_strides_without_effect() {
  const int kept = std::clamp(layout_.rank, 0, max_dims);
  const bool empty = std::find(layout_.shape, layout_.shape + kept, 0) != layout_.shape + kept;
  for (int d = 0; d < kept; ++d)
    if (empty || layout_.shape[d] == 1) layout_.stride[d] = 0;
}

void Array::require_writable() const {
  if (immutable_)
    where_.fail(Kind::type, "an array that can be written to",
                "one of an immutable kind: " + describe(object_));
  if (read_only_) where_.fail(Kind::value, "an array that can be written to", "a read-only one");
  if (copied_ || conjugated_)
    where_.fail(Kind::value, "an array whose own memory can be written to",
                conjugated_ ? "a lazily conjugated view" : "one that exports a copy of itself");
}

void Array::mark_written() const {
  if (library_ == Library::torch)
    nb::module_::import_("torch.autograd.graph").attr("increment_version")(object_);
}

void check_dtype(Where where, const std::string& name) {
  for (int d = 0; d < dtype_count; ++d)
    if (name == name_of(static_cast<DType>(d))) return;
  where.fail(Kind::type, dtype_names, "dtype " + name);
}

// PyTorch and CuPy have a current stream for each device.
std::optional<void*> Array::stream() const {
  void* stream = nullptr;
  if (api_ != nullptr && api_->current_work_stream != nullptr) {
    if (api_->current_work_stream(dlpack::cuda, device_, &stream) != 0) throw nb::python_error();
  } else if (library_ == Library::cupy || library_ == Library::torch) {
    const nb::object current =
        library_ == Library::cupy
            ? nb::handle(cupy_if_loaded()->current_stream)(device_)
            : nb::module_::import_("torch.cuda").attr("current_stream")(device_);
    const nb::object address = current.attr(library_ == Library::cupy ? "ptr" : "cuda_stream");
    stream = PyLong_AsVoidPtr(address.ptr());
    if (stream == nullptr && PyErr_Occurred() != nullptr) throw nb::python_error();
  } else {
    return {};
  }
  // The default stream has two names.
  const bool legacy = reinterpret_cast<std::intptr_t>(stream) == dlpack::legacy_stream;
  return legacy ? nullptr : stream;
}

Layout row_major(Layout layout) {
  int order[max_dims];
  std::iota(order, order + max_dims, 0);
  return ordered(layout, order);
}

Layout ordered(Layout layout, const int* order) {
  std::int64_t stride = 1;
  for (int i = std::clamp(layout.rank, 0, max_dims) - 1; i >= 0; --i) {
    const int d = order[i];
    layout.stride[d] = stride;
    if (__builtin_mul_overflow(stride, std::max<std::int64_t>(layout.shape[d], 1), &stride))
      stride = INT64_MAX;
  }
  return layout;
}

}  // namespace unshared::python
