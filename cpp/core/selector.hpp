// Which ids: what a sampler keeps about the anchors of a view, and how it draws them.
//
// A selector lies in memory of its own beside the arena. It follows the arena lazily: every call first looks at what
// was pushed and evicted since the last one. So a push costs nothing more however many readers a buffer has, and a
// reader made late catches up. The caller holds the arena's lock.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <variant>
#include <vector>

#include "permutation.hpp"
#include "recent.hpp"
#include "uniform.hpp"

namespace relive {

class Selector {
 public:
  static constexpr uint64_t kSelectorMagic = 0x31304C4553564C52u;  // "RLVSEL01"

  static uint64_t bytes(const SelectorSpec& spec, const Layout& layout) { return SelectorPlaces(spec, layout).end; }

  // Attaches to zeroed memory, aligned to a cache line.
  Selector(char* memory, const SelectorSpec& spec, const Arena& arena)
      : spec_(spec), arena_(arena), memory_(memory), places_(spec, arena.layout()) {
    const uint64_t rows = arena.layout().rows * arena.layout().spec.lanes;
    if (spec.draw == Draw::kRanked)
      masses_.emplace<RankHeap>(memory + places_.masses, rows, spec.alpha);
    else if (spec.keeps_masses())
      masses_.emplace<SumTree>(memory + places_.masses, rows, spec.minima);
  }

  // True if a selector of this kind has been in this memory.
  bool is_mine() const { return header().magic == kSelectorMagic && header().bytes == places_.end; }

  void init(uint64_t seed) {
    SelectorHeader& state = header();
    state.magic = kSelectorMagic;
    state.bytes = places_.end;
    state.seed = seed;
    state.largest = 1.0;
  }

  SelectorHeader& header() const { return *reinterpret_cast<SelectorHeader*>(memory_); }
  const SelectorSpec& spec() const { return spec_; }

  // Takes into account what was pushed and evicted since the last call. New anchors get the largest priority so far.
  // O(lanes + transitions pushed and evicted since).
  void sync() {
    if (!follows()) return;
    const uint64_t lanes = arena_.layout().spec.lanes;
    {
      Changes changes(*this);
      for (uint64_t lane = 0; lane < lanes; ++lane) sync_lane(lane, header().largest, changes);
    }
    for (uint64_t lane = 0; lane < lanes; ++lane) took(lane);
  }

  // The same for one lane, whose new anchors get the priority of this raw value.
  void sync(uint64_t lane, double raw) {
    if (!follows()) return;
    const double value = priority(raw);
    header().largest = std::max(header().largest, value);
    {
      Changes changes(*this);
      sync_lane(lane, value, changes);
    }
    took(lane);
  }

  // Draws the next batch; `masses` (may be null) receives what each anchor was drawn in proportion to. False if there
  // are fewer draws left than `count`; then nothing changes. At least `newest` must be asked for.
  bool draw(uint64_t count, Anchor* anchors, double* masses) {
    sync();
    if (num_left() < count) return false;
    SelectorHeader& state = header();
    stream_ = {state.draws, 0};
    uint64_t done = take_newest(std::min(spec_.newest, count), anchors);
    for (uint64_t i = 0; masses && i < done; ++i) masses[i] = mass(anchors[i].row);
    done = charge(anchors, masses, 0, done);
    while (done < count) {
      const uint64_t missing = count - done;
      draw_some(missing, anchors + done, masses ? masses + done : nullptr);
      done = charge(anchors, masses, done, missing);
    }
    ++state.draws;
    return true;
  }

  // Draws still to be had: none if no anchor can be drawn, no end of them without a limit of uses.
  uint64_t num_left() const {
    if (spec_.max_uses) return total() > 0 ? header().uses_left : 0;
    if (!spec_.keeps_masses()) return arena_.header().live ? UINT64_MAX : 0;
    return total() > 0 ? UINT64_MAX : 0;
  }

  // What anchors are drawn in proportion to, summed over all of them; their number where each counts alike. After a
  // sync.
  double sum() const { return spec_.keeps_masses() ? total() : static_cast<double>(arena_.header().live); }

