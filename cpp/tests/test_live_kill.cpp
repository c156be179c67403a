// What processes that live go on with after one of them was killed: all of it under the lock they share. A process is
// run instruction by instruction, through the lock, its work and out again; whenever the memory changed, the next one
// takes the lock of a copy, repairs it, and finds what the model says. That next one is stepped through and killed in
// the same way. Then the same with real deaths, whose news the system brings.
#include <linux/futex.h>

#include <cmath>
#include <mutex>
#include <set>

#include "core/buffer_lock.hpp"
#include "kill.hpp"

using namespace relive;

namespace {

// A buffer with its primary selector and its lock, in memory that somebody holds.
struct Live {
  Live(char* memory, const Layout& layout, const SelectorSpec& options)
      : layout(layout), arena(memory, layout), ring(arena), reading(memory, layout, options), lock(arena) {
    lock.follow(reading.selector);
  }
  Selector& selector() { return reading.selector; }
  int64_t recoveries() const { return reinterpret_cast<int64_t*>(arena.at(kBoard))[kBoardRecoveries]; }

  const Layout& layout;
  Arena arena;
  Ring ring;
  Reading reading;
  BufferLock lock;
};

// What the system does to a lock whose holder dies: its robust list says which.
bool bury(char* memory, const Layout& layout, pid_t holder) {
  auto& word = *reinterpret_cast<uint32_t*>(&Arena(memory, layout).header().mutex);
  if ((word & FUTEX_TID_MASK) != static_cast<uint32_t>(holder)) return false;
  word = (word & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
  return true;
}

// What is done under the lock, and what it makes of the model.
struct Work {
  std::function<void(Live&)> run;
  Model before, after;
};

struct World {
  World(const Spec& spec, const SelectorSpec& options, uint32_t n, uint32_t stack, uint32_t seed)
      : layout(spec),
        options(options),
        size(layout.arena_bytes + Selector::bytes(options, layout)),
        memory(size),
        live(memory.start, layout, options),
        model{std::vector<std::deque<Transition>>(spec.lanes), std::vector<uint64_t>(spec.lanes)},
        random(seed),
        n(n),
        stack(stack) {
    live.lock.init();
    live.selector().init(seed);
  }

  Work next_work() {
    const Spec& spec = layout.spec;
    Work work{nullptr, model, model};
    const uint64_t lane = random() % spec.lanes;
    const bool priorities = options.keeps_priorities();
    switch (random() % 8) {
      case 0:
        if (random() % 2) {
          for (auto& all : work.after.lanes) all.clear();
          work.run = [](Live& live) { live.ring.clear(); };
          break;
        }
        [[fallthrough]];
      case 1: {
        auto& all = work.after.lanes[lane];
        if (!all.empty() && !Model::ends(all.back())) all.back().truncated = 1;
        work.run = [lane](Live& live) { live.ring.end_episode(lane); };
        break;
      }
      case 2:
        work.run = [](Live& live) {
          std::array<Anchor, 5> anchors;
          std::array<double, 5> masses;
          live.selector().draw(5, anchors.data(), masses.data());
        };
        break;
      case 3:
        if (priorities) {
          std::vector<int64_t> ids;
          std::vector<double> raw;
          for (uint64_t one = 0; one < spec.lanes; ++one)
            for (const Transition& transition : model.lanes[one])
              if (random() % 2) {
                ids.push_back(static_cast<int64_t>(transition.time * spec.lanes + one));
                raw.push_back(random() % 4 == 0 ? 0.0 : random() % 7 + 0.5);
              }
          work.run = [ids, raw](Live& live) { live.selector().update(ids.data(), raw.data(), ids.size()); };
          break;
        }
        [[fallthrough]];
      default: {
        const Transition next = make_next(spec, model, random, lane, random() % 2);
        work.after.lanes[lane].push_back(next);
        ++work.after.pushed[lane];
        const double raw = priorities && options.rule.all() && random() % 2 ? random() % 5 + 0.25 : -1;
        work.run = [next, lane, raw](Live& live) {  // as the core does it
          if (raw >= 0) live.selector().sync();
          append(live.ring, live.layout.spec, next, lane);
          if (raw >= 0) live.selector().sync(lane, raw);
        };
      }
    }
    return work;
  }

  Values values_of(const char* from, const std::function<void(Live&)>& work = nullptr) {
    Bytes copy(from, size);
    Live whole(copy.data(), layout, options);
    if (work) work(whole);
    return whole.reading.values();
  }

  // The next one takes the lock of this memory, which nobody holds who lives: it has what was there before, or after.
  void survive(const char* from, const Work& work, const Values& before, const Values& after, bool died) {
    Bytes copy(from, size);
    Live next(copy.data(), layout, options);
    const int64_t recoveries = next.recoveries();
    {
      const std::lock_guard guard(next.lock);
    }
    CHECK(next.recoveries() - recoveries == died);
    Buffer ring(layout.spec);
    std::memcpy(ring.data(), copy.data(), layout.arena_bytes);
    check_torn(ring, work.before, work.after, n, stack, random());

    const Values found = next.reading.values();
    double sum = 0;
    uint64_t left = 0;
    for (const auto& [id, mass] : found.masses) {
      const bool was = before.masses.count(id), will = after.masses.count(id);
      CHECK(was || will);
      CHECK((was && mass == before.masses.at(id)) || (will && mass == after.masses.at(id)) ||
            (!was && mass == next.selector().header().largest));
      const Anchor anchor = *next.arena.find(id);
      if (options.ends) CHECK(next.selector().steps_after(anchor) == steps_after(next.arena, anchor));
      const uint32_t uses = found.uses.at(id);
      CHECK(uses >= (was ? before.uses.at(id) : 0) && (!will || uses <= after.uses.at(id)));
      if (mass > 0 || (mass == 0 && options.draw == Draw::kRanked)) left += options.max_uses - uses;
      if (mass > 0) sum += mass;
      CHECK(options.max_uses == 0 || uses < options.max_uses || mass == SelectorState::kNoAnchor);
      CHECK(next.selector().drawable(anchor) == (mass != SelectorState::kNoAnchor));
    }
    if (options.max_uses) CHECK(next.selector().num_left() == left);
    go_on(next, found);
  }

  // Draws and appends under the lock, by turns.
  void go_on(Live& next, const Values& found) {
    for (uint64_t i = 0; i < 3 * layout.spec.lanes; ++i) {
      const std::lock_guard guard(next.lock);
      std::array<Anchor, 4> anchors;
      std::array<double, 4> masses;
      if (next.selector().draw(4, anchors.data(), masses.data()))
        for (const Anchor& anchor : anchors)
          CHECK(!found.masses.count(anchor.id) || !options.keeps_masses() || !options.rule.all() ||
                found.masses.at(anchor.id) != SelectorState::kNoAnchor);
      Model model{std::vector<std::deque<Transition>>(layout.spec.lanes), {}};
      const uint64_t lane = i % layout.spec.lanes;
      for (uint64_t one = 0; one < layout.spec.lanes; ++one) model.pushed.push_back(next.arena.lane(one).head);
      append(next.ring, layout.spec, make_next(layout.spec, model, random, lane, false), lane);
    }
  }

  Layout layout;
  SelectorSpec options;
  uint64_t size;
  Shared memory;
  Live live;
  Model model;
  std::mt19937 random;
  uint32_t n, stack;
};

struct Counts {
  int places = 0, deaths = 0, recoveries = 0, real = 0;
};

// Every place of a recovery is one where the next process is killed too.
bool kill_recovery(World& world, const char* dead, const Work& work, const Values& before, const Values& after,
                   Counts& counts) {
  Shared memory(world.size);
  std::memcpy(memory.start, dead, world.size);
  Live next(memory.start, world.layout, world.options);
  const auto recover = [&] { const std::lock_guard guard(next.lock); };
  return step_through(
      memory, recover,
      [&](pid_t child) {
        Bytes copy(memory.start, world.size);
        const bool died = bury(copy.data(), world.layout, child);
        world.survive(copy.data(), work, before, after, died);
      },
      counts.recoveries);
}

// Works under the lock, killed wherever the memory changed; every `further`-th recovery is killed everywhere as well.
bool kill_everywhere(const Spec& spec, const SelectorSpec& options, uint32_t n, uint32_t stack, uint32_t seed,
                     Counts& counts) {
  World world(spec, options, n, stack, seed);
  const int further = 97;
  int at = static_cast<int>(seed);
  for (uint64_t round = 0; round < 3 * spec.lane_capacity * spec.lanes; ++round) {
    const Work work = world.next_work();
    const auto hold = [&] {
      const std::lock_guard guard(world.live.lock);
      work.run(world.live);
    };
    if (round % 4 == 0) {  // the others make for a world worth looking at
      const Values before = world.values_of(world.memory.start), after = world.values_of(world.memory.start, work.run);
      bool allowed = true;
      const auto killed = [&](pid_t child) {
        Bytes copy(world.memory.start, world.size);
        const bool died = bury(copy.data(), world.layout, child);
        counts.deaths += died;
        world.survive(copy.data(), work, before, after, died);
        if (died && ++at % further == 0)
          allowed = allowed && kill_recovery(world, copy.data(), work, before, after, counts);
      };
      if (!step_through(world.memory, hold, killed, counts.places) || !allowed) return false;
    } else {
      hold();
    }
    world.model = work.after;
  }
  return true;
}

// Runs `work` in a child that is killed when the memory has changed so many times. False: it came to its end before.
bool really_kill(const Shared& memory, const std::function<void()>& work, int changes) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(77);
    raise(SIGSTOP);
    work();
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
  std::vector<char> last(memory.start, memory.start + memory.bytes);
  while (changes > 0) {
    CHECK(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) == 0);
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status)) return false;
    if (std::memcmp(last.data(), memory.start, memory.bytes) == 0) continue;
    std::memcpy(last.data(), memory.start, memory.bytes);
    --changes;
  }
  CHECK(kill(child, SIGKILL) == 0);
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
  return true;
}

