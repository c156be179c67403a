// Runs of a ring copied out in pieces and copied into another one: that one must read, and go on, as the naive model
// says. Selectors likewise, against a twin that was never copied. Then the same from made-up contents, which must be
// refused or be harmless. All pieces lie in memory of exactly their size, for the address sanitizer.
#include <cmath>
#include <limits>

#include "core/segment.hpp"
#include "core/selector_state.hpp"
#include "ring_model.hpp"

using namespace relive;

namespace {

// Strips of their own memory, for so many of each.
struct Piece {
  Piece(const Layout& layout, const Extent& room)
      : records(room.rows * layout.record_bytes), finals(room.finals * layout.final_bytes) {
    for (const auto* leaves : {&layout.obs, &layout.rest})
      for (const Leaf& leaf : *leaves)
        if (!leaf.packed) columns.emplace_back(room.rows * leaf.bytes);
    for (const Leaf& leaf : layout.obs) {
      if (!leaf.packed) final_columns.emplace_back(room.finals * leaf.bytes);
      if (layout.spec.stacked > 1) prefixes.emplace_back(room.prefixes * leaf.bytes * (layout.spec.stacked - 1));
    }
    strips.records = records.data();
    strips.finals = finals.data();
    for (auto& column : columns) strips.columns.push_back(column.data());
    for (auto& column : final_columns) strips.final_columns.push_back(column.data());
    for (auto& prefix : prefixes) strips.prefixes.push_back(prefix.data());
  }
  std::vector<char> records, finals;
  std::vector<std::vector<char>> columns, final_columns, prefixes;
  Strips strips;
};

// Rows of one lane as a snapshot has them, piece by piece; `before` and `after` count within the segment.
struct Run {
  uint64_t lane, begin, end;
  Extent before, after;
  std::unique_ptr<Piece> piece;
};

// What a snapshot has of a ring.
struct Copy {
  std::vector<uint64_t> begin, head, first;
  std::vector<Run> runs;
  std::vector<std::unique_ptr<Piece>> opens;  // of each lane: the observation that follows, if its episode goes on
};

// `with_history` false: without the frames before the oldest transition.
Copy copy_of(const Buffer& buffer, std::mt19937& random, bool with_history = true) {
  const Segment segment(buffer.arena);
  const Layout& layout = buffer.layout;
  Copy copy;
  Extent before;
  for (uint64_t lane = 0; lane < layout.spec.lanes; ++lane) {
    const LaneHeader& state = buffer.arena.lane(lane);
    copy.begin.push_back(state.begin);
    copy.head.push_back(state.head);
    copy.first.push_back(with_history ? segment.first_needed(lane) : state.begin);
    CHECK(copy.first[lane] <= state.begin && segment.holds(lane, copy.first[lane]));
    for (uint64_t time = copy.first[lane]; time < state.head;) {
      uint64_t end = std::min(state.head, time + 1 + random() % 4);
      if (time < segment.settled(lane)) end = std::min(end, segment.settled(lane));
      const uint64_t most = end - time;
      Piece wide(layout, {most, most, most});
      Extent after;
      segment.copy_out(lane, time, end, wide.strips, before, after);
      CHECK(after.rows == most && after.finals <= most && after.prefixes <= most);
      const Extent counted = segment.count(wide.records.data(), most);
      CHECK(counted.finals == after.finals && counted.prefixes == after.prefixes);
      auto piece = std::make_unique<Piece>(layout, after);
      Extent again;
      segment.copy_out(lane, time, end, piece->strips, before, again);
      CHECK(again.finals == after.finals && again.prefixes == after.prefixes);
      const Extent upto{before.rows + again.rows, before.finals + again.finals, before.prefixes + again.prefixes};
      copy.runs.push_back({lane, time, end, before, upto, std::move(piece)});
      before = upto;
      time = end;
    }
    copy.opens.push_back(nullptr);
    if (state.open) {
      copy.opens[lane] = std::make_unique<Piece>(layout, Extent{1, 0, 0});
      Extent extent;
      segment.copy_out(lane, state.head, state.head + 1, copy.opens[lane]->strips, {}, extent);
      CHECK(extent.rows == 1 && extent.finals == 0 && extent.prefixes == 0);
    }
  }
  return copy;
}

// False if it was refused.
bool restore(Buffer& buffer, const Copy& copy) {
  Segment segment(buffer.arena);
  const uint64_t lanes = buffer.layout.spec.lanes;
  for (uint64_t lane = 0; lane < lanes; ++lane) segment.begin_lane(lane, copy.first[lane]);
  for (const Run& run : copy.runs)
    if (!segment.copy_in(run.lane, run.end - run.begin, run.piece->strips, run.before, run.after)) return false;
  for (uint64_t lane = 0; lane < lanes; ++lane) {
    CHECK(buffer.arena.lane(lane).head == copy.head[lane]);
    if (copy.opens[lane]) segment.copy_open(lane, copy.opens[lane]->strips);
    if (!segment.end_lane(lane, copy.begin[lane])) return false;
  }
  return true;
}

void check_lanes(const Buffer& was, const Buffer& is) {
  CHECK(was.arena.header().live == is.arena.header().live);
  for (uint64_t lane = 0; lane < was.layout.spec.lanes; ++lane) {
    const LaneHeader &a = was.arena.lane(lane), &b = is.arena.lane(lane);
    CHECK(a.head == b.head && a.begin == b.begin && a.open == b.open && a.head_row == b.head_row);
    CHECK(Segment(is.arena).first_needed(lane) == Segment(was.arena).first_needed(lane));
    CHECK(Segment(is.arena).settled(lane) == Segment(was.arena).settled(lane));
  }
}

void walk(const Spec& spec, uint32_t stack, uint32_t seed) {
  auto buffer = std::make_unique<Buffer>(spec);
  Model model{std::vector<std::deque<Transition>>(spec.lanes), std::vector<uint64_t>(spec.lanes)};
  std::mt19937 random(seed);
  for (int step = 0; step < 150; ++step) {
    const uint64_t lane = random() % spec.lanes;
    push(*buffer, model, random, lane, seed % 2 == 0);
    if (random() % 40 == 0) {
      buffer->ring.clear();
      for (auto& all : model.lanes) all.clear();
    }
    if (random() % 10 == 0 && buffer->ring.end_episode(lane)) {
      model.lanes[lane].back().truncated = 1;
    }
    if (random() % 6 != 0) continue;
    auto fresh = std::make_unique<Buffer>(spec);
    CHECK(restore(*fresh, copy_of(*buffer, random)));
    check_lanes(*buffer, *fresh);
    compare(*fresh, model, 3, stack, false);
    if (random() % 2 == 0) buffer = std::move(fresh);  // it goes on
  }
}

// Words that name slots, places and positions that cannot be: refused, or a ring that works.
void forged(const Spec& spec, uint32_t seed) {
  std::mt19937 random(seed);
  Buffer buffer(spec);
  Model model{std::vector<std::deque<Transition>>(spec.lanes), std::vector<uint64_t>(spec.lanes)};
  for (int step = 0; step < 40; ++step) push(buffer, model, random, random() % spec.lanes, false);
  int refused = 0;
  constexpr int kTimes = 60;
  for (int time = 0; time < kTimes; ++time) {
    Copy copy = copy_of(buffer, random);
    Run& run = copy.runs[random() % copy.runs.size()];
    char* record = run.piece->records.data() + random() % (run.end - run.begin) * buffer.layout.record_bytes;
    const uint32_t values[] = {0, 1, 2, 3, 1u << 30, 1u << 31, UINT32_MAX, static_cast<uint32_t>(random())};
    const uint64_t word = 4 + 4 * (random() % (spec.stacked > 1 ? 3 : 2));
    std::memcpy(record + buffer.layout.words_offset + word, &values[random() % 8], 4);
    Buffer fresh(spec);
    if (!restore(fresh, copy)) {
      ++refused;
      continue;
    }
    Model other = model;
    for (auto& all : other.lanes) all.clear();
    for (int step = 0; step < 60; ++step) push(fresh, other, random, random() % spec.lanes, false);
  }
  CHECK(refused > kTimes / 4);
}

// Lanes that cannot be.
void ends_that_cannot_be() {
  const Spec spec{{4}, {5}, 1, 6, 1, 3};
  std::mt19937 random(1);
  Buffer buffer(spec);
  Model model{std::vector<std::deque<Transition>>(1), std::vector<uint64_t>(1)};
  do push(buffer, model, random, 0, false);
  while (!(model.pushed[0] > 12 && Segment(buffer.arena).first_needed(0) < buffer.arena.lane(0).begin &&
           buffer.arena.lane(0).open));
  const auto change = [&](auto edit) {
    Copy copy = copy_of(buffer, random);
    edit(copy);
    Buffer fresh(spec);
    return restore(fresh, copy);
  };
  CHECK(change([](Copy&) {}));
  CHECK(!change([](Copy& copy) { copy.opens[0] = nullptr; }));
  CHECK(!change([](Copy& copy) { copy.begin[0] = copy.head[0] + 1; }));
  CHECK(!change([](Copy& copy) { copy.begin[0] = copy.first[0]; }));  // more than the capacity
  CHECK(!change([](Copy& copy) { --copy.begin[0]; }));
  CHECK(!change([](Copy& copy) { copy.begin[0] = copy.head[0]; }));  // nothing, and yet it goes on
  CHECK(!change([](Copy& copy) { copy.runs[0].after.finals += 1; }));
  const auto word = [&](Run& run, uint64_t row, uint64_t at) {
    char* record = run.piece->records.data() + row * buffer.layout.record_bytes;
    return reinterpret_cast<uint32_t*>(record + buffer.layout.words_offset + at);
  };
  CHECK(
      !change([&](Copy& copy) { copy = copy_of(buffer, random, false); }));  // the frames before the oldest are missing
  CHECK(!change([&](Copy& copy) { *word(copy.runs[1], 0, 4) += 1; }));       // not the position that follows
  CHECK(!change([&](Copy& copy) {                                            // another number than the next one
    for (Run& run : copy.runs)
      for (uint64_t row = 0; row < run.end - run.begin; ++row)
        if (uint32_t* final = word(run, row, 8); *final != 0) {
          *final += 1;
          return;
        }
    copy.begin[0] = copy.head[0] + 1;  // there is none
  }));
}

// A selector over a ring of its own.
struct World {
  World(const Spec& spec, const SelectorSpec& selection)
      : buffer(spec),
        pages(Selector::bytes(selection, buffer.layout) / kPage + 1),
        selector(data(), selection, buffer.arena) {
    selector.init(5);
  }
  char* data() { return pages.data()->bytes; }
  Buffer buffer;
  std::vector<Buffer::Page> pages;
  Selector selector;
};

// What a snapshot keeps of a selector.
struct Kept {
  explicit Kept(World& world)
      : live(world.buffer.arena.header().live),
        masses(live + 1),  // never nowhere
        places(live + 1),
        uses(live + 1),
        epochs(2 * world.buffer.layout.spec.lanes),
        heap_changes(0) {
    world.selector.sync();
    SelectorState::epochs(world.selector, epochs.data());
    SelectorState(world.selector).copy_out(values(world.selector.spec()));
    header = world.selector.header();
    heap_changes = SelectorState::heap_changes(world.selector);
  }
  SelectorValues values(const SelectorSpec& spec) {
    return {spec.keeps_masses() ? masses.data() : nullptr, spec.draw == Draw::kRanked ? places.data() : nullptr,
            spec.max_uses ? uses.data() : nullptr};
  }
  bool into(World& world) {
    return SelectorState(world.selector).copy_in(header, heap_changes, epochs.data(), values(world.selector.spec()));
  }
  uint64_t live;
  std::vector<double> masses;
  std::vector<uint32_t> places, uses;
  std::vector<uint64_t> epochs;
  uint64_t heap_changes;
  SelectorHeader header;
};

bool draw(World& world, uint64_t count, std::vector<int64_t>& ids, std::vector<double>& masses) {
  std::vector<Anchor> anchors(count);
  masses.assign(count, 0);
  if (!world.selector.draw(count, anchors.data(), masses.data())) return false;
  ids.clear();
  for (const Anchor& anchor : anchors) ids.push_back(anchor.id);
  return true;
}

void select(const SelectorSpec& selection, uint32_t seed) {
  const Spec spec{{4}, {5}, 2, 12, 1, 0};
  auto one = std::make_unique<World>(spec, selection);
  World twin(spec, selection);
  Model model{std::vector<std::deque<Transition>>(2), std::vector<uint64_t>(2)};
  std::mt19937 random(seed);
  std::vector<int64_t> ids, other_ids;
  std::vector<double> masses, other_masses;
  for (int step = 0; step < 400; ++step) {
    const uint64_t lane = random() % 2;
    const Transition now = make_next(spec, model, random, lane, false);
    append(one->buffer.ring, spec, now, lane);
    append(twin.buffer.ring, spec, now, lane);
    ++model.pushed[lane];
    model.lanes[lane].push_back(now);
    if (random() % 3 == 0) {
      const bool drawn = draw(*one, 3, ids, masses);
      CHECK(drawn == draw(twin, 3, other_ids, other_masses));
      if (drawn) {
        CHECK(ids == other_ids && masses == other_masses);
        std::vector<double> raw;
        for (size_t i = 0; i < ids.size(); ++i) raw.push_back(static_cast<double>(random() % 5));
        if (selection.keeps_priorities())
          CHECK(one->selector.update(ids.data(), raw.data(), 3) == twin.selector.update(ids.data(), raw.data(), 3));
      }
    }
    if (random() % 100 == 0) {
      one->buffer.ring.clear();
      twin.buffer.ring.clear();
      for (auto& all : model.lanes) all.clear();
    }
    if (random() % 5 == 0) {
      auto fresh = std::make_unique<World>(spec, selection);
      CHECK(restore(fresh->buffer, copy_of(one->buffer, random)));
      twin.selector.sync();
      Kept kept(*one);
      CHECK(kept.into(*fresh));
      Kept again(*fresh);
      CHECK(again.masses == kept.masses && again.places == kept.places && again.uses == kept.uses);
      CHECK(again.epochs == kept.epochs && again.heap_changes == kept.heap_changes);
      CHECK(again.header.draws == kept.header.draws && again.header.largest == kept.header.largest);
      CHECK(again.header.uses_left == kept.header.uses_left && again.header.epoch_at == kept.header.epoch_at);
      one = std::move(fresh);
    }
  }
}

// Values that cannot be are refused, each for its own reason.
void forged_values() {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();
  const Spec spec{{4}, {5}, 2, 12, 1, 0};
  for (const Draw how : {Draw::kProportional, Draw::kRanked, Draw::kShuffled}) {
    SelectorSpec selection;
    selection.draw = how;
    selection.alpha = 0.5;
    selection.max_uses = 3;
    World world(spec, selection);
    Model model{std::vector<std::deque<Transition>>(2), std::vector<uint64_t>(2)};
    std::mt19937 random(3);
    for (int step = 0; step < 40; ++step) push(world.buffer, model, random, step % 2, false);
    std::vector<int64_t> ids;
    std::vector<double> masses;
    CHECK(draw(world, 10, ids, masses));
    const auto change = [&](auto edit) {
      World fresh(spec, selection);
      CHECK(restore(fresh.buffer, copy_of(world.buffer, random)));
      Kept kept(world);
      edit(kept);
      return kept.into(fresh);
    };
    CHECK(change([](Kept&) {}));
    for (const double bad : {kNan, kInf, -1.0}) CHECK(!change([&](Kept& kept) { kept.header.largest = bad; }));
    for (const double bad : {kInf, -kInf, -2.0, -1e-300}) CHECK(!change([&](Kept& kept) { kept.masses[7] = bad; }));
    CHECK(!change([](Kept& kept) { kept.uses[3] = 4; }));
    CHECK(!change([](Kept& kept) { kept.uses[3] = UINT32_MAX; }));
    CHECK(!change([](Kept& kept) {
      for (uint64_t i = 0; i < kept.live; ++i)
        if (kept.masses[i] > 0) kept.uses[i] = 3;  // used up, and yet to be drawn
    }));
    CHECK(!change([](Kept& kept) { kept.epochs[0] = kept.epochs[1] + 1; }));
    CHECK(!change([](Kept& kept) { kept.epochs[1] = 1000; }));
    CHECK(!change([](Kept& kept) { kept.header.epoch_size += 1; }));
    CHECK(!change([](Kept& kept) { kept.header.epoch_at = kept.header.epoch_size + 1; }));
    if (how == Draw::kProportional) {
      CHECK(!change([](Kept& kept) { std::fill(kept.masses.begin(), kept.masses.end(), 1e307); }));
      CHECK(!change([](Kept& kept) { kept.header.largest = 1e300; }));
    }
    if (how == Draw::kRanked) {
      CHECK(!change([](Kept& kept) { kept.places[0] = kept.places[1]; }));
      CHECK(!change([](Kept& kept) { kept.places[0] = 25; }));
      CHECK(!change([](Kept& kept) { kept.places[0] = UINT32_MAX; }));
      CHECK(!change([](Kept& kept) { kept.places[0] = 0; }));
    }
  }
}

}  // namespace