  // Anchors that come without a priority get at least this one (transformed already) from now on.
  void lift(double largest) {
    sync();  // those that are there came before
    header().largest = std::max(header().largest, std::min(largest, kLargestPriority));
  }

  // The mass that importance weights are relative to, where they are normalised over the buffer.
  double smallest() const {
    if (const auto* tree = std::get_if<SumTree>(&masses_)) return tree->smallest();
    if (const auto* heap = std::get_if<RankHeap>(&masses_)) return heap->smallest();
    return 1.0;
  }

  // Gives anchors the priorities of these raw values, finite and >= 0; the last one of an id holds. Returns how many
  // are live anchors; the others are skipped, and so are retired ones.
  uint64_t update(const int64_t* ids, const double* raw, uint64_t count) {
    sync();
    uint64_t live = 0;
    Changes changes(*this);
    for (uint64_t i = 0; i < count; ++i) {
      const auto anchor = arena_.find(ids[i]);
      if (!anchor || (!spec_.rule.all() && !(mass(anchor->row) > 0) && !spec_.rule.is_anchor(arena_, *anchor)))
        continue;
      ++live;
      const double value = priority(raw[i]);
      header().largest = std::max(header().largest, value);
      if (spec_.max_uses && uses(anchor->row) == spec_.max_uses) continue;
      prefetch_mass(anchor->row);  // arrives while the powers of the others are computed
      changes.add(anchor->row, value);
    }
    return live;
  }

  // Shuffled: epochs whose order was walked to its end.
  uint64_t epochs() const { return header().epoch - (header().epoch_at < header().epoch_size); }

  // True if a batch may contain this live transition as an anchor.
  bool drawable(const Anchor& anchor) const { return !spec_.keeps_masses() || mass(anchor.row) > 0; }

  // Steps of the transition's episode that follow it in the buffer. O(1); needs `ends`, after a sync.
  uint64_t steps_after(const Anchor& anchor) const {
    const uint32_t steps = end(anchor.row);
    return steps == kOpen ? num_ahead(arena_, anchor) - 1 : steps;
  }
  void prefetch_end(uint64_t row) const { __builtin_prefetch(&end(row)); }

 private:
  friend class SelectorState;
  static constexpr uint32_t kOpen = UINT32_MAX;

  // Changes of masses, written together: a parent is recomputed once for neighbours.
  class Changes {
   public:
    explicit Changes(Selector& selector) : selector_(selector) {}
    ~Changes() { flush(); }
    Changes(const Changes&) = delete;
    Changes& operator=(const Changes&) = delete;

    // A mass of kAbsent: no anchor any more.
    void add(uint64_t row, double mass) {
      rows_[size_] = row;
      values_[size_] = mass;
      if (++size_ == kRoom) flush();
    }
    void flush() {
      if (size_ > 0) selector_.put(rows_, values_, size_);
      size_ = 0;
    }

   private:
    static constexpr uint64_t kRoom = 512;
    Selector& selector_;
    uint64_t size_ = 0;
    uint64_t rows_[kRoom];
    double values_[kRoom];
  };
  static constexpr double kAbsent = -1.0;

  bool follows() const { return spec_.keeps_masses() || spec_.ends; }

  SelectorLane& lane(uint64_t lane) const {
    return *reinterpret_cast<SelectorLane*>(memory_ + places_.lanes + lane * sizeof(SelectorLane));
  }
  uint32_t& uses(uint64_t row) const { return reinterpret_cast<uint32_t*>(memory_ + places_.uses)[row]; }
  uint32_t& end(uint64_t row) const { return reinterpret_cast<uint32_t*>(memory_ + places_.ends)[row]; }

