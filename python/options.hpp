// Options as users type them, read into the types of the core: a number, one per axis, pairs, words.
// Only the kind of thing is checked here (and the range of num_threads); make_problem does the rest.
#pragma once

#include <optional>

#include "arrays.hpp"

namespace unshared::python {

inline constexpr int max_threads = 4096;

// A whole number, anything with __index__ but bool. What 64 bits cannot hold becomes their largest or
// smallest number, which the core refuses.
inline std::int64_t whole_number(Where where, nb::handle value, const char* expected) {
  PyObject* number = value.ptr();
  nb::object index;
  if (!PyLong_CheckExact(number)) {
    if (!PyBool_Check(number) && PyIndex_Check(number)) index = nb::steal(PyNumber_Index(number));
    if (!index.is_valid()) {
      PyErr_Clear();
      where.fail(Error::Kind::type, expected, describe(value));
    }
    number = index.ptr();
  }
  int overflow = 0;
  const long long n = PyLong_AsLongLongAndOverflow(number, &overflow);
  return overflow > 0 ? INT64_MAX : overflow < 0 ? INT64_MIN : n;
}

// Calls f(count, items) for a tuple or list; false for anything else.
template <class F>
bool with_items(nb::handle value, F f) {
  PyObject* const v = value.ptr();
  if (PyTuple_Check(v)) {
    f(static_cast<int>(PyTuple_Size(v)), [v](int i) { return nb::handle(PyTuple_GetItem(v, i)); });
  } else if (PyList_Check(v)) {
    const nb::object copy = nb::steal(PyList_AsTuple(v));  // nobody shortens it meanwhile
    if (!copy.is_valid()) throw nb::python_error();
    return with_items(copy, f);
  } else {
    return false;
  }
  return true;
}

inline Extents extents(Where where, nb::handle value) {
  const char* const expected = "a whole number, or a tuple with one per spatial axis";
  Extents read;
  const bool several = with_items(value, [&](int count, auto item) {
    read.count = count;
    read.single = false;
    for (int i = 0; i < count; ++i) {
      const std::int64_t number = whole_number(where, item(i), expected);
      if (i < max_spatial) read.value[i] = number;
    }
  });
  return several ? read : Extents::all(whole_number(where, value, expected));
}

inline Padding padding(Where where, nb::handle value) {
  const char* const expected =
      "a whole number, a tuple with one number or (low, high) pair per spatial axis, 'valid' or "
      "'same'";
  Padding read;
  if (PyUnicode_Check(value.ptr())) {
    if (PyUnicode_CompareWithASCIIString(value.ptr(), "valid") == 0) {
      read.rule = Padding::Rule::valid;
    } else if (PyUnicode_CompareWithASCIIString(value.ptr(), "same") == 0) {
      read.rule = Padding::Rule::same;
    } else {
      where.fail(Error::Kind::type, expected, describe(value));
    }
    return read;
  }
  const bool several = with_items(value, [&](int count, auto item) {
    read.low.count = read.high.count = count;
    read.low.single = read.high.single = false;
    for (int i = 0; i < count; ++i) {
      std::int64_t sides[2] = {};
      const bool pair = with_items(item(i), [&](int numbers, auto side) {
        if (numbers != 2)
          where.fail(Error::Kind::value, "two numbers, (low, high), for an axis",
                     std::to_string(numbers));
        for (int s = 0; s < 2; ++s) sides[s] = whole_number(where, side(s), expected);
      });
      if (!pair) sides[0] = sides[1] = whole_number(where, item(i), expected);
      if (i < max_spatial) {
        read.low.value[i] = sides[0];
        read.high.value[i] = sides[1];
      }
    }
  });
  if (!several) read.low = read.high = Extents::all(whole_number(where, value, expected));
  return read;
}

inline int threads(Where where, nb::handle value) {
  if (value.is_none()) return 0;
  const std::int64_t number = whole_number(where, value, "None or a whole number");
  if (number < 1 || number > max_threads)
    where.fail(Error::Kind::value, "None or a whole number of 1 to " + std::to_string(max_threads),
               describe(value));
  return static_cast<int>(number);
}

inline bool is_word(nb::handle value, const char* word) {
  return PyUnicode_Check(value.ptr()) && PyUnicode_CompareWithASCIIString(value.ptr(), word) == 0;
}

inline constexpr const char* precision_names[] = {"ieee", "tf32", "3xtf32", "fast"};
static_assert(static_cast<int>(Precision::tf32) == 1 && static_cast<int>(Precision::tf32x3) == 2 &&
              static_cast<int>(Precision::fast) == 3);

inline Precision precision(Where where, nb::handle value) {
  if (value.is_none()) return Precision::ieee;
  if (!PyUnicode_Check(value.ptr()))
    where.fail(Error::Kind::type, "None or a string", describe(value));
  for (int p = 0; p < 4; ++p)
    if (is_word(value, precision_names[p])) return static_cast<Precision>(p);
  where.fail(Error::Kind::value, "'ieee', 'tf32', '3xtf32' or 'fast'", describe(value));
}

// The core would compute by IEEE what has no other kernels; whoever asked for them is told.
inline void check_precision(Where where, Precision precision, Place place, DType dtype) {
  if (precision == Precision::ieee) return;
  const std::string found = std::string("'") + precision_names[static_cast<int>(precision)] + "'";
  if (place == Place::cpu)
    where.fail(Error::Kind::unsupported, "'ieee' on the CPU (the others are opt-ins of CUDA)",
               found);
  const bool half = dtype == DType::float16 || dtype == DType::bfloat16;
  if (half && precision != Precision::fast)
    where.fail(Error::Kind::value, std::string("'ieee' or 'fast' for dtype ") + name_of(dtype),
               found);
  if (dtype == DType::float32 && precision == Precision::fast)
    where.fail(Error::Kind::value, "'ieee', 'tf32' or '3xtf32' for dtype float32", found);
  if (!half && dtype != DType::float32)
    where.fail(Error::Kind::value, std::string("'ieee' for dtype ") + name_of(dtype), found);
}

inline std::optional<Place> place(Where where, nb::handle value) {
  if (value.is_none()) return {};
  if (is_word(value, "cpu")) return Place::cpu;
  if (is_word(value, "cuda")) return Place::cuda;
  where.fail(PyUnicode_Check(value.ptr()) ? Error::Kind::value : Error::Kind::type,
             "None, 'cpu' or 'cuda'", describe(value));
}

inline bool flag(Where where, nb::handle value) {
  if (!PyBool_Check(value.ptr())) where.fail(Error::Kind::type, "True or False", describe(value));
  return value.ptr() == Py_True;
}

}  // namespace unshared::python
