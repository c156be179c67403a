// What an anchor becomes under a view of n-step transitions with frame stacks.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "episodes.hpp"
#include "gather.hpp"

namespace relive {

// Where a batch goes: one dense array a leaf. Observations have a frame axis where `frames` > 1.
struct BatchArrays {
  std::vector<char*> obs, next_obs, rest;
  float* reward;
  float* discount;
  uint8_t* terminated;
  uint8_t* truncated;
  int64_t* ids;
  uint8_t* mask;       // sequences: real steps, and
  uint8_t* loss_mask;  // those to learn from
  int64_t* goal_ids;   // relabelled goals: the transition after which it was achieved, or -1
  int64_t*
      relabelled;  // [3] of each relabelled row, closely: the row, the steps of its window; first the number of them
  char *achieved, *desired;  // goals after each step of the relabelled windows, closely; room for n a row
};

// n-step transitions (Sutton 1988; Hessel et al. 2018, section 3): the window of an anchor runs for up to n steps and
// stops after a termination, a truncation, a discontinuity or the newest transition of its lane.
class TransitionView {
 public:
  TransitionView(const Layout& layout, uint32_t n, double gamma, uint32_t stack, bool pad_with_zeros)
      : layout_(layout),
        n_(n),
        frames_(stack * layout.spec.stacked),
        padding_(pad_with_zeros ? kPrefixZeros : kPrefixRepeat) {
    double power = 1.0;
    for (uint32_t step = 0; step <= n; ++step, power *= gamma) powers_.push_back(power);
  }

  // Frames of one observation in a batch; 1 also where an observation is no stack.
  uint32_t frames() const { return frames_; }

  // Assembles the batch. O(count * (n + frames)) record reads. The caller holds the lock.
  void assemble(const Arena& arena, const Anchor* anchors, uint64_t count, const BatchArrays& out) const {
    prefetch_block(arena, anchors, std::min(count, kBlock));
    for (uint64_t first = 0; first < count; first += kBlock) {
      const uint64_t size = std::min(kBlock, count - first);
      if (first + size < count) prefetch_block(arena, anchors + first + size, std::min(kBlock, count - first - size));
      assemble_block(arena, anchors + first, size, first, out);
    }
  }

 private:
  struct Window {
    uint64_t last;         // row of the last step used
    uint64_t next;         // row after it
    uint32_t at, last_at;  // positions in the episode of the first and the last step
    uint32_t final;        // slot + 1 of the final observation, or 0: next_obs is in the next row
  };

  // The windows of one block of anchors, and where the packed parts of their first and their next observation lie.
  struct Block {
    std::array<Window, kBlock> windows;
    std::array<const char*, kBlock> records, next;
  };

  RELIVE_INLINE void prefetch_block(const Arena& arena, const Anchor* anchors, uint64_t size) const {
    const uint64_t bytes = std::min<uint64_t>(layout_.record_bytes * n_ + layout_.final_bytes, 16 * kCacheLine);
    for (uint64_t i = 0; i < size; ++i) prefetch(arena.record(anchors[i].row), bytes);
  }

  void assemble_block(const Arena& arena, const Anchor* anchors, uint64_t size, uint64_t first,
                      const BatchArrays& out) const {
    Block block;
    follow(arena, anchors, size, first, out, block);
    for (size_t index = 0; index < layout_.rest.size(); ++index) {
      const Leaf& leaf = layout_.rest[index];
      char* to = out.rest[index] + first * leaf.bytes;
      if (leaf.packed) {
        copy_values(to, leaf.bytes, block.records.data(), leaf.offset, size, leaf.bytes);
      } else {
        for (uint64_t i = 0; i < size; ++i)
          std::memcpy(to + i * leaf.bytes, arena.value(leaf, anchors[i].row), leaf.bytes);
      }
    }
    for (size_t index = 0; index < layout_.obs.size(); ++index) {
      const Leaf& leaf = layout_.obs[index];
      char* to = out.obs[index] + first * leaf.bytes * frames_;
      char* next_to = out.next_obs[index] + first * leaf.bytes * frames_;
      if (leaf.packed && frames_ == 1) {
        copy_values(to, leaf.bytes, block.records.data(), leaf.offset, size, leaf.bytes);
        copy_values(next_to, leaf.bytes, block.next.data(), leaf.offset, size, leaf.bytes);
      } else {
        copy_frames(arena, leaf, anchors, size, block.windows, to, next_to);
      }
    }
  }

  // The general way to copy observations: frame by frame, each wherever it lies. Anchor by anchor, because obs and
  // next_obs share frames that are still in the cache.
  void copy_frames(const Arena& arena, const Leaf& leaf, const Anchor* anchors, uint64_t size,
                   const std::array<Window, kBlock>& windows, char* to, char* next_to) const {
    for (uint64_t i = 0; i < size; ++i) {
      for (uint32_t back = frames_; back-- > 0; to += leaf.bytes, next_to += leaf.bytes) {
        copy_or_zero(to, arena.frame(leaf, anchors[i].lane_base, anchors[i].row, windows[i].at, back, padding_),
                     leaf.bytes);
        copy_or_zero(next_to, next_frame(arena, leaf, anchors[i], windows[i], back), leaf.bytes);
      }
    }
  }

  // Walks the windows of a block and writes what is a number: reward, discount, flags, id. Pointers and figures are
  // copied to locals first, which no store through a pointer can change.
  void follow(const Arena arena, const Anchor* anchors, uint64_t size, uint64_t first, const BatchArrays& out,
              Block& block) const {
    float *const rewards = out.reward + first, *const discounts = out.discount + first;
    uint8_t *const terminated = out.terminated + first, *const truncated = out.truncated + first;
    int64_t* const ids = out.ids + first;
    const double* const powers = powers_.data();
    const uint32_t n = n_;
    for (uint64_t i = 0; i < size; ++i) {
      const Anchor anchor = anchors[i];
      uint64_t row = anchor.row, next = arena.after(row, anchor.lane_base);
      Words words = arena.words(row);
      const uint32_t at = position(words);
      double reward = words.reward;
      uint32_t steps = 1;
      for (; steps < n && !is_last(words, next, anchor.head_row); ++steps) {
        row = next;
        next = arena.after(row, anchor.lane_base);
        words = arena.words(row);
        reward += powers[steps] * words.reward;
      }
      block.records[i] = arena.record(anchor.row);
      if (words.final == 0) {
        block.next[i] = arena.record(next);
      } else {
        block.next[i] = arena.packed_final(anchor.lane_base + words.final - 1);
        prefetch(block.next[i], layout_.final_bytes);
      }
      block.windows[i] = {row, next, at, position(words), words.final};
      const bool ends = words.step & kTerminated;
      rewards[i] = static_cast<float>(reward);
      discounts[i] = ends ? 0.0f : static_cast<float>(powers[steps]);
      terminated[i] = ends;
      truncated[i] = (words.step & kTruncated) != 0;
      ids[i] = anchor.id;
    }
  }

  const char* next_frame(const Arena& arena, const Leaf& leaf, const Anchor& anchor, const Window& window,
                         uint32_t back) const {
    if (back > 0) return arena.frame(leaf, anchor.lane_base, window.last, window.last_at, back - 1, padding_);
    if (window.final == 0) return arena.value(leaf, window.next);
    return arena.final(leaf, anchor.lane_base + window.final - 1);
  }

  const Layout& layout_;
  uint32_t n_, frames_;
  uint32_t padding_;
  std::vector<double> powers_;  // of gamma
};

}  // namespace relive
