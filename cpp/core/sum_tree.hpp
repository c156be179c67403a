// Drawing in proportion to masses: a tree of sums over rows, eight children a node, a node a cache line.
//
// Level 0 holds the masses; value i of level k + 1 is the sum of values 8 i .. 8 i + 7 of level k. The root, which is
// not stored, is the sum of the last level. A sum is always recomputed from its eight children and never adjusted by a
// difference, so nothing drifts: the tree is a pure function of the masses, bit by bit.
//
// A descent compares its target with the prefix sums of a node. They are computed in the order in which the node's sum
// was, and rounding is monotone, so that they ascend and the last one is the sum: a target below the sum always meets
// a prefix above it, and the first such prefix belongs to a child whose mass is not zero.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "platform.hpp"

namespace relive {

// Masses of rows and their sums; with minima also the least mass above zero. Lies in memory that somebody else owns
// and may share between processes. Masses are finite, and so is their sum. One writer at a time, and no reader then.
class SumTree {
 public:
  static uint64_t bytes(uint64_t leaves, bool with_minima) { return SumTree(nullptr, leaves, with_minima).bytes_; }

  // `memory` is aligned to cache lines; zeroed memory is a tree whose masses are all zero. 1 <= leaves <= 2^42.
  SumTree(char* memory, uint64_t leaves, bool with_minima) : leaves_(leaves) {
    if (leaves == 0 || leaves > kMaxLeaves) throw std::length_error("a sum tree has 1 to 2^42 leaves");
    const auto region = [&](uint64_t values) {
      double* start = memory ? reinterpret_cast<double*>(memory + bytes_) : nullptr;
      bytes_ += (values + kChildren - 1) / kChildren * kCacheLine;
      return start;
    };
    for (uint64_t values = leaves;; values = (values + kChildren - 1) / kChildren) {
      sizes_[top_] = values;
      sums_[top_] = region(values);
      if (values <= kChildren) break;
      ++top_;
    }
    minima_[0] = with_minima ? sums_[0] : nullptr;
    if (with_minima)
      for (uint32_t level = 1; level <= top_; ++level) minima_[level] = region(sizes_[level]);
  }

  double mass(uint64_t leaf) const { return sums_[0][leaf]; }
  RELIVE_INLINE void prefetch_mass(uint64_t leaf) const { __builtin_prefetch(sums_[0] + leaf, 1); }
  double total() const { return sum(sums_[top_]); }
  // The least mass above zero, 0 if there is none. Only with minima.
  double smallest() const { return least(minima_[top_]); }

  // Sets the masses of leaves, in any order; of a leaf named twice the last one holds. A mass that is not above zero
  // counts as zero.
  void set(const uint64_t* leaves, const double* masses, uint64_t count) {
    for (uint64_t done = 0; done < count; done += kSetTogether)
      set_some(leaves + done, masses + done, std::min(kSetTogether, count - done));
  }

  // The sum of the masses of leaves [0, leaf), leaf <= leaves: the least target that `find` takes to `leaf` or beyond.
  double before(uint64_t leaf) const {
    if (leaf >= leaves_) return total();
    double target = prefix(sums_[0] + leaf / kChildren * kChildren, leaf % kChildren);
    for (uint32_t level = 1; level <= top_; ++level) {
      leaf /= kChildren;
      const double* node = sums_[level] + leaf / kChildren * kChildren;
      const uint64_t child = leaf % kChildren;
      const double end = prefix(node, child + 1);
      target = target < node[child] ? std::min(least_above(prefix(node, child), target), end) : end;
    }
    return target;
  }

  // The leaf of each target: leaf i covers [before(i), before(i) + mass(i)). Targets lie in [0, total()); a larger one
  // counts as the largest below the total. Never a leaf without mass, unless all are (then leaf 0). Fastest if they
  // ascend.
  void find(const double* targets, uint64_t count, uint64_t* leaves) const {
    for (uint64_t done = 0; done < count; done += kFindTogether)
      find_some(targets + done, std::min(kFindTogether, count - done), leaves + done);
  }

  // Sets a mass and leaves the sums as they were: for many, before a `rebuild`.
  void put(uint64_t leaf, double mass) { sums_[0][leaf] = mass; }

  // Recomputes everything from the masses. O(leaves).
  void rebuild() { recompute_from(1); }

 private:
  static constexpr uint64_t kChildren = 8;
  static constexpr uint64_t kMaxLeaves = 1ull << 42;
  static constexpr uint64_t kLevels = 14;
  static constexpr uint64_t kFindTogether = 64;  // descents side by side: enough for their cache misses to overlap
  static constexpr uint64_t kSetTogether = 256;
  static constexpr uint64_t kAhead = 16;

  // Portable vectors, two descents in one: baseline x86-64 and arm64 have both.
  typedef double Pair __attribute__((vector_size(16)));
  typedef int64_t PairBits __attribute__((vector_size(16)));

  static double sum(const double* node) { return prefix(node, kChildren); }

  // The sum of the first `count` children, in the one order of this file.
  static double prefix(const double* node, uint64_t count) {
    double sum = 0;
    for (uint64_t i = 0; i + 1 < count; i += 2) sum += node[i] + node[i + 1];
    return count % 2 ? sum + node[count - 1] : sum;
  }

  // The least of eight masses, zeros apart. Ordered by their bits as positive doubles are; less one, zero comes last.
  static double least(const double* node) {
    uint64_t found = UINT64_MAX;
    for (uint64_t i = 0; i < kChildren; ++i) found = std::min(found, std::bit_cast<uint64_t>(node[i]) - 1);
    return std::bit_cast<double>(found + 1);
  }

