// The rank heap against plain arrays: the order of its ranks is read off `find`, a target in the middle of each rank.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.hpp"
#include "core/rank_heap.hpp"

using namespace relive;

namespace {

struct alignas(kCacheLine) Line {
  char bytes[kCacheLine];
};

struct Heap {
  Heap(uint64_t rows, double alpha_)
      : alpha(alpha_),
        lines(RankHeap::bytes(rows) / kCacheLine + 1, Line{}),
        heap(lines.data()->bytes, rows, alpha),
        keys(rows, -1.0) {
    CHECK(RankHeap::bytes(rows) % kCacheLine == 0);
    std::memset(lines.back().bytes, 0x5A, kCacheLine);
  }

  void set(const std::vector<uint64_t>& rows, const std::vector<double>& values) {
    heap.set(rows.data(), values.data(), rows.size());
    for (uint64_t i = 0; i < rows.size(); ++i) keys[rows[i]] = values[i] >= 0 ? values[i] : -1.0;
  }

  // The rows by rank. Checks on the way all that holds between sorts.
  std::vector<uint64_t> order() const {
    uint64_t live = 0;
    for (uint64_t row = 0; row < keys.size(); ++row) {
      live += keys[row] >= 0;
      CHECK(heap.key(row) == std::max(keys[row], 0.0));
    }
    CHECK(heap.size() == live);
    std::vector<double> targets;
    double sum = 0, mass = 0;
    for (uint64_t rank = 0; rank < live; ++rank, sum += mass) {
      mass = std::pow(static_cast<double>(rank + 1), -alpha);
      targets.push_back(sum);  // the least target of its rank
      targets.push_back(sum + mass / 2);
      targets.push_back(std::nextafter(sum + mass, 0.0));
    }
    CHECK(heap.total() == sum && heap.smallest() == mass);
    std::vector<uint64_t> found(targets.size()), ranked;
    heap.find(targets.data(), targets.size(), found.data());
    std::vector<bool> seen(keys.size());
    for (uint64_t rank = 0; rank < live; ++rank) {
      const uint64_t row = found[3 * rank];
      CHECK(found[3 * rank + 1] == row && found[3 * rank + 2] == row);
      CHECK(keys[row] >= 0 && !seen[row]);
      seen[row] = true;
      ranked.push_back(row);
      CHECK(heap.mass(row) == std::pow(static_cast<double>(rank + 1), -alpha));
      CHECK(keys[ranked[rank > 0 ? (rank - 1) / 2 : 0]] >= keys[row]);
    }
    for (uint64_t row = 0; row < keys.size(); ++row)
      if (!seen[row]) CHECK(heap.mass(row) == 0);
    for (const char byte : lines.back().bytes) CHECK(byte == 0x5A);
    return ranked;
  }

  bool is_sorted() const {
    const std::vector<uint64_t> ranked = order();
    for (uint64_t rank = 1; rank < ranked.size(); ++rank) {
      const double a = keys[ranked[rank - 1]], b = keys[ranked[rank]];
      if (a < b || (a == b && ranked[rank - 1] > ranked[rank])) return false;
    }
    return true;
  }

  double alpha;
  std::vector<Line> lines;
  RankHeap heap;
  std::vector<double> keys;  // the model; -1: absent
};

void fuzz(uint64_t rows, double alpha, uint64_t seed) {
  std::mt19937_64 random(seed);
  Heap model(rows, alpha);
  CHECK(model.heap.size() == 0 && model.heap.total() == 0 && model.heap.smallest() == 0);
  for (int round = 0; round < 40; ++round) {
    std::vector<uint64_t> changed(1 + random() % (round % 4 ? 5 : rows + 100));
    std::vector<double> keys;
    for (uint64_t& row : changed) {
      row = random() % rows;
      const double some[] = {static_cast<double>(random() % 10), std::ldexp(random() % 1000, -9), 0.0, -0.0};
      const bool removal = round >= 20 ? random() % 2 : random() % 8 == 0;
      keys.push_back(removal ? (random() % 2 ? -1.0 : std::nan("")) : some[random() % 4]);
    }
    model.set(changed, keys);
    model.order();
    if (round % 3 == 0) {
      model.heap.sort();
      CHECK(model.is_sorted());
    }
  }
  for (uint64_t row = 0; row < rows; ++row) model.set({row}, {-1.0});
  CHECK(model.order().empty() && model.heap.total() == 0 && model.heap.smallest() == 0);
}

// Targets in any order, and larger than they may be.
void any_order() {
  std::mt19937_64 random(5);
  Heap model(1000, 0.7);
  for (uint64_t row = 0; row < 1000; ++row) model.set({row}, {static_cast<double>(1000 - row)});
  model.heap.sort();  // rank = row
  std::vector<double> targets{0.0, std::nextafter(model.heap.total(), 0.0), model.heap.total(), 1e300};
  for (int i = 0; i < 1000; ++i) targets.push_back(model.heap.total() * std::ldexp(random() >> 11, -53));
  std::vector<uint64_t> found(targets.size());
  model.heap.find(targets.data(), targets.size(), found.data());
  CHECK(found[0] == 0 && found[1] == 999 && found[2] == 999 && found[3] == 999);
  for (uint64_t i = 4; i < targets.size(); ++i) {
    double sum = 0;
    uint64_t rank = 0;
    while (sum += model.heap.mass(rank), sum <= targets[i]) ++rank;
    CHECK(found[i] == rank);
  }
}

// After max(size, 1024) changes, and not one before; a removal of nothing is no change.
void sorts_by_itself() {
  for (const uint64_t rows : {100, 3000}) {
    std::mt19937_64 random(rows);
    Heap model(rows, 1.0);
    for (uint64_t row = 0; row + 1 < rows; ++row) model.set({row}, {std::ldexp(random() >> 11, -53)});
    model.heap.sort();
    const uint64_t period = std::max<uint64_t>(rows - 1, 1024);
    for (uint64_t i = 1; i < period; ++i) model.set({random() % (rows - 1)}, {std::ldexp(random() >> 11, -53)});
    for (uint64_t i = 0; i < 10; ++i) model.set({rows - 1}, {-1.0});
    CHECK(!model.is_sorted());
    model.set({0}, {0.5});
    CHECK(model.is_sorted());
  }
}

void too_many_rows_are_refused() {
  bool refused = false;
  try {
    RankHeap::bytes(UINT32_MAX);
  } catch (const std::length_error&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

int main() {
  uint64_t seed = 0;
  for (const uint64_t rows : {1, 2, 7, 8, 9, 64, 65, 1000, 4097})
    for (const double alpha : {0.0, 0.7, 1.0, 2.0}) fuzz(rows, alpha, seed++);
  any_order();
  sorts_by_itself();
  too_many_rows_are_refused();
  std::puts("rank: ok");
}
