// CRC-32 as zlib, gzip and PNG have it: polynomial 0x04C11DB7, bits reflected, begun and ended with all ones.
//
// Where the processor multiplies without carries (PCLMULQDQ), four 128-bit remainders are folded along side by side, 64
// bytes a turn, as in Gopal et al. 2009, "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel;
// elsewhere eight tables take eight bytes a turn. What is chosen when the program runs is the same sum.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace relive {

class Crc32 {
 public:
  // Of bytes that follow those of which `before` is the checksum; 0 is that of none.
  static uint32_t of(const char* data, uint64_t bytes, uint32_t before = 0) {
#if defined(__x86_64__)
    static const bool folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    if (folds && bytes >= 2 * kTurn) return ~folded(data, bytes, ~before);
#endif
    return ~by_tables(data, bytes, ~before);
  }

  // The same without instructions that not every processor has.
  static uint32_t plain(const char* data, uint64_t bytes, uint32_t before = 0) {
    return ~by_tables(data, bytes, ~before);
  }

 private:
  static constexpr uint64_t kTurn = 64;
  using Tables = std::array<std::array<uint32_t, 256>, 8>;  // [i][b]: of byte b followed by i zeros

  static constexpr Tables kTables = [] {
    Tables tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t sum = byte;
      for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ (sum & 1 ? 0xEDB88320u : 0);
      tables[0][byte] = sum;
    }
    for (size_t i = 1; i < tables.size(); ++i)
      for (uint32_t byte = 0; byte < 256; ++byte)
        tables[i][byte] = (tables[i - 1][byte] >> 8) ^ tables[0][tables[i - 1][byte] & 0xFF];
    return tables;
  }();

  static uint32_t by_tables(const char* data, uint64_t bytes, uint32_t sum) {
    static_assert(std::endian::native == std::endian::little);
    for (; bytes >= 8; data += 8, bytes -= 8) {
      uint64_t eight;
      std::memcpy(&eight, data, 8);
      eight ^= sum;
      sum = 0;
      for (int i = 0; i < 8; ++i) sum ^= kTables[7 - i][(eight >> (8 * i)) & 0xFF];
    }
    for (; bytes > 0; ++data, --bytes) sum = (sum >> 8) ^ kTables[0][(sum ^ static_cast<unsigned char>(*data)) & 0xFF];
    return sum;
  }

#if defined(__x86_64__)
#define RELIVE_FOLDS [[gnu::target("pclmul,sse4.1")]]
  // A remainder moved on by as many bits as the powers stand for, and the bytes there added to it.
  RELIVE_FOLDS static __m128i fold(__m128i remainder, __m128i powers, __m128i next) {
    const __m128i low = _mm_clmulepi64_si128(remainder, powers, 0x00);
    const __m128i high = _mm_clmulepi64_si128(remainder, powers, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
  }
  RELIVE_FOLDS static __m128i load(const char* data, int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i);
  }

  RELIVE_FOLDS static uint32_t folded(const char* data, uint64_t bytes, uint32_t sum) {
    // x^(512 + 32), x^(512 - 32), then x^(128 + 32), x^(128 - 32), modulo the polynomial, reflected.
    const __m128i by_four = _mm_set_epi64x(0x1C6E41596, 0x154442BD4);
    const __m128i by_one = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0);
    __m128i a = _mm_xor_si128(load(data, 0), _mm_cvtsi32_si128(static_cast<int>(sum)));
    __m128i b = load(data, 1), c = load(data, 2), d = load(data, 3);
    for (data += kTurn, bytes -= kTurn; bytes >= kTurn; data += kTurn, bytes -= kTurn) {
      a = fold(a, by_four, load(data, 0));
      b = fold(b, by_four, load(data, 1));
      c = fold(c, by_four, load(data, 2));
      d = fold(d, by_four, load(data, 3));
    }
    const __m128i whole = fold(fold(fold(a, by_one, b), by_one, c), by_one, d);
    char remainder[sizeof(whole)];
    std::memcpy(remainder, &whole, sizeof(whole));
    return by_tables(data, bytes, by_tables(remainder, sizeof(remainder), 0));
  }
#undef RELIVE_FOLDS
#endif
};

}  // namespace relive
