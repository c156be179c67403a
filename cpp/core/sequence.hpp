// What an anchor becomes under a view of sequences: the steps of its episode that follow it, in order of time.
#pragma once

#include <algorithm>
#include <vector>

#include "anchors.hpp"
#include "window.hpp"

namespace relive {

// Hausknecht & Stone 2015, section 4; Kapturowski et al. 2019, section 2.3. A batch has [count, steps] of everything
// and [count, steps + 1] observations: obs and next_obs of a sequence are the same ones, one apart. `obs` of the
// arrays is that; `next_obs` is not used.
class SequenceView {
 public:
  SequenceView(const Layout& layout, AnchorRule rule, uint64_t burn_in, double gamma, uint32_t stack,
               bool pad_with_zeros, std::vector<bool> first_only)
      : layout_(layout),
        rule_(rule),
        burn_in_(burn_in),
        gamma_(static_cast<float>(gamma)),
        frames_(stack * layout.spec.stacked),
        padding_(pad_with_zeros ? kPrefixZeros : kPrefixRepeat),
        first_only_(std::move(first_only)) {}

  // Steps of a batch of these anchors. The caller holds the lock, here and below.
  uint64_t steps(const Arena& arena, const Anchor* anchors, uint64_t count) const {
    if (rule_.length != AnchorRule::kEpisode) return rule_.length;
    uint64_t longest = 1;
    for (uint64_t i = 0; i < count; ++i) longest = std::max(longest, steps_after(arena, anchors[i]) + 1);
    return longest;
  }

  // Assembles the batch. O(count * steps * frames) record reads.
  void assemble(const Arena& arena, const Anchor* anchors, uint64_t count, uint64_t steps,
                const BatchArrays& out) const {
    for (uint64_t i = 0; i < count; ++i) {
      const Window window = follow(arena, anchors[i], i + 1 < count ? anchors + i + 1 : nullptr, i, steps, out);
      for (size_t index = 0; index < layout_.rest.size(); ++index) {
        const Leaf& leaf = layout_.rest[index];
        if (first_only_[index]) {
          std::memcpy(out.rest[index] + i * leaf.bytes, arena.value(leaf, anchors[i].row), leaf.bytes);
          continue;
        }
        char* to = out.rest[index] + i * steps * leaf.bytes;
        copy_steps(arena, leaf, window, to);
        std::memset(to + window.steps * leaf.bytes, 0, (steps - window.steps) * leaf.bytes);
      }
      for (size_t index = 0; index < layout_.obs.size(); ++index) {
        const Leaf& leaf = layout_.obs[index];
        const uint64_t bytes = leaf.bytes * frames_;
        char* to = out.obs[index] + i * (steps + 1) * bytes;
        if (frames_ == 1) {
          copy_steps(arena, leaf, window, to);
          std::memcpy(to + window.steps * bytes, after(arena, leaf, window), bytes);
        } else {
          copy_stacks(arena, leaf, window, to);
        }
        std::memset(to + (window.steps + 1) * bytes, 0, (steps - window.steps) * bytes);
      }
    }
  }

  // Combines |delta| of a sequence's steps, [steps], into its raw priority: eta * max + (1 - eta) * mean over those to
  // learn from (Kapturowski et al. 2019, section 2.3). NaN or negative if one of them is. The anchor is live.
  double priority(const Arena& arena, const Anchor& anchor, const double* raw, uint64_t steps, double eta) const {
    const uint64_t real = std::min(steps, steps_after(arena, anchor) + 1);
    double largest = 0, sum = 0;
    uint64_t used = 0;
    for (uint64_t step = first_to_learn(position(arena.words(anchor.row))); step < real; ++step, ++used) {
      if (!(raw[step] >= 0) || !std::isfinite(raw[step])) return -1;
      largest = std::max(largest, raw[step]);
      sum += raw[step];
    }
    return used == 0 ? 0 : eta * largest + (1 - eta) * sum / static_cast<double>(used);
  }

 private:
  struct Window {
    uint64_t lane_base, row, steps;  // the rows follow one another around the lane
    uint64_t last, next;             // row of the last step, and after it
    uint32_t at, last_at;            // positions of the first and the last step
    uint32_t final;                  // as in Words, of the last step
  };

  // Where an episode starts the recurrent state is known: nothing to burn in, and all of it to learn from.
  uint64_t first_to_learn(uint32_t at) const { return at == 0 ? 0 : burn_in_; }

