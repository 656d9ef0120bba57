// The floating-point environment of every kernel: round to nearest, subnormals kept, exceptions
// masked, whatever the caller has set (XLA's CPU runtime, for one, may flush subnormals). The
// caller's own comes back at the end.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace unshared {

class DefaultFloats {
 public:
#if defined(__x86_64__)
  DefaultFloats() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloats() { _mm_setcsr(saved_); }
#else
  DefaultFloats() noexcept {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&saved_); }
#endif
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
#else
  std::fenv_t saved_;
#endif
};

}  // namespace unshared
