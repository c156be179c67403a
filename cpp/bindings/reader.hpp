// One way of reading a buffer, seen from Python: a view, a selector, and the memory of its batches.
#pragma once

#include <cstdlib>
#include <limits>
#include <list>
#include <memory>
#include <optional>

#include "../core/hindsight.hpp"
#include "../core/selector_state.hpp"
#include "../core/sequence.hpp"
#include "core.hpp"

namespace relive {

// What view and sampler say, by name; see reading.py.
inline SelectorSpec selector_spec(nb::dict options) {
  const auto get = [&]<typename T>(const char* name, T& value) { value = nb::cast<T>(options[name]); };
  SelectorSpec spec;
  uint32_t draw;
  get("draw", draw);
  spec.draw = static_cast<Draw>(draw);
  get("alpha", spec.alpha);
  get("eps", spec.eps);
  get("minima", spec.minima);
  get("shrink", spec.shrink);
  get("period", spec.period);
  get("smallest", spec.smallest);
  get("newest", spec.newest);
  get("max_uses", spec.max_uses);
  get("length", spec.rule.length);
  get("stride", spec.rule.stride);
  spec.ends = !options["relabel"].is_none();
  return spec;
}

class Reader {
 public:
  // `memory` from `offset` on is the selector's; `found`: how. `primary`: priorities given with a push are for this
  // one.
  Reader(Core& core, nb::handle memory, uint64_t offset, nb::dict options, uint64_t seed, bool primary, Found found)
      : core_(core),
        layout_(core.arena().layout()),
        memory_(memory),
        spec_(selector_spec(options)),
        stack_(nb::cast<uint32_t>(options["stack"])),
        eta_(nb::cast<double>(options["eta"])),
        first_only_(nb::cast<std::vector<bool>>(options["first_only"])),
        selector_(check_room(offset), spec_, core.arena()) {
    const auto gamma = nb::cast<double>(options["gamma"]);
    const auto zeros = nb::cast<bool>(options["pad_with_zeros"]);
    n_ = nb::cast<uint32_t>(options["n"]);
    if (spec_.rule.all())
      transitions_.emplace(layout_, n_, gamma, stack_, zeros);
    else
      sequences_.emplace(layout_, spec_.rule, nb::cast<uint64_t>(options["burn_in"]), gamma, stack_, zeros,
                         first_only_);
    if (spec_.ends) {
      const auto [strategy, share, achieved, desired] =
          nb::cast<std::tuple<uint32_t, double, uint64_t, uint64_t>>(options["relabel"]);
      achieved_ = achieved;
      relabeler_.emplace(layout_, static_cast<Strategy>(strategy), share, achieved, desired, n_,
                         stack_ * layout_.spec.stacked);
    }
    if (is_episodic()) {
      const std::vector<ValueType> one = make_types(1), two = make_types(2);
      for (size_t i = 0; i < one.size(); ++i) step_bytes_.emplace_back(one[i].bytes(), two[i].bytes() - one[i].bytes());
    } else {
      types_ = make_types(spec_.rule.length);
    }
    if (primary && memory_.data() != core_.memory()) throw std::invalid_argument("the primary selector is elsewhere");
    if (found == Found::kLive) {
      if (!selector_.is_mine()) throw std::invalid_argument("the memory holds no selector of this kind");
    } else if (found == Found::kZeroed || !selector_.is_mine()) {
      std::memset(memory_.data() + offset, 0, found == Found::kZeroed ? 0 : Selector::bytes(spec_, layout_));
      selector_.init(seed);
    } else if (found == Found::kTorn) {
      without_gil([&] { SelectorState::recover(selector_); });
    }
    if (primary) core_.set_primary(&selector_);
  }
  ~Reader() {
    if (core_.primary() == &selector_) core_.set_primary(nullptr);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // A batch of `count` drawn anchors as a tuple of arrays, see `make_types`; into `out`, such a tuple, where given. The
  // last one are importance weights, missing where `beta` is None. The number of draws left where those are too few.
  nb::object sample(uint64_t count, std::optional<double> beta, nb::handle out) {
    const auto anchors = std::make_unique_for_overwrite<Anchor[]>(count);
    const auto masses = beta ? std::make_unique_for_overwrite<double[]>(count) : nullptr;
    uint64_t left = count;
    double smallest = 0;
    nb::object arrays = make_batch(count, beta.has_value(), out, anchors.get(), [&]() -> std::optional<int64_t> {
      const uint64_t number = selector_.header().draws;
      selector_.sync();
      smallest = spec_.minima ? selector_.smallest() : 0;
      if (selector_.draw(count, anchors.get(), masses.get())) return static_cast<int64_t>(number);
      left = selector_.num_left();
      return std::nullopt;
    });
    if (arrays.is_none()) return nb::int_(left);
    if (beta) write_weights(arrays, masses.get(), count, smallest, *beta);
    return arrays;
  }

  // The same for a buffer that is a part of a larger one: (arrays without weights, float64 [count] of what each anchor
  // was drawn in proportion to, the sum of that over all anchors, the smallest where the sampler knows it, else 0), all
  // of one moment. The number of draws left where those are too few.
  nb::object sample_masses(uint64_t count) {
    const auto anchors = std::make_unique_for_overwrite<Anchor[]>(count);
    auto length = static_cast<npy_intp>(count);
    nb::object masses = nb::steal(PyArray_SimpleNew(1, &length, NPY_FLOAT64));
    if (!masses.is_valid()) throw nb::python_error();
    auto* mass = static_cast<double*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(masses.ptr())));
    uint64_t left = count;
    double sum = 0, smallest = 0;
    nb::object arrays = make_batch(count, false, nb::none(), anchors.get(), [&]() -> std::optional<int64_t> {
      const uint64_t number = selector_.header().draws;
      selector_.sync();
      sum = selector_.sum();
      smallest = spec_.minima ? selector_.smallest() : 0;
      if (selector_.draw(count, anchors.get(), mass)) return static_cast<int64_t>(number);
      left = selector_.num_left();
      return std::nullopt;
    });
    if (arrays.is_none()) return nb::int_(left);
    return nb::make_tuple(arrays, masses, sum, smallest);
  }

