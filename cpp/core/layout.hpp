// How the bytes lie. One block of memory (the arena) holds everything a buffer is:
//
//   header | lane headers | records | columns | final observations | stack prefixes
//
// A transition is one packed record: observation, action and extras, reward, then the words of its episode. Fields too
// large to pack lie in a column of their own, at the same row. A lane is a ring of rows. The row after the newest
// transition (the open row) holds its next_obs; `history` further rows keep the frames of the oldest stack.
// Python computes sizes from this file through the bindings and allocates; nothing here allocates.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "platform.hpp"

namespace relive {

inline constexpr uint64_t kMagic = 0x31305645494C4552u;  // "RELIVE01"
inline constexpr uint32_t kFormat = 1;
inline constexpr uint64_t kPage = 4096;
inline constexpr uint64_t kPackedLimit = 512;               // a larger field gets a column
inline constexpr uint32_t kMaxPosition = (1u << 30) - 1;    // positions in an episode saturate here
inline constexpr uint64_t kMaxLaneCapacity = kMaxPosition;  // so that saturated positions still tell episodes apart

struct Spec {
  std::vector<uint64_t> obs;   // bytes of each observation leaf; of one frame where stacked > 1
  std::vector<uint64_t> rest;  // bytes of each action and extra leaf
  uint64_t lanes = 1;
  uint64_t lane_capacity = 1;
  uint32_t stacked = 1;  // observations arrive as stacks of this many frames
  uint32_t history = 0;  // rows kept beyond the capacity
};

// The episode's words at the end of a record.
struct Words {
  float reward;
  uint32_t step;   // position in the episode, plus the two flags below
  uint32_t final;  // slot + 1 of the final observation; 0: next_obs is in the following row
};
inline constexpr uint32_t kTerminated = 1u << 31;
inline constexpr uint32_t kTruncated = 1u << 30;

// How the frames before an episode's first one were given, in the first record of the episode (stacked buffers only).
inline constexpr uint32_t kPrefixRepeat = 0;  // copies of the first frame
inline constexpr uint32_t kPrefixZeros = 1;
inline constexpr uint32_t kPrefixSlot = 2;  // + slot in the table of prefixes

struct LaneHeader {
  uint64_t head;      // time of the next transition: all below were pushed
  uint64_t begin;     // time of the oldest live transition
  uint32_t head_row;  // row of `head`, the open row
  uint32_t open;      // 1: the open row holds the next_obs of an episode that goes on
  uint32_t final_free, final_used;
  uint32_t prefix_free, prefix_used;
  uint64_t unused[3];
};
static_assert(sizeof(LaneHeader) == kCacheLine);

struct Header {
  uint64_t magic;
  uint32_t format, header_bytes;
  uint64_t arena_bytes, lanes, lane_capacity, rows, record_bytes;
  uint32_t stacked, history;
  uint64_t live;  // live transitions of all lanes
  uint64_t
      clean;  // arenas in files: checksum of the headers, from when whoever had it open closed it; 0 while it is open
  uint64_t boot;  // of the machine that opened it last; another one may have lost what was not written yet
  alignas(kCacheLine) SharedMutex mutex;
  uint32_t damaged;  // 1: what a process left that was killed could not be repaired
};

// 64 numbers that attached processes count together, each changed in one atomic step; see assembly.py.
inline constexpr uint64_t kBoard = 2048, kBoardPlaces = 64;
inline constexpr uint64_t kBoardRecoveries =
    6;  // place of the one number counted here: deaths that were recovered from
static_assert(sizeof(Header) <= kBoard);

// Where one leaf lies. A packed leaf is at `offset` of its record, and of its final observation: observations come
// first in a record. A column leaf is at `base + row * bytes`.
struct Leaf {
  uint64_t bytes = 0;
  bool packed = true;
  uint64_t offset = 0;
  uint64_t base = 0;
  uint64_t final_base = 0;   // observation columns: in the table of final observations
  uint64_t prefix_base = 0;  // observations that arrive stacked: (stacked - 1) frames a slot
};

struct Layout {
  explicit Layout(const Spec& spec_);

  Spec spec;
  std::vector<Leaf> obs, rest;
  uint64_t rows = 0;  // of one lane; also the slots of its tables
  uint64_t words_offset = 0;
  uint64_t start_offset = 0;  // of the prefix word; meaningful where stacked > 1
  uint64_t record_bytes = 0;
  uint64_t final_bytes = 0;  // the packed observation leaves
  uint64_t lanes_base = 0, records_base = 0, finals_base = 0, final_links = 0, prefix_links = 0;
  uint64_t records_end = 0;  // records and columns: the part worth large pages
  uint64_t arena_bytes = 0;

 private:
  uint64_t region(uint64_t count, uint64_t bytes);
};

inline uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Reserves a region at the next page and returns its offset; overflow is an error, never a small arena.
inline uint64_t Layout::region(uint64_t count, uint64_t bytes) {
  const uint64_t offset = round_up(arena_bytes, kPage);
  uint64_t size, end;
  if (__builtin_mul_overflow(count, bytes, &size) || __builtin_add_overflow(offset, size, &end) || end > (1ull << 62))
    throw std::length_error("the buffer would need more than 2^62 bytes");
  arena_bytes = end;
  return offset;
}

inline Layout::Layout(const Spec& spec_) : spec(spec_) {
  if (spec.lanes == 0 || spec.lane_capacity == 0 || spec.lane_capacity > kMaxLaneCapacity || spec.stacked == 0)
    throw std::invalid_argument("lanes, lane capacity or stack out of range");
  rows = spec.lane_capacity + spec.history + 1;
  const auto pack = [this](const std::vector<uint64_t>& sizes, std::vector<Leaf>& leaves) {
    for (const uint64_t bytes : sizes) {
      Leaf leaf;
      leaf.bytes = bytes;
      leaf.packed = bytes <= kPackedLimit;
      leaf.offset = record_bytes;
      if (leaf.packed) record_bytes += bytes;
      leaves.push_back(leaf);
    }
  };
  pack(spec.obs, obs);
  final_bytes = record_bytes;
  pack(spec.rest, rest);
  words_offset = round_up(record_bytes, alignof(Words));
  start_offset = words_offset + sizeof(Words);
  record_bytes = start_offset + (spec.stacked > 1 ? sizeof(uint32_t) : 0);

  uint64_t all_rows;
  if (__builtin_mul_overflow(spec.lanes, rows, &all_rows)) throw std::length_error("too many rows");
  arena_bytes = kPage;
  lanes_base = region(spec.lanes, sizeof(LaneHeader));
  records_base = region(all_rows, record_bytes);
  for (auto* leaves : {&obs, &rest})
    for (Leaf& leaf : *leaves)
      if (!leaf.packed) leaf.base = region(all_rows, leaf.bytes);
  records_end = arena_bytes;
  finals_base = region(all_rows, final_bytes);
  final_links = region(all_rows, sizeof(uint32_t));
  for (Leaf& leaf : obs)
    if (!leaf.packed) leaf.final_base = region(all_rows, leaf.bytes);
  if (spec.stacked > 1) {
    prefix_links = region(all_rows, sizeof(uint32_t));
    for (Leaf& leaf : obs) leaf.prefix_base = region(all_rows, leaf.bytes * (spec.stacked - 1));
  }
  arena_bytes = round_up(arena_bytes, kPage);
}

}  // namespace relive
