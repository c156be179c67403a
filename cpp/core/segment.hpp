// Runs of transitions as they lie in a snapshot. A row of a segment is a record as in the arena, but its two words that
// name slots of side tables count within the segment instead: number i of its final observations, number i of its stack
// prefixes. What is copied out of one arena can so be copied into another.
//
// A transition is settled when its episode has ended or went on with another one: nothing of it changes any more, and
// its next_obs is either a final observation or the observation of the following row.
#pragma once

#include <optional>
#include <vector>

#include "ring.hpp"

namespace relive {

// Where rows of a segment lie: the values of each kind follow one another closely.
struct Strips {
  char* records = nullptr;
  std::vector<char*> columns;        // of each leaf that is not packed: observations, then the rest
  char* finals = nullptr;            // packed leaves of final observations
  std::vector<char*> final_columns;  // of each observation leaf that is not packed
  std::vector<char*> prefixes;       // of each observation leaf, where observations arrive stacked
};

// How much of a segment there is.
struct Extent {
  uint64_t rows = 0, finals = 0, prefixes = 0;
};

class Segment {
 public:
  explicit Segment(const Arena& arena) : arena_(arena), layout_(arena.layout()) {
    for (const Leaf& leaf : layout_.obs)
      if (!leaf.packed) final_columns_.push_back(&leaf);
    columns_ = final_columns_;
    for (const Leaf& leaf : layout_.rest)
      if (!leaf.packed) columns_.push_back(&leaf);
  }

  // Time up to which a lane is settled.
  uint64_t settled(uint64_t lane) const { return arena_.lane(lane).head - arena_.lane(lane).open; }

  // The oldest time that a snapshot of this lane needs: the oldest live transition and the frames before it.
  uint64_t first_needed(uint64_t lane) const {
    const LaneHeader& state = arena_.lane(lane);
    if (state.begin == state.head) return state.head;
    const Words& oldest = arena_.words(arena_.anchor(lane, state, state.begin).row);
    return state.begin - std::min<uint64_t>(position(oldest), layout_.spec.history);
  }

  // True if the row of this time was not overwritten yet.
  bool holds(uint64_t lane, uint64_t time) const { return time + layout_.rows > arena_.lane(lane).head; }

  // Copies the rows of times [begin, end) of a lane to the strips, behind what `extent` counts, and counts them;
  // `before` says what of the segment lies before the strips. All must be held; the strips must have room. The row at
  // `head` is the open row: its observation, no transition.
  void copy_out(uint64_t lane, uint64_t begin, uint64_t end, const Strips& to, const Extent& before,
                Extent& extent) const {
    const uint64_t base = lane * layout_.rows, head = arena_.lane(lane).head;
    for (uint64_t time = begin; time < end;) {
      const uint64_t row = time % layout_.rows, count = std::min(end - time, layout_.rows - row);
      char* records = to.records + extent.rows * layout_.record_bytes;
      copy(records, arena_.record(base + row), count * layout_.record_bytes);
      for (size_t i = 0; i < columns_.size(); ++i)
        copy(to.columns[i] + extent.rows * columns_[i]->bytes, arena_.value(*columns_[i], base + row),
             count * columns_[i]->bytes);
      extent.rows += count;
      for (uint64_t i = 0; i < count; ++i)
        number(records + i * layout_.record_bytes, lane, time + i < head, to, before, extent);
      time += count;
    }
  }

  // Before the first `copy_in` of an empty lane: the time of the first row that will come.
  void begin_lane(uint64_t lane, uint64_t first) {
    LaneHeader& state = arena_.lane(lane);
    state.begin = state.head = first;
    state.head_row = static_cast<uint32_t>(first % layout_.rows);
  }

