// The only file that includes nanobind: checks what comes in, releases the GIL, makes one call.
//
// Values that do not fit at a glance (another dtype, a list, out of bounds) are answered with None: Python then
// converts or explains. So every error message is written in one place, and the common case pays for none.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>
#include <numpy/arrayobject.h>

#include <list>
#include <memory>
#include <mutex>
#include <utility>

#include "../core/ring.hpp"
#include "../core/uniform.hpp"
#include "../core/window.hpp"
#include "arrays.hpp"

namespace nb = nanobind;

namespace relive {
namespace {

constexpr uint64_t kReleaseBytes = 32 * 1024;  // a shorter copy takes less time than handing over the GIL

// Takes the GIL back. Python ends a thread that comes back while the interpreter shuts down by unwinding its frames,
// some of which must not be unwound (the process would abort); such a thread waits here for the end instead.
inline void take_gil_back(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    wait_for_the_end();
  }
}

// Runs `work`, which touches no Python object, without the GIL.
template <typename Work>
void without_gil(Work work) {
  PyThreadState* state = PyEval_SaveThread();
  try {
    work();
  } catch (...) {
    take_gil_back(state);
    throw;
  }
  take_gil_back(state);
}

// Runs `work`, which touches no Python object, under the buffer's lock. Never waits for the lock with the GIL in
// hand, nor for the GIL with the lock in hand.
template <typename Work>
void locked(SharedMutex& mutex, uint64_t bytes, Work work) {
  if (bytes < kReleaseBytes && mutex.try_lock()) {
    const std::lock_guard guard(mutex, std::adopt_lock);
    work();
    return;
  }
  without_gil([&] {
    const std::lock_guard guard(mutex);
    work();
  });
}

// Memory that Python allocated and this object keeps alive.
class Memory {
 public:
  explicit Memory(nb::handle owner) {
    if (PyObject_GetBuffer(owner.ptr(), &view_, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  }
  ~Memory() { PyBuffer_Release(&view_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return static_cast<char*>(view_.buf); }
  uint64_t bytes() const { return static_cast<uint64_t>(view_.len); }

 private:
  Py_buffer view_;
};

// Each field is (dtype, shape, low, high): a numpy.dtype, then three lists of integers.
std::vector<ValueType> value_types(nb::sequence fields) {
  std::vector<ValueType> types;
  for (nb::handle field : fields) {
    const nb::handle dtype = field[0];
    if (!PyArray_DescrCheck(dtype.ptr())) throw nb::type_error("expected a numpy.dtype");
    types.emplace_back(reinterpret_cast<PyArray_Descr*>(dtype.ptr()), nb::cast<std::vector<npy_intp>>(field[1]),
                       nb::cast<std::vector<int64_t>>(field[2]), nb::cast<std::vector<int64_t>>(field[3]));
  }
  return types;
}

uint64_t total_bytes(const std::vector<ValueType>& types) {
  uint64_t bytes = 0;
  for (const ValueType& type : types) bytes += type.bytes();
  return bytes;
}

Layout make_layout(const std::vector<ValueType>& obs, const std::vector<ValueType>& rest, uint64_t lanes,
                   uint64_t lane_capacity, uint32_t stacked, uint32_t history) {
  Spec spec{{}, {}, lanes, lane_capacity, stacked, history};
  for (const ValueType& type : obs) spec.obs.push_back(type.bytes() / stacked);
  for (const ValueType& type : rest) spec.rest.push_back(type.bytes());
  return Layout(spec);
}

// What a buffer of this shape takes, before anything is allocated.
nb::dict measure(nb::sequence obs, nb::sequence rest, uint64_t lanes, uint64_t lane_capacity, uint32_t stacked,
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

const ValueType& flag_type() {
  static const auto* type = new ValueType(PyArray_DescrFromType(NPY_BOOL), {}, {}, {});  // never freed: outlives Python
  return *type;
}

class Core {
 public:
  Core(nb::handle memory, nb::sequence obs, nb::sequence actions, nb::sequence extras, uint64_t lanes,
       uint64_t lane_capacity, uint32_t stacked, uint32_t history, uint64_t seed)
      : obs_(value_types(obs)),
        rest_(value_types(actions)),
        num_actions_(rest_.size()),
        memory_(memory),
        layout_(add_extras(extras, lanes, lane_capacity, stacked, history)),
        arena_(memory_.data(), layout_),
        ring_(arena_) {
    if (memory_.bytes() < layout_.arena_bytes) throw std::invalid_argument("the memory is smaller than the arena");
    Header& header = arena_.header();
    header.magic = kMagic;
    header.format = kFormat;
    header.header_bytes = sizeof(Header);
    header.arena_bytes = layout_.arena_bytes;
    header.lanes = lanes;
    header.lane_capacity = lane_capacity;
    header.rows = layout_.rows;
    header.record_bytes = layout_.record_bytes;
    header.stacked = stacked;
    header.history = history;
    header.seed = seed;
    header.mutex.init();
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
    locked(arena_.header().mutex, value_bytes_, [&] { id = ring_.append(lane, block, 0); });
    return nb::int_(id);
  }

  // `count` transitions: number i goes to lane i where `lane` is negative, else all to that lane in order of time.
  // Writes their ids, -1 where `mask` leaves one out. False if a value has to be converted or refused.
  bool append_many(int64_t lane, nb::handle mask, nb::handle ids, nb::args values) {
    const auto count = static_cast<int64_t>(PyArray_SIZE(reinterpret_cast<PyArrayObject*>(ids.ptr())));
    const auto data = [](nb::handle array) { return PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr())); };
    const auto* chosen = mask.is_none() ? nullptr : static_cast<const uint8_t*>(data(mask));
    Values& found = Values::of_this_thread();
    if (!find_values(values, count, chosen, found)) return false;
    auto* id = static_cast<int64_t*>(data(ids));
    const Block block = as_block(found);
    if (layout_.spec.stacked > 1)
      for (int64_t i = 0; i < count; ++i)
        if ((!chosen || chosen[i]) && !ring_.rolls(block, i)) return false;
    locked(arena_.header().mutex, value_bytes_ * count, [&] {
      for (int64_t i = 0; i < count; ++i)
        id[i] = chosen && !chosen[i] ? -1 : ring_.append(lane < 0 ? i : lane, block, i);
    });
    return true;
  }

  void clear() {
    locked(arena_.header().mutex, UINT64_MAX, [&] { ring_.clear(); });
  }

  // Around a fork: a child must not inherit a lock whose holder it does not have.
  void hold() {
    without_gil([&] { arena_.header().mutex.lock(); });
  }
  void release() { arena_.header().mutex.unlock(); }
  void renew() { arena_.header().mutex.init(); }

  uint64_t live() {
    uint64_t live = 0;
    locked(arena_.header().mutex, 0, [&] { live = arena_.header().live; });
    return live;
  }

  nb::object ids() {
    std::vector<int64_t> ids;
    locked(arena_.header().mutex, UINT64_MAX, [&] {
      ids.resize(arena_.header().live);
      live_ids(arena_, ids.data());
    });
    npy_intp shape[] = {static_cast<npy_intp>(ids.size())};
    nb::object array = nb::steal(PyArray_SimpleNew(1, shape, NPY_INT64));
    if (!array.is_valid()) throw nb::python_error();
    std::copy(ids.begin(), ids.end(),
              static_cast<int64_t*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr()))));
    return array;
  }