  double mass(uint64_t row) const {
    if (const auto* tree = std::get_if<SumTree>(&masses_)) return tree->mass(row);
    if (const auto* heap = std::get_if<RankHeap>(&masses_)) return heap->mass(row);
    return 1.0;
  }
  RELIVE_INLINE void prefetch_mass(uint64_t row) const {
    if (const auto* tree = std::get_if<SumTree>(&masses_)) tree->prefetch_mass(row);
  }
  double total() const {
    if (const auto* tree = std::get_if<SumTree>(&masses_)) return tree->total();
    if (const auto* heap = std::get_if<RankHeap>(&masses_)) return heap->total();
    return 0.0;
  }

  // Schaul et al. 2016, section 3.3; zero stays zero under every alpha.
  double priority(double raw) const {
    if (spec_.draw == Draw::kRanked) return raw;
    if (spec_.draw != Draw::kProportional) return 1.0;
    const double sum = raw + spec_.eps;
    if (sum == 0) return 0;
    return std::clamp(std::pow(sum, spec_.alpha), std::numeric_limits<double>::min(), kLargestPriority);
  }
  static constexpr double kLargestPriority = 1e280;  // the sum of 2^62 of them is finite

  void put(const uint64_t* rows, const double* values, uint64_t count) {
    if (spec_.max_uses) {
      for (uint64_t i = 0; i < count; ++i) {
        // One after the other: a row may come twice, and what is left depends on what was there.
        const bool before = mass(rows[i]) > 0;
        write(rows + i, values + i, 1);
        const bool after = mass(rows[i]) > 0;
        const uint64_t left = spec_.max_uses - uses(rows[i]);
        if (after && !before) header().uses_left += left;
        if (before && !after) header().uses_left -= left;
      }
    } else {
      write(rows, values, count);
    }
  }
  void write(const uint64_t* rows, const double* values, uint64_t count) {
    ++header().changes;
    if (auto* tree = std::get_if<SumTree>(&masses_)) tree->set(rows, values, count);
    if (auto* heap = std::get_if<RankHeap>(&masses_)) heap->set(rows, values, count);
  }

  void sync_lane(uint64_t number, double initial, Changes& changes) {
    const SelectorLane& seen = lane(number);
    const LaneHeader state = arena_.lane(number);
    const auto is_end = [&](uint64_t time) { return this->is_end(number, state, time); };
    if (is_taken(number, state)) return;

    forget(number, state, seen, changes);
    const bool had_open = seen.head > state.begin && !seen.ended;
    if (had_open && is_end(seen.head - 1)) ended(number, state, seen.head - 1, initial, changes);
    for (uint64_t time = std::max(seen.head, state.begin); time < state.head; ++time) {
      const uint64_t row = arena_.anchor(number, state, time).row;
      if (spec_.max_uses) {
        changes.flush();  // the row's former transition is gone before its uses are
        uses(row) = 0;
      }
      if (spec_.ends) end(row) = kOpen;
      if (spec_.keeps_masses())
        spec_.rule.arrived(arena_, number, state, time,
                           [&](const Anchor& anchor) { changes.add(anchor.row, initial); });
      if (is_end(time)) ended(number, state, time, initial, changes);
    }
  }

  // Notes that all of a lane was taken into account, once the changes that came of it are written: of what was noted,
  // everything is there also for who finds the memory when this process was killed.
  void took(uint64_t number) {
    SelectorLane& seen = lane(number);
    const LaneHeader state = arena_.lane(number);
    if (is_taken(number, state)) return;
    const auto in_order = [] { std::atomic_thread_fence(std::memory_order_release); };
    in_order();
    // `ended` is last: a former one that was not cleared misleads no recovery; a cleared one would end episodes anew.
    seen.begin = state.begin;
    in_order();
    seen.head = state.head;
    in_order();
    seen.ended = state.head > state.begin && is_end(number, state, state.head - 1);
  }

  bool is_taken(uint64_t number, const LaneHeader& state) const {
    const SelectorLane& seen = lane(number);
    return seen.begin == state.begin && seen.head == state.head &&
           (seen.ended || state.head == state.begin || !is_end(number, state, state.head - 1));
  }

  // Whether an episode is known to end after this transition, to selectors that care.
  bool is_end(uint64_t number, const LaneHeader& state, uint64_t time) const {
    return (spec_.ends || !spec_.rule.all()) && arena_.words(arena_.anchor(number, state, time).row).final != 0;
  }

