// Which live transitions a batch can start with: all of them, or the first steps of sequences.
#pragma once

#include "episodes.hpp"

namespace relive {

// A window of `length` steps may start at every position of an episode that is a multiple of `stride` and leaves room
// for it. When the episode ends, steps that no such window covers get one more, which the end cuts short.
struct AnchorRule {
  static constexpr uint64_t kEpisode = UINT64_MAX;

  uint64_t length = 0;  // 0: every transition is an anchor; kEpisode: the first steps of ended episodes are
  uint64_t stride = 1;

  bool all() const { return length == 0; }

  // The position whose window the end of an episode of `steps` steps cuts short, or `steps` if there is none.
  uint64_t cut(uint64_t steps) const {
    if (length == kEpisode || steps < length) return 0;
    const uint64_t at = ((steps - length) / stride + 1) * stride;
    return at - stride + length < steps ? at : steps;
  }

  bool is_anchor(const Arena& arena, const Anchor& anchor) const {
    if (all()) return true;
    const uint64_t at = position(arena.words(anchor.row));
    const auto time = static_cast<uint64_t>(anchor.id) / arena.layout().spec.lanes;
    if (length != kEpisode) {
      if ((at < kMaxPosition ? at : time) % stride != 0) return false;  // saturated positions all look the same
      if (reaches(arena, anchor, length - 1)) return true;
    }
    const uint64_t left = steps_after(arena, anchor);
    const uint64_t last = arena.before(anchor.head_row, anchor.lane_base, num_ahead(arena, anchor) - left);
    return arena.words(last).final != 0 && at == cut(at + left + 1);
  }

  // Calls `found` with the anchors that the arrival of the transition at `time` of a lane completes.
  template <typename Found>
  void arrived(const Arena& arena, uint64_t lane, const LaneHeader& state, uint64_t time, Found found) const {
    if (all()) return found(arena.anchor(lane, state, time));
    if (length == kEpisode || time - state.begin + 1 < length) return;
    const Anchor anchor = arena.anchor(lane, state, time - (length - 1));
    const uint64_t at = position(arena.words(anchor.row));
    if ((at < kMaxPosition ? at : time - (length - 1)) % stride == 0 && reaches(arena, anchor, length - 1))
      found(anchor);
  }

  // Calls `found` with the anchor that the end of an episode after the transition at `time` makes, if any.
  template <typename Found>
  void ended(const Arena& arena, uint64_t lane, const LaneHeader& state, uint64_t time, Found found) const {
    if (all()) return;
    const uint64_t last = position(arena.words(arena.anchor(lane, state, time).row));
    const uint64_t at = cut(last + 1);
    if (last == kMaxPosition || at > last || time - state.begin < last - at) return;  // unknown, none, or evicted
    found(arena.anchor(lane, state, time - (last - at)));
  }
};

}  // namespace relive
