// Making an arena whole again that was left in the midst of an append: by a process that was killed, or by a machine
// that lost its power. What is kept are transitions whose bytes are known to be there; all else is derived from them.
#pragma once

#include <vector>

#include "ring.hpp"

namespace relive {

class Recovery {
 public:
  // `any_row`: what was appended after the head that is to be kept may be anywhere.
  explicit Recovery(const Arena& arena, bool any_row = false)
      : arena_(arena), layout_(arena.layout()), any_row_(any_row) {}

  // After the death of a process. An append publishes a transition by its last store and evicts the oldest before it
  // writes, so that all that is between begin and head is whole. O(rows used). False if this is no arena left by one.
  bool after_kill() {
    const uint64_t counted = arena_.header().live;
    for (uint64_t lane = 0; lane < layout_.spec.lanes; ++lane) {
      const LaneHeader& state = arena_.lane(lane);
      // An append moves on the row just before the head.
      if (state.head_row != state.head % layout_.rows && state.head_row != (state.head + 1) % layout_.rows)
        return false;
      if (!keep(lane, state.begin, state.head)) return false;
    }
    count();
    return arena_.header().live <= counted;  // they are counted before they are there, and after they are gone
  }

  // Keeps transitions [begin, head) of a lane, whose bytes are trusted, and forgets the others. False if these cannot
  // be the transitions of a lane. `count` comes after the last lane.
  bool keep(uint64_t lane, uint64_t begin, uint64_t head) {
    if (begin > head || head - begin > layout_.spec.lane_capacity || head > kMaxTime) return false;
    LaneHeader& state = arena_.lane(lane);
    const uint64_t rows = layout_.rows, base = lane * rows;
    state.begin = begin;
    state.head = head;
    state.head_row = static_cast<uint32_t>(head % rows);
    // Rows before the oldest live one hold the frames of its stack. What is beyond those may be anything.
    const uint64_t kept = begin - std::min<uint64_t>(begin, layout_.spec.history);
    for (uint64_t row = 0; row < num_used(lane); ++row) {
      const uint64_t back = (state.head_row + rows - row - 1) % rows;  // 0: the newest
      if (back >= head - kept) forget(base + row);
    }
    const Words* newest = head > begin ? &arena_.words(base + (head - 1) % rows) : nullptr;
    state.open = newest && newest->final == 0;
    if (newest && (newest->step & (kTerminated | kTruncated)) && newest->final == 0) return false;
    return rebuild(lane, layout_.final_links, state.final_free, state.final_used,
                   [&](uint64_t row) { return arena_.words(row).final; }) &&
           (layout_.spec.stacked == 1 ||
            rebuild(lane, layout_.prefix_links, state.prefix_free, state.prefix_used, [&](uint64_t row) -> uint32_t {
              const uint32_t start = arena_.start(row);
              return start < kPrefixSlot ? 0 : start - kPrefixSlot + 1;
            }));
  }

  void count() {
    uint64_t live = 0;
    for (uint64_t lane = 0; lane < layout_.spec.lanes; ++lane) live += arena_.lane(lane).head - arena_.lane(lane).begin;
    arena_.header().live = live;
  }

 private:
  static constexpr uint64_t kMaxTime = 1ull << 62;  // sums of times and rows are far from the end of their numbers

  // Rows that an append can have touched: the others, and their pages, are left alone.
  uint64_t num_used(uint64_t lane) const {
    return any_row_ ? layout_.rows : std::min(layout_.rows, arena_.lane(lane).head + 2);
  }

  void forget(uint64_t row) {
    Words& words = arena_.words(row);
    if (words.reward != 0 || words.step != 0 || words.final != 0) words = {};  // touches no page for nothing
    if (layout_.spec.stacked > 1 && arena_.start(row) != kPrefixRepeat) arena_.start(row) = kPrefixRepeat;
  }

  // The list of free slots, from those that rows name: slot + 1, 0 for none. False if two rows name one slot, or one
  // that cannot be.
  template <typename SlotOf>
  bool rebuild(uint64_t lane, uint64_t links_base, uint32_t& free, uint32_t& used, SlotOf slot_of) {
    const uint64_t base = lane * layout_.rows;
    std::vector<bool> taken(layout_.rows);
    used = free = 0;
    for (uint64_t row = base; row < base + num_used(lane); ++row) {
      const uint32_t slot = slot_of(row);
      if (slot == 0) continue;
      if (slot > layout_.rows || taken[slot - 1]) return false;
      taken[slot - 1] = true;
      used = std::max(used, slot);
    }
    auto* links = reinterpret_cast<uint32_t*>(arena_.at(links_base)) + base;
    SlotPool pool(links, free, used);
    for (uint32_t slot = used; slot-- > 0;)
      if (!taken[slot]) pool.give_back(slot);
    return true;
  }

  Arena arena_;
  const Layout& layout_;
  bool any_row_;
};

}  // namespace relive
