#include "block.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace unshared::emulator {

constexpr std::size_t stack_bytes = 256 << 10;

Block::Block(int threads, std::int64_t shared_bytes)
    : fibres_(static_cast<std::size_t>(threads)),
      memory_(static_cast<std::size_t>(shared_bytes) + 128) {
  const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
  shared_ = memory_.data() + ((at + 127) / 128 * 128 - at);
  for (Fibre& fibre : fibres_) fibre.stack = std::make_unique<char[]>(stack_bytes);
}

void Block::enter(unsigned high, unsigned low) {
  Block& block =
      *reinterpret_cast<Block*>(static_cast<std::uintptr_t>(high) << 32 | std::uintptr_t{low});
  (*block.body_)(block.current_);
  block.fibres_[static_cast<std::size_t>(block.current_)].state = State::finished;
}

void Block::run(const std::function<void(int)>& body) {
  body_ = &body;
  std::memset(shared_, 0xff, memory_.size() - 128);  // NaN
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  for (Fibre& fibre : fibres_) {
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = stack_bytes;
    fibre.context.uc_link = &scheduler_;
    makecontext(&fibre.context, reinterpret_cast<void (*)()>(enter), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
    fibre.state = State::ready;
  }
  for (;;) {
    bool ran = false;
    for (std::size_t i = 0; i < fibres_.size(); ++i) {
      if (fibres_[i].state != State::ready) continue;
      ran = true;
      current_ = static_cast<int>(i);
      swapcontext(&scheduler_, &fibres_[i].context);
    }
    if (!ran) return;
    release();
  }
}

// Lets go whoever waits for nobody any more.
void Block::release() {
  std::size_t finished = 0, at_block = 0;
  for (const Fibre& fibre : fibres_) {
    finished += fibre.state == State::finished;
    at_block += fibre.state == State::at_block;
  }
  for (std::size_t first = 0; first < fibres_.size(); first += warp) {
    const std::size_t last = std::min(first + warp, fibres_.size());
    std::size_t waiting = 0;
    for (std::size_t i = first; i < last; ++i) waiting += fibres_[i].state == State::at_warp;
    if (waiting == last - first)
      for (std::size_t i = first; i < last; ++i) fibres_[i].state = State::ready;
  }
  if (at_block == fibres_.size()) {
    for (Fibre& fibre : fibres_) fibre.state = State::ready;
    return;
  }
  for (const Fibre& fibre : fibres_)
    if (fibre.state == State::ready) return;
  if (finished == fibres_.size()) return;
  std::fputs("a barrier that not all threads reach\n", stderr);
  std::abort();
}

void Block::wait(State state) {
  Fibre& fibre = fibres_[static_cast<std::size_t>(current_)];
  fibre.state = state;
  swapcontext(&fibre.context, &scheduler_);
}
void Block::sync() { wait(State::at_block); }
void Block::sync_warp() { wait(State::at_warp); }
std::byte* Block::exchange(int lane) {
  return fibres_[static_cast<std::size_t>(current_ / warp * warp + lane)].slot;
}

}  // namespace unshared::emulator
