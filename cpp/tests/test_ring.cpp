// The core against a naive model: whole transitions in a list, windows followed step by step. Observations are packed,
// in a column, both, or stacks; lanes differ in length; episodes end in every way; the ring wraps and is cleared.
#include "ring_model.hpp"

using namespace relive;

namespace {

void fuzz(const Spec& spec, uint32_t n, uint32_t stack, bool zeros, uint32_t seed) {
  Buffer buffer(spec);
  Model model{std::vector<std::deque<Transition>>(spec.lanes), std::vector<uint64_t>(spec.lanes)};
  std::mt19937 random(seed);
  for (int step = 0; step < 120; ++step) {
    push(buffer, model, random, random() % spec.lanes, seed % 2 == 0);
    if (random() % 50 == 0) {
      buffer.ring.clear();
      for (auto& lane : model.lanes) lane.clear();
    }
    if (step % 3 == 0) compare(buffer, model, n, stack, zeros);
  }
}

// Side-table slots are recycled: the most ever in use is that of one lane full of one-step episodes.
void finals_are_recycled() {
  Buffer buffer(Spec{{4}, {1}, 1, 10, 1, 0});
  Model model{std::vector<std::deque<Transition>>(1), std::vector<uint64_t>(1)};
  std::mt19937 random(3);
  for (int step = 0; step < 5000; ++step) push(buffer, model, random, 0, false);
  CHECK(buffer.arena.lane(0).final_used <= 11);
}

void ids_outside_are_refused() {
  Buffer buffer(Spec{{4}, {1}, 2, 3, 1, 0});
  Model model{std::vector<std::deque<Transition>>(2), std::vector<uint64_t>(2)};
  std::mt19937 random(3);
  for (int step = 0; step < 5; ++step) push(buffer, model, random, 0, false);
  for (const int64_t id : {int64_t{-1}, int64_t{1}, int64_t{2}, int64_t{10}, INT64_MAX, INT64_MIN})
    CHECK(!buffer.arena.find(id));
  CHECK(buffer.arena.find(4) && buffer.arena.find(8));
}

}  // namespace

int main() {
  const std::vector<std::vector<uint64_t>> observations{{4}, {1}, {3, 600}, {700}, {0, 2}};
  uint32_t seed = 0;
  for (const auto& obs : observations)
    for (const uint64_t lanes : {1, 3})
      for (const uint64_t capacity : {1, 2, 5, 17})
        for (const uint32_t n : {1, 3})
          for (const uint32_t stack : {1, 4}) {
            fuzz(Spec{obs, {5}, lanes, capacity, 1, stack - 1}, n, stack, seed % 3 == 0, seed);
            if (stack > 1) fuzz(Spec{obs, {5}, lanes, capacity, stack, stack - 1}, n, 1, false, seed);
            ++seed;
          }
  finals_are_recycled();
  ids_outside_are_refused();
  std::puts("ring: ok");
}
