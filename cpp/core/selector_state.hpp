// What a selector keeps that nothing else tells, copied out for a snapshot and put back into fresh memory. Values of
// live transitions lie in the order of lanes, then of times; not in that of rows.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "selector.hpp"

namespace relive {

// One value a live transition; null where the selector keeps none.
struct SelectorValues {
  double* masses = nullptr;    // priorities as they are kept; kNoAnchor, or NaN where nothing is known
  uint32_t* places = nullptr;  // ranked: 1 + the place in the heap, 0 for none
  uint32_t* uses = nullptr;
};

class SelectorState {
 public:
  static constexpr double kNoAnchor = -1.0;

  explicit SelectorState(Selector& selector) : it_(selector), arena_(selector.arena_) {}

  // Reads what is known: all, after a sync. Writes nothing to the selector.
  void copy_out(const SelectorValues& to) const {
    if (!to.masses && !to.uses) return;  // no places without masses
    uint64_t i = 0;
    each_live([&](uint64_t lane, uint64_t time, uint64_t row) {
      const SelectorLane& seen = it_.lane(lane);
      const bool known = time >= seen.begin && time < seen.head;
      if (to.masses) to.masses[i] = known ? mass(row) : std::numeric_limits<double>::quiet_NaN();
      if (to.places) to.places[i] = known ? std::get<RankHeap>(it_.masses_).place(row) : 0;
      if (to.uses) to.uses[i] = known ? std::min(it_.uses(row), it_.spec_.max_uses) : 0;
      ++i;
    });
  }

  // Into a selector just initialised, whose arena has its contents. What is not known begins anew. False if the values
  // contradict each other; then it is not to be used.
  bool copy_in(const SelectorHeader& header, uint64_t heap_changes, const uint64_t* epochs,
               const SelectorValues& from) {
    SelectorHeader& now = it_.header();
    now.seed = header.seed;
    now.draws = header.draws;
    if (!(header.largest >= 0 && header.largest <= largest())) return false;
    now.largest = header.largest;
    now.changes = header.changes;
    if (!put_epochs(header, epochs)) return false;
    if (from.masses && !all_valid(from)) return false;
    // Only a sync finds out where episodes end, and what to give to those of whom nothing is known.
    if (it_.spec_.ends || (it_.spec_.keeps_masses() && !all_known(from))) it_.sync();
    if (!put_values(from, heap_changes)) return false;
    if (it_.follows()) catch_up();
    return true;
  }

  // Begin and head of every lane when the epoch under way began.
  static void epochs(const Selector& selector, uint64_t* to) {
    for (uint64_t lane = 0; lane < selector.arena_.layout().spec.lanes; ++lane) {
      to[2 * lane] = selector.lane(lane).epoch_begin;
      to[2 * lane + 1] = selector.lane(lane).epoch_head;
    }
  }
  static uint64_t heap_changes(const Selector& selector) {
    const auto* heap = std::get_if<RankHeap>(&selector.masses_);
    return heap ? heap->changes() : 0;
  }

  // Makes a selector whole again whose process was killed, over an arena that is: priorities and uses written before
  // that are kept, sums and orders made anew. It works in place, and at every step what is there says as much as
  // before: whoever is killed in the midst of it, the next one finds the same. O(rows used).
  static void recover(Selector& selector) {
    SelectorState state(selector);
    SelectorHeader& now = selector.header();
    if (!(now.largest >= 0 && now.largest <= state.largest())) now.largest = 1.0;
    if (!state.has_epochs()) state.forget_epochs();  // killed in the midst of beginning one
    for (uint64_t lane = 0; lane < selector.arena_.layout().spec.lanes; ++lane) {
      if (selector.spec_.keeps_masses()) state.mend_values(lane);
      if (selector.spec_.ends) state.mend_ends(lane);
    }
    if (auto* tree = std::get_if<SumTree>(&selector.masses_)) tree->rebuild();
    if (auto* heap = std::get_if<RankHeap>(&selector.masses_))
      heap->mend(selector.arena_.layout().rows * selector.arena_.layout().spec.lanes);
    if (selector.spec_.max_uses) state.count_uses();
    ++now.changes;
    std::atomic_thread_fence(std::memory_order_release);  // what was known before is needed until here
    if (selector.follows()) state.catch_up();
  }

