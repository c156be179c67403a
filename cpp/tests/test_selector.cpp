// Selectors against a naive model: which transitions are anchors, what their masses are, how often each may still be
// drawn. Lanes differ in length; episodes end in every way; the ring wraps, also many times between two looks, and is
// cleared. Every batch is assembled into memory of exactly its size, for the address sanitizer.
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "check.hpp"
#include "core/hindsight.hpp"
#include "core/ring.hpp"
#include "core/sequence.hpp"

using namespace relive;

namespace {

struct alignas(kPage) Page {
  char bytes[kPage];
};

struct Zeroed {
  explicit Zeroed(uint64_t size) : pages(size / kPage + 1, Page{}) {}
  char* data() { return pages.data()->bytes; }
  std::vector<Page> pages;
};

struct Step {
  uint64_t position, obs, next_obs;
  bool ended;
};

// A buffer whose observations are two numbers: the goal achieved, which no other observation has, and the one desired.
struct World {
  World(uint64_t lanes, uint64_t capacity)
      : layout(Spec{{8, 8}, {4}, lanes, capacity, 1, 0}),
        memory(layout.arena_bytes),
        arena(memory.data(), layout),
        ring(arena),
        past(lanes),
        cleared(lanes) {
    arena.header().mutex.init();
  }

  void push(uint64_t lane, std::mt19937& random) {
    auto& all = past[lane];
    const bool had = all.size() > cleared[lane];
    const bool goes_on = had && !all.back().ended && random() % 12 != 0;
    if (had && !goes_on) all.back().ended = true;  // by a discontinuity, if by nothing else
    Step step{goes_on ? all.back().position + 1 : 0, goes_on ? all.back().next_obs : ++unique, ++unique, false};
    const uint8_t terminated = random() % 10 == 0, truncated = random() % 12 == 0;
    step.ended = terminated || truncated;
    const uint64_t desired = 7;
    const auto* goal = reinterpret_cast<const char*>(&desired);
    const std::vector<const char*> obs{reinterpret_cast<const char*>(&step.obs), goal};
    const std::vector<const char*> next_obs{reinterpret_cast<const char*>(&step.next_obs), goal};
    const std::vector<const char*> rest{goal};
    const float reward = 1;
    ring.append(lane, Block{obs, next_obs, rest, &reward, &terminated, &truncated}, 0);
    all.push_back(step);
  }
  void clear() {
    ring.clear();
    for (uint64_t lane = 0; lane < past.size(); ++lane) cleared[lane] = past[lane].size();
  }

  uint64_t begin(uint64_t lane) const {
    const uint64_t depth = layout.spec.lane_capacity, head = past[lane].size();
    return std::max(cleared[lane], head > depth ? head - depth : 0);
  }
  // The last transition of the episode, in the buffer so far.
  uint64_t last(uint64_t lane, uint64_t time) const {
    const auto& all = past[lane];
    while (!all[time].ended && time + 1 < all.size()) ++time;
    return time;
  }
  bool is_anchor(const AnchorRule& rule, uint64_t lane, uint64_t time) const {
    const auto& all = past[lane];
    if (rule.all()) return true;
    const uint64_t at = all[time].position, end = last(lane, time);
    const uint64_t steps = all[end].position + 1;
    if (rule.length == AnchorRule::kEpisode) return at == 0 && all[end].ended;
    if (at % rule.stride != 0) return false;
    if (at + rule.length <= steps) return true;
    return all[end].ended && (at == 0 || at - rule.stride + rule.length < steps);
  }
  int64_t id(uint64_t lane, uint64_t time) const { return static_cast<int64_t>(time * past.size() + lane); }
  std::set<int64_t> anchors(const AnchorRule& rule) const {
    std::set<int64_t> ids;
    for (uint64_t lane = 0; lane < past.size(); ++lane)
      for (uint64_t time = begin(lane); time < past[lane].size(); ++time)
        if (is_anchor(rule, lane, time)) ids.insert(id(lane, time));
    return ids;
  }

