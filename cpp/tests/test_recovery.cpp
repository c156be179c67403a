// What is left of an arena whose machine lost its power, and what no arena leaves behind. Kills are in test_kill.cpp.
#include <functional>

#include "core/recovery.hpp"
#include "ring_model.hpp"

using namespace relive;

namespace {

// Transitions that are trusted after a loss of power are kept as they are, whatever lies around them.
void trusted_are_kept() {
  const Spec spec{{8, 600}, {5}, 2, 9, 1, 2};
  for (uint32_t seed = 0; seed < 200; ++seed) {
    Buffer buffer(spec);
    Model model{std::vector<std::deque<Transition>>(2), std::vector<uint64_t>(2)};
    std::mt19937 random(seed);
    for (uint32_t i = 0; i < random() % 50; ++i) push(buffer, model, random, random() % 2, false);
    Recovery recovery(buffer.arena);
    for (uint64_t lane = 0; lane < 2; ++lane) {
      const LaneHeader state = buffer.arena.lane(lane);
      const uint64_t settled = state.head - state.open;
      const uint64_t begin = std::min(settled, state.begin + random() % 4);
      CHECK(recovery.keep(lane, begin, settled));
      auto& all = model.lanes[lane];
      if (settled < state.head) all.pop_back();
      while (all.size() > settled - begin) all.pop_front();
      model.pushed[lane] = settled;
      const LaneHeader& now = buffer.arena.lane(lane);
      if (!all.empty()) all.back().cut = !Model::ends(all.back()) && !now.open;
    }
    recovery.count();
    compare(buffer, model, 3, 1, false);
    for (int i = 0; i < 60; ++i) push(buffer, model, random, i % 2, false);
    compare(buffer, model, 3, 1, false);
  }
}

// What no arena leaves behind is refused, never used.
void nonsense_is_refused() {
  const Spec spec{{8}, {5}, 1, 6, 3, 2};
  const auto refused = [&](const std::function<void(Buffer&)>& spoil) {
    Buffer buffer(spec);
    Model model{std::vector<std::deque<Transition>>(1), std::vector<uint64_t>(1)};
    std::mt19937 random(5);
    for (int i = 0; i < 40; ++i) push(buffer, model, random, 0, false);
    CHECK(Recovery(buffer.arena).after_kill());
    spoil(buffer);
    return !Recovery(buffer.arena).after_kill();
  };
  CHECK(!refused([](Buffer&) {}));
  CHECK(refused([](Buffer& b) { b.arena.lane(0).begin = b.arena.lane(0).head + 1; }));
  CHECK(refused([](Buffer& b) { b.arena.lane(0).begin -= 2; }));
  CHECK(refused([](Buffer& b) { b.arena.lane(0).head += 3; }));
  CHECK(refused([](Buffer& b) { b.arena.lane(0).head ^= 1ull << 63; }));
  CHECK(refused([](Buffer& b) { b.arena.lane(0).head_row = 77; }));
  CHECK(refused([](Buffer& b) { b.arena.words((b.arena.lane(0).head - 2) % 9).final = 99; }));
  CHECK(refused([](Buffer& b) {
    b.arena.words((b.arena.lane(0).head - 2) % 9).final = b.arena.words((b.arena.lane(0).head - 3) % 9).final = 4;
  }));
  CHECK(refused([](Buffer& b) { b.arena.start((b.arena.lane(0).head - 2) % 9) = 1000; }));
  CHECK(refused([](Buffer& b) {
    Words& words = b.arena.words((b.arena.lane(0).head - 1) % 9);
    words.step |= kTerminated;
    words.final = 0;
  }));
}

}  // namespace

int main() {
  trusted_are_kept();
  nonsense_is_refused();
  std::puts("recovery: ok");
}
