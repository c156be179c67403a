// A keyed permutation of [0, size), computed one element at a time: an order without memory.
// A Feistel network over the next even number of bits, walked until it lands inside (Black & Rogaway 2002).
#pragma once

#include <bit>

#include "rng.hpp"

namespace relive {

class Permutation {
 public:
  // `epoch` and `seed` choose the permutation. size >= 1.
  Permutation(uint64_t size, uint64_t epoch, uint64_t seed) : size_(size) {
    half_ = (std::max<uint64_t>(std::bit_width(size - 1), 2) + 1) / 2;
    rounds_ = half_ <= 4 ? kMaxRounds : kMaxRounds / 2;  // few elements show the faults of few rounds
    for (uint64_t round = 0; round < rounds_; round += 2) {
      const auto pair = philox2x64({epoch, kStream + round}, seed);
      keys_[round] = pair[0];
      keys_[round + 1] = pair[1];
    }
  }

  uint64_t operator()(uint64_t index) const {
    do index = once(index);
    while (index >= size_);
    return index;
  }

 private:
  static constexpr uint64_t kMaxRounds = 24;
  static constexpr uint64_t kStream = 1ull << 62;  // blocks of random bits that no draw uses

  uint64_t once(uint64_t index) const {
    const uint64_t mask = (1ull << half_) - 1;
    uint64_t left = index >> half_, right = index & mask;
    for (uint64_t round = 0; round < rounds_; ++round) {
      uint64_t mixed = (right ^ keys_[round]) * 0xD6E8FEB86659FD93u;
      mixed = (mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93u;
      const uint64_t next = left ^ ((mixed ^ (mixed >> 32)) & mask);
      left = right;
      right = next;
    }
    return left << half_ | right;
  }

  uint64_t size_, half_, rounds_;
  std::array<uint64_t, kMaxRounds> keys_;
};

}  // namespace relive