  // Transitions that were evicted are no anchors any more.
  void forget(uint64_t number, const LaneHeader& state, const SelectorLane& seen, Changes& changes) {
    if (!spec_.keeps_masses()) return;
    const uint64_t rows = arena_.layout().rows, base = number * rows;
    const uint64_t last = std::min(state.begin, seen.head);
    const uint64_t first = last > seen.begin + rows ? last - rows : seen.begin;
    for (uint64_t time = first; time < last; ++time)
      changes.add(arena_.before(base + state.head_row, base, (state.head - time) % rows), kAbsent);
  }

  void ended(uint64_t number, const LaneHeader& state, uint64_t time, double initial, Changes& changes) {
    if (spec_.ends) {
      const Anchor last = arena_.anchor(number, state, time);
      const uint64_t steps = std::min<uint64_t>(position(arena_.words(last.row)), time - state.begin);
      for (uint64_t back = 0; back <= steps; ++back)
        end(arena_.before(last.row, last.lane_base, back)) = static_cast<uint32_t>(back);
    }
    if (spec_.keeps_masses())
      spec_.rule.ended(arena_, number, state, time, [&](const Anchor& anchor) { changes.add(anchor.row, initial); });
  }

  // The newest anchors that may be drawn, newest first. Returns how many there are, at most `count`. O(lanes), and
  // O(log lanes) for each transition looked at.
  uint64_t take_newest(uint64_t count, Anchor* anchors) const {
    if (count == 0) return 0;
    const auto lanes = static_cast<int64_t>(arena_.layout().spec.lanes);
    std::vector<int64_t> next;  // the newest of each lane that was not looked at yet, as a heap
    for (int64_t number = 0; number < lanes; ++number) {
      const LaneHeader& state = arena_.lane(number);
      if (state.head > state.begin) next.push_back(static_cast<int64_t>(state.head - 1) * lanes + number);
    }
    std::make_heap(next.begin(), next.end());
    uint64_t done = 0;
    while (done < count && !next.empty()) {
      std::pop_heap(next.begin(), next.end());
      const Anchor anchor = *arena_.find(next.back());
      if (drawable(anchor)) anchors[done++] = anchor;
      if (arena_.find(anchor.id - lanes)) {
        next.back() -= lanes;
        std::push_heap(next.begin(), next.end());
      } else {
        next.pop_back();
      }
    }
    return done;
  }

  // Counts a use of each of the `count` anchors after the first `done`, and drops those that are used up: returns the
  // number of anchors that stand.
  uint64_t charge(Anchor* anchors, double* masses, uint64_t done, uint64_t count) {
    if (!spec_.max_uses) return done + count;
    const uint64_t last = done + count;
    for (uint64_t i = done; i < last; ++i) {
      const uint64_t row = anchors[i].row;
      if (uses(row) == spec_.max_uses) continue;  // drawn twice in one go, the second time in vain
      anchors[done] = anchors[i];
      if (masses) masses[done] = masses[i];
      ++done;
      --header().uses_left;
      ++header().changes;
      if (++uses(row) == spec_.max_uses) write(&row, &kAbsent, 1);
    }
    return done;
  }

  // Writes the next `count` numbers of this batch, uniform in [0, 1), to targets_. Blocks of random bits are computed
  // side by side; half a block that is left over is not used.
  void draw_fractions(uint64_t count) {
    targets_.resize(count);
    for (uint64_t i = 0; i < count; i += 2 * kAhead, stream_[1] += kAhead) {
      std::array<std::array<uint64_t, 2>, kAhead> blocks;
      for (uint64_t block = 0; block < kAhead; ++block)
        blocks[block] = philox2x64({stream_[0], stream_[1] + block}, header().seed);
      for (uint64_t j = i; j < std::min(count, i + 2 * kAhead); ++j)
        targets_[j] = static_cast<double>(blocks[(j - i) / 2][(j - i) % 2] >> 11) * 0x1p-53;
    }
  }