  // What draws are in proportion to, summed over all anchors; the smallest of it where the sampler knows it, else 0;
  // and the largest priority so far, after it was raised to `largest`.
  std::tuple<double, double, double> mass(double largest) {
    std::tuple<double, double, double> result;
    without_gil([&] {
      const std::lock_guard guard(mutex());
      selector_.lift(largest);
      result = {selector_.sum(), spec_.minima ? selector_.smallest() : 0, selector_.header().largest};
    });
    return result;
  }

  // What a snapshot keeps of this reader and of the arena, all at one moment: for each lane its settled transitions
  // from `done` on (uint64 [lanes]) or as far as they are needed, to the arrays of a segment; to those of another one
  // the newest transition and the observation after it, where an episode goes on; lanes as in Core::lanes; epochs,
  // uint64 [lanes, 2]; masses float64, places uint32 and uses uint32 of live transitions, [capacity] or None. Nothing
  // if there are more than `room` transitions to copy. `held`: the caller holds the lock.
  nb::object cut(nb::handle done, uint64_t room, nb::tuple arrays, nb::tuple tails, nb::handle lanes, nb::handle epochs,
                 nb::tuple values, bool held) {
    const uint64_t num_lanes = layout_.spec.lanes, capacity = num_lanes * layout_.spec.lane_capacity;
    const auto* from = static_cast<const uint64_t*>(array_data(done, num_lanes * sizeof(uint64_t)));
    auto* state = static_cast<uint64_t*>(array_data(lanes, 4 * num_lanes * sizeof(uint64_t)));
    auto* epoch = static_cast<uint64_t*>(array_data(epochs, 2 * num_lanes * sizeof(uint64_t)));
    const Strips strips = strips_of(layout_, arrays, {room, room, layout_.spec.stacked > 1 ? room : 0});
    const Strips tail = strips_of(layout_, tails, {2 * num_lanes, 0, layout_.spec.stacked > 1 ? num_lanes : 0});
    const SelectorValues to = values_of(values, capacity);
    const Segment segment(core_.arena());
    Extent extent, tail_extent;
    SelectorHeader header;
    uint64_t heap_changes = 0;
    bool fits = false;
    const auto copy = [&] {
      uint64_t rows = 0;
      const auto start = [&](uint64_t lane) { return std::max(from[lane], segment.first_needed(lane)); };
      for (uint64_t lane = 0; lane < num_lanes; ++lane)
        rows += segment.settled(lane) - std::min(start(lane), segment.settled(lane));
      if (rows > room) return;
      fits = true;
      selector_.sync();
      copy_lanes(core_.arena(), state);
      for (uint64_t lane = 0; lane < num_lanes; ++lane) {
        const LaneHeader& now = core_.arena().lane(lane);
        segment.copy_out(lane, start(lane), segment.settled(lane), strips, {}, extent);
        if (now.open) segment.copy_out(lane, now.head - 1, now.head + 1, tail, {}, tail_extent);
      }
      SelectorState::epochs(selector_, epoch);
      SelectorState(selector_).copy_out(to);
      header = selector_.header();
      heap_changes = SelectorState::heap_changes(selector_);
    };
    if (held)
      without_gil(copy);
    else
      locked(mutex(), UINT64_MAX, copy);
    if (!fits) return nb::none();
    nb::dict result = as_dict(header);
    result["heap_changes"] = heap_changes;
    return nb::make_tuple(triple_of(extent), triple_of(tail_extent), result);
  }

