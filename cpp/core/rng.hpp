// Counter-based random numbers: draw i of batch k is a pure function of (seed, k, i), whatever was drawn before and
// in whichever thread. Philox2x64-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
#pragma once

#include <array>
#include <cstdint>

namespace relive {

__extension__ using uint128 = unsigned __int128;

inline std::array<uint64_t, 2> philox2x64(std::array<uint64_t, 2> counter, uint64_t key) {
  constexpr uint64_t kMultiplier = 0xD2B74407B1CE6E93u;
  constexpr uint64_t kWeyl = 0x9E3779B97F4A7C15u;
  for (int round = 0; round < 10; ++round, key += kWeyl) {
    const uint128 product = static_cast<uint128>(counter[0]) * kMultiplier;
    counter = {static_cast<uint64_t>(product >> 64) ^ key ^ counter[1], static_cast<uint64_t>(product)};
  }
  return counter;
}

// A number below `bound` from 64 random bits, by multiply and shift (Lemire 2019): the bias is below bound / 2^64.
// `bits` keeps the unused low part, itself uniform, for a further draw of a small bound.
inline uint64_t below(uint64_t bound, uint64_t& bits) {
  const uint128 product = static_cast<uint128>(bits) * bound;
  bits = static_cast<uint64_t>(product);
  return static_cast<uint64_t>(product >> 64);
}

}  // namespace relive
