// The sum tree against plain arrays: exactly where the masses are small integers, to rounding where they span six
// hundred orders of magnitude, and after a million updates, which a tree that adds differences does not survive.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.hpp"
#include "core/sum_tree.hpp"

using namespace relive;

namespace {

struct alignas(kCacheLine) Line {
  char bytes[kCacheLine];
};

// A tree in zeroed memory, with a line after it that nobody may write.
struct Tree : SumTree {
  Tree(uint64_t leaves, bool minima) : Tree(leaves, minima, SumTree::bytes(leaves, minima)) {}
  Tree(uint64_t leaves, bool minima, uint64_t bytes)
      : Tree(leaves, minima, bytes, std::make_unique<std::vector<Line>>(bytes / kCacheLine + 1, Line{})) {}
  Tree(uint64_t leaves, bool minima, uint64_t bytes, std::unique_ptr<std::vector<Line>> memory)
      : SumTree(memory->data()->bytes, leaves, minima), lines(std::move(memory)), masses(leaves) {
    CHECK(bytes % kCacheLine == 0);
    std::memset(lines->back().bytes, 0x5A, kCacheLine);
  }

  void put(const std::vector<uint64_t>& leaves, const std::vector<double>& values) {
    set(leaves.data(), values.data(), leaves.size());
    for (uint64_t i = 0; i < leaves.size(); ++i) masses[leaves[i]] = values[i] > 0 ? values[i] : 0.0;
  }
  uint64_t find_one(double target) const {
    uint64_t leaf = UINT64_MAX;
    find(&target, 1, &leaf);
    return leaf;
  }
  // Everything a tree promises about itself, whatever the masses: also that nothing depends on its history.
  void check_whole(bool minima) {
    long double sum = 0;
    double smallest_mass = 0;
    for (uint64_t leaf = 0; leaf < masses.size(); ++leaf) {
      CHECK(mass(leaf) == masses[leaf]);
      sum += masses[leaf];
      if (masses[leaf] > 0 && (smallest_mass == 0 || masses[leaf] < smallest_mass)) smallest_mass = masses[leaf];
    }
    CHECK(std::fabs(static_cast<double>(total() - sum)) <= 1e-14 * static_cast<double>(sum));
    if (minima) CHECK(smallest() == smallest_mass);
    const std::vector<Line> was = *lines;
    rebuild();
    CHECK(std::memcmp(was.data(), lines->data(), was.size() * sizeof(Line)) == 0);
    for (const char byte : lines->back().bytes) CHECK(byte == 0x5A);
  }

  std::unique_ptr<std::vector<Line>> lines;
  std::vector<double> masses;  // the model
};

double after(double x) {
  return std::nextafter(x, std::numeric_limits<double>::infinity());
}
double just_below(double x) {
  return std::nextafter(x, 0.0);
}

// A batch of changes: scattered, repeated, in runs, ascending, of every length.
void change(Tree& tree, std::mt19937_64& random, auto&& draw_mass) {
  const uint64_t leaves = tree.masses.size();
  std::vector<uint64_t> rows(random() % 4 == 0 ? 1 + random() % 1000 : 1 + random() % 3);
  const uint64_t first = random() % leaves;
  const bool run = random() % 2;
  for (uint64_t i = 0; i < rows.size(); ++i) rows[i] = run ? (first + i) % leaves : random() % leaves;
  if (random() % 3 == 0) std::sort(rows.begin(), rows.end());
  std::vector<double> masses(rows.size());
  for (double& mass : masses) mass = draw_mass();
  tree.put(rows, masses);
}

// Small integers: no rounding anywhere, so every figure is known exactly.
void exact(uint64_t leaves, bool minima, uint64_t seed) {
  std::mt19937_64 random(seed);
  Tree tree(leaves, minima);
  CHECK(tree.total() == 0 && tree.before(leaves) == 0);
  for (int round = 0; round < 30; ++round) {
    const int zeros = round % 10;  // of ten masses, about this many
    change(tree, random, [&] {
      const double mass = static_cast<int>(random() % 7) - 1;
      return static_cast<int>(random() % 10) < zeros ? 0.0 : mass == 0 ? std::nan("") : mass;
    });
    tree.check_whole(minima);
    std::vector<double> targets;
    std::vector<uint64_t> expected;
    double sum = 0;
    for (uint64_t leaf = 0; leaf < leaves; ++leaf) {
      CHECK(tree.before(leaf) == sum);
      const double mass = tree.masses[leaf];
      if (mass > 0)
        for (const double target : {sum, after(sum), sum + mass / 2, just_below(sum + mass)}) {
          targets.push_back(target);
          expected.push_back(leaf);
        }
      sum += mass;
    }
    CHECK(tree.before(leaves) == sum && tree.total() == sum);
    std::vector<uint64_t> found(targets.size());
    tree.find(targets.data(), targets.size(), found.data());
    CHECK(found == expected);
    for (uint64_t i = targets.size(); i > 1; --i) {  // in any order, too
      const uint64_t other = random() % i;
      std::swap(targets[i - 1], targets[other]);
      std::swap(expected[i - 1], expected[other]);
    }
    tree.find(targets.data(), targets.size(), found.data());
    CHECK(found == expected);
  }
}

// Masses that rounding swallows. What is left: no leaf without mass, and `before` is where `find` changes its answer.
void rounded(uint64_t leaves, uint64_t seed, double least_power, double most_power) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> power(least_power, most_power), unit(0, 1);
  Tree tree(leaves, true);
  for (int round = 0; round < 30; ++round) {
    change(tree, random, [&] { return random() % 3 == 0 ? 0.0 : std::pow(10, power(random)); });
    tree.check_whole(true);
    const double total = tree.total();
    if (total == 0) continue;
    std::vector<double> targets{0.0, std::numeric_limits<double>::denorm_min(), just_below(total), total, 2 * total};
    long double sum = 0;
    double last = 0;
    for (uint64_t leaf = 0; leaf < leaves; sum += tree.masses[leaf++]) {
      const double before = tree.before(leaf);
      CHECK(before >= last && before <= total);
      CHECK(std::fabs(static_cast<double>(before - sum)) <= 1e-14 * static_cast<double>(sum));
      if (before < total) CHECK(tree.find_one(before) >= leaf);
      if (before > 0) CHECK(tree.find_one(just_below(before)) < leaf);
      if (leaf > 0 && last < before) CHECK(tree.find_one(last) == leaf - 1);
      for (const double target : {before, after(before), just_below(before), static_cast<double>(sum)})
        targets.push_back(std::fmax(target, 0.0));
      last = before;
    }
    for (int i = 0; i < 200; ++i) targets.push_back(total * unit(random));
    for (int i = 0; i < 200; ++i) targets.push_back(std::fmin(just_below(total), std::pow(10, power(random))));
    std::vector<uint64_t> found(targets.size());
    tree.find(targets.data(), targets.size(), found.data());
    for (const uint64_t leaf : found) CHECK(leaf < leaves && tree.masses[leaf] > 0);
  }
}

