#include "shared.hpp"

#include <algorithm>
#include <cstring>

namespace unshared::emulator {

void Shared::start(const Block& block, int threads, std::int64_t bytes) {
  block_ = &block;
  bytes_ = bytes;
  memory_.resize(std::max(memory_.size(), static_cast<std::size_t>(bytes) + 128));
  const auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
  data_ = memory_.data() + ((at + 127) / 128 * 128 - at);
  marks_.resize(std::max(marks_.size(), static_cast<std::size_t>(bytes / granule + 1)));
  for (const Copies& each : copies_)
    if (!each.begun.empty()) marks_.assign(marks_.size(), Mark());  // of a launch that failed
  copies_.assign(static_cast<std::size_t>(threads), Copies());
}

// Marks of earlier blocks are of earlier times.
void Shared::start_block() {
  std::memset(data_, 0xff, static_cast<std::size_t>(bytes_));
  for (Copies& each : copies_) each.groups = 0;
}

std::size_t Shared::granule_of(const void* at, int bytes) const {
  const std::int64_t offset = static_cast<const std::byte*>(at) - data_;
  if (offset < 0 || offset + bytes > bytes_)
    throw Failure{std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                  " of shared memory, which has " + std::to_string(bytes_)};
  if ((offset & (bytes - 1)) != 0)
    throw Failure{std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                  " of shared memory: not aligned"};
  return static_cast<std::size_t>(offset / granule);
}

void Shared::read(const void* at, int bytes) {
  const std::size_t first = granule_of(at, bytes);
  const auto me = static_cast<std::int16_t>(block_->current());
  const int warp = me / Block::warp;
  const std::uint32_t block_met = block_->block_met(), warp_met = block_->warp_met(warp);
  for (std::size_t g = first; g < first + static_cast<std::size_t>(bytes / granule); ++g) {
    Mark& mark = marks_[g];
    if (mark.written >= block_met &&
        (mark.written == in_flight ||
         (mark.writer != me && (warp_of(mark.writer) != warp || mark.written >= warp_met))))
      race("reads", mark, mark.writer, g);
    if (mark.reader == many && mark.read >= block_met) continue;  // nothing new
    const bool before = mark.read >= warp_met;  // read since the warp met
    if (before && (mark.reader == me || mark.reader == several_of(warp))) continue;
    if (mark.read >= block_met && mark.reader != me && warp_of(mark.reader) != warp)
      mark.reader = many;
    else
      mark.reader = before ? several_of(warp) : me;
    mark.read = block_->now();
  }
}

void Shared::mark_written(std::size_t first, int bytes, std::uint32_t when) {
  const int me = block_->current(), warp = me / Block::warp;
  for (std::size_t g = first; g < first + static_cast<std::size_t>(bytes / granule); ++g) {
    Mark& mark = marks_[g];
    if (mark.written >= block_->block_met() &&
        (mark.written == in_flight ||
         (mark.writer != me &&
          (warp_of(mark.writer) != warp || mark.written >= block_->warp_met(warp)))))
      race("writes", mark, mark.writer, g);
    if (mark.read >= block_->block_met() && mark.reader != me &&
        (mark.reader == many || warp_of(mark.reader) != warp ||
         mark.read >= block_->warp_met(warp)))
      race("writes", mark, mark.reader, g);
    mark.written = when;
    mark.writer = static_cast<std::int16_t>(me);
  }
}

void Shared::write(const void* at, int bytes) {
  mark_written(granule_of(at, bytes), bytes, block_->now());
}

void Shared::copy(void* to, const void* from, int bytes) {
  mark_written(granule_of(to, bytes), bytes, in_flight);
  std::memset(to, 0xff, static_cast<std::size_t>(bytes));
  Copies& mine = copies_[static_cast<std::size_t>(block_->current())];
  mine.begun.push_back({static_cast<std::byte*>(to), from, bytes, mine.groups});
}

void Shared::commit() { ++copies_[static_cast<std::size_t>(block_->current())].groups; }

void Shared::wait(int pending) {
  Copies& mine = copies_[static_cast<std::size_t>(block_->current())];
  std::size_t landed = 0;
  for (; landed < mine.begun.size(); ++landed) {
    const Copy& copy = mine.begun[landed];
    if (copy.group >= mine.groups - pending) break;
    std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    const auto first = static_cast<std::size_t>((copy.to - data_) / granule);
    for (std::size_t g = first; g < first + static_cast<std::size_t>(copy.bytes / granule); ++g)
      marks_[g].written = block_->now();
  }
  mine.begun.erase(mine.begun.begin(), mine.begun.begin() + static_cast<std::ptrdiff_t>(landed));
}

void Shared::leave() {
  if (!copies_[static_cast<std::size_t>(block_->current())].begun.empty())
    throw Failure{"leaves while its copies are in flight"};
}

void Shared::race(const char* what, const Mark& mark, std::int16_t who, std::size_t at) const {
  const std::string where = "byte " + std::to_string(at * granule) + " of shared memory";
  std::string other = "thread " + std::to_string(who);
  if (who == many) other = "several warps";
  if (who < many) other = "several threads of its warp";
  if (mark.written == in_flight)
    throw Failure{std::string(what) + " " + where + ", to which a copy of " + other +
                  " is in flight"};
  const char* did = who == mark.writer && mark.written >= block_->block_met() ? " wrote" : " read";
  throw Failure{std::string(what) + " " + where + ", which " + other + did +
                " without a barrier between"};
}

}  // namespace unshared::emulator