  // Final observations and prefixes that these records name.
  Extent count(const char* records, uint64_t rows) const {
    Extent extent{rows, 0, 0};
    for (uint64_t i = 0; i < rows; ++i, records += layout_.record_bytes) {
      extent.finals += reinterpret_cast<const Words*>(records + layout_.words_offset)->final != 0;
      if (layout_.spec.stacked > 1)
        extent.prefixes += *reinterpret_cast<const uint32_t*>(records + layout_.start_offset) >= kPrefixSlot;
    }
    return extent;
  }

  // Appends rows to a lane as they are; `base` says what of their segment lies before the strips, which end at `end`.
  // False if they cannot be the next rows of a lane; then the lane is not to be used. Together at most as many
  // as the lane has rows for.
  bool copy_in(uint64_t lane, uint64_t count, const Strips& from, const Extent& base, const Extent& end) {
    LaneHeader& state = arena_.lane(lane);
    const uint64_t first = lane * layout_.rows;
    Extent at = base;
    for (uint64_t done = 0; done < count;) {
      const uint64_t row = first + state.head_row, some = std::min(count - done, first + layout_.rows - row);
      put_rows(row, some, from, done);
      std::optional<uint32_t> expected = next_position(lane);
      for (uint64_t i = row; i < row + some; ++i)
        if (!place(lane, i, from, base, end, at, expected)) return false;
      state.head += some;
      state.head_row = static_cast<uint32_t>((row + some - first) % layout_.rows);
      done += some;
    }
    return at.finals == end.finals && at.prefixes == end.prefixes;
  }

  // The observation that the newest transition's episode goes on with: row 0 of the strips.
  void copy_open(uint64_t lane, const Strips& from) {
    const uint64_t row = lane * layout_.rows + arena_.lane(lane).head_row;
    put_rows(row, 1, from, 0);
    arena_.words(row) = {};
    if (layout_.spec.stacked > 1) arena_.start(row) = kPrefixRepeat;
    arena_.lane(lane).open = 1;
  }

  // After the last `copy_in`: the oldest live transition. False if that cannot be.
  bool end_lane(uint64_t lane, uint64_t begin) {
    LaneHeader& state = arena_.lane(lane);
    const uint64_t first = state.begin, live = state.head - begin;
    if (begin < first || begin > state.head || live > layout_.spec.lane_capacity || (state.open && live == 0))
      return false;
    if (live > 0) {  // the frames before the oldest one are there
      const Words& oldest = arena_.words(arena_.anchor(lane, state, begin).row);
      if (begin - first < std::min<uint64_t>(position(oldest), layout_.spec.history)) return false;
    }
    if (live > 0 && (arena_.words(arena_.anchor(lane, state, state.head - 1).row).final == 0) != (state.open == 1))
      return false;
    state.begin = begin;
    arena_.header().live += live;
    return true;
  }

