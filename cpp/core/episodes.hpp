// Which transitions are live, and where episodes begin and end: the one owner of "is this id valid for this window".
// Also the addresses of things in the arena. Reads and writes a few words; holds no state of its own.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>

#include "layout.hpp"

namespace relive {

// A live transition, found.
struct Anchor {
  int64_t id;
  uint64_t row;        // in the arena, over all lanes
  uint64_t lane_base;  // first row of its lane
  uint64_t head_row;   // open row of its lane
};

// The arena with names. Cheap to copy; the layout must outlive it. Hot loops do copy it: what they store could change
// the layout for all the compiler knows, but not a local copy of the numbers they need.
class Arena {
 public:
  Arena(char* base, const Layout& layout)
      : base_(base),
        layout_(&layout),
        records_(base + layout.records_base),
        record_bytes_(layout.record_bytes),
        words_offset_(layout.words_offset),
        rows_(layout.rows) {}

  const Layout& layout() const { return *layout_; }
  char* at(uint64_t offset) const { return base_ + offset; }
  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  LaneHeader& lane(uint64_t lane) const {
    return *reinterpret_cast<LaneHeader*>(base_ + layout_->lanes_base + lane * sizeof(LaneHeader));
  }

  char* record(uint64_t row) const { return records_ + row * record_bytes_; }
  Words& words(uint64_t row) const { return *reinterpret_cast<Words*>(record(row) + words_offset_); }
  uint32_t& start(uint64_t row) const { return *reinterpret_cast<uint32_t*>(record(row) + layout_->start_offset); }

  char* value(const Leaf& leaf, uint64_t row) const {
    return leaf.packed ? record(row) + leaf.offset : base_ + leaf.base + row * leaf.bytes;
  }
  // Final observations: slots are counted over all lanes.
  char* packed_final(uint64_t slot) const { return base_ + layout_->finals_base + slot * layout_->final_bytes; }
  char* final(const Leaf& leaf, uint64_t slot) const {
    return leaf.packed ? packed_final(slot) + leaf.offset : base_ + leaf.final_base + slot * leaf.bytes;
  }
  char* prefix(const Leaf& leaf, uint64_t slot, uint64_t frame) const {
    return base_ + leaf.prefix_base + (slot * (layout_->spec.stacked - 1) + frame) * leaf.bytes;
  }

  uint64_t after(uint64_t row, uint64_t lane_base) const { return row + 1 == lane_base + rows_ ? lane_base : row + 1; }
  uint64_t before(uint64_t row, uint64_t lane_base, uint64_t steps) const {  // steps < rows
    return row - lane_base >= steps ? row - steps : row + rows_ - steps;
  }

  // The frame `back` steps before the one of `row`, whose position in its episode is `at`; null stands for zeros.
  // `padding` says what stands before an episode whose observations did not arrive stacked. back < rows.
  const char* frame(const Leaf& leaf, uint64_t lane_base, uint64_t row, uint32_t at, uint32_t back,
                    uint32_t padding) const {
    if (back <= at) return value(leaf, back == 0 ? row : before(row, lane_base, back));
    const uint64_t first = before(row, lane_base, at);
    if (layout_->spec.stacked > 1) padding = start(first);
    if (padding == kPrefixRepeat) return value(leaf, first);
    if (padding == kPrefixZeros) return nullptr;
    return prefix(leaf, lane_base + padding - kPrefixSlot, layout_->spec.stacked - 1 - (back - at));
  }

  // The transition at `time` of a lane, which must be live.
  Anchor anchor(uint64_t lane, const LaneHeader& state, uint64_t time) const {
    const uint64_t lane_base = lane * rows_;
    const uint64_t head_row = lane_base + state.head_row;
    return {static_cast<int64_t>(time * layout_->spec.lanes + lane), before(head_row, lane_base, state.head - time),
            lane_base, head_row};
  }

