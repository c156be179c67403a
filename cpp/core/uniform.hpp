// Which ids: every live transition alike.
#pragma once

#include <vector>

#include "episodes.hpp"
#include "rng.hpp"

namespace relive {

inline constexpr uint64_t kAhead = 4;  // independent blocks of random bits computed side by side

// Draws `count` live transitions independently and uniformly, with replacement: a pure function of (seed, batch,
// count, contents). At least one must be live. O(count), plus O(lanes) where lanes differ in length.
inline void draw_uniform(const Arena arena, uint64_t seed, uint64_t batch, uint64_t count, Anchor* anchors) {
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
  const LaneHeader only = arena.lane(0);
  const auto locate = [&](uint64_t bits) {
    if (lanes == 1) return arena.anchor(0, only, only.begin + below(only.head - only.begin, bits));
    if (alike) {
      const uint64_t lane = below(lanes, bits);
      const LaneHeader& state = arena.lane(lane);
      return arena.anchor(lane, state, state.begin + below(state.head - state.begin, bits));
    }
    const uint64_t drawn = below(live, bits);
    const uint64_t lane = std::upper_bound(ends.begin(), ends.end(), drawn) - ends.begin();
    const LaneHeader& state = arena.lane(lane);
    return arena.anchor(lane, state, state.head - (ends[lane] - drawn));
  };
  std::array<uint64_t, 2 * kAhead> bits;
  for (uint64_t i = 0; i < count; i += bits.size()) {
    for (uint64_t block = 0; block < kAhead; ++block) {
      const auto pair = philox2x64({batch, i / 2 + block}, seed);
      bits[2 * block] = pair[0];
      bits[2 * block + 1] = pair[1];
    }
    for (uint64_t j = 0; j < std::min(bits.size(), count - i); ++j) anchors[i + j] = locate(bits[j]);
  }
}

}  // namespace relive