  const Arena& arena() const { return arena_; }
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
  uint64_t value_bytes_;
};

// One way of reading a buffer: a view and the memory of its batches.
class Reader {
 public:
  Reader(Core& core, uint32_t n, double gamma, uint32_t stack, bool pad_with_zeros)
      : core_(core), view_(core.arena().layout(), n, gamma, stack, pad_with_zeros) {
    const auto observation = [&](const ValueType& type) {
      std::vector<npy_intp> shape = type.shape();
      if (stack > 1) shape.insert(shape.begin(), stack);
      types_.emplace_back(type.descr(), shape, std::vector<int64_t>{}, std::vector<int64_t>{});
    };
    const auto number = [&](int type) {
      types_.emplace_back(PyArray_DescrFromType(type), std::vector<npy_intp>{}, std::vector<int64_t>{},
                          std::vector<int64_t>{});
    };
    for (const ValueType& type : core.obs_types()) observation(type);
    for (const ValueType& type : core.rest_types()) types_.push_back(type);
    number(NPY_FLOAT32);
    number(NPY_BOOL);
    number(NPY_BOOL);
    for (const ValueType& type : core.obs_types()) observation(type);
    number(NPY_FLOAT32);
    number(NPY_INT64);
  }

  // A batch of `count` transitions drawn uniformly, as a tuple of arrays: obs..., actions..., extras..., reward,
  // terminated, truncated, next_obs..., discount, ids. Into `out`, such a tuple, where given. None if the buffer is
  // empty.
  nb::object sample(uint64_t count, nb::handle out) {
    nb::tuple arrays = batch(count, out);
    const BatchArrays to = addresses(arrays);
    bool drawn = false;
    without_gil([&] {
      const auto anchors = std::make_unique_for_overwrite<Anchor[]>(count);
      Header& header = core_.arena().header();
      const std::lock_guard guard(header.mutex);
      drawn = header.live > 0;
      if (!drawn) return;
      draw_uniform(core_.arena(), header.seed, header.draws++, count, anchors.get());
      view_.assemble(core_.arena(), anchors.get(), count, to);
    });
    return drawn ? nb::object(arrays) : nb::none();
  }