  Layout layout;
  Zeroed memory;
  Arena arena;
  Ring ring;
  std::vector<std::vector<Step>> past;
  std::vector<uint64_t> cleared;
  uint64_t unique = 100;
};

// Arrays of exactly one batch.
struct Arrays {
  Arrays(uint64_t count, uint64_t steps, uint64_t n)
      : obs(2, std::vector<uint64_t>(count * (steps ? steps + 1 : 1))),
        next_obs(2, std::vector<uint64_t>(count)),
        rest(count * std::max<uint64_t>(steps, 1)),
        numbers(2, std::vector<float>(rest.size())),
        flags(4, std::vector<uint8_t>(rest.size())),
        ids(count),
        goal_ids(count),
        relabelled(3 * count),
        achieved(count * n),
        desired(count * n) {
    for (auto& leaf : obs) out.obs.push_back(reinterpret_cast<char*>(leaf.data()));
    for (auto& leaf : next_obs) out.next_obs.push_back(reinterpret_cast<char*>(leaf.data()));
    out.rest.push_back(reinterpret_cast<char*>(rest.data()));
    out.reward = numbers[0].data();
    out.discount = numbers[1].data();
    out.terminated = flags[0].data();
    out.truncated = flags[1].data();
    out.mask = flags[2].data();
    out.loss_mask = flags[3].data();
    out.ids = ids.data();
    out.goal_ids = goal_ids.data();
    out.relabelled = relabelled.data();
    out.achieved = reinterpret_cast<char*>(achieved.data());
    out.desired = reinterpret_cast<char*>(desired.data());
  }
  std::vector<std::vector<uint64_t>> obs, next_obs;
  std::vector<uint32_t> rest;
  std::vector<std::vector<float>> numbers;
  std::vector<std::vector<uint8_t>> flags;
  std::vector<int64_t> ids, goal_ids, relabelled;
  std::vector<uint64_t> achieved, desired;
  BatchArrays out{};
};

void check_sequences(const World& world, const SequenceView& view, const std::vector<Anchor>& anchors) {
  const uint64_t count = anchors.size(), lanes = world.past.size();
  const uint64_t steps = view.steps(world.arena, anchors.data(), count);
  Arrays arrays(count, steps, 1);
  view.assemble(world.arena, anchors.data(), count, steps, arrays.out);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t lane = anchors[i].id % lanes, first = anchors[i].id / lanes;
    const uint64_t real = std::min(steps, world.last(lane, first) - first + 1);
    for (uint64_t step = 0; step <= steps; ++step) {
      const auto& all = world.past[lane];
      const uint64_t want = step < real ? all[first + step].obs : step == real ? all[first + real - 1].next_obs : 0;
      CHECK(arrays.obs[0][i * (steps + 1) + step] == want);
      if (step < steps) CHECK(arrays.out.mask[i * steps + step] == (step < real));
    }
  }
}