  // The transition in a row, which must hold a live one.
  Anchor anchor_at(uint64_t row) const {
    const uint64_t lane = layout_->spec.lanes == 1 ? 0 : row / rows_;
    const LaneHeader& state = this->lane(lane);
    const uint64_t lane_base = lane * rows_, head_row = lane_base + state.head_row;
    const uint64_t back = head_row > row ? head_row - row : head_row + rows_ - row;
    return {static_cast<int64_t>((state.head - back) * layout_->spec.lanes + lane), row, lane_base, head_row};
  }

  // The transition with this id, or nothing if it is not live.
  std::optional<Anchor> find(int64_t id) const {
    if (id < 0) return std::nullopt;
    const uint64_t lanes = layout_->spec.lanes;
    const uint64_t time = lanes == 1 ? static_cast<uint64_t>(id) : static_cast<uint64_t>(id) / lanes;  // it is slow
    const uint64_t lane = static_cast<uint64_t>(id) - time * lanes;
    const LaneHeader& state = this->lane(lane);
    if (time < state.begin || time >= state.head) return std::nullopt;
    return anchor(lane, state, time);
  }

 private:
  char* base_;
  const Layout* layout_;
  char* records_;
  uint64_t record_bytes_, words_offset_, rows_;
};

inline uint32_t position(const Words& words) {
  return words.step & kMaxPosition;
}

// True if nothing of the episode follows this transition in the buffer: it ended here, or the lane ends here.
inline bool is_last(const Words& words, uint64_t next_row, uint64_t head_row) {
  return words.final != 0 || next_row == head_row;
}

// Live transitions of the anchor's lane from the anchor on, itself included.
inline uint64_t num_ahead(const Arena& arena, const Anchor& anchor) {
  const uint64_t rows = arena.layout().rows;
  return anchor.head_row > anchor.row ? anchor.head_row - anchor.row : anchor.head_row + rows - anchor.row;
}

// True if the transition `steps` after the anchor is live and of the same episode. Positions that far apart differ by
// that much in the same episode only, for a later one counts from 0 again.
inline bool reaches(const Arena& arena, const Anchor& anchor, uint64_t steps) {
  const uint64_t ahead = num_ahead(arena, anchor);
  if (steps >= ahead) return false;
  const uint64_t row = arena.before(anchor.head_row, anchor.lane_base, ahead - steps);
  const uint64_t expected = std::min<uint64_t>(position(arena.words(anchor.row)) + steps, kMaxPosition);
  return position(arena.words(row)) == expected;
}

// Steps of the anchor's episode that follow it in the buffer. O(log of them).
inline uint64_t steps_after(const Arena& arena, const Anchor& anchor) {
  uint64_t inside = 0, outside = 1;
  for (; reaches(arena, anchor, outside); outside *= 2) inside = outside;
  while (outside - inside > 1) {
    const uint64_t middle = inside + (outside - inside) / 2;
    (reaches(arena, anchor, middle) ? inside : outside) = middle;
  }
  return inside;
}

// Writes the ids of all live transitions, ascending; `ids` has room for header.live of them. O(live) where lanes are
// about even, else O(live log live).
inline void live_ids(const Arena& arena, int64_t* ids) {
  const uint64_t lanes = arena.layout().spec.lanes, live = arena.header().live;
  uint64_t first = UINT64_MAX, last = 0;
  for (uint64_t lane = 0; lane < lanes; ++lane) {
    const LaneHeader& state = arena.lane(lane);
    if (state.head == state.begin) continue;
    first = std::min(first, state.begin);
    last = std::max(last, state.head);
  }
  if (live > 0 && (last - first) <= 2 * live / lanes + 1) {
    for (uint64_t time = first; time < last; ++time)
      for (uint64_t lane = 0; lane < lanes; ++lane)
        if (time >= arena.lane(lane).begin && time < arena.lane(lane).head)
          *ids++ = static_cast<int64_t>(time * lanes + lane);
    return;
  }
  int64_t* end = ids;
  for (uint64_t lane = 0; lane < lanes; ++lane)
    for (uint64_t time = arena.lane(lane).begin; time < arena.lane(lane).head; ++time)
      *end++ = static_cast<int64_t>(time * lanes + lane);
  std::sort(ids, end);
}

}  // namespace relive
