// XLA FFI handlers of the three faces: buffers and two attributes, the text of a Problem and a
// precision, to a call of run(). They run on threads of XLA and never touch Python; every error
// becomes one of XLA's.
//
// The only file that includes headers of XLA. They come from the oldest jaxlib that is supported: a
// handler older than the jaxlib that calls it works, a newer one breaks all of JAX in its process.
#include "xla.hpp"

#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <string_view>

#include "scalar.hpp"
#include "unshared.hpp"
#include "xla/ffi/api/ffi.h"

namespace unshared::python {
namespace {

namespace nb = nanobind;
namespace ffi = xla::ffi;

std::optional<DType> dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32: return DType::float32;
    case ffi::DataType::F64: return DType::float64;
    case ffi::DataType::F16: return DType::float16;
    case ffi::DataType::BF16: return DType::bfloat16;
    case ffi::DataType::C64: return DType::complex64;
    case ffi::DataType::C128: return DType::complex128;
    default: return {};
  }
}

// Parsing costs more than a small kernel, and a program calls with the same few texts for ever: each
// thread keeps the last ones it met.
const Problem& parsed(std::string_view text) {
  struct Entry {
    std::string text;
    Problem problem;
  };
  constexpr std::size_t kept = 64;
  thread_local Entry entries[kept];
  Entry& entry = entries[std::hash<std::string_view>{}(text) % kept];
  if (entry.text != text || text.empty()) {
    entry.text.clear();  // what follows may throw
    entry.problem = parse_problem(text);
    entry.text = text;
  }
  return entry.problem;
}

// The text and the buffers come from the same lowering, but a module may have been stored, edited
// and loaded since: nothing outside a buffer may be touched whatever it says.
void check_size(const Problem& problem, Face face, Seat seat, const ffi::AnyBuffer& buffer) {
  const Layout layout = problem.layout(seat);
  std::int64_t last = 0, elements = 1;
  bool below = false;
  for (int d = 0; d < layout.rank; ++d) {
    below = below || layout.stride[d] < 0;
    last += layout.stride[d] * (layout.shape[d] - 1);
    elements *= layout.shape[d];
  }
  const std::int64_t expected = elements == 0 ? 0 : last + 1;
  const auto found = static_cast<std::int64_t>(buffer.element_count());
  const bool whole =
      seat != result_of(face) || elements == found;  // a result is written throughout
  if (below || !whole || found != expected)
    throw Error(Error::Kind::value, name_of(face), argument_of(face, seat),
                "a buffer of " + std::to_string(expected) + " elements, as '" + to_string(problem) +
                    "' says",
                std::to_string(found) + " elements");
}

void call(Face face, Place place, void* stream, ffi::AnyBuffer first, ffi::AnyBuffer second,
          ffi::AnyBuffer result, std::string_view text, std::int32_t precision) {
  const Problem& problem = parsed(text);
  const Seat first_seat = face == Face::grad_input ? Seat::y : Seat::x;
  const Seat second_seat = face == Face::grad_weight ? Seat::y : Seat::w;
  const auto dtype = dtype_of(first.element_type());
  if (!dtype || second.element_type() != first.element_type() ||
      result.element_type() != first.element_type())
    throw Error(Error::Kind::type, name_of(face), argument_of(face, first_seat),
                "one dtype of the library for all three buffers", "another");
  check_size(problem, face, first_seat, first);
  check_size(problem, face, second_seat, second);
  check_size(problem, face, result_of(face), result);
  Call call;
  call.face = face;
  call.dtype = *dtype;
  call.place = place;
  call.first = first.untyped_data();
  call.second = second.untyped_data();
  call.result = result.untyped_data();
  call.stream = stream;
  // Elsewhere than on CUDA there is but one.
  if (place == Place::cuda && precision >= 0 && precision <= static_cast<int>(Precision::fast))
    call.precision = static_cast<Precision>(precision);
  run(problem, call);
}

constexpr ffi::ErrorCode code_of(Error::Kind kind) {
  switch (kind) {
    case Error::Kind::unsupported: return ffi::ErrorCode::kUnimplemented;
    case Error::Kind::device: return ffi::ErrorCode::kInternal;
    default: return ffi::ErrorCode::kInvalidArgument;
  }
}

template <class... Arguments>
ffi::Error guarded(Arguments... arguments) noexcept {
  try {
    call(arguments...);
    return ffi::Error::Success();
  } catch (const Error& error) {
    return ffi::Error(code_of(error.kind), error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "unshared: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal, error.what());
  }
}

template <Face face>
ffi::Error on_cpu(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                  std::string_view problem, std::int32_t precision) {
  return guarded(face, Place::cpu, static_cast<void*>(nullptr), first, second, *result, problem,
                 precision);
}

template <Face face>
ffi::Error on_cuda(void* stream, ffi::AnyBuffer first, ffi::AnyBuffer second,
                   ffi::Result<ffi::AnyBuffer> result, std::string_view problem,
                   std::int32_t precision) {
  return guarded(face, Place::cuda, stream, first, second, *result, problem, precision);
}

template <Face face>
XLA_FFI_Error* cpu_handler(XLA_FFI_CallFrame* frame) {
  static auto* const handler = ffi::Ffi::Bind()
                                   .Arg<ffi::AnyBuffer>()
                                   .Arg<ffi::AnyBuffer>()
                                   .Ret<ffi::AnyBuffer>()
                                   .Attr<std::string_view>("problem")
                                   .Attr<std::int32_t>("precision")
                                   .To(on_cpu<face>)
                                   .release();
  return handler->Call(frame);
}

// Kernels run on the stream they are given and nothing is allocated or synchronised: XLA may put the
// call into a CUDA graph.
template <Face face>
XLA_FFI_Error* cuda_handler(XLA_FFI_CallFrame* frame) {
  static auto* const handler = ffi::Ffi::Bind()
                                   .Ctx<ffi::PlatformStream<void*>>()
                                   .Arg<ffi::AnyBuffer>()
                                   .Arg<ffi::AnyBuffer>()
                                   .Ret<ffi::AnyBuffer>()
                                   .Attr<std::string_view>("problem")
                                   .Attr<std::int32_t>("precision")
                                   .To(on_cuda<face>, {ffi::Traits::kCmdBufferCompatible})
                                   .release();
  return handler->Call(frame);
}

nb::capsule capsule(XLA_FFI_Error* (*handler)(XLA_FFI_CallFrame*)) {
  return nb::capsule(reinterpret_cast<void*>(handler));
}

}  // namespace

void bind_xla(nb::module_& module) {
  module.def(
      "xla_handlers",
      [] {
        nb::dict handlers;
        const auto add = [&](const char* platform, Face face, auto* handler) {
          handlers[nb::make_tuple(platform, name_of(face))] = capsule(handler);
        };
        add("cpu", Face::forward, cpu_handler<Face::forward>);
        add("cpu", Face::grad_input, cpu_handler<Face::grad_input>);
        add("cpu", Face::grad_weight, cpu_handler<Face::grad_weight>);
        add("CUDA", Face::forward, cuda_handler<Face::forward>);
        add("CUDA", Face::grad_input, cuda_handler<Face::grad_input>);
        add("CUDA", Face::grad_weight, cuda_handler<Face::grad_weight>);
        return handlers;
      },
      nb::sig("def xla_handlers() -> dict[tuple[str, str], typing.Any]"),
      "The handlers of XLA's FFI by platform and face, as capsules.");
}

}  // namespace unshared::python
