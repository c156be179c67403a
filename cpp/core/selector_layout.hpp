// What a selector is told, and how its memory lies: header | lanes | uses | episode ends | masses.
#pragma once

#include "anchors.hpp"
#include "rank_heap.hpp"
#include "sum_tree.hpp"

namespace relive {

enum class Draw : uint32_t { kUniform, kProportional, kRanked, kShuffled, kRecent };

struct SelectorSpec {
  Draw draw = Draw::kUniform;
  double alpha = 0, eps = 0;          // of priorities
  bool minima = false;                // weights are normalised over the buffer
  double shrink = 1;                  // of recent windows, and
  uint64_t period = 1, smallest = 1;  // batches and size of the narrowest
  uint64_t newest = 0;                // anchors that are in every batch
  uint32_t max_uses = 0;              // 0: no limit
  AnchorRule rule;
  bool ends = false;  // keep how far each transition is from the end of its episode

  bool keeps_priorities() const { return draw == Draw::kProportional || draw == Draw::kRanked; }
  bool keeps_masses() const { return keeps_priorities() || draw == Draw::kRecent || max_uses != 0 || !rule.all(); }
};

struct SelectorHeader {
  uint64_t magic, bytes;
  uint64_t seed;   // of the reader's own generator
  uint64_t draws;  // batches drawn so far
  double largest;  // priority of new anchors
  uint64_t uses_left;
  uint64_t epoch, epoch_size, epoch_at;  // shuffled: number, transitions when it began, next of its order
  uint64_t changes;                      // of masses and uses, counted: a snapshot asks whether there were any
  uint64_t unused[6];
};
static_assert(sizeof(SelectorHeader) == 2 * kCacheLine);

// What of a lane was taken into account.
struct SelectorLane {
  uint64_t begin, head;
  uint64_t ended;  // 1: the newest of it was known to end its episode
  uint64_t epoch_begin, epoch_head;
  uint64_t unused[3];
};
static_assert(sizeof(SelectorLane) == kCacheLine);

// Where the parts lie.
struct SelectorPlaces {
  SelectorPlaces(const SelectorSpec& spec, const Layout& layout) {
    const uint64_t lanes = layout.spec.lanes, rows = lanes * layout.rows;
    const auto region = [&](uint64_t bytes) {
      const uint64_t place = end;
      end = round_up(end + bytes, kCacheLine);
      return place;
    };
    region(sizeof(SelectorHeader));
    this->lanes = region(lanes * sizeof(SelectorLane));
    uses = region(spec.max_uses ? rows * sizeof(uint32_t) : 0);
    ends = region(spec.ends ? rows * sizeof(uint32_t) : 0);
    end = round_up(end, kPage);
    if (spec.draw == Draw::kRanked)
      masses = region(RankHeap::bytes(rows));
    else if (spec.keeps_masses())
      masses = region(SumTree::bytes(rows, spec.minima));
    end = round_up(end, kPage);
  }
  uint64_t lanes = 0, uses = 0, ends = 0, masses = 0, end = 0;
};

}  // namespace relive
