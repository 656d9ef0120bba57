#include "block.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

namespace unshared::emulator {
namespace {

Block* running = nullptr;

// Fibres without a thread; the one that was left last is the warmest.
std::vector<std::unique_ptr<Fibre>> idle;

}  // namespace

std::uint32_t Block::now_ = 0;

std::string to_string(const Site& site) {
  return std::string(site.file) + ":" + std::to_string(site.line);
}

std::vector<std::int64_t> turns(std::int64_t count, Order order, std::uint64_t seed) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  if (order == Order::backward) std::reverse(all.begin(), all.end());
  std::mt19937_64 random(seed);
  for (std::size_t i = all.size(); order == Order::random && i > 1; --i)
    std::swap(all[i - 1], all[random() % i]);
  return all;
}

Block::Block(int threads, Order order)
    : threads_(static_cast<std::size_t>(threads)),
      warps_(threads_.size() / warp),
      slots_(2 * threads_.size()),
      order_(order) {}

void Block::life(Fibre& fibre) {
  for (;;) {
    running->work();
    fibre.leave();
  }
}

void Block::work() {
  try {
    (*body_)(current_);
  } catch (const Stop&) {
  } catch (const Failure& failure) {
    const Site& site = threads_[static_cast<std::size_t>(current_)].site;
    failure_.text = "block " + std::to_string(number_) + ", thread " + std::to_string(current_) +
                    ", " + to_string(site) + ": " + failure.text;
    failed_ = true;
  }
  threads_[static_cast<std::size_t>(current_)].state = State::finished;
}

void Block::resume(int index) {
  Thread& thread = threads_[static_cast<std::size_t>(index)];
  current_ = index;
  if (thread.state == State::fresh) {
    if (idle.empty()) idle.push_back(std::make_unique<Fibre>(life));
    thread.fibre = idle.back().release();
    idle.pop_back();
  }
  thread.state = State::ready;
  thread.fibre->resume();
  if (thread.state == State::finished) idle.emplace_back(std::exchange(thread.fibre, nullptr));
}

// Ends the threads that wait, so that their stacks are free.
void Block::stop() {
  for (std::size_t i = 0; i < threads_.size(); ++i)
    if (threads_[i].fibre != nullptr) resume(static_cast<int>(i));
}

void Block::run(std::int64_t number, const std::function<void(int)>& body) {
  running = this;
  body_ = &body;
  number_ = number;
  at_block_ = 0;
  block_met_ = ++now_;
  threads_.assign(threads_.size(), Thread());
  warps_.assign(warps_.size(), Warp{0, now_, now_});
  const std::vector<std::int64_t> turn =
      turns(static_cast<std::int64_t>(threads_.size()), order_, static_cast<std::uint64_t>(number));
  for (bool ran = true; ran && !failed_;) {
    ran = false;
    for (const std::int64_t i : turn) {
      const State state = threads_[static_cast<std::size_t>(i)].state;
      if (state != State::fresh && state != State::ready) continue;
      ran = true;
      resume(static_cast<int>(i));
      if (failed_) break;
    }
  }
  if (!failed_) {
    bool left = true;
    for (const Thread& thread : threads_) left = left && thread.state == State::finished;
    if (left) return;
    stuck();
  }
  stop();
  throw failure_;
}

void Block::wait(State state, Site site) {
  Thread& thread = threads_[static_cast<std::size_t>(current_)];
  thread.state = state;
  thread.site = site;
  if (state == State::at_block)
    arrive_at_block();
  else
    arrive_at_warp(state);
  thread.fibre->leave();
  if (failed_) throw Stop{};
}

void Block::arrive_at_block() {
  if (++at_block_ < static_cast<int>(threads_.size())) return;
  same_place(0, at_block_);
  at_block_ = 0;
  block_met_ = ++now_;
  for (Warp& each : warps_) each.met = each.together = now_;
  for (Thread& thread : threads_) thread.state = State::ready;
}

void Block::arrive_at_warp(State state) {
  Warp& mine = warps_[static_cast<std::size_t>(current_ / warp)];
  if (++mine.waiting < warp) return;
  const int first = current_ / warp * warp;
  same_place(first, first + warp);
  mine.waiting = 0;
  mine.together = ++now_;
  if (state == State::at_warp) mine.met = now_;
  for (int i = first; i < first + warp; ++i)
    threads_[static_cast<std::size_t>(i)].state = State::ready;
}

void Block::same_place(int first, int last) {
  const Thread& model = threads_[static_cast<std::size_t>(first)];
  for (int i = first; i < last; ++i) {
    const Thread& other = threads_[static_cast<std::size_t>(i)];
    if (other.state != model.state || !(other.site == model.site))
      throw Failure{"a barrier reached in different places: " + describe(first) + ", " +
                    describe(i)};
  }
}

std::string Block::describe(int index) const {
  const Thread& thread = threads_[static_cast<std::size_t>(index)];
  const char* what = thread.state == State::finished      ? " has left"
                     : thread.state == State::at_block    ? " waits for its block at "
                     : thread.state == State::at_exchange ? " exchanges with its warp at "
                                                          : " waits for its warp at ";
  return "thread " + std::to_string(index) + what +
         (thread.state == State::finished ? "" : to_string(thread.site));
}

// Nobody can go on: says of one thread of each kind where it is.
void Block::stuck() {
  std::string text = "block " + std::to_string(number_) + ": a barrier that not all reach:";
  bool told[static_cast<int>(State::finished) + 1] = {};
  for (std::size_t i = 0; i < threads_.size(); ++i)
    if (bool& already = told[static_cast<int>(threads_[i].state)]; !already) {
      already = true;
      text += (text.back() == ':' ? " " : ", ") + describe(static_cast<int>(i));
    }
  failure_.text = text;
  failed_ = true;
}

void Block::sync(Site site) { wait(State::at_block, site); }
void Block::sync_warp(Site site) { wait(State::at_warp, site); }

const Block::Slot* Block::exchange(const void* mine, std::size_t size, Site site) {
  Thread& thread = threads_[static_cast<std::size_t>(current_)];
  Slot* slots = slots_.data() + (thread.exchanges++ % 2 == 0 ? 0 : threads_.size());
  std::memcpy(slots[current_].bytes, mine, size);
  const int first = current_ / warp * warp;
  wait(State::at_exchange, site);
  return slots + first;
}

}  // namespace unshared::emulator