 private:
  static void copy(char* to, const char* from, uint64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  char* packed_final(const Strips& strips, uint64_t number) const {
    return strips.finals + number * layout_.final_bytes;
  }
  char* prefix(const Strips& strips, size_t leaf, uint64_t number) const {
    return strips.prefixes[leaf] + number * prefix_bytes(leaf);
  }
  uint64_t prefix_bytes(size_t leaf) const { return layout_.obs[leaf].bytes * (layout_.spec.stacked - 1); }

  // Gives a copied record numbers of this segment for the slots of the arena, and copies what lies in them.
  void number(char* record, uint64_t lane, bool is_transition, const Strips& to, const Extent& before,
              Extent& extent) const {
    Words& words = *reinterpret_cast<Words*>(record + layout_.words_offset);
    uint32_t* start = layout_.spec.stacked > 1 ? reinterpret_cast<uint32_t*>(record + layout_.start_offset) : nullptr;
    if (!is_transition) {
      words = {};
      if (start) *start = kPrefixRepeat;
      return;
    }
    if (words.final != 0) {
      const uint64_t slot = lane * layout_.rows + words.final - 1;
      copy(packed_final(to, extent.finals), arena_.packed_final(slot), layout_.final_bytes);
      for (size_t i = 0; i < final_columns_.size(); ++i)
        copy(to.final_columns[i] + extent.finals * final_columns_[i]->bytes, arena_.final(*final_columns_[i], slot),
             final_columns_[i]->bytes);
      words.final = static_cast<uint32_t>(before.finals + ++extent.finals);
    }
    if (start && *start >= kPrefixSlot) {
      const uint64_t slot = lane * layout_.rows + *start - kPrefixSlot;
      for (size_t leaf = 0; leaf < layout_.obs.size(); ++leaf)
        copy(prefix(to, leaf, extent.prefixes), arena_.prefix(layout_.obs[leaf], slot, 0), prefix_bytes(leaf));
      *start = static_cast<uint32_t>(before.prefixes + extent.prefixes++ + kPrefixSlot);
    }
  }

  // Copies records and columns to rows that follow one another, from those of the strips from number `first` on.
  void put_rows(uint64_t row, uint64_t count, const Strips& from, uint64_t first) {
    copy(arena_.record(row), from.records + first * layout_.record_bytes, count * layout_.record_bytes);
    for (size_t column = 0; column < columns_.size(); ++column)
      copy(arena_.value(*columns_[column], row), from.columns[column] + first * columns_[column]->bytes,
           count * columns_[column]->bytes);
  }

  // Position in its episode of the transition that follows a lane's newest one; nothing for the first that was kept.
  std::optional<uint32_t> next_position(uint64_t lane) const {
    const LaneHeader& state = arena_.lane(lane);
    if (state.head == state.begin) return std::nullopt;
    return position_after(arena_.words(arena_.anchor(lane, state, state.head - 1).row));
  }
  static uint32_t position_after(const Words& words) {
    return words.final ? 0 : std::min(position(words) + 1, kMaxPosition);
  }

  // Gives the transition that was put in a row slots for the numbers that it has. False if it cannot follow.
  bool place(uint64_t lane, uint64_t row, const Strips& from, const Extent& base, const Extent& end, Extent& at,
             std::optional<uint32_t>& expected) {
    Words& words = arena_.words(row);
    if ((words.step & (kTerminated | kTruncated)) != 0 && words.final == 0) return false;
    if (expected && position(words) != *expected) return false;
    if (words.final != 0) {
      if (words.final != at.finals + 1 || at.finals == end.finals) return false;
      words.final = take_final(lane, from, at.finals++ - base.finals) + 1;
    }
    if (layout_.spec.stacked > 1) {
      uint32_t& start = arena_.start(row);
      if (start >= kPrefixSlot) {
        if (start != at.prefixes + kPrefixSlot || at.prefixes == end.prefixes) return false;
        start = take_prefix(lane, from, at.prefixes++ - base.prefixes) + kPrefixSlot;
      }
    }
    expected = position_after(words);
    return true;
  }

  uint32_t take_final(uint64_t lane, const Strips& from, uint64_t number) {
    const uint32_t slot = arena_.lane(lane).final_used++;
    const uint64_t place = lane * layout_.rows + slot;
    copy(arena_.packed_final(place), packed_final(from, number), layout_.final_bytes);
    for (size_t i = 0; i < final_columns_.size(); ++i)
      copy(arena_.final(*final_columns_[i], place), from.final_columns[i] + number * final_columns_[i]->bytes,
           final_columns_[i]->bytes);
    return slot;
  }
  uint32_t take_prefix(uint64_t lane, const Strips& from, uint64_t number) {
    const uint32_t slot = arena_.lane(lane).prefix_used++;
    for (size_t leaf = 0; leaf < layout_.obs.size(); ++leaf)
      copy(arena_.prefix(layout_.obs[leaf], lane * layout_.rows + slot, 0), prefix(from, leaf, number),
           prefix_bytes(leaf));
    return slot;
  }

  Arena arena_;
  const Layout& layout_;
  std::vector<const Leaf*> columns_, final_columns_;
};

}  // namespace relive
