// Goals given in hindsight: which step's achieved goal a transition is relabelled with, and where it lies.
// Andrychowicz et al. 2017, section 3.3.
#pragma once

#include <algorithm>
#include <vector>

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

  // The step that each anchor of batch number `batch` takes its goal from, id -1 where it keeps its own. Before the
  // batch is assembled: meanwhile the goals arrive in the cache. O(count): the selector knows how far each
  // transition is from the end of its episode.
  std::vector<Anchor> choose(const Arena& arena, const Selector& selector, uint64_t batch, const Anchor* anchors,
                             uint64_t count) const {
    std::vector<Anchor> chosen(anchors, anchors + count);
    std::vector<std::array<uint64_t, 2>> bits(count);
    for (uint64_t i = 0; i < count; ++i) selector.prefetch_end(anchors[i].row);
    for (uint64_t i = 0; i < count; ++i) bits[i] = philox2x64({batch, kStream + i}, selector.header().seed);
    for (uint64_t i = 0; i < count; ++i) {
      if (static_cast<double>(bits[i][0] >> 11) * 0x1p-53 < share_) {
        move(arena, selector, bits[i][1], chosen[i]);
        fetch(arena, chosen[i]);
      } else {
        chosen[i].id = -1;
      }
    }
    return chosen;
  }

  // Overwrites the desired goals of the assembled batch where `chosen` (may be empty: nowhere) says so, and writes what
  // rewards are computed from. O(count * n).
  void relabel(const Arena& arena, const std::vector<Anchor>& chosen, const Anchor* anchors, uint64_t count,
               const BatchArrays& out) const {
    const uint64_t bytes = layout_.obs[achieved_].bytes;
    for (const Anchor& step : chosen)
      if (step.id >= 0) prefetch(goal_after(arena, step.lane_base, step.row), bytes);  // may be a final one
    int64_t num = 0;
    uint64_t at = 0;  // bytes of the goals written
    for (uint64_t i = 0; i < count; ++i) {
      out.goal_ids[i] = chosen.empty() ? -1 : chosen[i].id;
      if (out.goal_ids[i] < 0) continue;
      const char* goal = goal_after(arena, chosen[i].lane_base, chosen[i].row);
      for (uint64_t frame = i * frames_; frame < (i + 1) * frames_; ++frame) {
        copy_value(out.obs[desired_] + frame * bytes, goal, bytes);
        copy_value(out.next_obs[desired_] + frame * bytes, goal, bytes);
      }
      uint64_t row = anchors[i].row;
      int64_t steps = 0;
      for (bool last = false; !last; at += bytes) {
        copy_value(out.achieved + at, goal_after(arena, anchors[i].lane_base, row), bytes);
        copy_value(out.desired + at, goal, bytes);
        const uint64_t next = arena.after(row, anchors[i].lane_base);
        last = ++steps == n_ || is_last(arena.words(row), next, anchors[i].head_row);
        row = next;
      }
      out.relabelled[3 * num] = static_cast<int64_t>(i);
      out.relabelled[3 * num + 1] = steps;
      ++num;
    }
    if (count > 0) out.relabelled[2] = num;
  }

 private:
  static constexpr uint64_t kStream = 1ull << 63;  // blocks of random bits that no sampler uses

  // Moves an anchor to the step whose achieved goal it is to have.
  void move(const Arena& arena, const Selector& selector, uint64_t bits, Anchor& anchor) const {
    const uint64_t ahead = num_ahead(arena, anchor), left = selector.steps_after(anchor);
    uint64_t forward = left, back = 0;
    if (strategy_ == Strategy::kFuture) forward = below(left + 1, bits);
    if (strategy_ == Strategy::kEpisode) {
      const LaneHeader& state = arena.lane(anchor.lane_base / layout_.rows);
      const uint64_t live = state.head - state.begin;
      back = std::min<uint64_t>(position(arena.words(anchor.row)), live - ahead);
      forward = below(back + left + 1, bits);
    }
    anchor.id +=
        (static_cast<int64_t>(forward) - static_cast<int64_t>(back)) * static_cast<int64_t>(layout_.spec.lanes);
    anchor.row = arena.before(anchor.head_row, anchor.lane_base, ahead + back - forward);
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

  const Layout& layout_;
  Strategy strategy_;
  double share_;
  uint64_t achieved_, desired_;
  uint32_t n_, frames_;
};

}  // namespace relive
