// Emphasizing recent experience: where to aim among the newest transitions.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "selector_layout.hpp"

namespace relive {

// Aims at anchors among the newest c of the N transitions, c = max(N * shrink^(1000 k / period), smallest) for batch
// k of a period (Wang & Ross 2019). A window without an anchor is doubled until it has one. `targets` are numbers in
// [0, 1) at first, then what the tree is to be searched for.
inline void aim_recent(const Arena& arena, const SelectorSpec& spec, const SumTree& tree, uint64_t batch,
                       std::vector<double>& targets) {
  const auto live = static_cast<double>(arena.header().live);
  const auto k = static_cast<double>(batch % spec.period + 1);
  double size = live * std::pow(spec.shrink, 1000.0 * k / static_cast<double>(spec.period));
  size = std::min(live, std::max(size, static_cast<double>(spec.smallest)));
  struct Stretch {
    double start, end;  // of the tree's masses; `end` counts those of the stretches before too
  };
  std::vector<Stretch> stretches;
  double sum = 0;
  for (; sum == 0; size = std::min(live, 2 * size)) {
    stretches.clear();
    for (uint64_t number = 0; number < arena.layout().spec.lanes; ++number) {
      const LaneHeader& state = arena.lane(number);
      const uint64_t length = state.head - state.begin, base = number * arena.layout().rows;
      const auto width = std::min(length, static_cast<uint64_t>(std::ceil(size * static_cast<double>(length) / live)));
      if (width == 0) continue;
      const uint64_t head = base + state.head_row, first = arena.before(head, base, width);
      const auto add = [&](uint64_t from, uint64_t to) {
        const double start = tree.before(from);
        sum += tree.before(to) - start;
        stretches.push_back({start, sum});
      };
      if (first < head) {
        add(first, head);
      } else {
        add(first, base + arena.layout().rows);
        add(base, head);
      }
    }
  }
  for (double& target : targets) {
    // Masses are ones: sums and differences of whole numbers below 2^53 are exact.
    const double at = std::min(target * sum, std::nextafter(sum, 0.0));
    const auto inside = [at](const Stretch& stretch) { return stretch.end <= at; };
    const auto found = std::find_if_not(stretches.begin(), stretches.end(), inside);
    target = found->start + (at - (found == stretches.begin() ? 0.0 : (found - 1)->end));
  }
}

}  // namespace relive
