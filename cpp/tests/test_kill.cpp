// What a process leaves behind that is killed: it is run instruction by instruction, and whenever the memory changed a
// copy of it is recovered, compared with the model, and used. So every store of an append, of the end of an episode, of
// a selector's work is a place where it was killed.
#include <cmath>

#include "core/recovery.hpp"
#include "kill.hpp"

using namespace relive;

namespace {

constexpr int kThorough = 1;

// A ring in shared memory, its model, and how it is read.
struct World {
  World(const Spec& spec, uint32_t n, uint32_t stack, uint32_t seed)
      : layout(spec),
        memory(layout.arena_bytes),
        arena(memory.start, layout),
        ring(arena),
        model{std::vector<std::deque<Transition>>(spec.lanes), std::vector<uint64_t>(spec.lanes)},
        random(seed),
        n(n),
        stack(stack) {
    arena.header().mutex.init();
  }

  // Recovers a copy of the memory as it is now. It is that of the model as it was `before` or will be `after`, where a
  // lane that was pushed to may have lost its oldest transition already; and it goes on like it.
  void check_torn(const Model& before, const Model& after) {
    Buffer copy(layout.spec);
    std::memcpy(copy.data(), memory.start, memory.bytes);
    CHECK(Recovery(copy.arena).after_kill());
    relive::check_torn(copy, before, after, n, stack, random());
  }

  Layout layout;
  Shared memory;
  Arena arena;
  Ring ring;
  Model model;
  std::mt19937 random;
  uint32_t n, stack;
};

// Appends, ends of episodes and clears, each killed at every store. Returns how many places there were, -1 where the
// system does not let us.
int kill_everywhere(const Spec& spec, uint32_t n, uint32_t stack, uint32_t seed) {
  World world(spec, n, stack, seed);
  int count = 0;
  const int rounds = kThorough * static_cast<int>(spec.lane_capacity + 2);
  for (int round = 0; round < rounds; ++round) {
    const uint64_t lane = world.random() % spec.lanes;
    const Model before = world.model;
    std::function<void()> work;
    const uint32_t what = world.random() % 16;
    if (what == 0 && round > 3) {
      for (auto& all : world.model.lanes) all.clear();
      work = [&] { world.ring.clear(); };
    } else if (what < 3) {
      auto& all = world.model.lanes[lane];
      if (!all.empty() && !Model::ends(all.back())) all.back().truncated = 1;
      work = [&] { world.ring.end_episode(lane); };
    } else {
      const Transition next = make_next(spec, world.model, world.random, lane, seed % 2 == 0);
      world.model.lanes[lane].push_back(next);
      ++world.model.pushed[lane];
      work = [&world, next, lane] { append(world.ring, world.layout.spec, next, lane); };
    }
    const bool torn = what != 0;  // of a clear the lanes are cleared one after the other; see below
    const Model after = world.model;
    if (!step_through(
            world.memory, work,
            [&](pid_t) {
              if (torn) world.check_torn(before, after);
            },
            count))
      return -1;
    Buffer whole(spec);
    std::memcpy(whole.data(), world.memory.start, world.memory.bytes);
    compare(whole, world.model, n, stack, false);
  }
  return count;
}

// A clear that is killed leaves each lane as it was, or empty.
int kill_clears(const Spec& spec, uint32_t seed) {
  World world(spec, 2, 1, seed);
  int count = 0;
  for (int round = 0; round < kThorough; ++round) {
    for (uint64_t i = 0; i < 3 * spec.lane_capacity; ++i) {
      const uint64_t lane = world.random() % spec.lanes;
      const Transition next = make_next(spec, world.model, world.random, lane, false);
      append(world.ring, world.layout.spec, next, lane);
      world.model.lanes[lane].push_back(next);
      ++world.model.pushed[lane];
    }
    Model after = world.model;
    for (auto& all : after.lanes) all.clear();
    if (!step_through(
            world.memory, [&] { world.ring.clear(); }, [&](pid_t) { world.check_torn(world.model, after); }, count))
      return -1;
    world.model = after;
  }
  return count;
}

// Draws, looks at what was pushed, and new priorities, each killed at every store: what a transition is drawn by is
// what it was or what it would have been, the sums are those of these masses, and drawing goes on.
int kill_selectors(const Spec& spec, const SelectorSpec& options, uint32_t seed) {
  const Layout layout(spec);
  const uint64_t size = layout.arena_bytes + Selector::bytes(options, layout);
  Shared memory(size);
  Arena arena(memory.start, layout);
  Ring ring(arena);
  arena.header().mutex.init();
  Reading here(memory.start, layout, options);
  here.selector.init(seed);
  Model model{std::vector<std::deque<Transition>>(spec.lanes), std::vector<uint64_t>(spec.lanes)};
  std::mt19937 random(seed);
  int count = 0;
  for (int round = 0; round < 4 * kThorough; ++round) {
    for (uint64_t i = 0; i < 1 + random() % (spec.lane_capacity * spec.lanes); ++i) {
      const uint64_t lane = random() % spec.lanes;
      const Transition next = make_next(spec, model, random, lane, false);
      append(ring, spec, next, lane);
      model.lanes[lane].push_back(next);
      ++model.pushed[lane];
    }
    Bytes untouched(memory.start, size);
    const Values before = Reading(untouched.data(), layout, options).values();
    std::vector<int64_t> ids;
    std::vector<double> raw;
    for (const auto& [id, mass] : before.masses)
      if (random() % 2) {
        ids.push_back(id);
        raw.push_back(random() % 4 == 0 ? 0.0 : random() % 7 + 0.5);
      }
    const bool updates = options.keeps_priorities() && random() % 2;
    const auto work = [&] {
      std::array<Anchor, 5> anchors;
      std::array<double, 5> masses;
      if (updates)
        here.selector.update(ids.data(), raw.data(), ids.size());
      else
        here.selector.draw(5, anchors.data(), masses.data());
    };
    Bytes finished(memory.start, size);
    {
      Reading all(finished.data(), layout, options);
      std::array<Anchor, 5> anchors;
      if (updates)
        all.selector.update(ids.data(), raw.data(), ids.size());
      else
        all.selector.draw(5, anchors.data(), nullptr);
    }
    const Values after = Reading(finished.data(), layout, options).values();
    const auto check = [&](pid_t) {
      Bytes torn(memory.start, size);
      Reading copy(torn.data(), layout, options);
      CHECK(Recovery(copy.arena).after_kill());
      SelectorState::recover(copy.selector);
      const Values found = copy.values();
      CHECK(found.masses.size() == before.masses.size());
      uint64_t left = 0;
      double sum = 0;
      for (const auto& [id, mass] : found.masses) {
        CHECK(mass == before.masses.at(id) || mass == after.masses.at(id));
        const uint32_t uses = found.uses.at(id);
        CHECK(uses >= before.uses.at(id) && uses <= after.uses.at(id));
        if (mass > 0 || (mass == 0 && options.draw == Draw::kRanked)) left += options.max_uses - uses;
        if (mass > 0) sum += mass;
        CHECK(options.max_uses == 0 || uses < options.max_uses || mass == SelectorState::kNoAnchor);
        const bool drawable = copy.selector.drawable(*copy.arena.find(id));
        CHECK(drawable == (mass != SelectorState::kNoAnchor));
      }
      if (options.max_uses) CHECK(copy.selector.num_left() == left);
      for (int batch = 0; batch < 3; ++batch) {
        std::array<Anchor, 4> anchors;
        std::array<double, 4> masses;
        if (!copy.selector.draw(4, anchors.data(), masses.data())) break;
        for (const Anchor& anchor : anchors) CHECK(found.masses.at(anchor.id) != SelectorState::kNoAnchor);
      }
    };
    if (!step_through(memory, work, check, count)) return -1;
  }
  return count;
}

}  // namespace