void check_goals(const World& world, const Selector& selector, Strategy strategy, const std::vector<Anchor>& anchors) {
  const uint64_t count = anchors.size(), lanes = world.past.size(), n = 3;
  const TransitionView view(world.layout, n, 0.9, 1, false);
  const Relabeler relabeler(world.layout, strategy, 0.75, 0, 1, n, 1);
  Arrays arrays(count, 0, n);
  view.assemble(world.arena, anchors.data(), count, arrays.out);
  const auto chosen = relabeler.choose(world.arena, selector, 5, anchors.data(), count);
  relabeler.relabel(world.arena, chosen, anchors.data(), count, arrays.out);
  int64_t num = 0;
  uint64_t steps = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t lane = anchors[i].id % lanes, time = anchors[i].id / lanes, last = world.last(lane, time);
    const auto& all = world.past[lane];
    CHECK(selector.steps_after(anchors[i]) == last - time);
    if (arrays.goal_ids[i] < 0) {
      CHECK(arrays.obs[1][i] == 7 && arrays.next_obs[1][i] == 7);
      continue;
    }
    const uint64_t goal = arrays.goal_ids[i] / lanes;
    const uint64_t first = std::max(world.begin(lane), time - all[time].position);
    CHECK(arrays.goal_ids[i] % lanes == lane && goal <= last);
    CHECK(goal >= (strategy == Strategy::kEpisode ? first : strategy == Strategy::kFuture ? time : last));
    CHECK(arrays.obs[1][i] == all[goal].next_obs && arrays.next_obs[1][i] == all[goal].next_obs);
    const uint64_t window = std::min(n, last - time + 1);
    CHECK(arrays.relabelled[3 * num] == static_cast<int64_t>(i));
    CHECK(arrays.relabelled[3 * num + 1] == static_cast<int64_t>(window));
    for (uint64_t step = 0; step < window; ++step, ++steps)
      CHECK(arrays.achieved[steps] == all[time + step].next_obs && arrays.desired[steps] == all[goal].next_obs);
    ++num;
  }
  CHECK(arrays.relabelled[2] == num);
}

// What the model knows of a selector: priorities of live anchors, and how often each was drawn.
struct Known {
  std::map<int64_t, double> priorities;
  std::map<int64_t, uint32_t> uses;
  double largest = 1;

  void sync(const std::set<int64_t>& anchors) {
    std::erase_if(priorities, [&](const auto& known) { return !anchors.contains(known.first); });
    std::erase_if(uses, [&](const auto& known) { return !anchors.contains(known.first); });
    for (const int64_t id : anchors) priorities.emplace(id, largest);
  }
};

void fuzz(const SelectorSpec& spec, uint64_t lanes, uint64_t capacity, uint32_t seed) {
  World world(lanes, capacity);
  Zeroed memory(Selector::bytes(spec, world.layout));
  Selector selector(memory.data(), spec, world.arena);
  selector.init(seed);
  const SequenceView sequences(world.layout, spec.rule, 0, 0.9, 1, false, {false});
  std::mt19937 random(seed);
  Known known;
  for (int round = 0; round < 60; ++round) {
    const uint64_t pushes = random() % 10 == 0 ? random() % (3 * capacity + 3) : random() % 4;
    for (uint64_t push = 0; push < pushes; ++push) world.push(random() % lanes, random);
    if (random() % 25 == 0) world.clear();
    selector.sync();
    const std::set<int64_t> anchors = world.anchors(spec.rule);
    known.sync(anchors);

    double sum = 0;
    uint64_t left = 0;
    std::set<int64_t> drawable;
    for (const int64_t id : anchors) {
      const bool used_up = spec.max_uses && known.uses[id] >= spec.max_uses;
      const double mass = spec.draw != Draw::kProportional ? 1 : known.priorities[id];
      CHECK(selector.drawable(*world.arena.find(id)) == (!used_up && mass > 0));
      if (used_up || mass == 0) continue;
      drawable.insert(id);
      sum += mass;
      left += spec.max_uses - known.uses[id];
    }
    for (uint64_t lane = 0; lane < lanes; ++lane)
      for (uint64_t time = world.begin(lane); time < world.past[lane].size(); ++time)
        if (!anchors.contains(world.id(lane, time))) CHECK(!selector.drawable(*world.arena.find(world.id(lane, time))));

    const uint64_t count = 1 + random() % 9;
    std::vector<Anchor> drawn(count);
    std::vector<double> masses(count);
    const uint64_t before = selector.header().draws;
    const bool enough = !drawable.empty() && (!spec.max_uses || left >= count);
    CHECK(selector.draw(count, drawn.data(), masses.data()) == enough);
    CHECK(selector.header().draws == before + enough);
    if (!enough) continue;
    if (spec.newest) {
      auto newest = drawable.rbegin();
      for (uint64_t i = 0; i < std::min({spec.newest, count, drawable.size()}); ++i) CHECK(drawn[i].id == *newest++);
    }
    for (uint64_t i = 0; i < count; ++i) {
      CHECK(drawable.contains(drawn[i].id) && world.arena.find(drawn[i].id)->row == drawn[i].row);
      if (spec.draw == Draw::kProportional) CHECK(masses[i] == known.priorities[drawn[i].id]);
      CHECK(!spec.max_uses || ++known.uses[drawn[i].id] <= spec.max_uses);
    }
    if (!spec.rule.all()) check_sequences(world, sequences, drawn);
    if (spec.ends) check_goals(world, selector, static_cast<Strategy>(random() % 3), drawn);

    if (!spec.keeps_priorities()) continue;
    std::vector<int64_t> ids;
    std::vector<double> raw;
    uint64_t live = 0;
    for (int i = 0; i < 6; ++i) {
      const int64_t newest = world.id(0, world.past[0].size());
      ids.push_back(i % 2 ? drawn[random() % count].id : static_cast<int64_t>(random() % (newest + 3)));
      raw.push_back(static_cast<double>(random() % 5));
      if (!anchors.contains(ids.back())) continue;
      ++live;
      const double priority = raw.back() == 0 ? 0 : std::pow(raw.back(), spec.alpha);
      known.largest = std::max(known.largest, spec.draw == Draw::kRanked ? raw.back() : priority);
      if (!spec.max_uses || known.uses[ids.back()] < spec.max_uses) known.priorities[ids.back()] = priority;
    }
    CHECK(selector.update(ids.data(), raw.data(), ids.size()) == live);
  }
}

