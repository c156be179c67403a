// Copying scattered values into one dense array.
#pragma once

#include <cstdint>
#include <cstring>

namespace relive {

inline constexpr uint64_t kBlock = 32;  // values gathered together: enough for their cache misses to overlap

// Copies `bytes` bytes without calling memcpy where they are few: 16 at a time, the last ones overlapping.
inline void copy_value(char* to, const char* from, uint64_t bytes) {
  if (bytes < 16 || bytes > 256) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (uint64_t done = 0; done + 16 <= bytes; done += 16) std::memcpy(to + done, from + done, 16);
  std::memcpy(to + bytes - 16, from + bytes - 16, 16);
}

template <uint64_t kBytes>
void copy_fixed(char* to, uint64_t stride, const char* const* from, uint64_t offset, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) std::memcpy(to + i * stride, from[i] + offset, kBytes);
}

// Copies the values at `from[i] + offset` to `to + i * stride`, `bytes` each.
inline void copy_values(char* to, uint64_t stride, const char* const* from, uint64_t offset, uint64_t count,
                        uint64_t bytes) {
  switch (bytes) {
    case 1:
      return copy_fixed<1>(to, stride, from, offset, count);
    case 2:
      return copy_fixed<2>(to, stride, from, offset, count);
    case 4:
      return copy_fixed<4>(to, stride, from, offset, count);
    case 8:
      return copy_fixed<8>(to, stride, from, offset, count);
    case 12:
      return copy_fixed<12>(to, stride, from, offset, count);
    case 16:
      return copy_fixed<16>(to, stride, from, offset, count);
    case 24:
      return copy_fixed<24>(to, stride, from, offset, count);
    case 32:
      return copy_fixed<32>(to, stride, from, offset, count);
    default:
      for (uint64_t i = 0; i < count; ++i) copy_value(to + i * stride, from[i] + offset, bytes);
  }
}

template <uint64_t kBytes>
void copy_rows_fixed(char* to, const char* from, uint64_t stride, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) std::memcpy(to + i * kBytes, from + i * stride, kBytes);
}

// Copies `count` values that lie `stride` bytes apart into a dense array.
inline void copy_rows(char* to, const char* from, uint64_t stride, uint64_t count, uint64_t bytes) {
  if (stride == bytes) {
    std::memcpy(to, from, count * bytes);
    return;
  }
  switch (bytes) {
    case 1:
      return copy_rows_fixed<1>(to, from, stride, count);
    case 4:
      return copy_rows_fixed<4>(to, from, stride, count);
    case 8:
      return copy_rows_fixed<8>(to, from, stride, count);
    case 16:
      return copy_rows_fixed<16>(to, from, stride, count);
    case 24:
      return copy_rows_fixed<24>(to, from, stride, count);
    default:
      for (uint64_t i = 0; i < count; ++i) copy_value(to + i * bytes, from + i * stride, bytes);
  }
}

// Like `copy_value`; a null source stands for zeros.
inline void copy_or_zero(char* to, const char* from, uint64_t bytes) {
  if (from)
    copy_value(to, from, bytes);
  else
    std::memset(to, 0, bytes);
}

}  // namespace relive
