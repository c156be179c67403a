// A ring and a naive model of it: whole transitions in a list, windows followed step by step.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>

#include "check.hpp"
#include "core/ring.hpp"
#include "core/uniform.hpp"
#include "core/window.hpp"

namespace relive {

// A transition, whole.
struct Transition {
  std::vector<std::string> obs, next_obs;  // a leaf each, whole stacks where they arrive stacked
  std::string rest;
  float reward;
  uint8_t terminated, truncated;
  uint64_t time;
  bool cut = false;  // its episode was ended by something else than a flag or what followed
};

struct Buffer {
  explicit Buffer(const Spec& spec)
      : layout(spec), bytes(layout.arena_bytes / kPage, Page{}), arena(data(), layout), ring(arena) {
    arena.header().mutex.init();
  }
  struct alignas(kPage) Page {
    char bytes[kPage];
  };
  char* data() { return bytes.data()->bytes; }

  Layout layout;
  std::vector<Page> bytes;
  Arena arena;
  Ring ring;
};

struct Model {
  std::vector<std::deque<Transition>> lanes;  // every transition since the last clear, oldest first
  std::vector<uint64_t> pushed;

  bool live(const Spec& spec, uint64_t lane, uint64_t index) const {
    return index + spec.lane_capacity >= lanes[lane].size();
  }
  static bool ends(const Transition& a) { return a.terminated || a.truncated; }
  // True if transition index + 1 of the lane is the same episode's next one.
  bool goes_on(uint64_t lane, uint64_t index) const {
    const auto& all = lanes[lane];
    return index + 1 < all.size() && !ends(all[index]) && !all[index].cut && all[index].next_obs == all[index + 1].obs;
  }
};

inline std::string random_bytes(std::mt19937& random, uint64_t count) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random() % 3);  // few values, so that chance repetitions occur
  return bytes;
}

// The stack of k single frames that ends at transition `index`, by walking back through the model.
inline std::string stack_of(const Model& model, uint64_t lane, uint64_t index, size_t leaf, uint32_t k, bool zeros) {
  std::string stack = model.lanes[lane][index].obs[leaf];
  std::string oldest = stack;
  uint64_t at = index;
  bool begun = false;
  for (uint32_t back = 1; back < k; ++back) {
    if (!begun && at > 0 && model.goes_on(lane, at - 1))
      oldest = model.lanes[lane][--at].obs[leaf];
    else {
      if (!begun && zeros) oldest.assign(oldest.size(), '\0');
      begun = true;
    }
    stack = oldest + stack;
  }
  return stack;
}