  uint64_t draws() {
    uint64_t draws = 0;
    locked(mutex(), 0, [&] { draws = selector_.header().draws; });
    return draws;
  }

  // Which values `cut` gives: masses, places, uses.
  std::tuple<bool, bool, bool> keeps() const {
    return {spec_.keeps_masses(), spec_.draw == Draw::kRanked, spec_.max_uses != 0};
  }

  // Puts back what `cut` gave; a selector just made, over an arena that has its contents. False if it cannot be so.
  bool restore(nb::dict state, nb::handle epochs, nb::tuple values) {
    const uint64_t num_lanes = layout_.spec.lanes;
    const auto* epoch = static_cast<const uint64_t*>(array_data(epochs, 2 * num_lanes * sizeof(uint64_t)));
    const SelectorValues from = values_of(values, core_.arena().header().live);
    const SelectorHeader header = header_of(state);
    const auto heap_changes = nb::cast<uint64_t>(state["heap_changes"]);
    bool good = false;
    without_gil([&] {
      const std::lock_guard guard(mutex());
      good = SelectorState(selector_).copy_in(header, heap_changes, epoch, from);
    });
    return good;
  }

  // The batch of these ids (an int64 array [count]), or the index of the first one that is not live. `number`: of the
  // batch whose random numbers relabelling uses; negative for none. Without weights.
  nb::object get(nb::handle ids, nb::handle out, int64_t number) {
    auto* array = reinterpret_cast<PyArrayObject*>(ids.ptr());
    const auto count = static_cast<uint64_t>(PyArray_SIZE(array));
    const auto* id = static_cast<const int64_t*>(PyArray_DATA(array));
    const auto anchors = std::make_unique_for_overwrite<Anchor[]>(count);
    uint64_t found = 0;
    nb::object arrays = make_batch(count, false, out, anchors.get(), [&]() -> std::optional<int64_t> {
      for (; found < count; ++found) {
        const auto anchor = core_.arena().find(id[found]);
        if (!anchor) return std::nullopt;
        anchors[found] = *anchor;
      }
      if (number >= 0) selector_.sync();  // relabelling asks it where episodes end
      return number;
    });
    return arrays.is_none() ? nb::object(nb::int_(found)) : arrays;
  }

  // Raw priorities, float64 or float32, [count], or [count, steps] of each step of sequences, for these ids. Returns
  // how many ids are live anchors, or -1 - i where number i is not finite or negative; then nothing changes.
  int64_t update(nb::handle ids, nb::handle raw) {
    auto* id_values = reinterpret_cast<PyArrayObject*>(ids.ptr());
    auto* raw_values = reinterpret_cast<PyArrayObject*>(raw.ptr());
    const auto count = static_cast<uint64_t>(PyArray_SIZE(id_values));
    const auto* id = static_cast<const int64_t*>(PyArray_DATA(id_values));
    const auto* value = static_cast<const double*>(PyArray_DATA(raw_values));
    std::vector<double> widened;
    if (PyArray_TYPE(raw_values) == NPY_FLOAT32) {  // what learners have
      const auto* narrow = static_cast<const float*>(PyArray_DATA(raw_values));
      widened.assign(narrow, narrow + PyArray_SIZE(raw_values));
      value = widened.data();
    }
    const bool combine = PyArray_NDIM(raw_values) == 2;
    const uint64_t steps = combine ? static_cast<uint64_t>(PyArray_DIM(raw_values, 1)) : 1;
    int64_t result = 0;
    without_gil([&] {
      std::vector<double> combined;
      const std::lock_guard guard(mutex());
      for (uint64_t i = 0; combine && i < count; ++i) {
        const auto anchor = core_.arena().find(id[i]);
        combined.push_back(anchor ? sequences_->priority(core_.arena(), *anchor, value + i * steps, steps, eta_) : 0);
      }
      const double* final = combine ? combined.data() : value;
      for (uint64_t i = 0; i < count; ++i) {
        if (final[i] >= 0 && std::isfinite(final[i])) continue;
        result = -1 - static_cast<int64_t>(i);
        return;
      }
      result = static_cast<int64_t>(selector_.update(id, final, count));
    });
    return result;
  }

