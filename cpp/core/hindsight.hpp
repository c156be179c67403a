// Goals given in hindsight: which step's achieved goal a transition is relabelled with, and where it lies.
// Andrychowicz et al. 2017, section 3.3.
#pragma once

#include <algorithm>

#include "selector.hpp"
#include "window.hpp"

namespace relive {

enum class Strategy : uint32_t { kFuture, kFinal, kEpisode };

class Relabeler {
 public:
  // `achieved` and `desired` number the observation's leaves; a row is relabelled with probability `share`.
  Relabeler(const Layout& layout, Strategy strategy, double share, uint64_t achieved, uint64_t desired, uint32_t n,
            uint32_t frames)
      : layout_(layout),
        strategy_(strategy),
        share_(share),
        achieved_(achieved),
        desired_(desired),
        n_(n),
        frames_(frames) {}

  // Overwrites the desired goals of batch number `batch`, already assembled, and writes what the rewards are computed
  // from. O(count * n): the selector knows how far each transition is from the end of its episode.
  void relabel(const Arena& arena, const Selector& selector, uint64_t batch, const Anchor* anchors, uint64_t count,
               const BatchArrays& out) const {
    std::array<Anchor, kBlock> chosen;
    for (uint64_t first = 0; first < count; first += kBlock) {
      const uint64_t size = std::min(kBlock, count - first);
      for (uint64_t i = 0; i < size; ++i) selector.prefetch_end(anchors[first + i].row);
      for (uint64_t i = 0; i < size; ++i) {
        chosen[i] = choose(arena, selector, batch, first + i, anchors[first + i]);
        out.goal_ids[first + i] = chosen[i].id;
        if (chosen[i].id >= 0) fetch(arena, chosen[i]);
      }
      for (uint64_t i = 0; i < size; ++i) keep_achieved(arena, anchors[first + i], first + i, out);
      for (uint64_t i = 0; i < size; ++i)
        if (chosen[i].id >= 0) set_goal(arena, chosen[i], first + i, out);
    }
  }

  // Leaves the batch as it is: nothing is relabelled.
  void keep(const Arena& arena, const Anchor* anchors, uint64_t count, const BatchArrays& out) const {
    for (uint64_t i = 0; i < count; ++i) {
      out.goal_ids[i] = -1;
      keep_achieved(arena, anchors[i], i, out);
    }
  }

 private:
  static constexpr uint64_t kStream = 1ull << 63;  // blocks of random bits that no sampler uses

  // The step to take the goal of, or an anchor with id -1.
  Anchor choose(const Arena& arena, const Selector& selector, uint64_t batch, uint64_t i, const Anchor& anchor) const {
    auto bits = philox2x64({batch, kStream + i}, selector.header().seed);
    Anchor chosen = anchor;
    chosen.id = -1;
    if (static_cast<double>(bits[0] >> 11) * 0x1p-53 >= share_) return chosen;
    const uint64_t left = selector.steps_after(anchor);
    const uint64_t lanes = layout_.spec.lanes;
    const auto time = static_cast<uint64_t>(anchor.id) / lanes;
    const uint64_t lane = static_cast<uint64_t>(anchor.id) % lanes;
    const LaneHeader& state = arena.lane(lane);
    uint64_t goal = time + left;
    if (strategy_ == Strategy::kFuture) goal = time + below(left + 1, bits[1]);
    if (strategy_ == Strategy::kEpisode) {
      const uint64_t past = std::min<uint64_t>(position(arena.words(anchor.row)), time - state.begin);
      goal = time - past + below(past + left + 1, bits[1]);
    }
    return arena.anchor(lane, state, goal);
  }

  const char* goal_after(const Arena& arena, uint64_t lane_base, uint64_t row) const {
    const Leaf& leaf = layout_.obs[achieved_];
    const Words& words = arena.words(row);
    return words.final ? arena.final(leaf, lane_base + words.final - 1)
                       : arena.value(leaf, arena.after(row, lane_base));
  }

  RELIVE_INLINE void fetch(const Arena& arena, const Anchor& step) const {
    prefetch(&arena.words(step.row), sizeof(Words));
    const Leaf& leaf = layout_.obs[achieved_];
    prefetch(arena.value(leaf, arena.after(step.row, step.lane_base)), leaf.bytes);
  }

  void set_goal(const Arena& arena, const Anchor& step, uint64_t i, const BatchArrays& out) const {
    const uint64_t bytes = layout_.obs[desired_].bytes;
    const char* goal = goal_after(arena, step.lane_base, step.row);
    for (uint32_t frame = 0; frame < frames_; ++frame) {
      copy_value(out.obs[desired_] + (i * frames_ + frame) * bytes, goal, bytes);
      copy_value(out.next_obs[desired_] + (i * frames_ + frame) * bytes, goal, bytes);
    }
  }

  void keep_achieved(const Arena& arena, const Anchor& anchor, uint64_t i, const BatchArrays& out) const {
    const uint64_t bytes = layout_.obs[achieved_].bytes;
    char* to = out.achieved + i * n_ * bytes;
    uint64_t row = anchor.row;
    uint32_t step = 0;
    for (;; ++step) {
      copy_value(to + step * bytes, goal_after(arena, anchor.lane_base, row), bytes);
      const uint64_t next = arena.after(row, anchor.lane_base);
      if (step + 1 == n_ || is_last(arena.words(row), next, anchor.head_row)) break;
      row = next;
    }
    out.steps[i] = static_cast<int32_t>(step + 1);
    std::memset(to + (step + 1) * bytes, 0, (n_ - step - 1) * bytes);
  }

  const Layout& layout_;
  Strategy strategy_;
  double share_;
  uint64_t achieved_, desired_;
  uint32_t n_, frames_;
};

}  // namespace relive
