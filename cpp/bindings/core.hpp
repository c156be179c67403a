// The buffer's memory seen from Python: pushing, and which ids are live.
//
// Values that do not fit at a glance (another dtype, a list, out of bounds) are answered with None: Python then
// converts or explains. So every error message is written in one place, and the common case pays for none.
#pragma once

#include "../core/ring.hpp"
#include "arrays.hpp"
#include "gil.hpp"
#include "strips.hpp"

namespace relive {

// Each field is (dtype, shape, low, high): a numpy.dtype, then three lists of integers.
inline std::vector<ValueType> value_types(nb::sequence fields) {
  std::vector<ValueType> types;
  for (nb::handle field : fields) {
    const nb::handle dtype = field[0];
    if (!PyArray_DescrCheck(dtype.ptr())) throw nb::type_error("expected a numpy.dtype");
    types.emplace_back(reinterpret_cast<PyArray_Descr*>(dtype.ptr()), nb::cast<std::vector<npy_intp>>(field[1]),
                       nb::cast<std::vector<int64_t>>(field[2]), nb::cast<std::vector<int64_t>>(field[3]));
  }
  return types;
}

inline uint64_t total_bytes(const std::vector<ValueType>& types) {
  uint64_t bytes = 0;
  for (const ValueType& type : types) bytes += type.bytes();
  return bytes;
}

inline Layout make_layout(const std::vector<ValueType>& obs, const std::vector<ValueType>& rest, uint64_t lanes,
                          uint64_t lane_capacity, uint32_t stacked, uint32_t history) {
  Spec spec{{}, {}, lanes, lane_capacity, stacked, history};
  for (const ValueType& type : obs) spec.obs.push_back(type.bytes() / stacked);
  for (const ValueType& type : rest) spec.rest.push_back(type.bytes());
  return Layout(spec);
}

// What a buffer of this shape takes, before anything is allocated.
inline nb::dict measure(nb::sequence obs, nb::sequence rest, uint64_t lanes, uint64_t lane_capacity, uint32_t stacked,
                        uint32_t history) {
  const std::vector<ValueType> obs_types = value_types(obs), rest_types = value_types(rest);
  const Layout layout = make_layout(obs_types, rest_types, lanes, lane_capacity, stacked, history);
  uint64_t transition = layout.record_bytes;
  for (const auto* leaves : {&layout.obs, &layout.rest})
    for (const Leaf& leaf : *leaves) transition += leaf.packed ? 0 : leaf.bytes;
  nb::dict result;
  result["arena_bytes"] = layout.arena_bytes;
  result["filled_bytes"] = layout.records_end;
  result["transition_bytes"] = transition;
  result["final_bytes"] = total_bytes(obs_types) / stacked + sizeof(uint32_t);
  return result;
}

inline const ValueType& flag_type() {
  static const auto* type = new ValueType(PyArray_DescrFromType(NPY_BOOL), {}, {}, {});  // never freed: outlives Python
  return *type;
}

inline nb::object id_array(const std::vector<int64_t>& ids) {
  npy_intp shape[] = {static_cast<npy_intp>(ids.size())};
  nb::object array = nb::steal(PyArray_SimpleNew(1, shape, NPY_INT64));
  if (!array.is_valid()) throw nb::python_error();
  std::copy(ids.begin(), ids.end(), static_cast<int64_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr()))));
  return array;
}

// How memory is found: never used, as it was left, as a process left it that was killed, or while others use it.
enum class Found { kZeroed, kWhole, kTorn, kLive };

class Core {
 public:
  Core(nb::handle memory, nb::sequence obs, nb::sequence actions, nb::sequence extras, uint64_t lanes,
       uint64_t lane_capacity, uint32_t stacked, uint32_t history, Found found)
      : obs_(value_types(obs)),
        rest_(value_types(actions)),
        num_actions_(rest_.size()),
        memory_(memory),
        layout_(add_extras(extras, lanes, lane_capacity, stacked, history)),
        arena_(memory_.data(), layout_),
        ring_(arena_),
        lock_(arena_) {
    if (memory_.bytes() < layout_.arena_bytes) throw std::invalid_argument("the memory is smaller than the arena");
    if (found != Found::kZeroed && !is_mine()) throw std::invalid_argument("the memory holds no arena of this shape");
    if (found == Found::kZeroed) make_header();
    if (found != Found::kLive) {
      lock_.init();
      std::memset(arena_.at(kBoard), 0, kPage - kBoard);
    }
    value_bytes_ = 2 * total_bytes(obs_) + total_bytes(rest_);
  }

