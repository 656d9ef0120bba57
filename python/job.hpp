// One call from Python: what was typed is read into (Problem, pointers), then run or explained. Only
// what the core cannot see is checked here: equal dtypes, places and streams, and whether there is
// the precision asked for.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "libraries.hpp"
#include "options.hpp"
#include "restate.hpp"
#include "unshared.hpp"

namespace unshared::python {

// The last argument of call(), for adapters: bits that users cannot set.
enum How : int { mapped = 1, conjugate_first = 2, conjugate_second = 4, ignore_gradients = 8 };
inline constexpr int precision_shift = 5;  // two bits from there on: a Precision

struct Options {
  nb::handle sizes, stride, padding, dilation, input_dilation, groups, out, accumulate, num_threads,
      precision, place;
};

// Only what runs needs a device.
enum class Purpose { run, explain };

inline Face face_of(int face) {
  if (face < 0 || face >= face_count) throw nb::value_error("face must be 0, 1 or 2");
  return static_cast<Face>(face);
}

// The half of the options that shapes the problem.
inline void read_geometry(Arguments& arguments, Face face, const Options& options) {
  const auto where = [&](const char* argument) { return Where{name_of(face), argument}; };
  arguments.face = face;
  if (face == Face::grad_input) arguments.input_size = extents(where("input_size"), options.sizes);
  if (face == Face::grad_weight)
    arguments.kernel_size = extents(where("kernel_size"), options.sizes);
  arguments.stride = extents(where("stride"), options.stride);
  arguments.padding = padding(where("padding"), options.padding);
  arguments.dilation = extents(where("dilation"), options.dilation);
  arguments.input_dilation = extents(where("input_dilation"), options.input_dilation);
  arguments.groups = whole_number(where("groups"), options.groups, "a whole number");
}

// One call: arrays held, options read, the problem made. What is left is to run or to explain it.
class Job {
 public:
  // As users state it.
  Job(int face, nb::handle first, nb::handle second, const Options& options, int how,
      Purpose purpose)
      : Job(face, first, second, options.out, how, purpose) {
    read_options(options);
    read_arrays();
    check_precision(where("precision"), call_.precision, call_.place, first_.dtype());
    if (first_.library() == Library::jax) arguments_.result_order = "";  // they have no other order
    problem_ = make_problem(arguments_);
  }

  // As adapters state it: the options are those of another problem, and the memory order of the
  // result is theirs to choose: its dimensions, slowest first.
  Job(int face, nb::handle first, nb::handle second, const Problem& options,
      const std::string& order, nb::handle num_threads, int how)
      : Job(face, first, second, nb::none(), how, Purpose::run) {
    copy_options(options, arguments_);
    call_.threads = threads(where("num_threads"), num_threads);
    arguments_.result_order = order;
    read_arrays();
    call_.precision = static_cast<Precision>(how >> precision_shift & 3);
    check_precision(where("precision"), call_.precision, call_.place, first_.dtype());
    problem_ = make_problem(arguments_);
  }

  nb::object run() {
    if (out_) {
      compute(*out_);
      out_->mark_written();
      return nb::borrow(out_->object());
    }
    const Seat seat = result_of(face_);
    const Layout wanted = problem_.layout(seat);
    nb::object made = make_array(first_, wanted);
    {
      Array result(made, where(seat), Array::Gradients::ignore);
      result.read(reader_of(result, seat));
      result.require_writable();
      if (result.layout() != wanted) {  // a library that has its own ideas of memory order
        layout_of(seat) = result.layout();
        problem_ = make_problem(arguments_);
      }
      compute(result);
    }
    return hand_over(first_, std::move(made));
  }

  nb::object explain() const {
    const Explanation said =
        unshared::explain(problem_, face_, first_.dtype(), call_.place, call_.precision);
    return nb::make_tuple(
        to_string(problem_), name_of(first_.dtype()), problem_.flops(first_.dtype()),
        problem_.bytes(first_.dtype()), problem_.terms(face_), said.kernel, said.level,
        nb::tuple(nb::cast(said.declined)),
        said.predicted_seconds > 0 ? nb::cast(said.predicted_seconds) : nb::none());
  }

 private:
  Job(int face, nb::handle first, nb::handle second, nb::handle out, int how, Purpose purpose)
      : face_(face_of(face)),
        first_(first, where(first_seat()), gradients(how)),
        second_(second, where(second_seat()), gradients(how)) {
    if (!out.is_none()) out_.emplace(out, where(result_of(face_)), gradients(how));
    // Before any library is asked for its stream, the core says what there is to say of CUDA.
    if (purpose == Purpose::run) unshared::check_place(face_, first_.place());
    check_places();
    arguments_.face = face_;
    call_.place = first_.place();
    arguments_.mapped = (how & mapped) != 0;
    call_.conjugate_first = (how & conjugate_first) != 0;
    call_.conjugate_second = (how & conjugate_second) != 0;
  }

