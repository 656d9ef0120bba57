// What xla.cpp adds to the Python module; in a build without the headers of XLA it is left out.
#pragma once

#include <nanobind/nanobind.h>

namespace unshared::python {

void bind_xla(nanobind::module_& module);

}  // namespace unshared::python
