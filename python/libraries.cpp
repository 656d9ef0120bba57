// How a loaded library is looked up once. The objects found are never given back: a module that was
// imported stays, and so does what it holds.
#include "libraries.hpp"

#include <atomic>
#include <memory>

namespace unshared::python {
namespace {

PyObject* keep(nb::object object) { return object.release().ptr(); }

PyTypeObject* keep_type(nb::object object) {
  if (!PyType_Check(object.ptr())) throw nb::attribute_error("not a type");
  return reinterpret_cast<PyTypeObject*>(keep(std::move(object)));
}

// A module whose import has not finished may lack a name: then it counts as not there, this time.
template <class Names>
const Names* once(std::atomic<const Names*>& kept, const nb::object& module) {
  if (!module.is_valid()) return nullptr;
  std::unique_ptr<const Names> found;
  try {
    found = std::make_unique<const Names>(module);
  } catch (nb::python_error& e) {
    if (!e.matches(PyExc_AttributeError)) throw;
    return nullptr;
  }
  const Names* before = nullptr;
  return kept.compare_exchange_strong(before, found.get()) ? found.release() : before;
}

std::atomic<const NumPy*> kept_numpy{nullptr};
std::atomic<const Torch*> kept_torch{nullptr};
std::atomic<const CuPy*> kept_cupy{nullptr};

}  // namespace

NumPy::NumPy(const nb::object& module)
    : ndarray(keep_type(module.attr("ndarray"))), empty(keep(module.attr("empty"))) {
  const nb::object dtype = module.attr("dtype");
  uint16 = keep(dtype("uint16"));
  for (int d = 0; d < dtype_count; ++d)
    if (static_cast<DType>(d) != DType::bfloat16)
      dtypes[d] = keep(dtype(name_of(static_cast<DType>(d))));
}

Torch::Torch(const nb::object& module)
    : tensor(keep_type(module.attr("Tensor"))),
      parameter(keep_type(module.attr("nn").attr("Parameter"))),
      api(exchange_api(tensor)),
      dispatch(keep(module.attr("Tensor").attr("__torch_dispatch__"))),
      forward_ad(keep(module.attr("autograd").attr("forward_ad"))) {}

CuPy::CuPy(const nb::object& module)
    : ndarray(keep_type(module.attr("ndarray"))),
      empty(keep(module.attr("empty"))),
      current_stream(keep(module.attr("cuda").attr("get_current_stream"))) {}

const NumPy* numpy_if_loaded() {
  if (const NumPy* names = kept_numpy.load(std::memory_order_acquire)) return names;
  return once(kept_numpy, loaded("numpy"));
}

const NumPy& numpy() {
  if (const NumPy* names = kept_numpy.load(std::memory_order_acquire)) return *names;
  const NumPy* names = once(kept_numpy, nb::module_::import_("numpy"));
  if (names == nullptr) throw nb::import_error("numpy has not been imported completely");
  return *names;
}

const Torch* torch_if_loaded() {
  if (const Torch* names = kept_torch.load(std::memory_order_acquire)) return names;
  return once(kept_torch, loaded("torch"));
}

const CuPy* cupy_if_loaded() {
  if (const CuPy* names = kept_cupy.load(std::memory_order_acquire)) return names;
  return once(kept_cupy, loaded("cupy"));
}

nb::object loaded(const char* name) {
  nb::object module = nb::steal(PyImport_GetModule(nb::str(name).ptr()));
  if (!module.is_valid()) PyErr_Clear();
  return module;
}

std::string text_of(nb::handle object, PyObject* (*make)(PyObject*)) {
  const nb::object text = nb::steal(make(object.ptr()));
  Py_ssize_t size = 0;
  const char* const utf8 = text.is_valid() ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (utf8 != nullptr) return {utf8, static_cast<std::size_t>(size)};
  PyErr_Clear();
  return "something that has no text";
}

std::string root_of(PyTypeObject* type) {
  const nb::object module = nb::getattr(handle_of(type), "__module__", nb::none());
  const std::string name = text_of(module);
  return name.substr(0, name.find('.'));
}

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  const char* const name = "dlpack_exchange_api";
  const nb::object capsule = nb::getattr(handle_of(type), "__dlpack_c_exchange_api__", nb::none());
  if (PyCapsule_IsValid(capsule.ptr(), name) == 0) return nullptr;
  const void* const api = PyCapsule_GetPointer(capsule.ptr(), name);
  const auto* const known = static_cast<const dlpack::ExchangeApi*>(api);
  return known->version.major == dlpack::major_version ? known : nullptr;
}

}  // namespace unshared::python
