// Appending: the one place that writes transitions. The caller holds the lock and has checked types and shapes.
#pragma once

#include <atomic>
#include <cstring>
#include <span>

#include "episodes.hpp"

namespace relive {

// Numbered slots of a lane's side table. Freed slots are reused first, so that the memory touched is that of the
// largest number ever in use at once.
class SlotPool {
 public:
  SlotPool(uint32_t* links, uint32_t& free, uint32_t& used) : links_(links), free_(&free), used_(&used) {}

  uint32_t take() {
    if (*free_ == 0) return (*used_)++;
    const uint32_t slot = *free_ - 1;
    *free_ = links_[slot];
    return slot;
  }
  void give_back(uint32_t slot) {
    links_[slot] = *free_;
    *free_ = slot + 1;
  }

 private:
  uint32_t* links_;  // slot + 1 of the next free one
  uint32_t* free_;
  uint32_t* used_;
};

// Where the values of the transitions to append lie: for each leaf the first value; the others follow closely.
struct Block {
  std::span<const char* const> obs, next_obs;  // a leaf each; a whole stack a transition where observations are stacked
  std::span<const char* const> rest;
  const float* reward;
  const uint8_t* terminated;
  const uint8_t* truncated;
};

class Ring {
 public:
  explicit Ring(const Arena& arena) : arena_(arena), layout_(arena.layout()), stacked_(layout_.spec.stacked) {}

  // True if next_obs number i is obs number i moved on by one frame: all but its newest frame can be derived.
  bool rolls(const Block& block, uint64_t i) const {
    for (size_t leaf = 0; leaf < layout_.obs.size(); ++leaf) {
      const uint64_t frame = layout_.obs[leaf].bytes, shared = frame * (stacked_ - 1);
      const uint64_t stack = i * frame * stacked_;
      if (std::memcmp(block.next_obs[leaf] + stack, block.obs[leaf] + stack + frame, shared) != 0) return false;
    }
    return true;
  }

  // Appends transition i of the block to a lane and returns its id. O(bytes of the transition).
  int64_t append(uint64_t lane, const Block& block, uint64_t i) {
    LaneHeader& state = arena_.lane(lane);
    const uint64_t base = lane * layout_.rows;
    const uint64_t row = base + state.head_row;
    const uint64_t next_row = arena_.after(row, base);
    const uint64_t previous = arena_.before(row, base, 1);
    const bool goes_on = state.open && continues(base, row, previous, block, i);
    const uint32_t at = goes_on ? std::min(position(arena_.words(previous)) + 1, kMaxPosition) : 0;
    if (state.open && !goes_on)
      keep_final(lane, state, previous, [&](const Leaf& leaf, size_t) {
        return arena_.value(leaf, row);  // a discontinuity: the next_obs that was waiting here is a final one
      });

    // The oldest transition goes before its bytes do, so that an interrupted append shows one transition less, never a
    // torn one.
    if (state.head - state.begin == layout_.spec.lane_capacity) {
      ++state.begin;
      --arena_.header().live;
    }
    in_order();
    evict(lane, state, next_row);

    Words words{block.reward[i], at, 0};
    if (!goes_on) {
      store_obs(block.obs, i, row);
      if (stacked_ > 1) arena_.start(row) = keep_prefix(lane, state, block, i);
    }
    for (size_t leaf = 0; leaf < layout_.rest.size(); ++leaf) {
      const Leaf& place = layout_.rest[leaf];
      std::memcpy(arena_.value(place, row), block.rest[leaf] + i * place.bytes, place.bytes);
    }
    if (block.terminated[i]) words.step |= kTerminated;
    if (block.truncated[i]) words.step |= kTruncated;
    arena_.words(row) = words;
    state.open = !(block.terminated[i] || block.truncated[i]);
    if (state.open) {
      store_obs(block.next_obs, i, next_row);
    } else {
      keep_final(lane, state, row,
                 [&](const Leaf& leaf, size_t index) { return newest(block.next_obs, leaf, index, i); });
    }

    state.head_row = static_cast<uint32_t>(next_row - base);
    ++arena_.header().live;
    in_order();
    return static_cast<int64_t>(state.head++ * layout_.spec.lanes + lane);
  }

  // Truncates the newest transition of a lane if its episode goes on. True if it did.
  bool end_episode(uint64_t lane) {
    LaneHeader& state = arena_.lane(lane);
    if (!state.open) return false;
    const uint64_t base = lane * layout_.rows;
    const uint64_t row = base + state.head_row;
    const uint64_t newest = arena_.before(row, base, 1);
    keep_final(lane, state, newest, [&](const Leaf& leaf, size_t) { return arena_.value(leaf, row); });
    arena_.words(newest).step |= kTruncated;
    state.open = 0;
    return true;
  }

