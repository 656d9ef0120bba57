#include "watch.hpp"

#include "footprint.hpp"
#include "scalar.hpp"

namespace unshared::emulator {
namespace {

Watch* watching = nullptr;

std::string bytes_at(int bytes, std::uintptr_t at, std::uintptr_t zero) {
  return std::to_string(bytes) + " bytes at " +
         std::to_string(static_cast<std::int64_t>(at - zero));
}

}  // namespace

Watch::Array Watch::array_of(const void* zero, const Layout& layout, int element) {
  if (layout.elements() == 0) return {layout, 0, 0, 0};
  const Bytes bytes = bytes_of(zero, layout, element);
  return {layout, reinterpret_cast<std::uintptr_t>(zero), bytes.low, bytes.high};
}

Watch::Watch(const Problem& problem, const Call& call, Order order, Counting counting)
    : element_(static_cast<int>(size_of(call.dtype))),
      accumulate_(call.accumulate),
      first_(array_of(call.first, problem.layout(call.face == Face::grad_input ? Seat::y : Seat::x),
                      element_)),
      second_(array_of(call.second,
                       problem.layout(call.face == Face::grad_weight ? Seat::y : Seat::w),
                       element_)),
      result_(array_of(call.result, problem.layout(result_of(call.face)), element_)),
      order_(order),
      counting_(counting),
      marks_(result_.low, result_.high) {
  elements([&](std::uintptr_t at) {
    for (int i = 0; i < element_ / 2; ++i) marks_.of(at)[i] = awaited;
  });
  if (counting == Counting::on) {
    tally_.cover(Access::first, first_.low, first_.high);
    tally_.cover(Access::second, second_.low, second_.high);
    tally_.cover(Access::result, result_.low, result_.high);
    tally_.cover(Access::store, result_.low, result_.high);
  }
  watching = this;
}
Watch::~Watch() { watching = nullptr; }
Watch* Watch::current() { return watching; }

// The address of every element of the result.
template <class Visit>
void Watch::elements(const Visit& visit) const {
  const Layout& layout = result_.layout;
  std::int64_t index[max_dims] = {}, offset = 0;
  for (std::int64_t e = layout.elements(); e > 0; --e) {
    visit(result_.zero + static_cast<std::uintptr_t>(offset * element_));
    for (int d = layout.rank - 1; d >= 0; --d) {
      offset += layout.stride[d];
      if (++index[d] < layout.shape[d]) break;
      offset -= layout.shape[d] * layout.stride[d];
      index[d] = 0;
    }
  }
}

// A kernel that never stores through its Thread is judged by what it leaves behind.
const std::string& Watch::failure() {
  if (!failed() && stored_)
    elements([&](std::uintptr_t at) {
      if (!failed() && *marks_.of(at) != written)
        fail("the element at byte " + std::to_string(static_cast<std::int64_t>(at - result_.zero)) +
             " of the result is not written");
    });
  return failure_;
}

void Watch::fail(std::string text) {
  if (!failed()) failure_ = std::move(text);
}

Access Watch::read(const void* p, int bytes) const {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  const std::uintptr_t end = at + static_cast<std::uintptr_t>(bytes);
  const auto within = [&](const Array& array) { return at >= array.low && end <= array.high; };
  if (!within(first_) && !within(second_))
    throw Failure{"reads what is neither operand: " + bytes_at(bytes, at, first_.zero) +
                  " of the first, " + std::to_string(static_cast<std::int64_t>(at - second_.zero)) +
                  " of the second, " +
                  std::to_string(static_cast<std::int64_t>(at - result_.zero)) + " of the result"};
  if (at % static_cast<std::uintptr_t>(bytes) != 0)
    throw Failure{"reads an address that is not aligned: " +
                  bytes_at(bytes, at, within(first_) ? first_.zero : second_.zero) + " of the " +
                  (within(first_) ? "first" : "second") + " operand"};
  return within(first_) ? Access::first : Access::second;
}

void Watch::read_result(const void* p, int bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  const auto where = [&] { return bytes_at(bytes, at, result_.zero) + " of the result"; };
  if (!accumulate_) throw Failure{"reads " + where() + ", onto which it does not accumulate"};
  if (!marks_.covers(at, bytes)) throw Failure{"reads beyond the result: " + where()};
  if (at % static_cast<std::uintptr_t>(bytes) != 0)
    throw Failure{"reads an address that is not aligned: " + where()};
  for (int i = 0; i < bytes / 2; ++i)
    if (marks_.of(at)[i] == written) throw Failure{"reads a result that is written: " + where()};
}

void Watch::write(const void* p, int bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(p);
  const auto where = [&] { return bytes_at(bytes, at, result_.zero) + " of the result"; };
  if (!marks_.covers(at, bytes)) throw Failure{"writes what is not the result: " + where()};
  if (at % static_cast<std::uintptr_t>(bytes) != 0)
    throw Failure{"writes an address that is not aligned: " + where()};
  for (int i = 0; i < bytes / 2; ++i) {
    unsigned char& mark = marks_.of(at)[i];
    if (mark == nothing) throw Failure{"writes between the elements: " + where()};
    if (mark == written) throw Failure{"writes a second time: " + where()};
    mark = written;
  }
  stored_ = true;
}

}  // namespace unshared::emulator
