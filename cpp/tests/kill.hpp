// Processes that are killed: run instruction by instruction, and what must be left of a ring and of a selector.
#pragma once

#include <sys/ptrace.h>
#include <sys/wait.h>

#include <cstring>
#include <functional>
#include <map>

#include "core/selector_state.hpp"
#include "ring_model.hpp"

namespace relive {

// Memory that a child of a fork changes for its parent.
struct Shared {
  explicit Shared(uint64_t size)
      : bytes(size),
        start(static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    CHECK(start != MAP_FAILED);
  }
  ~Shared() { munmap(start, bytes); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  uint64_t bytes;
  char* start;
};

// Runs `work` in a child, one instruction after the other, and calls `changed` (with the child) whenever the memory is
// another one than before. Returns how often that was. False ends: the system allows nobody to look at a child's
// instructions.
inline bool step_through(Shared& memory, const std::function<void()>& work, const std::function<void(pid_t)>& changed,
                         int& count) {
  Shared over(sizeof(int));
  auto* done = reinterpret_cast<volatile int*>(over.start);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(77);
    raise(SIGSTOP);
    work();
    *done = 1;
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) return false;
  CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
  std::vector<char> last(memory.start, memory.start + memory.bytes);
  while (!*done) {
    CHECK(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    if (std::memcmp(last.data(), memory.start, memory.bytes) == 0) continue;
    std::memcpy(last.data(), memory.start, memory.bytes);
    ++count;
    changed(child);
  }
  CHECK(ptrace(PTRACE_CONT, child, nullptr, nullptr) == 0);
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return true;
}

// A ring that was recovered is that of the model as it was `before` or will be `after`, where a lane that was pushed to
// may have lost its oldest transition already; and it goes on like it.
inline void check_torn(Buffer& copy, const Model& before, const Model& after, uint32_t n, uint32_t stack,
                       uint32_t seed) {
  const Spec& spec = copy.layout.spec;
  Model found = before;
  uint64_t evicted = 0, live = 0;
  for (uint64_t lane = 0; lane < spec.lanes; ++lane) {
    const LaneHeader& state = copy.arena.lane(lane);
    live += state.head - state.begin;
    CHECK(state.head == before.pushed[lane] || state.head == after.pushed[lane]);
    if (state.head == after.pushed[lane] && (state.head != before.pushed[lane] || state.begin == state.head)) {
      found.lanes[lane] = after.lanes[lane];
      found.pushed[lane] = after.pushed[lane];
    }
    auto& all = found.lanes[lane];
    const uint64_t expected = std::min<uint64_t>(all.size(), spec.lane_capacity);
    CHECK(state.head - state.begin == expected ||
          (expected == spec.lane_capacity && state.head - state.begin == expected - 1 &&
           before.pushed[lane] != after.pushed[lane] && state.head == before.pushed[lane]));
    evicted += expected - (state.head - state.begin);
    if (!all.empty() && state.begin < state.head) {
      // The end of its episode may have been noted, with the flag or not yet.
      const uint32_t step = copy.arena.words(lane * copy.layout.rows + (state.head - 1) % copy.layout.rows).step;
      if ((step & kTruncated) != 0 && before.pushed[lane] == after.pushed[lane] && !after.lanes[lane].empty())
        all.back().truncated = after.lanes[lane].back().truncated;
      all.back().cut = !Model::ends(all.back()) && !state.open;
      CHECK(!(all.back().cut && state.head == after.pushed[lane] && after.pushed[lane] != before.pushed[lane]));
    } else if (!all.empty()) {
      all.back().cut = true;  // nothing is there to go on from
    }
  }
  CHECK(copy.arena.header().live == live);
  compare(copy, found, n, stack, false, evicted);
  std::mt19937 next(seed);
  for (uint64_t i = 0; i < 2 * copy.layout.rows * spec.lanes; ++i) {
    push(copy, found, next, i % spec.lanes, seed % 2 == 0);
    CHECK(copy.arena.lane(i % spec.lanes).final_used <= copy.layout.rows);
    CHECK(copy.arena.lane(i % spec.lanes).prefix_used <= copy.layout.rows);
  }
  compare(copy, found, n, stack, false);
}

struct Values {
  std::map<int64_t, double> masses;  // of live transitions: kNoAnchor, or what they are drawn by
  std::map<int64_t, uint32_t> uses;
};

// A selector beside its arena, in memory that somebody holds.
struct Reading {
  Reading(char* memory, const Layout& layout, const SelectorSpec& spec)
      : arena(memory, layout), selector(memory + layout.arena_bytes, spec, arena) {}

  Values values() {
    selector.sync();
    std::vector<int64_t> ids;
    for (uint64_t lane = 0; lane < arena.layout().spec.lanes; ++lane)
      for (uint64_t time = arena.lane(lane).begin; time < arena.lane(lane).head; ++time)
        ids.push_back(static_cast<int64_t>(time * arena.layout().spec.lanes + lane));
    std::vector<double> masses(ids.size() + 1, 1.0);
    std::vector<uint32_t> places(ids.size() + 1), uses(ids.size() + 1);
    const SelectorSpec& spec = selector.spec();
    SelectorState(selector).copy_out({spec.keeps_masses() ? masses.data() : nullptr,
                                      spec.draw == Draw::kRanked ? places.data() : nullptr,
                                      spec.max_uses ? uses.data() : nullptr});
    Values found;
    for (size_t i = 0; i < ids.size(); ++i) {
      found.masses[ids[i]] = masses[i];
      found.uses[ids[i]] = uses[i];
    }
    return found;
  }

  Arena arena;
  Selector selector;
};

struct Bytes {
  Bytes(const char* from, uint64_t size) : pages(size / kPage + 1) { std::memcpy(data(), from, size); }
  char* data() { return pages.data()->bytes; }
  std::vector<Buffer::Page> pages;
};

}  // namespace relive