  // The batch of these ids (an int64 array [count]), or the index of the first one that is not live.
  nb::object get(nb::handle ids, nb::handle out) {
    auto* array = reinterpret_cast<PyArrayObject*>(ids.ptr());
    const auto count = static_cast<uint64_t>(PyArray_SIZE(array));
    const auto* id = static_cast<const int64_t*>(PyArray_DATA(array));
    nb::tuple arrays = batch(count, out);
    const BatchArrays to = addresses(arrays);
    uint64_t found = 0;
    without_gil([&] {
      const auto anchors = std::make_unique_for_overwrite<Anchor[]>(count);
      const std::lock_guard guard(core_.arena().header().mutex);
      for (; found < count; ++found) {
        const auto anchor = core_.arena().find(id[found]);
        if (!anchor) return;
        anchors[found] = *anchor;
      }
      view_.assemble(core_.arena(), anchors.get(), count, to);
    });
    return found == count ? nb::object(arrays) : nb::int_(found);
  }

 private:
  static constexpr size_t kPools = 8;  // batch sizes whose memory is kept

  nb::tuple batch(uint64_t count, nb::handle out) {
    if (!out.is_none()) {
      check(out, count);
      return nb::borrow<nb::tuple>(out);
    }
    nb::tuple arrays = nb::steal<nb::tuple>(PyTuple_New(types_.size()));
    if (!arrays.is_valid()) throw nb::python_error();
    try {
      fill(arrays, count);
    } catch (const std::bad_alloc&) {  // what is kept for other batches may be what is missing for this one
      PyErr_Clear();
      pools_.clear();
      fill(arrays, count);
    }
    return arrays;
  }

  void fill(nb::handle arrays, uint64_t count) {
    ArrayPool& pool = pool_of(count);
    for (size_t i = 0; i < types_.size(); ++i) {
      const Reference array = pool.take(i);
      Py_XSETREF(PyTuple_GET_ITEM(arrays.ptr(), i), Py_NewRef(array.get()));
    }
  }

  void check(nb::handle out, uint64_t count) const {
    if (!PyTuple_CheckExact(out.ptr()) || static_cast<size_t>(PyTuple_GET_SIZE(out.ptr())) != types_.size())
      throw nb::value_error("the batch given as out has other fields than this buffer's");
    for (size_t i = 0; i < types_.size(); ++i) {
      PyObject* array = PyTuple_GET_ITEM(out.ptr(), i);
      if (!is_array(array, types_[i].descr(), types_[i].shape(), count) ||
          !PyArray_ISWRITEABLE(reinterpret_cast<PyArrayObject*>(array)))
        throw nb::index_error(std::to_string(i).c_str());
    }
  }

  ArrayPool& pool_of(uint64_t count) {
    for (ArrayPool& pool : pools_)
      if (static_cast<uint64_t>(pool.count()) == count) return pool;
    if (pools_.size() == kPools) pools_.pop_front();
    return pools_.emplace_back(types_, static_cast<npy_intp>(count));
  }

  BatchArrays addresses(nb::handle arrays) const {
    size_t at = 0;
    const auto next = [&] {
      return PyArray_BYTES(reinterpret_cast<PyArrayObject*>(PyTuple_GET_ITEM(arrays.ptr(), at++)));
    };
    BatchArrays to;
    for (size_t i = 0; i < core_.obs_types().size(); ++i) to.obs.push_back(next());
    for (size_t i = 0; i < core_.rest_types().size(); ++i) to.rest.push_back(next());
    to.reward = reinterpret_cast<float*>(next());
    to.terminated = reinterpret_cast<uint8_t*>(next());
    to.truncated = reinterpret_cast<uint8_t*>(next());
    for (size_t i = 0; i < core_.obs_types().size(); ++i) to.next_obs.push_back(next());
    to.discount = reinterpret_cast<float*>(next());
    to.ids = reinterpret_cast<int64_t*>(next());
    return to;
  }

