// Array libraries that happen to be loaded: their types, and the few functions that are called often.
// Looked up in sys.modules once they are there, then kept for good; nothing is imported for an array
// whose library the caller has not loaded. The GIL must be held.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "dlpack.hpp"
#include "problem.hpp"

namespace unshared::python {

namespace nb = nanobind;

struct NumPy {
  explicit NumPy(const nb::object& module);

  PyTypeObject* ndarray;
  PyObject *empty, *uint16;
  PyObject* dtypes[dtype_count] = {};  // none for bfloat16: that is a dtype of ml_dtypes
};

struct Torch {
  explicit Torch(const nb::object& module);

  PyTypeObject *tensor, *parameter;
  const dlpack::ExchangeApi* api;  // of plain tensors
  PyObject *dispatch, *forward_ad;  // Tensor.__torch_dispatch__, torch.autograd.forward_ad
};

struct CuPy {
  explicit CuPy(const nb::object& module);

  PyTypeObject* ndarray;
  PyObject *empty, *current_stream;  // cupy.cuda.get_current_stream
};

const NumPy* numpy_if_loaded();
const NumPy& numpy();  // imports it
const Torch* torch_if_loaded();
const CuPy* cupy_if_loaded();

// An already imported module, or an object that is not valid.
nb::object loaded(const char* name);

// What str() or repr() says of an object; should it fail to, that.
std::string text_of(nb::handle object, PyObject* (*make)(PyObject*) = PyObject_Str);

// The first component of the module in which a type was made: "jaxlib" of "jaxlib._jax".
std::string root_of(PyTypeObject* type);

// The DLPack C exchange interface a type offers, if it is of a version we know.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type);

inline nb::handle handle_of(PyTypeObject* type) { return reinterpret_cast<PyObject*>(type); }

}  // namespace unshared::python