  static double below(double x) { return std::bit_cast<double>(std::bit_cast<uint64_t>(x) - 1); }  // x > 0
  static double above(double x) { return std::bit_cast<double>(std::bit_cast<uint64_t>(x) + 1); }  // x >= 0

  // The least x with x - base >= rest, as rounded.
  static double least_above(double base, double rest) {
    double x = base + rest;
    while (x > base && below(x) - base >= rest) x = below(x);
    while (x - base < rest) x = above(x);
    return x;
  }

  // Recomputes a value from its children; `deep`: also their minimum. Returns whether that changed.
  RELIVE_INLINE bool recompute(uint32_t level, uint64_t value, bool deep) {
    sums_[level][value] = sum(sums_[level - 1] + value * kChildren);
    if (!deep) return false;
    const double found = least(minima_[level - 1] + value * kChildren);
    return std::exchange(minima_[level][value], found) != found;
  }

  void recompute_from(uint32_t level) {
    for (; level <= top_; ++level)
      for (uint64_t value = 0; value < sizes_[level]; ++value) recompute(level, value, minima_[0] != nullptr);
  }

  void set_some(const uint64_t* leaves, const double* masses, uint64_t count) {
    // Values of the next level to be recomputed, times two; plus one where the minimum is to be, too: few changes of
    // masses change a minimum, and fewer the one above.
    std::array<uint64_t, kSetTogether> changes;
    uint64_t changed = 0;
    const auto change = [&](uint32_t level, uint64_t value, uint64_t deep) {
      if (changed > 0 && changes[changed - 1] / 2 == value) {
        changes[changed - 1] |= deep;
        return;
      }
      changes[changed++] = 2 * value + deep;
      if (level > top_) return;
      __builtin_prefetch(sums_[level] + value, 1);
      if (deep) __builtin_prefetch(minima_[level] + value, 1);
    };
    const uint64_t with_minima = minima_[0] != nullptr;
    uint64_t last = UINT64_MAX;
    for (uint64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) __builtin_prefetch(sums_[0] + leaves[i + kAhead], 1);
      sums_[0][leaves[i]] = masses[i] > 0 ? masses[i] : 0.0;
      if (leaves[i] / kChildren == last) continue;
      last = leaves[i] / kChildren;
      change(1, last, with_minima);
    }
    for (uint32_t level = 1; level <= top_; ++level) {
      if (sizes_[level] <= changed) return recompute_from(level);  // near the root all of them is less work
      const uint64_t listed = std::exchange(changed, 0);
      for (uint64_t i = 0; i < listed; ++i) {
        const uint64_t value = changes[i] / 2;
        change(level + 1, value / kChildren, recompute(level, value, changes[i] % 2));
      }
    }
  }

  void find_some(const double* targets, uint64_t count, uint64_t* leaves) const {
    std::array<Pair, kFindTogether / 2> rests;
    std::array<uint64_t, kFindTogether> nodes{};
    const uint64_t pairs = (count + 1) / 2;
    rests[pairs - 1] = Pair{};
    std::memcpy(&rests, targets, count * sizeof(double));
    for (uint32_t level = top_; level > 0; --level)
      for (uint64_t i = 0; i < pairs; ++i) {
        descend(sums_[level], rests[i], &nodes[2 * i]);
        __builtin_prefetch(sums_[level - 1] + nodes[2 * i] * kChildren);
        __builtin_prefetch(sums_[level - 1] + nodes[2 * i + 1] * kChildren);
      }
    for (uint64_t i = 0; i < pairs; ++i) descend(sums_[0], rests[i], &nodes[2 * i]);
    std::copy_n(nodes.data(), count, leaves);
  }

  // One level of two descents: from nodes to the values that hold the targets, and on to what is left of the targets
  // there. A target is kept below the sum of its node, which the rounding above may have undone.
  RELIVE_INLINE static void descend(const double* values, Pair& rest, uint64_t* nodes) {
    const uint64_t first_a = nodes[0] * kChildren, first_b = nodes[1] * kChildren;
    const double *a = values + first_a, *b = values + first_b;
    const auto both = [&](uint64_t i) { return Pair{a[i], b[i]}; };
    Pair prefixes[kChildren];  // sums of the first i children
    prefixes[0] = Pair{};
    prefixes[1] = both(0);
    prefixes[2] = both(0) + both(1);
    prefixes[3] = prefixes[2] + both(2);
    prefixes[4] = prefixes[2] + (both(2) + both(3));
    prefixes[5] = prefixes[4] + both(4);
    prefixes[6] = prefixes[4] + (both(4) + both(5));
    prefixes[7] = prefixes[6] + both(6);
    const Pair sums = prefixes[6] + (both(6) + both(7));
    // Where the sum is zero this is no number, and all comparisons with it are false: child 0, which exists.
    const Pair last = reinterpret_cast<Pair>(reinterpret_cast<PairBits>(sums) - 1);
    const Pair target = rest < last ? rest : last;
    PairBits child{};
    for (uint64_t i = 1; i < kChildren; ++i) child -= prefixes[i] <= target;
    rest = Pair{target[0] - prefixes[child[0]][0], target[1] - prefixes[child[1]][1]};
    nodes[0] = first_a + static_cast<uint64_t>(child[0]);
    nodes[1] = first_b + static_cast<uint64_t>(child[1]);
  }

  uint64_t leaves_;
  uint64_t bytes_ = 0;
  uint32_t top_ = 0;  // the last level, of at most eight values
  std::array<uint64_t, kLevels> sizes_{};
  std::array<double*, kLevels> sums_{};
  std::array<double*, kLevels> minima_{};  // of level 0 the masses themselves; null without minima
};

}  // namespace relive
