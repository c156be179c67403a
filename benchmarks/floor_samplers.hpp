// The floors of prioritized replay and of sequences, over the packed records of floor.hpp.
#pragma once

#include <array>
#include <cmath>
#include <memory>

#include "floor.hpp"

namespace floor_ {

// Sums of eight, a node a cache line; level 0 are the masses.
class WideTree {
 public:
  static constexpr uint64_t kWide = 8;
  typedef double Pair __attribute__((vector_size(16)));  // baseline x86-64 and arm64 have it

  explicit WideTree(uint64_t leaves) : leaves_(leaves) {
    uint64_t total = 0;
    for (uint64_t values = leaves;; values = (values + kWide - 1) / kWide) {
      starts_[levels_++] = total;
      total += (values + kWide - 1) / kWide * kWide;
      if (values <= kWide) break;
    }
    memory_ = std::make_unique<HugeMemory>(total * sizeof(double));
  }

  double total() const { return sum(level(levels_ - 1)); }

  // The leaves of targets, all of them level by level, and their masses. There is room for an even number of each.
  void find(Pair* targets, uint64_t count, uint64_t* leaves, double* masses) const {
    std::fill_n(leaves, count, 0);
    for (uint32_t k = levels_ - 1; k > 0; --k) {
      const double *values = level(k), *below = level(k - 1);
      for (uint64_t i = 0; i < count; i += 2) {
        descend(values, leaves + i, targets[i / 2]);
        __builtin_prefetch(below + leaves[i] * kWide);
        __builtin_prefetch(below + leaves[i + 1] * kWide);
      }
    }
    const double* values = level(0);
    for (uint64_t i = 0; i < count; i += 2) descend(values, leaves + i, targets[i / 2]);
    for (uint64_t i = 0; i < count; ++i) {
      leaves[i] = std::min(leaves[i], leaves_ - 1);
      masses[i] = values[leaves[i]];
    }
  }

  void prefetch(uint64_t leaf) const { __builtin_prefetch(level(0) + leaf, 1); }

  // Writes up to kBlock masses and all sums above them, level by level; neighbours share a sum.
  void set(const uint64_t* leaves, const double* masses, uint64_t count) {
    uint64_t nodes[kBlock], listed = 0;
    double* values = level(0);
    for (uint64_t i = 0; i < count; ++i) {
      values[leaves[i]] = masses[i];
      nodes[listed] = leaves[i] / kWide;
      __builtin_prefetch(level(1) + nodes[listed], 1);
      listed += listed == 0 || nodes[listed - 1] != nodes[listed];
    }
    for (uint32_t k = 1; k < levels_; ++k) {
      const double* children = level(k - 1);
      double* sums = level(k);
      uint64_t kept = 0;
      for (uint64_t i = 0; i < listed; ++i) {
        const uint64_t node = nodes[i];
        sums[node] = sum(children + node * kWide);
        nodes[kept] = node / kWide;
        __builtin_prefetch(level(k + 1) + nodes[kept], 1);
        kept += kept == 0 || nodes[kept - 1] != nodes[kept];
      }
      listed = kept;
    }
  }

 private:
  double* level(uint32_t k) const { return reinterpret_cast<double*>(memory_->data()) + starts_[k]; }

  static double sum(const double* node) {
    const Pair* pairs = reinterpret_cast<const Pair*>(node);
    const Pair both = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3]);
    return both[0] + both[1];
  }

  // Two descents by one level: from nodes to their children that hold the targets, without a branch.
  [[gnu::always_inline]] static void descend(const double* values, uint64_t* nodes, Pair& targets) {
    const double *a = values + nodes[0] * kWide, *b = values + nodes[1] * kWide;
    const auto both = [&](uint64_t i) { return Pair{a[i], b[i]}; };
    const Pair aim = targets, middle = both(4) + both(5);
    Pair before[kWide]{};  // each child
    before[1] = both(0);
    before[2] = before[1] + both(1);
    before[3] = before[2] + both(2);
    before[4] = before[2] + (both(2) + both(3));
    before[5] = before[4] + both(4);
    before[6] = before[4] + middle;
    before[7] = before[6] + both(6);
    const auto child = -(((before[1] <= aim) + (before[2] <= aim)) + ((before[3] <= aim) + (before[4] <= aim)) +
                         ((before[5] <= aim) + ((before[6] <= aim) + (before[7] <= aim))));
    targets = aim - Pair{before[child[0]][0], before[child[1]][1]};
    nodes[0] = nodes[0] * kWide + static_cast<uint64_t>(child[0]);
    nodes[1] = nodes[1] * kWide + static_cast<uint64_t>(child[1]);
  }

  uint64_t leaves_;
  uint32_t levels_ = 0;
  std::array<uint64_t, 16> starts_{};
  std::unique_ptr<HugeMemory> memory_;
};

// Proportional prioritized replay, one lane, stratified draws, weights normalised over the batch. New transitions have
// mass 1; the first sample comes when the buffer is full.
template <uint64_t kObs, uint64_t kAction, uint64_t kRecord>
class Prioritized final : public Packed<kObs, kAction, kRecord, 1> {
  using Base = Packed<kObs, kAction, kRecord, 1>;

 public:
  Prioritized(uint64_t capacity, float gamma) : Base(capacity, 1, gamma), tree_(capacity + 1) {}

  void push(uint64_t lane, const char* obs, const char* action, float reward, uint32_t flags,
            const char* next_obs) override {
    const Ring& ring = this->rings_[0];
    const uint64_t rows[] = {ring.head_row, ring.after(ring.head_row)};  // the second one is evicted
    const double masses[] = {1.0, 0.0};
    tree_.set(rows, masses, 2);
    Base::push(lane, obs, action, reward, flags, next_obs);
  }