// The same with processes that die: first one at its work, then one that recovers from that.
void kill_really(uint32_t seed, Counts& counts) {
  SelectorSpec options;
  options.draw = Draw::kProportional;
  options.alpha = 0.5;
  World world(Spec{{4}, {5}, 2, 5, 1, 0}, options, 3, 1, seed);
  for (int i = 0; i < 30; ++i) {
    const Work work = world.next_work();
    work.run(world.live);
    world.model = work.after;
  }
  for (int round = 0; round < 2; ++round) {
    const Work work = world.next_work();
    const Bytes whole(world.memory.start, world.size);
    const auto reset = [&] { std::memcpy(world.memory.start, const_cast<Bytes&>(whole).data(), world.size); };
    const Values before = world.values_of(world.memory.start), after = world.values_of(world.memory.start, work.run);
    const auto hold = [&] {
      const std::lock_guard guard(world.live.lock);
      work.run(world.live);
    };
    const auto recover = [&] { const std::lock_guard guard(world.live.lock); };
    const auto check = [&] {
      alarm(60);  // a lock that nobody gets any more
      recover();
      alarm(0);
      world.survive(world.memory.start, work, before, after, false);
      ++counts.real;
    };
    int changes = 1;
    for (; really_kill(world.memory, hold, changes); ++changes, reset()) check();
    // Again, and the one that comes next is killed as well.
    for (int first = 1; first < changes; first += 11)
      for (int second = 1;; second += 1 + second / 4) {
        reset();
        if (!really_kill(world.memory, hold, first) || !really_kill(world.memory, recover, second)) break;
        check();
      }
    reset();
    work.run(world.live);
    world.model = work.after;
  }
}