// `evicted`: transitions that went before their time.
inline void compare(Buffer& buffer, const Model& model, uint32_t n, uint32_t stack, bool zeros, uint64_t evicted = 0) {
  const Spec& spec = buffer.layout.spec;
  const double gamma = 0.5;
  const TransitionView view(buffer.layout, n, gamma, stack, zeros);
  std::vector<int64_t> ids(buffer.arena.header().live);
  live_ids(buffer.arena, ids.data());
  uint64_t expected = 0;
  for (const auto& lane : model.lanes) expected += std::min<uint64_t>(lane.size(), spec.lane_capacity);
  CHECK(ids.size() + evicted == expected);
  CHECK(std::is_sorted(ids.begin(), ids.end()));
  if (ids.empty()) return;

  std::vector<Anchor> anchors;
  for (const int64_t id : ids) {
    const auto anchor = buffer.arena.find(id);
    CHECK(anchor && anchor->id == id);
    anchors.push_back(*anchor);
  }
  const uint64_t count = ids.size();
  std::vector<std::string> obs, next_obs;
  std::string rest(count * spec.rest[0], '\0');
  BatchArrays out;
  for (const uint64_t bytes : spec.obs) {
    obs.emplace_back(count * bytes * view.frames(), 'x');
    next_obs.emplace_back(count * bytes * view.frames(), 'x');
  }
  for (auto& array : obs) out.obs.push_back(array.data());
  for (auto& array : next_obs) out.next_obs.push_back(array.data());
  out.rest.push_back(rest.data());
  std::vector<float> reward(count), discount(count);
  std::vector<uint8_t> terminated(count), truncated(count);
  std::vector<int64_t> out_ids(count);
  out.reward = reward.data();
  out.discount = discount.data();
  out.terminated = terminated.data();
  out.truncated = truncated.data();
  out.ids = out_ids.data();
  view.assemble(buffer.arena, anchors.data(), count, out);

  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t lane = ids[i] % spec.lanes, time = ids[i] / spec.lanes;
    const auto& all = model.lanes[lane];
    const uint64_t index = time - all.front().time;
    CHECK(index < all.size() && model.live(spec, lane, index));
    uint64_t last = index;
    double total = all[index].reward, power = gamma;
    for (uint32_t step = 1; step < n && model.goes_on(lane, last); ++step, power *= gamma)
      total += power * all[++last].reward;
    CHECK(out_ids[i] == ids[i]);
    CHECK(reward[i] == static_cast<float>(total));
    CHECK(discount[i] == (all[last].terminated ? 0.0f : static_cast<float>(power)));
    CHECK(terminated[i] == all[last].terminated && truncated[i] == all[last].truncated);
    CHECK(rest.compare(i * spec.rest[0], spec.rest[0], all[index].rest) == 0);
    for (size_t leaf = 0; leaf < spec.obs.size(); ++leaf) {
      const uint64_t bytes = spec.obs[leaf] * view.frames();
      std::string want = all[index].obs[leaf], want_next = all[last].next_obs[leaf];
      if (spec.stacked == 1) {
        want = stack_of(model, lane, index, leaf, stack, zeros);
        // next_obs's older frames are those of the last step's stack, moved on by one.
        if (stack > 1) want_next = stack_of(model, lane, last, leaf, stack, zeros).substr(spec.obs[leaf]) + want_next;
      }
      CHECK(obs[leaf].compare(i * bytes, bytes, want) == 0);
      CHECK(next_obs[leaf].compare(i * bytes, bytes, want_next) == 0);
    }
  }
}

// What may be pushed next, to any of the lanes.
inline Transition make_next(const Spec& spec, const Model& model, std::mt19937& random, uint64_t lane,
                            bool repeat_starts) {
  const auto& all = model.lanes[lane];
  Transition now;
  const bool follow = !all.empty() && random() % 8 != 0;  // also after an end: equal bytes, yet another episode
  for (size_t leaf = 0; leaf < spec.obs.size(); ++leaf) {
    const uint64_t frame = spec.obs[leaf];
    std::string obs = random_bytes(random, frame * spec.stacked);
    if (repeat_starts)
      for (uint32_t k = 0; k < spec.stacked; ++k) obs.replace(k * frame, frame, obs.substr((spec.stacked - 1) * frame));
    if (follow) obs = all.back().next_obs[leaf];
    now.obs.push_back(obs);
    now.next_obs.push_back(obs.substr(frame) + random_bytes(random, frame));
  }
  now.rest = random_bytes(random, spec.rest[0]);
  now.reward = static_cast<float>(static_cast<int>(random() % 9) - 4);
  now.terminated = random() % 9 == 0;
  now.truncated = random() % 9 == 0;
  now.time = model.pushed[lane];
  return now;
}

// Appends it to a ring; to the model it has to be told.
inline void append(Ring& ring, const Spec& spec, const Transition& now, uint64_t lane) {
  std::vector<const char*> obs, next_obs;
  for (const auto& leaf : now.obs) obs.push_back(leaf.data());
  for (const auto& leaf : now.next_obs) next_obs.push_back(leaf.data());
  const std::vector<const char*> rest{now.rest.data()};
  const Block block{obs, next_obs, rest, &now.reward, &now.terminated, &now.truncated};
  CHECK(ring.rolls(block, 0));
  const int64_t id = ring.append(lane, block, 0);
  CHECK(static_cast<uint64_t>(id) == now.time * spec.lanes + lane);
}

inline void push(Buffer& buffer, Model& model, std::mt19937& random, uint64_t lane, bool repeat_starts) {
  const Transition now = make_next(buffer.layout.spec, model, random, lane, repeat_starts);
  append(buffer.ring, buffer.layout.spec, now, lane);
  ++model.pushed[lane];
  model.lanes[lane].push_back(now);
}

}  // namespace relive