  // Ids that can be drawn now, ascending.
  nb::object anchors() {
    std::vector<int64_t> ids;
    without_gil([&] {
      const std::lock_guard guard(mutex());
      selector_.sync();
      ids.resize(core_.arena().header().live);
      live_ids(core_.arena(), ids.data());
      std::erase_if(ids, [&](int64_t id) { return !selector_.drawable(*core_.arena().find(id)); });
    });
    return id_array(ids);
  }

  uint64_t epochs() {
    uint64_t epochs = 0;
    locked(mutex(), 0, [&] { epochs = selector_.epochs(); });
    return epochs;
  }

  // The number of the next batch, which is then used up: for draws that are made elsewhere.
  uint64_t advance() {
    uint64_t number = 0;
    locked(mutex(), 0, [&] { number = selector_.header().draws++; });
    return number;
  }

 private:
  static constexpr size_t kPools = 8;  // batch sizes whose memory is kept

  char* check_room(uint64_t offset) const {
    if (offset % kCacheLine || memory_.bytes() < offset + Selector::bytes(spec_, layout_))
      throw std::invalid_argument("the memory is smaller than the selector");
    return memory_.data() + offset;
  }

  BufferLock& mutex() const { return core_.lock(); }
  bool is_episodic() const { return spec_.rule.length == AnchorRule::kEpisode; }

  // One row of each array of a batch. Transitions: obs..., actions..., extras..., reward, terminated, truncated,
  // next_obs..., discount, ids, then goal_ids, relabelled, achieved, desired where goals are relabelled. Sequences of
  // `steps`: obs... of one step more, actions..., extras..., reward, terminated, truncated, discount, ids, mask,
  // loss_mask. Then weight.
  std::vector<ValueType> make_types(uint64_t steps) const {
    std::vector<ValueType> types;
    const auto add = [&](PyArray_Descr* descr, std::vector<npy_intp> shape, uint64_t lead) {
      if (lead > 0) shape.insert(shape.begin(), static_cast<npy_intp>(lead));
      types.emplace_back(descr, shape, std::vector<int64_t>{}, std::vector<int64_t>{});
    };
    const auto number = [&](int type, uint64_t lead) {
      const Reference descr(reinterpret_cast<PyObject*>(PyArray_DescrFromType(type)));
      add(reinterpret_cast<PyArray_Descr*>(descr.get()), {}, lead);
    };
    const auto observations = [&](uint64_t lead) {
      for (const ValueType& type : core_.obs_types()) {
        std::vector<npy_intp> shape = type.shape();
        if (stack_ > 1) shape.insert(shape.begin(), stack_);
        add(type.descr(), shape, lead);
      }
    };
    const bool is_sequence = sequences_.has_value();
    observations(is_sequence ? steps + 1 : 0);
    for (size_t i = 0; i < core_.rest_types().size(); ++i)
      add(core_.rest_types()[i].descr(), core_.rest_types()[i].shape(), first_only_[i] ? 0 : steps);
    number(NPY_FLOAT32, steps);
    number(NPY_BOOL, steps);
    number(NPY_BOOL, steps);
    if (!is_sequence) observations(0);
    number(NPY_FLOAT32, steps);
    number(NPY_INT64, 0);
    if (is_sequence) {
      number(NPY_BOOL, steps);
      number(NPY_BOOL, steps);
    }
    if (relabeler_) {
      const ValueType& goal = core_.obs_types()[achieved_];
      const std::vector<npy_intp> shape(goal.shape().begin() + (layout_.spec.stacked > 1), goal.shape().end());
      number(NPY_INT64, 0);
      number(NPY_INT64, 3);
      add(goal.descr(), shape, n_ > 1 ? n_ : 0);
      add(goal.descr(), shape, n_ > 1 ? n_ : 0);
    }
    number(NPY_FLOAT32, 0);
    return types;
  }

