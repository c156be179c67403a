// Known answers of Random123's kat_vectors for philox2x64-10, and the edges of `below`.
#include "check.hpp"
#include "core/rng.hpp"

using relive::below;
using relive::philox2x64;

int main() {
  using Pair = std::array<uint64_t, 2>;
  constexpr uint64_t kOnes = ~uint64_t{0};
  CHECK((philox2x64({0, 0}, 0) == Pair{0xca00a0459843d731, 0x66c24222c9a845b5}));
  CHECK((philox2x64({kOnes, kOnes}, kOnes) == Pair{0x65b021d60cd8310f, 0x4d02f3222f86df20}));
  CHECK((philox2x64({0x243f6a8885a308d3, 0x13198a2e03707344}, 0xa4093822299f31d0) ==
         Pair{0x0a5e742c2997341c, 0xb0f883d38000de5d}));

  for (const uint64_t bound : {uint64_t{1}, uint64_t{2}, uint64_t{7}, uint64_t{1} << 40, kOnes}) {
    uint64_t bits = 0;
    CHECK(below(bound, bits) == 0);
    bits = kOnes;
    CHECK(below(bound, bits) == bound - 1);
  }
  std::puts("rng: ok");
}
