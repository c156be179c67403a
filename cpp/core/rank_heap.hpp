// Drawing by rank: rows in the order of their keys, approximately. A binary max-heap in an array whose places are taken
// for ranks (Schaul et al. 2016, "Prioritized experience replay", appendix B.2.1), sorted now and then: a sorted array
// is a heap.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

#include "platform.hpp"

namespace relive {

// Rows with keys >= 0; the mass of rank r (from 0) is (r + 1)^-alpha. Lies in memory that somebody else owns and may
// share between processes. One writer at a time, and no reader then.
class RankHeap {
 public:
  static uint64_t bytes(uint64_t rows) { return RankHeap(nullptr, rows, 0).bytes_; }

  // `memory` is aligned to cache lines; zeroed memory is an empty heap. rows < 2^32 - 1; alpha never changes.
  RankHeap(char* memory, uint64_t rows, double alpha) : alpha_(alpha) {
    if (rows >= kMaxRows) throw std::length_error("a rank heap has less than 2^32 - 1 rows");
    const auto region = [&](uint64_t bytes) {
      char* start = memory ? memory + bytes_ : nullptr;
      bytes_ += (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
      return start;
    };
    header_ = reinterpret_cast<Header*>(region(sizeof(Header)));
    entries_ = reinterpret_cast<uint32_t*>(region(rows * sizeof(uint32_t)));
    places_ = reinterpret_cast<uint32_t*>(region(rows * sizeof(uint32_t)));
    keys_ = reinterpret_cast<double*>(region(rows * sizeof(double)));
    cumulative_ = reinterpret_cast<double*>(region(rows * sizeof(double)));
  }

  uint64_t size() const { return header_->size; }
  double mass(uint64_t row) const { return places_[row] ? mass_of_rank(places_[row] - 1) : 0.0; }
  double key(uint64_t row) const { return keys_[row]; }
  // 1 + the place of the row in the heap, 0 if it is not there.
  uint32_t place(uint64_t row) const { return places_[row]; }
  // The sum of the masses of all ranks in use.
  double total() const { return size() ? cumulative_[size() - 1] : 0.0; }
  // The mass of the last rank, 0 if there is none.
  double smallest() const { return size() ? mass_of_rank(size() - 1) : 0.0; }

  // Inserts rows or changes their keys, in the order given; a key that is not >= 0 removes the row. O(log rows) each.
  // Sorts by itself after max(size, 1024) changes.
  void set(const uint64_t* rows, const double* keys, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) {
        __builtin_prefetch(places_ + rows[i + kAhead]);
        __builtin_prefetch(keys_ + rows[i + kAhead]);
      }
      if (keys[i] >= 0)
        put(static_cast<uint32_t>(rows[i]), keys[i]);
      else if (places_[rows[i]])
        remove(static_cast<uint32_t>(rows[i]));
      else
        continue;
      if (++header_->changes >= std::max<uint64_t>(size(), kLeastPeriod)) sort();
    }
  }

  // The row of each target in [0, total()), any order: that of the first rank whose cumulative mass is above it. A
  // larger target is the last rank's. Not empty. The targets are kept.
  void find(const double* targets, uint64_t count, uint64_t* rows) const {
    // All searches take their steps together and without branches, so that their cache misses overlap.
    for (uint64_t done = 0; done < count; done += kTogether) {
      const uint64_t some = std::min(kTogether, count - done);
      find_ranks(targets + done, some, rows + done);
      for (uint64_t i = done; i < done + some; ++i) rows[i] = entries_[rows[i]];
    }
  }

  struct Entry {
    uint32_t row, place;
    double key;
  };

  // Puts the rows of a heap back where they were, in place of all that is there. False if two are at one place, or one
  // is nowhere; then the heap is empty.
  bool restore(const std::vector<Entry>& entries, uint64_t changes) {
    while (size() > 0) remove(entries_[size() - 1]);
    std::vector<bool> taken(entries.size());
    for (const Entry& entry : entries) {
      if (entry.place >= entries.size() || taken[entry.place]) return false;
      taken[entry.place] = true;
    }
    for (const Entry& entry : entries) {
      move(entry.row, entry.place);
      keys_[entry.row] = entry.key;
    }
    header_->size = entries.size();
    header_->changes = changes;
    extend_cumulative(size());
    return true;
  }
  // Makes the heap whole again whatever a process that was killed left of it: which rows are in it, and their keys,
  // stay as they are. What is written down about those is never lost on the way, so that this may be killed as well.
  void mend(uint64_t rows) {
    uint64_t count = 0;
    for (uint64_t row = 0; row < rows; ++row)
      if (places_[row]) entries_[count++] = static_cast<uint32_t>(row);
    std::make_heap(entries_, entries_ + count,
                   [this](uint32_t a, uint32_t b) { return keys_[a] != keys_[b] ? keys_[a] < keys_[b] : a > b; });
    for (uint64_t place = 0; place < count; ++place) move(entries_[place], place);
    header_->size = count;
    header_->cumulative = 0;
    extend_cumulative(count);
  }
  // Says of a row that it is in the heap, or is not, for `mend`.
  void mark(uint32_t row, double key) {
    keys_[row] = key;
    std::atomic_thread_fence(std::memory_order_release);
    if (!places_[row]) places_[row] = 1;
  }
  void unmark(uint32_t row) {
    if (places_[row]) places_[row] = 0;
  }