  // Where the arrays of a batch lie, which `next` gives in their order.
  template <typename Next>
  BatchArrays addresses(Next next) const {
    BatchArrays to{};
    for (size_t i = 0; i < core_.obs_types().size(); ++i) to.obs.push_back(next());
    for (size_t i = 0; i < core_.rest_types().size(); ++i) to.rest.push_back(next());
    to.reward = reinterpret_cast<float*>(next());
    to.terminated = reinterpret_cast<uint8_t*>(next());
    to.truncated = reinterpret_cast<uint8_t*>(next());
    for (size_t i = 0; transitions_ && i < core_.obs_types().size(); ++i) to.next_obs.push_back(next());
    to.discount = reinterpret_cast<float*>(next());
    to.ids = reinterpret_cast<int64_t*>(next());
    if (sequences_) {
      to.mask = reinterpret_cast<uint8_t*>(next());
      to.loss_mask = reinterpret_cast<uint8_t*>(next());
    }
    if (relabeler_) {
      to.goal_ids = reinterpret_cast<int64_t*>(next());
      to.relabelled = reinterpret_cast<int64_t*>(next());
      to.achieved = next();
      to.desired = next();
    }
    return to;
  }

  void assemble(const Anchor* anchors, uint64_t count, uint64_t steps, const BatchArrays& to, int64_t number) const {
    const Arena& arena = core_.arena();
    if (sequences_) return sequences_->assemble(arena, anchors, count, steps, to);
    std::vector<Anchor> chosen;
    if (relabeler_ && number >= 0)
      chosen = relabeler_->choose(arena, selector_, static_cast<uint64_t>(number), anchors, count);
    transitions_->assemble(arena, anchors, count, to);
    if (relabeler_) relabeler_->relabel(arena, chosen, anchors, count, to);
  }

  // A batch of the anchors that `choose` writes under the lock; it returns the number for relabelling, or nothing, and
  // then there is no batch: None.
  template <typename Choose>
  nb::object make_batch(uint64_t count, bool weighted, nb::handle out, const Anchor* anchors, Choose choose) {
    if (is_episodic()) return make_episodes(count, weighted, anchors, choose);
    nb::object arrays = batch(count, weighted, out);
    size_t at = 0;
    const BatchArrays to = addresses(
        [&] { return PyArray_BYTES(reinterpret_cast<PyArrayObject*>(PyTuple_GET_ITEM(arrays.ptr(), at++))); });
    std::optional<int64_t> number;
    without_gil([&] {
      const std::lock_guard guard(mutex());
      number = choose();
      if (number) assemble(anchors, count, spec_.rule.length, to, *number);
    });
    return number ? arrays : nb::none();
  }