  void sample(uint64_t count, const Outputs& out) override {
    Ring& ring = this->rings_[0];
    const double part = tree_.total() / static_cast<double>(count);
    double smallest = HUGE_VAL;
    uint64_t rows[2][kTogether];
    double masses[kTogether];
    masses_.resize(count);
    uint64_t waiting = 0;  // drawn and fetched, to be copied
    for (uint64_t first = 0, block = 0; first < count || waiting > 0; first += kTogether, ++block) {
      const uint64_t size = first < count ? std::min(kTogether, count - first) : 0;
      if (size > 0) {
        WideTree::Pair targets[kTogether / 2]{};
        for (uint64_t i = 0; i < size; ++i)
          targets[i / 2][i % 2] =
              (static_cast<double>(first + i) + static_cast<double>(ring.random() >> 11) * 0x1p-53) * part;
        tree_.find(targets, size, rows[block % 2], masses);
      }
      for (uint64_t i = 0; i < size; ++i) {
        this->fetch(rows[block % 2][i]);
        smallest = std::min(smallest, masses[i]);
        masses_[first + i] = masses[i];
      }
      if (waiting > 0) this->gather(rows[1 - block % 2], first - kTogether, waiting, out);
      waiting = size;
    }
    for (uint64_t i = 0; i < count; ++i) out.weight[i] = std::pow(static_cast<float>(smallest / masses_[i]), kBeta);
  }

  void update(const int64_t* ids, const float* abs_td, uint64_t count) override {
    const Ring& ring = this->rings_[0];
    uint64_t rows[kBlock];
    double masses[kBlock];
    for (uint64_t first = 0; first < count; first += kBlock) {
      const uint64_t size = std::min(kBlock, count - first);
      for (uint64_t i = 0; i < size; ++i) {
        rows[i] = ring.row_before_head(ring.head - static_cast<uint64_t>(ids[first + i]));
        tree_.prefetch(rows[i]);
      }
      for (uint64_t i = 0; i < size; ++i) masses[i] = std::pow(static_cast<double>(abs_td[first + i]) + kEps, kAlpha);
      tree_.set(rows, masses, size);
    }
  }

 private:
  static constexpr uint64_t kTogether = 64;  // descents side by side
  static constexpr double kAlpha = 0.6, kEps = 1e-6;
  static constexpr float kBeta = 0.4f;

  WideTree tree_;
  std::vector<double> masses_;
};

// Sequences of 80 steps, one from every 40th step of an episode of 500, the first 40 without loss except where the
// episode starts. Every window is whole; the buffer holds whole episodes.
template <uint64_t kObs, uint64_t kAction, uint64_t kRecord>
class Sequences final : public Packed<kObs, kAction, kRecord, 1> {
  using Base = Packed<kObs, kAction, kRecord, 1>;

 public:
  Sequences(uint64_t capacity, float gamma) : Base(capacity, 1, gamma), gamma_(gamma) {}

  void sample(uint64_t count, const Outputs& out) override {
    Ring& ring = this->rings_[0];
    uint64_t anchor = draw_anchor();
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t id = anchor, row = ring.row_before_head(ring.head - id);
      anchor = draw_anchor();
      const char* upcoming = this->records_ + ring.row_before_head(ring.head - anchor) * kRecord;
      const uint64_t straight = std::min(kLength, ring.rows - row), at = i * kLength;
      copy(row, straight, upcoming, out, at, (at + i) * kObs);
      copy(0, kLength - straight, upcoming + straight * kRecord, out, at + straight, (at + i + straight) * kObs);
      const uint64_t last = row + kLength < ring.rows ? row + kLength : row + kLength - ring.rows;
      std::memcpy(out.obs + (at + i + kLength) * kObs, this->records_ + last * kRecord, kObs);
      out.ids[i] = static_cast<int64_t>(id);
      std::memset(out.mask + at, 1, kLength);
      std::memset(out.loss_mask + at, 1, kLength);
      if (id % kEpisode != 0) std::memset(out.loss_mask + at, 0, kBurnIn);
    }
  }

 private:
  static constexpr uint64_t kLength = 80, kBurnIn = 40, kStride = 40, kEpisode = 500;
  static constexpr uint64_t kAnchors = (kEpisode - kLength) / kStride + 1;  // of an episode

  uint64_t draw_anchor() {
    Ring& ring = this->rings_[0];
    const uint64_t drawn = ring.draw() / kEpisode * kAnchors + ring.random() % kAnchors;
    return ring.head - ring.live + drawn / kAnchors * kEpisode + drawn % kAnchors * kStride;
  }

  void copy(uint64_t row, uint64_t count, const char* upcoming, const Outputs& out, uint64_t to,
            uint64_t obs_to) const {
    for (uint64_t step = 0; step < count; ++step) {
      const char* record = this->records_ + (row + step) * kRecord;
      __builtin_prefetch(upcoming + step * kRecord);
      __builtin_prefetch(upcoming + (step + 1) * kRecord - 1);
      uint32_t flags;
      std::memcpy(out.obs + obs_to + step * kObs, record, kObs);
      std::memcpy(out.action + (to + step) * kAction, record + kObs, kAction);
      std::memcpy(&out.reward[to + step], record + kObs + kAction, 4);
      std::memcpy(&flags, record + kObs + kAction + 4, 4);
      out.terminated[to + step] = flags >> 31;
      out.truncated[to + step] = flags >> 30 & 1;
      out.discount[to + step] = flags >> 31 ? 0.0f : gamma_;
    }
  }

  float gamma_;
};

}  // namespace floor_