 private:
  void forget_epochs() {
    SelectorHeader& now = it_.header();
    now.epoch_size = now.epoch_at = 0;
    for (uint64_t lane = 0; lane < arena_.layout().spec.lanes; ++lane)
      it_.lane(lane).epoch_begin = it_.lane(lane).epoch_head = 0;
  }

  // What the last sync before a process was killed says about the rows of a lane, and what has come since.
  void mend_values(uint64_t lane) {
    const LaneHeader& state = arena_.lane(lane);
    const uint64_t rows = arena_.layout().rows;
    const uint64_t used = std::min(rows, state.head + 2);  // an append can have touched no more
    for (uint64_t i = 0; i < used; ++i) {
      const uint64_t row = lane * rows + i, time = state.begin + (i + rows - state.begin % rows) % rows;
      put(row, time < state.head ? mended(lane, time, row) : kNoAnchor);
    }
  }

  // What a live transition is to be drawn by. Puts its uses right.
  double mended(uint64_t lane, uint64_t time, uint64_t row) {
    const SelectorLane& seen = it_.lane(lane);
    bool known = time >= seen.begin && time < seen.head;
    if (it_.spec_.max_uses) {
      uint32_t& uses = it_.uses(row);
      uses = known ? std::min(uses, it_.spec_.max_uses) : 0;
      if (uses == it_.spec_.max_uses) return kNoAnchor;  // its last one, just now
    }
    const double found = mass(row);
    if (known && found == kNoAnchor) known = !became_anchor(lane, time, row);
    if (known && (found == kNoAnchor || found <= largest())) return found;
    return it_.spec_.rule.is_anchor(arena_, arena_.anchor_at(row)) ? it_.header().largest : kNoAnchor;
  }

  void put(uint64_t row, double mass) {
    if (auto* tree = std::get_if<SumTree>(&it_.masses_)) {
      const double value = mass > 0 ? mass : 0.0;
      if (it_.mass(row) != value) tree->put(row, value);  // touches no page for nothing
    } else {
      auto& heap = std::get<RankHeap>(it_.masses_);
      if (mass == kNoAnchor)
        heap.unmark(static_cast<uint32_t>(row));
      else
        heap.mark(static_cast<uint32_t>(row), mass);
    }
  }

  // How far each live transition is from the end of its episode, from the arena alone.
  void mend_ends(uint64_t lane) {
    const LaneHeader& state = arena_.lane(lane);
    const uint64_t rows = arena_.layout().rows;
    uint32_t steps = Selector::kOpen;
    for (uint64_t time = state.head; time-- > state.begin;) {
      const uint64_t row = lane * rows + time % rows;
      if (arena_.words(row).final != 0)
        steps = 0;
      else if (steps != Selector::kOpen)
        ++steps;
      it_.end(row) = steps;
    }
  }

  bool count_uses() {
    uint64_t left = 0;
    bool valid = true;
    each_live([&](uint64_t, uint64_t, uint64_t row) {
      if (!(it_.mass(row) > 0)) return;
      valid = valid && it_.uses(row) < it_.spec_.max_uses;  // else it would be drawn for ever, and never given out
      left += it_.spec_.max_uses - it_.uses(row);
    });
    it_.header().uses_left = left;
    return valid;
  }

  // True if this transition may have become the anchor of a sequence since the last sync, by what was pushed then.
  bool became_anchor(uint64_t lane, uint64_t time, uint64_t row) const {
    const AnchorRule& rule = it_.spec_.rule;
    const Anchor anchor = arena_.anchor_at(row);
    if (rule.all() || !rule.is_anchor(arena_, anchor)) return false;
    const SelectorLane& seen = it_.lane(lane);
    const uint64_t last = time + relive::steps_after(arena_, anchor);
    if (rule.length != AnchorRule::kEpisode && time + rule.length - 1 <= last && time + rule.length - 1 < seen.head)
      return false;  // all of its window was there
    return last >= seen.head || (last == seen.head - 1 && !seen.ended);
  }

  template <typename Visit>
  void each_live(Visit visit) const {
    const uint64_t lanes = arena_.layout().spec.lanes, rows = arena_.layout().rows;
    for (uint64_t lane = 0; lane < lanes; ++lane) {
      const LaneHeader& state = arena_.lane(lane);
      uint64_t row = lane * rows + state.begin % rows;
      for (uint64_t time = state.begin; time < state.head; ++time) {
        visit(lane, time, row);
        if (++row == (lane + 1) * rows) row = lane * rows;
      }
    }
  }

