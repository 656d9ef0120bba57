// What one call may do to global memory, and what it did. While a Watch lives, kernels that the
// emulator launches may read the call's two operands, within the bytes they touch; must write every
// element of the result, each once, and nothing else; and may read the result only to accumulate
// onto it, before it is written. The first failure ends the launch and is kept.
#pragma once

#include <string>
#include <utility>

#include "../../cpp/unshared.hpp"
#include "counters.hpp"
#include "pages.hpp"

namespace unshared::emulator {

// A byte for every two bytes of a stretch of memory, however long.
class Marks {
 public:
  Marks(std::uintptr_t low, std::uintptr_t high)
      : low_(low), high_(high), memory_((high - low) / 2 + 1) {}

  bool covers(std::uintptr_t at, int bytes) const {
    return at >= low_ && at + static_cast<std::uintptr_t>(bytes) <= high_;
  }
  unsigned char* of(std::uintptr_t at) const {
    return reinterpret_cast<unsigned char*>(memory_.data()) + (at - low_) / 2;
  }

 private:
  std::uintptr_t low_, high_;
  Pages memory_;
};

class Watch {
 public:
  enum class Counting { off, on };
  Watch(const Problem& problem, const Call& call, Order order, Counting counting = Counting::off);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  static Watch* current();

  // After the call: what went wrong, or nothing.
  const std::string& failure();
  Counters counters() const { return tally_.counters(); }

  // For the emulator. Accesses throw Failure; a read says of what.
  Access read(const void* at, int bytes) const;
  void read_result(const void* at, int bytes);
  void write(const void* at, int bytes);
  void fail(std::string text);
  bool failed() const { return !failure_.empty(); }
  Order order() const { return order_; }
  Tally* tally() { return counting_ == Counting::on ? &tally_ : nullptr; }

 private:
  struct Array {
    Layout layout;
    std::uintptr_t zero, low, high;  // the element of index zero; the bytes it touches
  };
  enum Mark : unsigned char { nothing, awaited, written };
  static Array array_of(const void* zero, const Layout& layout, int element);
  template <class Visit>
  void elements(const Visit& visit) const;

  const int element_;  // bytes
  const bool accumulate_;
  const Array first_, second_, result_;
  const Order order_;
  const Counting counting_;
  Marks marks_;
  bool stored_ = false;
  std::string failure_;
  Tally tally_;
};

}  // namespace unshared::emulator