  // Since the last sort.
  uint64_t changes() const { return header_->changes; }

  // Makes the ranks exact: keys descending, equal keys by ascending row. Takes 16 bytes a row for the while; where they
  // are not to be had the ranks stay as they are, which is no error, until the next time.
  void sort() {
    header_->changes = 0;
    std::vector<Item> items;
    try {
      items.reserve(size());
    } catch (const std::bad_alloc&) {
      return;
    }
    for (uint64_t place = 0; place < size(); ++place) items.push_back({keys_[entries_[place]], entries_[place]});
    std::sort(items.begin(), items.end(),
              [](const Item& a, const Item& b) { return a.key != b.key ? a.key > b.key : a.row < b.row; });
    for (uint64_t place = 0; place < items.size(); ++place) move(items[place].row, place);
  }

 private:
  static constexpr uint64_t kMaxRows = UINT32_MAX;
  static constexpr uint64_t kLeastPeriod = 1024;
  static constexpr uint64_t kTogether = 64;
  static constexpr uint64_t kAhead = 8;

  struct alignas(kCacheLine) Header {
    uint64_t size;
    uint64_t changes;     // since the last sort
    uint64_t cumulative;  // ranks whose cumulative mass is filled in: the most rows there ever were
  };
  struct Item {
    double key;
    uint32_t row;
  };

  double mass_of_rank(uint64_t rank) const { return std::pow(static_cast<double>(rank + 1), -alpha_); }

  void move(uint32_t row, uint64_t place) {
    entries_[place] = row;
    places_[row] = static_cast<uint32_t>(place + 1);
  }

  void put(uint32_t row, double key) {
    keys_[row] =
        key;  // before its place: whoever finds the memory of a process that was killed goes by places and keys
    if (places_[row] == 0) {
      const uint64_t last = header_->size++;
      move(row, last);
      extend_cumulative(size());
    }
    settle(row, places_[row] - 1);
  }

  void extend_cumulative(uint64_t ranks) {
    for (uint64_t& last = header_->cumulative; last < ranks; ++last)
      cumulative_[last] = (last ? cumulative_[last - 1] : 0.0) + mass_of_rank(last);
  }

  void remove(uint32_t row) {
    const uint64_t place = places_[row] - 1;
    const uint32_t last = entries_[--header_->size];
    places_[row] = 0;
    keys_[row] = 0;
    if (last != row) settle(last, place);
  }

  // Puts a row at a free place, or where the order of the heap wants it from there.
  void settle(uint32_t row, uint64_t place) {
    const double key = keys_[row];
    while (place > 0 && key > keys_[entries_[(place - 1) / 2]]) {
      move(entries_[(place - 1) / 2], place);
      place = (place - 1) / 2;
    }
    for (uint64_t child; (child = 2 * place + 1) < size(); place = child) {
      if (child + 1 < size() && keys_[entries_[child + 1]] > keys_[entries_[child]]) ++child;
      if (!(keys_[entries_[child]] > key)) break;
      move(entries_[child], place);
    }
    move(row, place);
  }

  void find_ranks(const double* targets, uint64_t count, uint64_t* ranks) const {
    std::fill_n(ranks, count, 0);
    // Invariant: the answer is in [rank, rank + length).
    for (uint64_t length = size(); length > 1;) {
      const uint64_t half = length / 2;
      for (uint64_t i = 0; i < count; ++i) ranks[i] += cumulative_[ranks[i] + half - 1] <= targets[i] ? half : 0;
      length -= half;
    }
  }

  double alpha_;
  uint64_t bytes_ = 0;
  Header* header_;
  uint32_t* entries_;   // row of each place
  uint32_t* places_;    // place + 1 of each row, 0: absent
  double* keys_;        // of each row
  double* cumulative_;  // of each rank: the masses up to and with it
};

}  // namespace relive