// One heavy leaf among many that are too light to change any sum with it in it.
void swallowed() {
  Tree tree(4097, true);
  std::vector<uint64_t> rows(4097);
  std::vector<double> masses(4097, 1e-300);
  for (uint64_t leaf = 0; leaf < rows.size(); ++leaf) rows[leaf] = leaf;
  for (uint64_t leaf = 0; leaf < rows.size(); leaf += 3) masses[leaf] = 0;
  masses[2000] = 1e300;
  tree.put(rows, masses);
  CHECK(tree.total() == 1e300 && tree.smallest() == 1e-300);
  CHECK(tree.find_one(0) == 1 && tree.find_one(1e-300) == 2);
  CHECK(tree.find_one(1) == 2000 && tree.find_one(just_below(1e300)) == 2000 && tree.find_one(1e300) == 2000);
  masses[2000] = std::numeric_limits<double>::denorm_min();
  tree.put({2000}, {masses[2000]});
  CHECK(tree.smallest() == masses[2000]);
  tree.check_whole(true);
}

// Targets that break the contract still find leaves that exist: after a writer's death sums may not fit together.
void always_a_leaf() {
  const double odd[] = {0.0, 1.0, -1.0, 1e308, std::nan(""), std::numeric_limits<double>::infinity()};
  for (const uint64_t leaves : {1, 9, 65, 1000}) {
    Tree tree(leaves, false);
    for (const double target : odd) CHECK(tree.find_one(target) == 0);
    tree.put({leaves - 1}, {1.0});
    for (const double target : odd) CHECK(tree.find_one(target) < leaves);
    double* words = reinterpret_cast<double*>(tree.lines->data());
    words[leaves - 1] = 0;  // behind the tree's back: the sums above promise what is no longer there
    for (const double target : odd) CHECK(tree.find_one(target) < leaves);
  }
  for (const uint64_t leaves : {uint64_t{0}, UINT64_MAX}) {
    bool refused = false;
    try {
      SumTree::bytes(leaves, false);
    } catch (const std::length_error&) {
      refused = true;
    }
    CHECK(refused);
  }
}

// The broken twin: its total follows the changes.
struct Adjusted {
  double total = 0;
  std::vector<double> masses;
  void set(uint64_t leaf, double mass) {
    total += mass - masses[leaf];
    masses[leaf] = mass;
  }
};

void drift() {
  const uint64_t leaves = 1000;
  std::mt19937_64 random(11);
  std::uniform_real_distribution<double> power(-8, 8);
  Tree tree(leaves, true);
  Adjusted twin{0, std::vector<double>(leaves)};
  const auto put = [&](uint64_t leaf, double mass) {
    tree.set(&leaf, &mass, 1);
    tree.masses[leaf] = mass;
    twin.set(leaf, mass);
  };
  for (int update = 0; update < 1'000'000; ++update) put(random() % leaves, std::pow(10, power(random)));
  for (uint64_t leaf = 0; leaf < leaves; ++leaf) put(leaf, std::pow(10, power(random) - 8));
  long double sum = 0;
  for (const double mass : tree.masses) sum += mass;
  const auto holds = [&](double total) {
    return std::fabs(static_cast<double>(total - sum)) <= 1e-12 * static_cast<double>(sum);
  };
  CHECK(holds(tree.total()));
  CHECK(!holds(twin.total));
  const double total = tree.total();
  tree.rebuild();
  CHECK(tree.total() == total);
  tree.check_whole(true);
}

}  // namespace

int main() {
  uint64_t seed = 0;
  for (const uint64_t leaves : {1, 2, 7, 8, 9, 63, 64, 65, 512, 513, 1000, 4097}) {
    for (const bool minima : {false, true}) exact(leaves, minima, seed++);
    rounded(leaves, seed++, -300, 300);
    rounded(leaves, seed++, -6, 6);
    rounded(leaves, seed++, -323, -300);  // also below the normal numbers
  }
  swallowed();
  always_a_leaf();
  drift();
  std::puts("tree: ok");
}