  static Array::Gradients gradients(int how) {
    return (how & ignore_gradients) != 0 ? Array::Gradients::ignore : Array::Gradients::refuse;
  }
  Seat first_seat() const { return face_ == Face::grad_input ? Seat::y : Seat::x; }
  Seat second_seat() const { return face_ == Face::grad_weight ? Seat::y : Seat::w; }
  Where where(Seat seat) const { return {name_of(face_), argument_of(face_, seat)}; }
  Where where(const char* argument) const { return {name_of(face_), argument}; }
  std::optional<Layout>& layout_of(Seat seat) {
    return seat == Seat::x ? arguments_.x : seat == Seat::w ? arguments_.w : arguments_.y;
  }
  std::string as_first() const {
    return std::string(" as '") + argument_of(face_, first_seat()) + "' ";
  }

  void check_places() const {
    const auto name = [](const Array& array) {
      return array.place() == Place::cpu ? std::string("memory of the CPU")
                                         : "CUDA device " + std::to_string(array.device());
    };
    const auto check = [&](const Array& array, Seat seat) {
      if (array.place() != first_.place() || array.device() != first_.device())
        where(seat).fail(Error::Kind::value, name(first_) + "," + as_first() + "is there",
                         name(array));
      if (!array.object().type().is(first_.object().type())) return;
      if (first_.place() == Place::cuda || first_.library() == Library::numpy ||
          first_.library() == Library::torch)
        return;
      // One library may tell apart several devices that are all the CPU to DLPack.
      const nb::object there = nb::getattr(first_.object(), "device", nb::none());
      const nb::object here = nb::getattr(array.object(), "device", nb::none());
      if (!here.equal(there))
        where(seat).fail(Error::Kind::value, text_of(there) + "," + as_first() + "is there",
                         text_of(here));
    };
    check(second_, second_seat());
    if (out_) check(*out_, result_of(face_));
  }

  void read_options(const Options& options) {
    read_geometry(arguments_, face_, options);
    call_.accumulate = flag(where("accumulate"), options.accumulate);
    if (call_.accumulate && !out_)
      where("out").fail(Error::Kind::value, "an array to add to, as accumulate=True says", "None");
    call_.threads = threads(where("num_threads"), options.num_threads);
    if (options.place.is_valid())
      call_.place = place(where("place"), options.place).value_or(call_.place);
    call_.precision = precision(where("precision"), options.precision);
  }

  // On CUDA the kernel is queued where the library of the first array queues its work. Others
  // must use the same stream, or, where they cannot be asked, are told to make it wait for them.
  // If the first cannot be asked either, it is the legacy default stream, which waits for all that
  // were not made to ignore it, and they for it.
  void read_arrays() {
    if (first_.place() == Place::cuda) call_.stream = first_.stream().value_or(nullptr);
    read(first_, first_seat());
    read(second_, second_seat());
    if (!out_) return;
    read(*out_, result_of(face_));
    out_->require_writable();
  }

  void read(Array& array, Seat seat) {
    array.read(reader_of(array, seat));
    if (array.dtype() != first_.dtype())
      where(seat).fail(
          Error::Kind::type,
          std::string("dtype ") + name_of(first_.dtype()) + "," + as_first() + "has it",
          std::string("dtype ") + name_of(array.dtype()));
    layout_of(seat) = array.layout();
  }

  std::int64_t reader_of(const Array& array, Seat seat) const {
    if (array.place() == Place::cpu) return dlpack::no_stream;
    const auto address = reinterpret_cast<std::intptr_t>(call_.stream);
    const std::optional<void*> own = array.stream();
    if (!own) return address != 0 ? address : std::int64_t{dlpack::legacy_stream};
    if (*own != call_.stream)
      where(seat).fail(Error::Kind::value,
                       "an array of a library whose current stream is that of the library of '" +
                           std::string(argument_of(face_, first_seat())) + "'",
                       "one with another current stream");
    return dlpack::no_stream;  // what one stream is given is done in that order
  }

  void compute(const Array& result) {
    call_.face = face_;
    call_.dtype = first_.dtype();
    call_.first = first_.data();
    call_.second = second_.data();
    call_.result = result.data();
    call_.conjugate_first ^= first_.conjugated();
    call_.conjugate_second ^= second_.conjugated();
    if (call_.place == Place::cuda) call_.device = first_.device();
    const nb::gil_scoped_release others_may_run;
    unshared::run(problem_, call_);
  }

  const Face face_;
  Array first_, second_;
  std::optional<Array> out_;
  Arguments arguments_;
  Problem problem_;
  Call call_;
};

}  // namespace unshared::python