int main() {
  const std::vector<std::vector<uint64_t>> observations{{4}, {3, 600}, {0, 2}};
  uint32_t seed = 0;
  int places = 0;
  const auto add = [&](int count) {
    if (count < 0) {
      std::puts("kill: skipped, the system does not allow ptrace");
      std::exit(77);
    }
    places += count;
  };
  for (const auto& obs : observations)
    for (const uint64_t lanes : {1, 2})
      for (const uint64_t capacity : {1, 2, 5})
        for (const uint32_t stack : {1, 3}) {
          add(kill_everywhere(Spec{obs, {5}, lanes, capacity, 1, stack - 1}, 3, stack, seed));
          if (stack > 1) add(kill_everywhere(Spec{obs, {5}, lanes, capacity, stack, stack - 1}, 2, 1, seed));
          ++seed;
        }
  add(kill_clears(Spec{{4}, {5}, 3, 4, 1, 0}, 1));
  add(kill_clears(Spec{{4}, {5}, 2, 4, 3, 2}, 2));
  std::printf("kill: %d places in appends\n", places);
  std::vector<SelectorSpec> selectors(8);
  for (auto& spec : selectors) spec.draw = Draw::kProportional, spec.alpha = 0.5;
  selectors[1].minima = true;
  selectors[2].max_uses = 2;
  selectors[3].draw = Draw::kRanked;
  selectors[4].draw = Draw::kShuffled;
  selectors[5].rule = {3, 1};
  selectors[6].rule = {AnchorRule::kEpisode, 1};
  selectors[6].ends = true;
  selectors[7].rule = {2, 2};
  selectors[7].draw = Draw::kRanked;
  selectors[7].max_uses = 3;
  for (const SelectorSpec& spec : selectors)
    for (const uint64_t lanes : {1, 2}) add(kill_selectors(Spec{{4}, {5}, lanes, 6, 1, 0}, spec, ++seed));
  std::printf("kill: ok, killed at %d places\n", places);
}