  // Finds the steps of a window and writes what is a number, padding included. Meanwhile fetches the records of the
  // window to come.
  Window follow(const Arena& arena, const Anchor& anchor, const Anchor* upcoming, uint64_t i, uint64_t steps,
                const BatchArrays& out) const {
    float *const reward = out.reward + i * steps, *const discount = out.discount + i * steps;
    uint8_t *const terminated = out.terminated + i * steps, *const truncated = out.truncated + i * steps;
    uint8_t *const mask = out.mask + i * steps, *const loss_mask = out.loss_mask + i * steps;
    const float gamma = gamma_;
    const uint64_t stride = layout_.record_bytes;
    const uint64_t real = reaches(arena, anchor, steps - 1) ? steps : std::min(steps, steps_after(arena, anchor) + 1);
    const uint64_t straight = std::min(real, anchor.lane_base + layout_.rows - anchor.row);
    const char* fetch = arena.record(upcoming ? upcoming->row : anchor.row);
    for (uint64_t step = 0; step < real; ++step, fetch += stride) {
      const Words& words = arena.words(step < straight ? anchor.row + step : anchor.lane_base + step - straight);
      prefetch(fetch, stride);  // past the lane's end: harmless
      reward[step] = words.reward;
      const bool ends = words.step & kTerminated;
      terminated[step] = ends;
      truncated[step] = (words.step & kTruncated) != 0;
      discount[step] = ends ? 0.0f : gamma;
    }
    const uint64_t last = real > straight ? anchor.lane_base + real - straight - 1 : anchor.row + real - 1;
    const Words end = arena.words(last);
    const Window window{anchor.lane_base,
                        anchor.row,
                        real,
                        last,
                        arena.after(last, anchor.lane_base),
                        position(arena.words(anchor.row)),
                        position(end),
                        end.final};
    const uint64_t first = std::min(first_to_learn(window.at), real);
    std::fill(reward + real, reward + steps, 0.0f);
    std::fill(discount + real, discount + steps, 0.0f);
    std::fill(terminated + real, terminated + steps, uint8_t{0});
    std::fill(truncated + real, truncated + steps, uint8_t{0});
    std::fill(std::fill_n(mask, real, uint8_t{1}), mask + steps, uint8_t{0});
    std::fill_n(loss_mask, first, uint8_t{0});
    std::copy(mask + first, mask + steps, loss_mask + first);
    out.ids[i] = anchor.id;
    return window;
  }

  // The values of a window's steps, in at most two stretches of rows.
  void copy_steps(const Arena& arena, const Leaf& leaf, const Window& window, char* to) const {
    const uint64_t stride = leaf.packed ? layout_.record_bytes : leaf.bytes;
    const uint64_t straight = std::min(window.steps, window.lane_base + layout_.rows - window.row);
    copy_rows(to, arena.value(leaf, window.row), stride, straight, leaf.bytes);
    copy_rows(to + straight * leaf.bytes, arena.value(leaf, window.lane_base), stride, window.steps - straight,
              leaf.bytes);
  }

  void copy_stacks(const Arena& arena, const Leaf& leaf, const Window& window, char* to) const {
    uint64_t row = window.row;
    uint32_t at = window.at;
    for (uint64_t step = 0; step < window.steps; ++step, row = arena.after(row, window.lane_base)) {
      for (uint32_t back = frames_; back-- > 0; to += leaf.bytes)
        copy_or_zero(to, arena.frame(leaf, window.lane_base, row, at, back, padding_), leaf.bytes);
      at = std::min(at + 1, kMaxPosition);
    }
    for (uint32_t back = frames_; --back > 0; to += leaf.bytes)
      copy_or_zero(to, arena.frame(leaf, window.lane_base, window.last, window.last_at, back - 1, padding_),
                   leaf.bytes);
    std::memcpy(to, after(arena, leaf, window), leaf.bytes);
  }

  // The newest frame of the observation after a window.
  const char* after(const Arena& arena, const Leaf& leaf, const Window& window) const {
    if (window.final == 0) return arena.value(leaf, window.next);
    return arena.final(leaf, window.lane_base + window.final - 1);
  }

  const Layout& layout_;
  AnchorRule rule_;
  uint64_t burn_in_;
  float gamma_;
  uint32_t frames_, padding_;
  std::vector<bool> first_only_;  // of each leaf of the rest
};

}  // namespace relive