  double mass(uint64_t row) const {
    if (const auto* heap = std::get_if<RankHeap>(&it_.masses_)) return heap->place(row) ? heap->key(row) : kNoAnchor;
    return it_.mass(row) > 0 ? it_.mass(row) : kNoAnchor;
  }

  bool put_epochs(const SelectorHeader& header, const uint64_t* epochs) {
    SelectorHeader& now = it_.header();
    for (uint64_t lane = 0; lane < arena_.layout().spec.lanes; ++lane) {
      it_.lane(lane).epoch_begin = epochs[2 * lane];
      it_.lane(lane).epoch_head = epochs[2 * lane + 1];
    }
    now.epoch = header.epoch;
    now.epoch_size = header.epoch_size;
    now.epoch_at = header.epoch_at;
    return has_epochs();
  }

  // Whether what is noted about the epoch under way can be.
  bool has_epochs() const {
    const SelectorHeader& now = it_.header();
    uint64_t size = 0;
    for (uint64_t lane = 0; lane < arena_.layout().spec.lanes; ++lane) {
      const uint64_t begin = it_.lane(lane).epoch_begin, head = it_.lane(lane).epoch_head;
      if (begin > head || head > arena_.lane(lane).head || head - begin > arena_.layout().spec.lane_capacity)
        return false;
      size += head - begin;
    }
    return now.epoch_size == size && now.epoch_at <= size;
  }

  bool all_known(const SelectorValues& from) const {
    bool known = from.masses != nullptr;
    uint64_t i = 0;
    each_live([&](uint64_t, uint64_t, uint64_t) { known = known && !std::isnan(from.masses[i++]); });
    return known;
  }
  bool all_valid(const SelectorValues& from) const {
    bool valid = true;
    uint64_t i = 0;
    each_live([&](uint64_t, uint64_t, uint64_t) {
      const double mass = from.masses[i++];
      valid = valid && (std::isnan(mass) || mass == kNoAnchor || (mass >= 0 && mass <= largest()));
    });
    return valid;
  }
  // What a mass can be. Sums of smaller ones are finite.
  double largest() const {
    return it_.spec_.draw == Draw::kRanked ? std::numeric_limits<double>::max() : Selector::kLargestPriority;
  }

  bool put_values(const SelectorValues& from, uint64_t heap_changes) {
    auto* tree = std::get_if<SumTree>(&it_.masses_);
    auto* heap = std::get_if<RankHeap>(&it_.masses_);
    std::vector<RankHeap::Entry> entries;
    bool valid = true;
    uint64_t i = 0;
    each_live([&](uint64_t, uint64_t, uint64_t row) {
      if (from.uses) {
        it_.uses(row) = from.uses[i];
        valid = valid && from.uses[i] <= it_.spec_.max_uses;
      }
      if (from.masses && !std::isnan(from.masses[i])) {
        if (tree) tree->put(row, std::max(from.masses[i], 0.0));
        if (heap && from.places) {
          if ((from.places[i] != 0) != (from.masses[i] >= 0)) valid = false;
          if (from.places[i]) entries.push_back({static_cast<uint32_t>(row), from.places[i] - 1, from.masses[i]});
        } else if (heap) {
          heap->set(&row, &from.masses[i], 1);
        }
      }
      ++i;
    });
    if (tree) tree->rebuild();
    if (heap && from.places) valid = valid && heap->restore(entries, heap_changes);
    if (it_.spec_.max_uses) valid = count_uses() && valid;
    return valid && (!tree || std::isfinite(it_.total()));
  }

  // Everything that is live was taken into account.
  void catch_up() {
    const uint64_t rows = arena_.layout().rows;
    for (uint64_t lane = 0; lane < arena_.layout().spec.lanes; ++lane) {
      const LaneHeader& state = arena_.lane(lane);
      SelectorLane& seen = it_.lane(lane);
      seen.begin = state.begin;
      seen.head = state.head;
      seen.ended = state.head > state.begin && arena_.words(lane * rows + (state.head - 1) % rows).final != 0 &&
                   (it_.spec_.ends || !it_.spec_.rule.all());
    }
  }

  Selector& it_;
  Arena arena_;
};

}  // namespace relive
