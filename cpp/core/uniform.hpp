// Which ids: every live transition alike.
#pragma once

#include <vector>

#include "episodes.hpp"
#include "rng.hpp"

namespace relive {

// Draws `count` live transitions independently and uniformly, with replacement: a pure function of (seed, batch,
// count, contents). At least one must be live. O(count), plus O(lanes) where lanes differ in length.
inline void draw_uniform(const Arena& arena, uint64_t seed, uint64_t batch, uint64_t count, Anchor* anchors) {
  const uint64_t lanes = arena.layout().spec.lanes;
  const uint64_t live = arena.header().live;
  const auto length = [&](uint64_t lane) { return arena.lane(lane).head - arena.lane(lane).begin; };

  // Lanes of one environment step each are alike; then no search is needed.
  std::vector<uint64_t> ends;
  bool alike = live == lanes * arena.layout().spec.lane_capacity || lanes == 1;
  if (!alike) {
    uint64_t end = 0;
    alike = true;
    for (uint64_t lane = 0; lane < lanes; ++lane) {
      alike = alike && length(lane) == length(0);
      ends.push_back(end += length(lane));
    }
  }
  const auto locate = [&](uint64_t bits) {
    if (alike) {
      const uint64_t lane = lanes == 1 ? 0 : below(lanes, bits);
      const LaneHeader& state = arena.lane(lane);
      return arena.anchor(lane, state, state.begin + below(state.head - state.begin, bits));
    }
    const uint64_t drawn = below(live, bits);
    const uint64_t lane = std::upper_bound(ends.begin(), ends.end(), drawn) - ends.begin();
    const LaneHeader& state = arena.lane(lane);
    return arena.anchor(lane, state, state.head - (ends[lane] - drawn));
  };
  for (uint64_t i = 0; i < count; i += 2) {
    const auto bits = philox2x64({batch, i / 2}, seed);
    anchors[i] = locate(bits[0]);
    if (i + 1 < count) anchors[i + 1] = locate(bits[1]);
  }
}

}  // namespace relive