  // One transition into a lane. Values in order: obs..., actions..., reward, terminated, truncated, next_obs...,
  // extras... Its id, or None if a value has to be converted or refused.
  nb::object append_one(uint64_t lane, nb::args values) {
    Values& found = Values::of_this_thread();
    if (!find_values(values, kSingle, nullptr, found)) return nb::none();
    const Block block = as_block(found);
    if (layout_.spec.stacked > 1 && !ring_.rolls(block, 0)) return nb::none();
    int64_t id = 0;
    locked(lock_, value_bytes_, [&] { id = ring_.append(lane, block, 0); });
    return nb::int_(id);
  }

  // `count` transitions: all to this lane in order of time, or, where `lane` is -1 - first, number i to lane first + i.
  // Writes their ids, -1 where `mask` leaves one out. `priorities`: raw ones, for the primary selector, or None. False
  // if a value has to be converted or refused.
  bool append_many(int64_t lane, nb::handle mask, nb::handle priorities, nb::handle ids, nb::args values) {
    const auto count = static_cast<int64_t>(PyArray_SIZE(reinterpret_cast<PyArrayObject*>(ids.ptr())));
    const auto data = [](nb::handle array) { return PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr())); };
    const auto* chosen = mask.is_none() ? nullptr : static_cast<const uint8_t*>(data(mask));
    const auto* raw = priorities.is_none() ? nullptr : static_cast<const double*>(data(priorities));
    Values& found = Values::of_this_thread();
    if (!find_values(values, count, chosen, found)) return false;
    auto* id = static_cast<int64_t*>(data(ids));
    const Block block = as_block(found);
    if (layout_.spec.stacked > 1)
      for (int64_t i = 0; i < count; ++i)
        if ((!chosen || chosen[i]) && !ring_.rolls(block, i)) return false;
    locked(lock_, value_bytes_ * count, [&] {
      if (raw) primary_->sync();  // what was pushed before has other priorities
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t to = lane < 0 ? i - 1 - lane : lane;
        id[i] = chosen && !chosen[i] ? -1 : ring_.append(to, block, i);
        if (raw && id[i] >= 0) primary_->sync(to, raw[i]);
      }
    });
    return true;
  }

  // Truncates the episodes that go on in these lanes: a bool array [lanes], None for all. Returns how many.
  uint64_t end_episodes(nb::handle mask) {
    const auto* chosen = mask.is_none()
                             ? nullptr
                             : static_cast<const uint8_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(mask.ptr())));
    uint64_t ended = 0;
    locked(lock_, value_bytes_ * layout_.spec.lanes, [&] {
      for (uint64_t lane = 0; lane < layout_.spec.lanes; ++lane)
        if (!chosen || chosen[lane]) ended += ring_.end_episode(lane);
    });
    return ended;
  }

  void clear() {
    locked(lock_, UINT64_MAX, [&] { ring_.clear(); });
  }

  // Takes the lock until `release`, for what Python does under it; for forks too.
  void hold() {
    without_gil([&] { lock_.hold(); });
  }
  void release() { lock_.release(); }

  // In the child of a fork. `shared`: the memory, and so the lock, is the parent's too, and the parent's to release.
  void set_shared(bool shared) { shared_ = shared; }
  void after_fork() {
    lock_.forget_keeper();
    if (!shared_) lock_.init();
  }

  // Adds to a number of the board, in one step that no other process sees half of and no death tears; takes no lock.
  // Only where it was `expected`, if that is given. What it was.
  int64_t add(uint64_t place, int64_t amount, std::optional<int64_t> expected) {
    if (place >= kBoardPlaces) throw std::invalid_argument("no such place on the board");
    std::atomic_ref number(reinterpret_cast<int64_t*>(arena_.at(kBoard))[place]);
    if (!expected) return number.fetch_add(amount);
    int64_t was = *expected;
    number.compare_exchange_strong(was, static_cast<int64_t>(static_cast<uint64_t>(was) + amount));
    return was;
  }

  uint64_t num_lanes() const { return layout_.spec.lanes; }

  uint64_t live() {
    uint64_t live = 0;
    locked(lock_, 0, [&] { live = arena_.header().live; });
    return live;
  }

  // Transitions that were ever pushed. Takes no lock.
  uint64_t num_pushed() const {
    uint64_t pushed = 0;
    for (uint64_t lane = 0; lane < layout_.spec.lanes; ++lane)
      pushed += std::atomic_ref(arena_.lane(lane).head).load(std::memory_order_relaxed);
    return pushed;
  }

  nb::object ids() {
    std::vector<int64_t> ids;
    locked(lock_, UINT64_MAX, [&] {
      ids.resize(arena_.header().live);
      live_ids(arena_, ids.data());
    });
    return id_array(ids);
  }

  // Appends what a snapshot holds to lanes that hold nothing; see segment.hpp.
  void begin_lane(uint64_t lane, uint64_t first) { Segment(arena_).begin_lane(check_lane(lane), first); }
  bool copy_in(uint64_t lane, uint64_t count, const Triple& base, const Triple& end, nb::tuple arrays) {
    const Strips strips = strips_of(layout_, arrays, {count, end[1] - base[1], end[2] - base[2]});
    bool good = end[1] >= base[1] && end[2] >= base[2] && check_lane(lane) == lane;
    without_gil([&] { good = good && Segment(arena_).copy_in(lane, count, strips, extent_of(base), extent_of(end)); });
    return good;
  }
  // Rows, final observations and prefixes that these records of a segment name.
  Triple count_rows(nb::handle records, uint64_t rows) const {
    const auto* bytes = static_cast<const char*>(array_data(records, rows * layout_.record_bytes));
    return triple_of(Segment(arena_).count(bytes, rows));
  }
  void copy_open(uint64_t lane, nb::tuple arrays) {
    Segment(arena_).copy_open(check_lane(lane), strips_of(layout_, arrays, {1, 0, 0}));
  }
  bool end_lane(uint64_t lane, uint64_t begin) { return Segment(arena_).end_lane(check_lane(lane), begin); }

  // After an attach to memory that nobody closed; see recovery.hpp. False if it cannot be what an arena left behind.
  bool repair() {
    bool good = false;
    without_gil([&] { good = Recovery(arena_).after_kill(); });
    return good;
  }
  // The same, trusting only these transitions: uint64 [lanes, 2], begin and head.
  bool keep(nb::handle trusted) {
    const auto* range = static_cast<const uint64_t*>(array_data(trusted, 2 * layout_.spec.lanes * sizeof(uint64_t)));
    bool good = true;
    without_gil([&] {
      Recovery recovery(arena_, true);
      for (uint64_t lane = 0; lane < layout_.spec.lanes; ++lane)
        good = good && recovery.keep(lane, range[2 * lane], range[2 * lane + 1]);
      recovery.count();
    });
    return good;
  }

  // How a record lies, for whoever reads the files of a snapshot: bytes, and for each leaf in the order of
  // observations, actions, extras its place in the record, or -1 for a column of its own.
  nb::dict layout() const {
    nb::dict result;
    const auto places = [](const std::vector<Leaf>& leaves) {
      std::vector<int64_t> offsets;
      for (const Leaf& leaf : leaves) offsets.push_back(leaf.packed ? static_cast<int64_t>(leaf.offset) : -1);
      return offsets;
    };
    result["rows"] = layout_.rows;
    result["record_bytes"] = layout_.record_bytes;
    result["final_bytes"] = layout_.final_bytes;
    result["words_offset"] = layout_.words_offset;
    result["obs"] = places(layout_.obs);
    result["rest"] = places(layout_.rest);
    return result;
  }

  // Begin, head, open and the oldest time needed of every lane, into uint64 [lanes, 4].
  // `held`: the caller holds the lock.
  void lanes(nb::handle into, bool held) {
    auto* state = static_cast<uint64_t*>(array_data(into, 4 * layout_.spec.lanes * sizeof(uint64_t)));
    if (held)
      copy_lanes(arena_, state);
    else
      locked(lock_, 0, [&] { copy_lanes(arena_, state); });
  }

  // Copies transitions [begin, end) of a lane to the arrays of a segment, behind `filled` (rows, final observations,
  // prefixes); `before` is how much of the segment the arrays do not show any more. What is filled then, or None if
  // the first of them was overwritten. `held`: the caller holds the lock.
  std::optional<Triple> copy_out(uint64_t lane, uint64_t begin, uint64_t end, const Triple& before,
                                 const Triple& filled, nb::tuple arrays, bool held) {
    const uint64_t count = end - std::min(begin, end), stacked = layout_.spec.stacked > 1;
    const Strips strips =
        strips_of(layout_, arrays, {filled[0] + count, filled[1] + count, stacked * (filled[2] + count)});
    const Segment segment(arena_);
    Extent extent = extent_of(filled);
    bool there = false;
    const auto copy = [&] {
      there = segment.holds(check_lane(lane), begin) && end <= segment.settled(lane);
      if (there) segment.copy_out(lane, begin, end, strips, extent_of(before), extent);
    };
    if (held)
      without_gil(copy);
    else
      locked(lock_, UINT64_MAX, copy);
    return there ? std::optional(triple_of(extent)) : std::nullopt;
  }

  // Writes everything out that a file's mapping holds, with the lock in hand; the lanes as they were then.
  void sync(nb::handle into) {
    auto* state = static_cast<uint64_t*>(array_data(into, 4 * layout_.spec.lanes * sizeof(uint64_t)));
    int error = 0;
    without_gil([&] {
      const std::lock_guard guard(lock_);
      copy_lanes(arena_, state);
      error = write_out(memory_.data(), memory_.bytes());
    });
    if (error) {
      errno = error;
      PyErr_SetFromErrno(PyExc_OSError);
      throw nb::python_error();
    }
  }

  // The selector that priorities given with a push are for; it outlives no reader. Its memory is the arena's.
  void set_primary(Selector* selector) {
    primary_ = selector;
    if (selector) lock_.follow(*selector);  // for good: what others draw by is repaired also by who only looks on
  }
  Selector* primary() const { return primary_; }

  const Arena& arena() const { return arena_; }
  BufferLock& lock() { return lock_; }
  const char* memory() const { return memory_.data(); }
  const std::vector<ValueType>& obs_types() const { return obs_; }
  const std::vector<ValueType>& rest_types() const { return rest_; }

 private:
  // Where the values of one append lie. One a thread: another thread may append while this one waits.
  struct Values {
    std::vector<const char*> obs, next_obs, rest;
    std::vector<Scratch> scratch;
    std::vector<float> reward;
    const char* terminated;
    const char* truncated;

    static Values& of_this_thread() {
      static thread_local Values values;
      return values;
    }
  };

  const Layout add_extras(nb::sequence extras, uint64_t lanes, uint64_t lane_capacity, uint32_t stacked,
                          uint32_t history) {
    for (ValueType& type : value_types(extras)) rest_.push_back(std::move(type));
    return make_layout(obs_, rest_, lanes, lane_capacity, stacked, history);
  }

  void make_header() {
    Header& header = arena_.header();
    header.magic = kMagic;
    header.format = kFormat;
    header.header_bytes = sizeof(Header);
    header.arena_bytes = layout_.arena_bytes;
    header.lanes = layout_.spec.lanes;
    header.lane_capacity = layout_.spec.lane_capacity;
    header.rows = layout_.rows;
    header.record_bytes = layout_.record_bytes;
    header.stacked = layout_.spec.stacked;
    header.history = layout_.spec.history;
  }
  uint64_t check_lane(uint64_t lane) const {
    if (lane >= layout_.spec.lanes) throw std::invalid_argument("no such lane");
    return lane;
  }

  bool is_mine() const {
    const Header& header = arena_.header();
    return header.magic == kMagic && header.format == kFormat && header.header_bytes == sizeof(Header) &&
           header.arena_bytes == layout_.arena_bytes && header.lanes == layout_.spec.lanes &&
           header.lane_capacity == layout_.spec.lane_capacity && header.rows == layout_.rows &&
           header.record_bytes == layout_.record_bytes && header.stacked == layout_.spec.stacked &&
           header.history == layout_.spec.history;
  }

  bool find_values(const nb::args& values, int64_t count, const uint8_t* chosen, Values& found) const {
    const size_t expected = 2 * obs_.size() + rest_.size() + 3;
    if (values.size() != expected) throw nb::type_error("wrong number of values");
    found.obs.resize(obs_.size());
    found.next_obs.resize(obs_.size());
    found.rest.resize(rest_.size());
    found.scratch.resize(expected);
    found.reward.resize(count == kSingle ? 1 : count);
    size_t at = 0;
    const auto take = [&](const ValueType& type, const char*& bytes) {
      bytes = type.find(PyTuple_GET_ITEM(values.ptr(), at), count, chosen, found.scratch[at]);
      ++at;
      return bytes != nullptr;
    };
    for (size_t i = 0; i < obs_.size(); ++i)
      if (!take(obs_[i], found.obs[i])) return false;
    for (size_t i = 0; i < num_actions_; ++i)
      if (!take(rest_[i], found.rest[i])) return false;
    if (!find_reward(PyTuple_GET_ITEM(values.ptr(), at++), count, found.reward)) return false;
    if (!take(flag_type(), found.terminated) || !take(flag_type(), found.truncated)) return false;
    for (size_t i = 0; i < obs_.size(); ++i)
      if (!take(obs_[i], found.next_obs[i])) return false;
    for (size_t i = num_actions_; i < rest_.size(); ++i)
      if (!take(rest_[i], found.rest[i])) return false;
    return true;
  }

  static Block as_block(const Values& found) {
    return {found.obs,
            found.next_obs,
            found.rest,
            found.reward.data(),
            reinterpret_cast<const uint8_t*>(found.terminated),
            reinterpret_cast<const uint8_t*>(found.truncated)};
  }

  std::vector<ValueType> obs_, rest_;  // rest: actions, then extras
  size_t num_actions_;
  Memory memory_;
  const Layout layout_;
  Arena arena_;
  Ring ring_;
  BufferLock lock_;
  uint64_t value_bytes_;
  Selector* primary_ = nullptr;
  bool shared_ = false;
};

}  // namespace relive