  void draw_some(uint64_t count, Anchor* anchors, double* masses) {
    if (spec_.draw == Draw::kShuffled) {
      walk_epoch(count, anchors);
      std::fill_n(masses, masses ? count : 0, 1.0);
    } else if (!spec_.keeps_masses()) {
      draw_uniform(arena_, header().seed, stream_[0], count, anchors);
      std::fill_n(masses, masses ? count : 0, 1.0);
    } else {
      draw_masses(count, anchors, masses);
    }
  }

  // Draws in proportion to the masses: one from each of `count` equal parts of their sum where there are priorities
  // (Schaul et al. 2016, appendix B.2.1), else independently.
  void draw_masses(uint64_t count, Anchor* anchors, double* masses) {
    draw_fractions(count);
    rows_.resize(count);
    if (spec_.draw == Draw::kRecent) {
      aim_recent(arena_, spec_, std::get<SumTree>(masses_), stream_[0], targets_);
    } else {
      const double sum = total(), last = std::nextafter(sum, 0.0);
      const double width = spec_.keeps_priorities() ? sum / static_cast<double>(count) : sum;
      const double step = spec_.keeps_priorities() ? 1.0 : 0.0;
      for (uint64_t i = 0; i < count; ++i)
        targets_[i] = std::min((step * static_cast<double>(i) + targets_[i]) * width, last);
    }
    if (const auto* tree = std::get_if<SumTree>(&masses_)) tree->find(targets_.data(), count, rows_.data());
    if (const auto* heap = std::get_if<RankHeap>(&masses_)) heap->find(targets_.data(), count, rows_.data());
    for (uint64_t i = 0; i < count; ++i) {
      anchors[i] = arena_.anchor_at(rows_[i]);
      if (masses) masses[i] = mass(rows_[i]);
    }
  }

  // Goes on in the order of the epoch; a new one begins where it ends. At least one anchor must be drawable.
  void walk_epoch(uint64_t count, Anchor* anchors) {
    SelectorHeader& state = header();
    const uint64_t lanes = arena_.layout().spec.lanes;
    std::vector<uint64_t> ends;
    std::optional<Permutation> order;
    const auto open = [&] {  // of an epoch that is under way
      ends.clear();
      for (uint64_t number = 0; number < lanes; ++number)
        ends.push_back((ends.empty() ? 0 : ends.back()) + lane(number).epoch_head - lane(number).epoch_begin);
      order.emplace(state.epoch_size, state.epoch, state.seed);
    };
    if (state.epoch_at < state.epoch_size) open();
    for (uint64_t done = 0; done < count;) {
      if (state.epoch_at == state.epoch_size) {
        begin_epoch();
        open();
      }
      const uint64_t at = (*order)(state.epoch_at++);
      const uint64_t number = lanes == 1 ? 0 : std::upper_bound(ends.begin(), ends.end(), at) - ends.begin();
      const uint64_t time = lane(number).epoch_head - (ends[number] - at);
      const LaneHeader& now = arena_.lane(number);
      if (time < now.begin) continue;  // evicted since
      const Anchor anchor = arena_.anchor(number, now, time);
      if (drawable(anchor)) anchors[done++] = anchor;
    }
  }

  void begin_epoch() {
    SelectorHeader& state = header();
    ++state.epoch;
    state.epoch_at = state.epoch_size = 0;
    for (uint64_t number = 0; number < arena_.layout().spec.lanes; ++number) {
      const LaneHeader& now = arena_.lane(number);
      lane(number).epoch_begin = now.begin;
      lane(number).epoch_head = now.head;
      state.epoch_size += now.head - now.begin;
    }
  }

  SelectorSpec spec_;
  Arena arena_;
  char* memory_;
  SelectorPlaces places_;
  std::variant<std::monostate, SumTree, RankHeap> masses_;
  std::array<uint64_t, 2> stream_{};  // batch, and blocks of random bits drawn for it
  std::vector<double> targets_;       // kept for their memory
  std::vector<uint64_t> rows_;
};

}  // namespace relive
