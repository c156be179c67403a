// Writers and readers at once, for the thread sanitizer; rows that carry their identity show torn or mixed ones.
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/buffer_lock.hpp"
#include "core/ring.hpp"
#include "core/selector.hpp"
#include "core/window.hpp"

using namespace relive;

namespace {

constexpr uint64_t kLanes = 3, kPushes = 4000, kBatch = 32;

void push_all(Arena arena, uint64_t lane) {
  Ring ring(arena);
  BufferLock lock(arena);
  for (uint64_t time = 0; time < kPushes; ++time) {
    const uint64_t obs = time * kLanes + lane, next_obs = obs + kLanes;
    const char* obs_at = reinterpret_cast<const char*>(&obs);
    const char* next_at = reinterpret_cast<const char*>(&next_obs);
    const auto reward = static_cast<float>(time);
    const uint8_t terminated = time % 11 == 10, truncated = 0;
    const Block block{{&obs_at, 1}, {&next_at, 1}, {&obs_at, 1}, &reward, &terminated, &truncated};
    const std::lock_guard guard(lock);
    ring.append(lane, block, 0);
  }
}

// Each reader has a selector of its own; the last two share one, as threads that sample one buffer do.
void sample_all(Arena arena, Selector* selector) {
  BufferLock lock(arena);
  const TransitionView view(arena.layout(), 1, 0.9, 1, false);
  std::vector<Anchor> anchors(kBatch);
  std::vector<uint64_t> obs(kBatch), next_obs(kBatch), rest(kBatch);
  std::vector<float> reward(kBatch), discount(kBatch);
  std::vector<uint8_t> terminated(kBatch), truncated(kBatch);
  std::vector<int64_t> ids(kBatch);
  const auto bytes = [](auto& array) { return reinterpret_cast<char*>(array.data()); };
  const BatchArrays out{{bytes(obs)},      {bytes(next_obs)}, {bytes(rest)}, reward.data(), discount.data(),
                        terminated.data(), truncated.data(),  ids.data(),    nullptr,       nullptr,
                        nullptr,           nullptr,           nullptr,       nullptr};
  const std::vector<double> raw(kBatch, 2.0);
  for (int batch = 0; batch < 1500; ++batch) {
    {
      const std::lock_guard guard(lock);
      if (!selector->draw(kBatch, anchors.data(), nullptr)) continue;
      view.assemble(arena, anchors.data(), kBatch, out);
    }
    for (uint64_t i = 0; i < kBatch; ++i) {
      const auto id = static_cast<uint64_t>(ids[i]);
      CHECK(obs[i] == id && rest[i] == id && next_obs[i] == id + kLanes);
      CHECK(reward[i] == static_cast<float>(id / kLanes));
      CHECK(terminated[i] == (id / kLanes % 11 == 10));
    }
    if (selector->spec().keeps_priorities()) {
      const std::lock_guard guard(lock);
      selector->update(ids.data(), raw.data(), kBatch);
    }
  }
}

}  // namespace

int main() {
  const Layout layout(Spec{{8}, {8}, kLanes, 50, 1, 0});
  SelectorSpec uniform, prioritized;
  prioritized.draw = Draw::kProportional;
  prioritized.alpha = 0.6;
  std::vector<std::vector<uint64_t>> memories;
  const auto allocate = [&](uint64_t size) {  // zeroed, aligned to a cache line
    auto& memory = memories.emplace_back(size / sizeof(uint64_t) + 8);
    return reinterpret_cast<char*>(round_up(reinterpret_cast<uint64_t>(memory.data()), kCacheLine));
  };
  const Arena arena(allocate(layout.arena_bytes), layout);
  arena.header().mutex.init();
  Selector plain(allocate(Selector::bytes(uniform, layout)), uniform, arena);
  Selector shared(allocate(Selector::bytes(prioritized, layout)), prioritized, arena);
  plain.init(1);
  shared.init(2);
  std::vector<std::thread> threads;
  for (uint64_t lane = 0; lane < kLanes; ++lane) threads.emplace_back(push_all, arena, lane);
  for (Selector* selector : {&plain, &shared, &shared}) threads.emplace_back(sample_all, arena, selector);
  for (auto& thread : threads) thread.join();
  CHECK(arena.header().live == kLanes * 50);
  std::puts("threads: ok");
}