  // Forgets every transition; ids go on from where they were. O(rows ever used).
  void clear() {
    for (uint64_t lane = 0; lane < layout_.spec.lanes; ++lane) {
      LaneHeader& state = arena_.lane(lane);
      state.begin = state.head;
      state.open = 0;
      in_order();
      const uint64_t used = std::min(state.head, layout_.rows);
      for (uint64_t back = 1; back <= used; ++back) {
        const uint64_t base = lane * layout_.rows;
        forget(arena_.before(base + state.head_row, base, back % layout_.rows));
      }
      state.final_free = state.final_used = state.prefix_free = state.prefix_used = 0;
    }
    arena_.header().live = 0;
  }

 private:
  // What was stored before is there before what is stored after, also for who finds the memory when this process was
  // killed between the two.
  static void in_order() { std::atomic_thread_fence(std::memory_order_release); }

  SlotPool finals(uint64_t lane, LaneHeader& state) const {
    return {reinterpret_cast<uint32_t*>(arena_.at(layout_.final_links)) + lane * layout_.rows, state.final_free,
            state.final_used};
  }
  SlotPool prefixes(uint64_t lane, LaneHeader& state) const {
    return {reinterpret_cast<uint32_t*>(arena_.at(layout_.prefix_links)) + lane * layout_.rows, state.prefix_free,
            state.prefix_used};
  }

  // The newest frame of observation i (all of it where observations are not stacked).
  const char* newest(std::span<const char* const> obs, const Leaf& leaf, size_t index, uint64_t i) const {
    return obs[index] + (i * stacked_ + stacked_ - 1) * leaf.bytes;
  }

  void store_obs(std::span<const char* const> obs, uint64_t i, uint64_t row) {
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      std::memcpy(arena_.value(leaf, row), newest(obs, leaf, index, i), leaf.bytes);
    }
  }

  // True if the observation pushed is, byte for byte, the next_obs of the lane's previous transition.
  bool continues(uint64_t base, uint64_t row, uint64_t previous, const Block& block, uint64_t i) const {
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      if (std::memcmp(arena_.value(leaf, row), newest(block.obs, leaf, index, i), leaf.bytes) != 0) return false;
    }
    if (stacked_ == 1) return true;
    const uint32_t previous_position = position(arena_.words(previous));
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      for (uint32_t back = 1; back < stacked_; ++back) {
        const char* pushed = newest(block.obs, leaf, index, i) - back * leaf.bytes;
        const char* stored = arena_.frame(leaf, base, previous, previous_position, back - 1, kPrefixRepeat);
        if (stored ? std::memcmp(pushed, stored, leaf.bytes) != 0 : !all_zero(pushed, leaf.bytes)) return false;
      }
    }
    return true;
  }

  static bool all_zero(const char* bytes, uint64_t count) {
    return std::all_of(bytes, bytes + count, [](char byte) { return byte == 0; });
  }

  // How the older frames of an episode's first stack are kept: by rule if they follow one, else written out.
  uint32_t keep_prefix(uint64_t lane, LaneHeader& state, const Block& block, uint64_t i) {
    bool repeat = true, zeros = true;
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      const char* last = newest(block.obs, leaf, index, i);
      for (uint32_t back = 1; back < stacked_; ++back) {
        repeat = repeat && std::memcmp(last - back * leaf.bytes, last, leaf.bytes) == 0;
        zeros = zeros && all_zero(last - back * leaf.bytes, leaf.bytes);
      }
    }
    if (repeat) return kPrefixRepeat;
    if (zeros) return kPrefixZeros;
    const uint32_t slot = prefixes(lane, state).take();
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      std::memcpy(arena_.prefix(leaf, lane * layout_.rows + slot, 0), block.obs[index] + i * stacked_ * leaf.bytes,
                  leaf.bytes * (stacked_ - 1));
    }
    return kPrefixSlot + slot;
  }

  // Moves a final observation into the side table and marks the transition of `row` as the last of its episode.
  template <typename Source>
  void keep_final(uint64_t lane, LaneHeader& state, uint64_t row, Source source) {
    const uint32_t slot = finals(lane, state).take();
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      std::memcpy(arena_.final(leaf, lane * layout_.rows + slot), source(leaf, index), leaf.bytes);
    }
    in_order();
    arena_.words(row).final = slot + 1;
    in_order();
  }

  // Gives back what a row's former transition still held; its values are dead.
  void evict(uint64_t lane, LaneHeader& state, uint64_t row) {
    const Words& words = arena_.words(row);
    if (words.final != 0) finals(lane, state).give_back(words.final - 1);
    if (stacked_ > 1 && arena_.start(row) >= kPrefixSlot)
      prefixes(lane, state).give_back(arena_.start(row) - kPrefixSlot);
    forget(row);
  }

  void forget(uint64_t row) {
    arena_.words(row) = {};
    if (stacked_ > 1) arena_.start(row) = kPrefixRepeat;
  }

  Arena arena_;
  const Layout& layout_;
  uint64_t stacked_;
};

}  // namespace relive
