// Copying scattered values into one dense array.
#pragma once

#include <cstdint>
#include <cstring>

namespace relive {

inline constexpr uint64_t kBlock = 128;  // anchors handled together, so that their cache misses overlap

// 16 bytes at a time, the last ones overlapping: no call and no branch on the tail. For 16 <= bytes.
inline void copy_chunks(char* to, const char* from, uint64_t bytes) {
  uint64_t done = 0;
  for (; done + 16 <= bytes; done += 16) std::memcpy(to + done, from + done, 16);
  if (done < bytes) std::memcpy(to + bytes - 16, from + bytes - 16, 16);
}

template <uint64_t kBytes>
void copy_fixed(char* to, uint64_t stride, const char* const* from, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    if (from[i])
      std::memcpy(to + i * stride, from[i], kBytes);
    else
      std::memset(to + i * stride, 0, kBytes);
  }
}

// Copies `count` values of `bytes` bytes to `to`, `to + stride`, ...; a null source stands for zeros.
inline void copy_values(char* to, uint64_t stride, const char* const* from, uint64_t count, uint64_t bytes) {
  switch (bytes) {
    case 1:
      return copy_fixed<1>(to, stride, from, count);
    case 2:
      return copy_fixed<2>(to, stride, from, count);
    case 4:
      return copy_fixed<4>(to, stride, from, count);
    case 8:
      return copy_fixed<8>(to, stride, from, count);
    case 12:
      return copy_fixed<12>(to, stride, from, count);
    case 16:
      return copy_fixed<16>(to, stride, from, count);
    case 24:
      return copy_fixed<24>(to, stride, from, count);
    case 32:
      return copy_fixed<32>(to, stride, from, count);
    default:
      break;
  }
  const bool chunks = bytes >= 16 && bytes <= 256;
  for (uint64_t i = 0; i < count; ++i) {
    if (!from[i])
      std::memset(to + i * stride, 0, bytes);
    else if (chunks)
      copy_chunks(to + i * stride, from[i], bytes);
    else
      std::memcpy(to + i * stride, from[i], bytes);
  }
}

}  // namespace relive