// A lock that was let go without a repair is nobody's any more: said, not waited for.
void damage_is_an_error() {
  World world(Spec{{4}, {5}, 1, 5, 1, 0}, {}, 1, 1, 1);
  world.live.lock.lock();
  CHECK(bury(world.memory.start, world.layout, getpid()));
  world.live.arena.lane(0).head = 77;
  for (int i = 0; i < 2; ++i) {
    bool refused = false;
    try {
      world.live.lock.lock();
    } catch (const std::runtime_error&) {
      refused = true;
    }
    CHECK(refused);
    refused = false;
    try {
      (void)world.live.lock.try_lock();
    } catch (const std::runtime_error&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace

int main() {
  Counts counts;
  std::vector<SelectorSpec> selectors(9);
  for (size_t i = 1; i < selectors.size(); ++i) selectors[i].draw = Draw::kProportional, selectors[i].alpha = 0.5;
  selectors[2].minima = true;
  selectors[3].max_uses = 2;
  selectors[4].draw = Draw::kRanked;
  selectors[5].draw = Draw::kShuffled;
  selectors[6].rule = {3, 1};
  selectors[7].draw = Draw::kUniform;
  selectors[7].ends = true;
  selectors[8].rule = {2, 2};
  selectors[8].draw = Draw::kRanked;
  selectors[8].max_uses = 3;
  uint32_t seed = 0;
  for (const SelectorSpec& options : selectors)
    for (const uint64_t lanes : {1, 2})
      for (const uint32_t stack : {1, 3}) {
        const uint32_t stacked = options.rule.all() && lanes == 2 ? stack : 1;
        const Spec spec{{4, 600}, {5}, lanes, 4, stacked, stack - 1};
        if (!kill_everywhere(spec, options, 2, stacked > 1 ? 1 : stack, ++seed, counts)) {
          std::puts("live kill: skipped, the system does not allow ptrace");
          return 77;
        }
      }
  for (uint32_t i = 0; i < 3; ++i) kill_really(++seed, counts);
  damage_is_an_error();
  std::printf("live kill: ok, %d places, %d with the lock in hand, %d in recoveries, %d real deaths\n", counts.places,
              counts.deaths, counts.recoveries, counts.real);
}