  // The same for whole episodes. How long they are is known under the lock alone, where no array can be made: the batch
  // is written to plain memory, which arrays are then made of.
  template <typename Choose>
  nb::object make_episodes(uint64_t count, bool weighted, const Anchor* anchors, Choose choose) {
    struct Free {
      void operator()(char* memory) const { std::free(memory); }
    };
    std::vector<std::unique_ptr<char, Free>> memory;
    uint64_t steps = 0;
    without_gil([&] {
      const std::lock_guard guard(mutex());
      const std::optional<int64_t> number = choose();
      if (!number) return;
      steps = sequences_->steps(core_.arena(), anchors, count);
      size_t at = 0;
      const BatchArrays to = addresses([&] {
        const uint64_t bytes = count * (step_bytes_[at].first + step_bytes_[at].second * (steps - 1));
        auto* start = static_cast<char*>(std::malloc(std::max<uint64_t>(bytes, 1)));
        if (!start) throw std::bad_alloc();
        memory.emplace_back(start);
        ++at;
        return start;
      });
      assemble(anchors, count, steps, to, *number);
    });
    if (memory.empty()) return nb::none();
    const std::vector<ValueType> types = make_types(steps);
    nb::object arrays = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(types.size() - !weighted)));
    if (!arrays.is_valid()) throw nb::python_error();
    for (size_t i = 0; i < memory.size(); ++i) {
      char* start = memory[i].get();
      const nb::capsule owner(start, [](void* owned) noexcept { std::free(owned); });
      memory[i].release();
      PyTuple_SET_ITEM(arrays.ptr(), i, array_over(types[i], count, start, owner));
    }
    if (weighted) PyTuple_SET_ITEM(arrays.ptr(), memory.size(), ArrayPool(types, count).make(memory.size()));
    return arrays;
  }

  // (N P(i))^-beta over its largest: Schaul et al. 2016, section 3.4. N and the sum of the masses cancel.
  void write_weights(nb::handle arrays, const double* masses, uint64_t count, double smallest, double beta) const {
    const auto last = static_cast<size_t>(PyTuple_GET_SIZE(arrays.ptr())) - 1;
    auto* weight =
        static_cast<float*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(PyTuple_GET_ITEM(arrays.ptr(), last))));
    if (!spec_.keeps_priorities()) {
      std::fill_n(weight, count, 1.0f);
      return;
    }
    if (!spec_.minima) smallest = *std::min_element(masses, masses + count);
    const auto exponent = static_cast<float>(beta);
    const double least = std::log(smallest);
    for (uint64_t i = 0; i < count; ++i) {
      // In float32, as the weight is, which takes a third of the time; where the quotient is too small for that, by
      // logarithms. Never 0, which would be no weight.
      const double quotient = smallest / masses[i];
      const float power = quotient > std::numeric_limits<float>::min()
                              ? std::pow(static_cast<float>(quotient), exponent)
                              : static_cast<float>(std::exp(beta * (least - std::log(masses[i]))));
      weight[i] = std::max(power, std::numeric_limits<float>::min());
    }
  }

  nb::object batch(uint64_t count, bool weighted, nb::handle out) {
    if (!out.is_none()) {
      check(out, count, weighted);
      return nb::borrow(out);
    }
    try {
      return pool_of(count)->tuple(weighted);
    } catch (const std::bad_alloc&) {  // what is kept for other batches may be what is missing for this one
      PyErr_Clear();
      std::exchange(pools_, {}).clear();
      return pool_of(count)->tuple(weighted);
    }
  }

  void check(nb::handle out, uint64_t count, bool weighted) const {
    const size_t expected = types_.size() - !weighted;
    if (!PyTuple_CheckExact(out.ptr()) || static_cast<size_t>(PyTuple_GET_SIZE(out.ptr())) != expected)
      throw nb::value_error("the batch given as out has other fields than this buffer's");
    for (size_t i = 0; i < expected; ++i) {
      PyObject* array = PyTuple_GET_ITEM(out.ptr(), i);
      if (!is_array(array, types_[i].descr(), types_[i].shape(), count) ||
          !PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(array)))
        throw nb::index_error(std::to_string(i).c_str());
    }
  }

  // Held by the caller: what goes when arrays are dropped (a callback, the garbage collector) may call this reader.
  std::shared_ptr<ArrayPool> pool_of(uint64_t count) {
    for (const auto& pool : pools_)
      if (static_cast<uint64_t>(pool->count()) == count) return pool;
    const auto made = std::make_shared<ArrayPool>(types_, static_cast<npy_intp>(count));
    pools_.push_back(made);
    if (pools_.size() > kPools) {
      const auto oldest = std::move(pools_.front());
      pools_.pop_front();
    }
    return made;
  }

  Core& core_;
  const Layout& layout_;
  Memory memory_;
  SelectorSpec spec_;
  uint32_t stack_, n_ = 1;
  double eta_;
  std::vector<bool> first_only_;  // of each action and extra: returned for the first step of a sequence only
  uint64_t achieved_ = 0;
  Selector selector_;
  std::optional<TransitionView> transitions_;
  std::optional<SequenceView> sequences_;
  std::optional<Relabeler> relabeler_;
  std::vector<ValueType> types_;                           // of the arrays of a batch; not of whole episodes, where
  std::vector<std::pair<uint64_t, uint64_t>> step_bytes_;  // a row takes so much for the first step, so much for others
  std::list<std::shared_ptr<ArrayPool>> pools_;
};

// Bytes that the selector of such a reader takes.
inline uint64_t selector_bytes(nb::sequence obs, nb::sequence rest, uint64_t lanes, uint64_t lane_capacity,
                               uint32_t stacked, uint32_t history, nb::dict options) {
  return Selector::bytes(selector_spec(options),
                         make_layout(value_types(obs), value_types(rest), lanes, lane_capacity, stacked, history));
}

}  // namespace relive