// An epoch has every anchor once, whatever the batches' size.
void epochs(uint64_t lanes, uint64_t capacity) {
  World world(lanes, capacity);
  SelectorSpec spec;
  spec.draw = Draw::kShuffled;
  Zeroed memory(Selector::bytes(spec, world.layout));
  Selector selector(memory.data(), spec, world.arena);
  selector.init(capacity);
  std::mt19937 random(9);
  for (uint64_t push = 0; push < 3 * capacity; ++push) world.push(random() % lanes, random);
  const uint64_t live = world.arena.header().live;
  std::vector<Anchor> drawn(4 * live);
  for (uint64_t at = 0; at < drawn.size();) {
    const uint64_t count = std::min<uint64_t>(1 + random() % 7, drawn.size() - at);
    CHECK(selector.draw(count, drawn.data() + at, nullptr));
    at += count;
  }
  for (uint64_t epoch = 0; epoch < 4; ++epoch) {
    std::set<int64_t> seen;
    for (uint64_t i = 0; i < live; ++i) CHECK(seen.insert(drawn[epoch * live + i].id).second);
  }
}

}  // namespace

int main() {
  uint32_t seed = 0;
  const std::vector<AnchorRule> rules{{0, 1}, {1, 1}, {3, 1}, {4, 3}, {5, 5}, {AnchorRule::kEpisode, 1}};
  for (const AnchorRule& rule : rules)
    for (const Draw draw : {Draw::kUniform, Draw::kProportional, Draw::kRanked, Draw::kShuffled, Draw::kRecent})
      for (const uint64_t lanes : {1, 3})
        for (const uint64_t capacity : {1, 4, 19})
          for (const uint32_t max_uses : {0, 2}) {
            SelectorSpec spec;
            spec.draw = draw;
            spec.alpha = 0.6;
            spec.minima = seed % 2 == 0;
            spec.shrink = 0.99;
            spec.period = 5;
            spec.smallest = 2;
            spec.newest = seed % 3;
            spec.max_uses = max_uses;
            spec.rule = rule;
            spec.ends = rule.all();
            fuzz(spec, lanes, capacity, seed++);
          }
  for (const uint64_t capacity : {1, 2, 3, 4, 5, 16, 17, 100}) {
    epochs(1, capacity);
    epochs(2, capacity);
  }
  std::puts("selector: ok");
}
