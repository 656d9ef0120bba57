// A launch: its limits, its blocks one after the other, and the name under which it fails.
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>

#include "thread.hpp"

namespace unshared::emulator {
namespace {

std::string readable(const char* name) {
  int status = 0;
  char* found = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string text = status == 0 ? found : name;
  std::free(found);
  for (const std::string_view prefix : {"unshared::cuda::", "unshared::"})
    for (std::size_t at; (at = text.find(prefix)) != std::string::npos;)
      text.erase(at, prefix.size());
  return text;
}

}  // namespace

const char* Launch::mistake() const {
  if (blocks < 1 || blocks > cuda::max_blocks) return "a launch of 1 to 2^31 - 1 blocks";
  if (threads < 1 || threads > 1024 || threads % Block::warp != 0)
    return "a launch of whole warps, up to 1024 threads";
  if (parameters > 4096) return "parameters of up to 4096 bytes";
  if (shared_bytes < 0 || shared_bytes > Shared::most) return "up to 227 KiB of shared memory";
  return nullptr;
}

void Launch::run(const std::function<void(Thread&)>& body) const noexcept {
  Watch* const watch = Watch::current();
  if (watch == nullptr) {
    std::fputs("a launch without an emulator::Watch(problem, call, order) around it\n", stderr);
    std::abort();
  }
  if (watch->failed()) return;
  if (const char* expected = mistake()) {
    watch->fail(readable(kernel) + ": needs " + expected);
    return;
  }
  static Shared memory;
  Block block(threads, watch->order());
  memory.start(block, threads, shared_bytes);
  Tally* const tally = watch->tally();
  if (tally != nullptr) tally->start(block, threads / Block::warp);
  try {
    for (const std::int64_t at : turns(blocks, watch->order(), 1)) {
      memory.start_block();
      block.run(at, [&](int index) {
        Thread thread(block, memory, *watch, index, at, blocks);
        body(thread);
        memory.leave();
      });
      if (tally != nullptr) tally->end_block();
    }
  } catch (const Failure& failure) {
    watch->fail(readable(kernel) + ", " + failure.text);
  }
}

}  // namespace unshared::emulator
