#include "fibre.hpp"

#include <cstdint>

#include "pages.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define UNSHARED_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNSHARED_ASAN 1
#endif
#endif
#ifdef UNSHARED_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// unshared_switch(&here, there): keeps on this stack what a function call must preserve, notes the
// stack pointer in `here` and goes on from where `there` was left.
#if defined(__x86_64__)
asm(R"(
.text
.type unshared_switch, @function
unshared_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size unshared_switch, . - unshared_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.type unshared_switch, %function
unshared_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size unshared_switch, . - unshared_switch
)");
#else
#include <ucontext.h>  // elsewhere: with a system call per switch
#define UNSHARED_UCONTEXT 1
#endif

namespace unshared::emulator {
namespace {

constexpr std::size_t stack_bytes = 256 << 10, page = 64 << 10;

}  // namespace

#ifndef UNSHARED_UCONTEXT

extern "C" void unshared_switch(void** here, void* there);

struct Fibre::Context {
  void* fibre = nullptr;  // stack pointers of whichever is not running
  void* outside = nullptr;

  void prepare(std::byte* top, void (*begin)()) {
    auto* slot = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
    *--slot = nullptr;  // where a caller would have left its address
    *--slot = reinterpret_cast<void*>(begin);
    for (int i = 0; i < 6; ++i) *--slot = nullptr;
#else
    slot -= 20;
    for (int i = 0; i < 20; ++i) slot[i] = nullptr;
    slot[11] = reinterpret_cast<void*>(begin);
#endif
    fibre = slot;
  }
  void enter() { unshared_switch(&outside, fibre); }
  void exit() { unshared_switch(&fibre, outside); }

#else

struct Fibre::Context {
  ucontext_t fibre, outside;

  void prepare(std::byte* top, void (*begin)()) {
    getcontext(&fibre);
    fibre.uc_stack.ss_sp = bottom;
    fibre.uc_stack.ss_size = static_cast<std::size_t>(top - bottom);
    makecontext(&fibre, begin, 0);
  }
  void enter() { swapcontext(&outside, &fibre); }
  void exit() { swapcontext(&fibre, &outside); }

#endif

  // What AddressSanitizer keeps of the side that is left, and the stack outside.
  void* kept_fibre = nullptr;
  void* kept_outside = nullptr;
  const void* outside_bottom = nullptr;
  std::size_t outside_size = 0;

  Pages memory{page + stack_bytes, PROT_NONE};
  std::byte* const bottom = memory.data() + page;
};

namespace {

Fibre* entering = nullptr;  // for begin()

}  // namespace

// The lowest page may not be touched: a stack that overflows faults.
Fibre::Fibre(void (*life)(Fibre&)) : context_(std::make_unique<Context>()), life_(life) {
  if (mprotect(context_->bottom, stack_bytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  // Stacks begin at different places of a page, or all would share a few sets of the cache.
  static std::size_t made = 0;
  context_->prepare(context_->bottom + stack_bytes - made++ * 704 % 4096 / 16 * 16, &Fibre::begin);
}
Fibre::~Fibre() = default;

void Fibre::begin() {
  Fibre& self = *entering;
#ifdef UNSHARED_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self.context_->outside_bottom,
                                  &self.context_->outside_size);
#endif
  self.life_(self);
  __builtin_trap();
}

void Fibre::resume() {
  entering = this;
#ifdef UNSHARED_ASAN
  __sanitizer_start_switch_fiber(&context_->kept_outside, context_->bottom, stack_bytes);
#endif
  context_->enter();
#ifdef UNSHARED_ASAN
  __sanitizer_finish_switch_fiber(context_->kept_outside, nullptr, nullptr);
#endif
}

void Fibre::leave() {
#ifdef UNSHARED_ASAN
  __sanitizer_start_switch_fiber(&context_->kept_fibre, context_->outside_bottom,
                                 context_->outside_size);
#endif
  context_->exit();
#ifdef UNSHARED_ASAN
  __sanitizer_finish_switch_fiber(context_->kept_fibre, &context_->outside_bottom,
                                  &context_->outside_size);
#endif
}

}  // namespace unshared::emulator
