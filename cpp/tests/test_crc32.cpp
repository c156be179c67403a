// Known answers, both ways of computing it against a bit at a time, and sums that are continued.
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/crc32.hpp"

using relive::Crc32;

namespace {

uint32_t bit_by_bit(const char* data, uint64_t bytes) {
  uint32_t sum = ~0u;
  for (uint64_t i = 0; i < bytes; ++i) {
    sum ^= static_cast<unsigned char>(data[i]);
    for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ (sum & 1 ? 0xEDB88320u : 0);
  }
  return ~sum;
}

}  // namespace

int main() {
  const std::string digits = "123456789";
  CHECK(Crc32::of(digits.data(), digits.size()) == 0xCBF43926);  // the check value of every catalogue
  CHECK(Crc32::of(nullptr, 0) == 0);

  std::mt19937_64 random(0);
  std::vector<char> data(3000);
  for (char& byte : data) byte = static_cast<char>(random());
  for (uint64_t bytes = 0; bytes < 700; ++bytes) {
    const char* at = data.data() + bytes % 17;  // aligned or not
    const uint32_t expected = bit_by_bit(at, bytes);
    CHECK(Crc32::of(at, bytes) == expected);
    CHECK(Crc32::plain(at, bytes) == expected);
  }
  const uint32_t whole = bit_by_bit(data.data(), data.size());
  for (uint64_t cut = 0; cut <= data.size(); cut += 7) {
    const uint32_t before = Crc32::of(data.data(), cut);
    CHECK(Crc32::of(data.data() + cut, data.size() - cut, before) == whole);
    CHECK(Crc32::plain(data.data() + cut, data.size() - cut, before) == whole);
  }
  for (uint64_t flipped = 0; flipped < 8 * data.size(); flipped += 5) {  // it finds what it is there for
    data[flipped / 8] = static_cast<char>(data[flipped / 8] ^ (1 << flipped % 8));
    CHECK(Crc32::of(data.data(), data.size()) != whole);
    data[flipped / 8] = static_cast<char>(data[flipped / 8] ^ (1 << flipped % 8));
  }
  std::puts("crc32: ok");
}