int main() {
  uint32_t seed = 0;
  for (const std::vector<uint64_t>& obs : {std::vector<uint64_t>{4}, {3, 600}, {700}, {0, 2}})
    for (const uint64_t lanes : {1, 3})
      for (const uint64_t capacity : {1, 2, 7, 17})
        for (const uint32_t stack : {1, 4}) {
          walk(Spec{obs, {5}, lanes, capacity, 1, stack - 1}, stack, ++seed);
          if (stack > 1) walk(Spec{obs, {5}, lanes, capacity, stack, stack - 1}, 1, ++seed);
          if (capacity > 2) forged(Spec{obs, {5}, lanes, capacity, stack, stack - 1}, ++seed);
        }
  ends_that_cannot_be();
  for (const Draw how : {Draw::kUniform, Draw::kProportional, Draw::kRanked, Draw::kShuffled, Draw::kRecent})
    for (const uint32_t max_uses : {0, 2})
      for (const AnchorRule rule : {AnchorRule{}, AnchorRule{3, 2}, AnchorRule{AnchorRule::kEpisode, 1}})
        for (const bool ends : {false, true}) {
          SelectorSpec selection;
          selection.draw = how;
          selection.alpha = 0.5;
          selection.eps = 0.1;
          selection.minima = max_uses == 0;
          selection.shrink = 0.5;
          selection.period = 3;
          selection.smallest = 2;
          selection.max_uses = max_uses;
          selection.rule = rule;
          selection.ends = ends;
          select(selection, ++seed);
        }
  forged_values();
  std::puts("segment: ok");
}
