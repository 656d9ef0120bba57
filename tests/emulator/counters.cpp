#include "counters.hpp"

#include <algorithm>

namespace unshared::emulator {

void Tally::start(const Block& block, int warps) {
  block_ = &block;
  warps_.assign(static_cast<std::size_t>(warps), Warp());
  ++total.launches;
}

void Tally::cover(Access access, std::uintptr_t low, std::uintptr_t high) {
  covers_[static_cast<int>(access)] = {
      low, high, std::vector<std::uint16_t>(static_cast<std::size_t>((high - low + 1) / 2))};
}

void Tally::note(Access access, std::uintptr_t at, int bytes, Site site) {
  const int thread = block_->current();
  Warp& warp = warps_[static_cast<std::size_t>(thread / Block::warp)];
  if (const std::uint32_t now = block_->warp_together(thread / Block::warp); warp.since != now) {
    flush(warp);
    warp.since = now;
  }
  auto place = std::find_if(warp.places.begin(), warp.places.end(), [&](const Place& p) {
    return p.access == access && p.bytes == bytes && p.site == site;
  });
  if (place == warp.places.end())
    place = warp.places.insert(warp.places.end(), Place{access, site, bytes, {}, {}});
  const auto lane = static_cast<std::size_t>(thread % Block::warp);
  const auto time = static_cast<std::size_t>(place->times[lane]++);
  if (time == place->together.size()) place->together.emplace_back();
  Together& together = place->together[time];
  together.lanes |= 1u << lane;
  together.at[lane] = at;
}

void Tally::end_block() {
  for (Warp& warp : warps_) flush(warp);
  ++total.blocks;
}

void Tally::flush(Warp& warp) {
  for (Place& place : warp.places) {
    for (const Together& together : place.together)
      place.access < Access::shared_load ? count_global(place, together)
                                         : count_shared(place, together);
    place.together.clear();
    place.times.fill(0);
  }
}

Traffic& Tally::traffic(Access access) {
  Traffic* const all[] = {&total.first, &total.second, &total.result, &total.stores};
  return *all[static_cast<int>(access)];
}

void Tally::count_global(const Place& place, const Together& together) {
  std::array<std::uintptr_t, Block::warp> at;
  int lanes = 0;
  for (std::size_t lane = 0; lane < Block::warp; ++lane)
    if (together.lanes >> lane & 1) at[static_cast<std::size_t>(lanes++)] = together.at[lane];
  std::sort(at.begin(), at.begin() + lanes);

  Traffic& sum = traffic(place.access);
  Cover& cover = covers_[static_cast<int>(place.access)];
  ++sum.accesses;
  sum.requested += std::int64_t{lanes} * place.bytes;
  constexpr std::uintptr_t sector = 32;
  std::uintptr_t last = 0, last_sector = 0;
  for (int i = 0; i < lanes; ++i) {
    const std::uintptr_t each = at[static_cast<std::size_t>(i)];
    if (each == last) continue;
    last = each;
    sum.fetched += place.bytes;
    if (each / sector != last_sector) sum.moved += sector;
    last_sector = each / sector;
    if (each < cover.low || each >= cover.high) continue;
    for (std::size_t g = (each - cover.low) / 2;
         g < (each - cover.low + static_cast<std::uintptr_t>(place.bytes)) / 2; ++g)
      ++cover.times[g];
  }
}

void Tally::count_shared(const Place& place, const Together& together) {
  Banks& sum = place.access == Access::shared_load    ? total.shared_loads
               : place.access == Access::shared_store ? total.shared_stores
                                                      : total.shared_copies;
  ++sum.accesses;
  const int words = std::max(place.bytes / 4, 1), lanes = Block::warp / words;
  for (int first = 0; first < Block::warp; first += lanes) {
    std::vector<std::uintptr_t> wanted;  // words
    for (int lane = first; lane < first + lanes; ++lane)
      for (int i = 0; i < words && (together.lanes >> lane & 1) != 0; ++i)
        wanted.push_back(together.at[static_cast<std::size_t>(lane)] / 4 +
                         static_cast<std::uintptr_t>(i));
    std::sort(wanted.begin(), wanted.end());
    wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
    std::array<int, 32> bank{};
    for (const std::uintptr_t word : wanted) ++bank[word % 32];
    sum.rounds += *std::max_element(bank.begin(), bank.end());
    sum.least += !wanted.empty();
  }
}

Counters Tally::counters() const {
  Counters found = total;
  Traffic* const all[] = {&found.first, &found.second, &found.result, &found.stores};
  for (int i = 0; i < 4; ++i)
    for (const std::uint16_t times : covers_[i].times) {
      all[i]->touched += times == 0 ? 0 : 2;
      all[i]->most = std::max(all[i]->most, int{times});
    }
  return found;
}

}  // namespace unshared::emulator