  Core& core_;
  TransitionView view_;
  std::vector<ValueType> types_;
  std::list<ArrayPool> pools_;
};

// NumPy's C interface; its macro returns null on failure, with the error set.
void* import_numpy() {
  import_array();
  return &PyArray_API;
}

}  // namespace

NB_MODULE(_core, module) {
  if (!import_numpy()) throw nb::python_error();
  nb::set_leak_warnings(false);  // a daemon thread that holds a buffer to the end of the process is no leak
  module.doc() = "The native core of relive: appends, draws and assembles over memory that Python owns.";
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const std::length_error& e) {
      PyErr_SetString(PyExc_OverflowError, e.what());
    }
  });
  module.attr("MAX_LANE_CAPACITY") = kMaxLaneCapacity;
#define RELIVE_FIELDS "collections.abc.Sequence[tuple[numpy.dtype[typing.Any], list[int], list[int], list[int]]]"
  module.def("measure", &measure, nb::arg("obs"), nb::arg("rest"), nb::arg("lanes"), nb::arg("lane_capacity"),
             nb::arg("stacked"), nb::arg("history"),
             nb::sig("def measure(obs: " RELIVE_FIELDS ", rest: " RELIVE_FIELDS
                     ", lanes: int, lane_capacity: int, stacked: int, history: int) -> dict[str, int]"));
  nb::class_<Core>(module, "Core", nb::is_weak_referenceable())
      .def(nb::init<nb::handle, nb::sequence, nb::sequence, nb::sequence, uint64_t, uint64_t, uint32_t, uint32_t,
                    uint64_t>(),
           nb::arg("memory"), nb::arg("obs"), nb::arg("actions"), nb::arg("extras"), nb::arg("lanes"),
           nb::arg("lane_capacity"), nb::arg("stacked"), nb::arg("history"), nb::arg("seed"),
           nb::sig("def __init__(self, memory: typing.Any, obs: " RELIVE_FIELDS ", actions: " RELIVE_FIELDS
                   ", extras: " RELIVE_FIELDS
                   ", lanes: int, lane_capacity: int, stacked: int, history: int, seed: int) -> None"))
      .def("append_one", &Core::append_one,
           nb::sig("def append_one(self, lane: int, /, *values: typing.Any) -> int | None"))
      .def("append_many", &Core::append_many, nb::arg("lane"), nb::arg("mask").none(), nb::arg("ids"),
           nb::arg("values"),
           nb::sig("def append_many(self, lane: int, mask: numpy.typing.NDArray[numpy.bool_] | None, "
                   "ids: numpy.typing.NDArray[numpy.int64], *values: typing.Any) -> bool"))
      .def("clear", &Core::clear)
      .def("hold", &Core::hold)
      .def("release", &Core::release)
      .def("renew", &Core::renew)
      .def("ids", &Core::ids, nb::sig("def ids(self) -> numpy.typing.NDArray[numpy.int64]"))
      .def_prop_ro("live", &Core::live);
#undef RELIVE_FIELDS
#define RELIVE_ARRAYS "tuple[numpy.typing.NDArray[typing.Any], ...]"
  nb::class_<Reader>(module, "Reader")
      .def(nb::init<Core&, uint32_t, double, uint32_t, bool>(), nb::keep_alive<1, 2>(), nb::arg("core"), nb::arg("n"),
           nb::arg("gamma"), nb::arg("stack"), nb::arg("pad_with_zeros"))
      .def("sample", &Reader::sample, nb::arg("count"), nb::arg("out").none(),
           nb::sig("def sample(self, count: int, out: " RELIVE_ARRAYS " | None) -> " RELIVE_ARRAYS " | None"))
      .def("get", &Reader::get, nb::arg("ids"), nb::arg("out").none(),
           nb::sig("def get(self, ids: numpy.typing.NDArray[numpy.int64], out: " RELIVE_ARRAYS
                   " | None) -> " RELIVE_ARRAYS " | int"));
#undef RELIVE_ARRAYS
}

}  // namespace relive
