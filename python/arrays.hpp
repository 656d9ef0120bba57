// Arrays of any library: whose they are, where they live, what they hold - and new ones for results.
// NumPy is read through the buffer protocol, PyTorch (and whoever offers it) through the DLPack C
// exchange interface, everybody else through __dlpack__. Nothing is copied. Nothing here judges a
// shape: that is make_problem's job. The GIL must be held wherever these are used.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string>

#include "dlpack.hpp"
#include "unshared.hpp"

namespace unshared::python {

namespace nb = nanobind;

enum class Library { numpy, torch, jax, cupy, other };

// Which argument of which operation is being read, for the words of an error.
struct Where {
  const char* operation;
  const char* argument;

  [[noreturn]] void fail(Error::Kind kind, std::string expected, std::string found) const;
};

// An error of ours that has one of Python's as its cause.
struct ErrorFromPython : Error {
  ErrorFromPython(const Error& error, const nb::python_error& cause) : Error(error), cause(cause) {}

  nb::python_error cause;
};

// One array, held for as long as its memory is used. The constructor finds out whose it is and
// where it lives, so that places can be compared before anything is exported; read() does the rest.
class Array {
 public:
  // Of a tensor that records gradients: users are refused, adapters know what they do.
  enum class Gradients { refuse, ignore };

  Array(nb::handle object, Where where, Gradients gradients);
  ~Array();
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  // `reader` is of CUDA arrays: the stream that must wait for their library, in DLPack's numbers.
  void read(std::int64_t reader = dlpack::no_stream);
  void require_writable() const;  // after read()
  void mark_written() const;  // for a library that counts changes
  std::optional<void*> stream() const;  // of CUDA: where its library queues work, if it can tell

  Where where() const { return where_; }
  nb::handle object() const { return object_; }
  Library library() const { return library_; }
  Place place() const { return place_; }
  int device() const { return device_; }
  DType dtype() const { return dtype_; }
  const Layout& layout() const { return layout_; }  // strides without effect are 0
  void* data() const { return data_; }
  bool conjugated() const { return conjugated_; }  // lazily: the memory holds the conjugates
  bool immutable() const { return immutable_; }  // by the rules of its library

 private:
  nb::handle source() const { return replacement_.is_valid() ? replacement_ : object_; }
  void settle_torch(Gradients gradients);
  void ask_device();
  void set_device(std::int32_t type, std::int32_t id);
  bool borrow(const dlpack::ExchangeApi* api);
  void read_buffer();
  void read_capsule(std::int64_t reader);
  void take(const dlpack::Tensor& tensor);
  void take_ranks(int rank);
  void drop_strides_without_effect();
  [[noreturn]] void fail_type() const;
  [[noreturn]] void fail_dtype() const;
  [[noreturn]] void fail_unreadable(const nb::python_error& cause) const;

  Where where_;
  nb::handle object_;
  nb::object replacement_;  // what is read instead of the caller's object, if anything
  Library library_ = Library::other;
  Place place_ = Place::cpu;
  int device_ = 0;
  DType dtype_ = DType::float32;
  Layout layout_;
  void* data_ = nullptr;
  bool conjugated_ = false, read_only_ = false, copied_ = false, immutable_ = false;
  bool borrowed_ = false, buffered_ = false;
  const dlpack::ExchangeApi* api_ = nullptr;  // if borrowed
  dlpack::Tensor tensor_{};  // if borrowed
  Py_buffer buffer_{};  // if buffered
  dlpack::Managed* managed_ = nullptr;
  dlpack::ManagedVersioned* versioned_ = nullptr;
};

// "None", "1.5", "an object of type 'list'": an argument in few words.
std::string describe(nb::handle value);

// Refuses a dtype that is none of the library's.
void check_dtype(Where where, const std::string& name);

// The same shape without gaps: row-major, or its dimensions in the order given, slowest first.
Layout row_major(Layout layout);
Layout ordered(Layout layout, const int* order);

// A new array of the library and on the device of `like`, its memory in the order of `layout` as far
// as that library can say so. Where a library has no writable arrays, or no way to make one that is
// known here, it is NumPy's, and hand_over() makes the caller's array of it, if there is such a thing;
// on a GPU, where NumPy has nothing to offer, that is an error.
nb::object make_array(const Array& like, const Layout& layout);
nb::object hand_over(const Array& like, nb::object made);

}  // namespace unshared::python
