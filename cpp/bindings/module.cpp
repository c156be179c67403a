// The module: nanobind is included here alone.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <numpy/arrayobject.h>

#include "core.hpp"
#include "holding.hpp"
#include "reader.hpp"

namespace relive {
namespace {

// NumPy's C interface; its macro returns null on failure, with the error set.
void* import_numpy() {
  import_array();
  return &PyArray_API;
}

}  // namespace

#define RELIVE_FIELDS "collections.abc.Sequence[tuple[numpy.dtype[typing.Any], list[int], list[int], list[int]]]"
#define RELIVE_SHAPE "lanes: int, lane_capacity: int, stacked: int, history: int"
#define RELIVE_EXTENT "tuple[int, int, int]"
#define RELIVE_VALUES "tuple[numpy.typing.NDArray[typing.Any] | None, ...]"
#define RELIVE_ARRAYS "tuple[numpy.typing.NDArray[typing.Any], ...]"

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
  module.attr("BOARD") = kBoard;
  module.attr("WHOLE_EPISODE") = AnchorRule::kEpisode;
  module.def(
      "measure", &measure, nb::arg("obs"), nb::arg("rest"), nb::arg("lanes"), nb::arg("lane_capacity"),
      nb::arg("stacked"), nb::arg("history"),
      nb::sig("def measure(obs: " RELIVE_FIELDS ", rest: " RELIVE_FIELDS ", " RELIVE_SHAPE ") -> dict[str, int]"));
  module.def("selector_bytes", &selector_bytes, nb::arg("obs"), nb::arg("rest"), nb::arg("lanes"),
             nb::arg("lane_capacity"), nb::arg("stacked"), nb::arg("history"), nb::arg("options"),
             nb::sig("def selector_bytes(obs: " RELIVE_FIELDS ", rest: " RELIVE_FIELDS ", " RELIVE_SHAPE
                     ", options: dict[str, typing.Any]) -> int"));
  module.def("crc32", &crc32, nb::arg("data"), nb::arg("before") = 0,
             nb::sig("def crc32(data: bytes | bytearray | memoryview, before: int = 0) -> int"));
  module.def("read_seal", &read_seal, nb::arg("memory"),
             nb::sig("def read_seal(memory: typing.Any) -> tuple[bool, int, int]"));
  module.def("write_seal", &write_seal, nb::arg("memory"), nb::arg("clean"), nb::arg("boot"),
             nb::sig("def write_seal(memory: typing.Any, clean: bool, boot: int) -> None"));
  nb::enum_<Found>(module, "Found")
      .value("ZEROED", Found::kZeroed)
      .value("WHOLE", Found::kWhole)
      .value("TORN", Found::kTorn)
      .value("LIVE", Found::kLive);
  nb::class_<Core>(module, "Core", nb::is_weak_referenceable())
      .def(nb::init<nb::handle, nb::sequence, nb::sequence, nb::sequence, uint64_t, uint64_t, uint32_t, uint32_t,
                    Found>(),
           nb::arg("memory"), nb::arg("obs"), nb::arg("actions"), nb::arg("extras"), nb::arg("lanes"),
           nb::arg("lane_capacity"), nb::arg("stacked"), nb::arg("history"), nb::arg("found"),
           nb::sig("def __init__(self, memory: typing.Any, obs: " RELIVE_FIELDS ", actions: " RELIVE_FIELDS
                   ", extras: " RELIVE_FIELDS ", " RELIVE_SHAPE ", found: Found) -> None"))
      .def("append_one", &Core::append_one,
           nb::sig("def append_one(self, lane: int, /, *values: typing.Any) -> int | None"))
      .def("append_many", &Core::append_many, nb::arg("lane"), nb::arg("mask").none(), nb::arg("priorities").none(),
           nb::arg("ids"), nb::arg("values"),
           nb::sig("def append_many(self, lane: int, mask: numpy.typing.NDArray[numpy.bool_] | None, "
                   "priorities: numpy.typing.NDArray[numpy.float64] | None, "
                   "ids: numpy.typing.NDArray[numpy.int64], *values: typing.Any) -> bool"))
      .def("end_episodes", &Core::end_episodes, nb::arg("mask").none(),
           nb::sig("def end_episodes(self, mask: numpy.typing.NDArray[numpy.bool_] | None) -> int"))
      .def("clear", &Core::clear)
      .def("hold", &hold, nb::arg("held") = nb::none(),
           nb::sig("def hold(self, held: list[Core] | None = None) -> None"))
      .def("release", &Core::release)
      .def("set_shared", &Core::set_shared, nb::arg("shared"))
      .def("add", &Core::add, nb::arg("place"), nb::arg("amount"), nb::arg("expected") = nb::none(),
           nb::sig("def add(self, place: int, amount: int, expected: int | None = None) -> int"))
      .def("layout", &Core::layout, nb::sig("def layout(self) -> dict[str, typing.Any]"))
      .def("lanes", &Core::lanes, nb::arg("into"), nb::arg("held"),
           nb::sig("def lanes(self, into: numpy.typing.NDArray[numpy.uint64], held: bool) -> None"))
      .def("sync", &Core::sync, nb::arg("into"),
           nb::sig("def sync(self, into: numpy.typing.NDArray[numpy.uint64]) -> None"))
      .def("copy_out", &Core::copy_out, nb::arg("lane"), nb::arg("begin"), nb::arg("end"), nb::arg("before"),
           nb::arg("filled"), nb::arg("arrays"), nb::arg("held"),
           nb::sig("def copy_out(self, lane: int, begin: int, end: int, before: " RELIVE_EXTENT
                   ", filled: " RELIVE_EXTENT ", arrays: " RELIVE_ARRAYS ", held: bool) -> " RELIVE_EXTENT " | None"))
      .def("begin_lane", &Core::begin_lane, nb::arg("lane"), nb::arg("first"))
      .def("copy_in", &Core::copy_in, nb::arg("lane"), nb::arg("count"), nb::arg("base"), nb::arg("end"),
           nb::arg("arrays"),
           nb::sig("def copy_in(self, lane: int, count: int, base: " RELIVE_EXTENT ", end: " RELIVE_EXTENT
                   ", arrays: " RELIVE_ARRAYS ") -> bool"))
      .def("count_rows", &Core::count_rows, nb::arg("records"), nb::arg("rows"),
           nb::sig("def count_rows(self, records: numpy.typing.NDArray[numpy.uint8], rows: int) -> " RELIVE_EXTENT))
      .def("copy_open", &Core::copy_open, nb::arg("lane"), nb::arg("arrays"),
           nb::sig("def copy_open(self, lane: int, arrays: " RELIVE_ARRAYS ") -> None"))
      .def("end_lane", &Core::end_lane, nb::arg("lane"), nb::arg("begin"))
      .def("repair", &Core::repair)
      .def("keep", &Core::keep, nb::arg("trusted"),
           nb::sig("def keep(self, trusted: numpy.typing.NDArray[numpy.uint64]) -> bool"))
      .def("ids", &Core::ids, nb::sig("def ids(self) -> numpy.typing.NDArray[numpy.int64]"))
      .def_prop_ro("num_lanes", &Core::num_lanes)
      .def_prop_ro("num_pushed", &Core::num_pushed)
      .def_prop_ro("live", &Core::live);
  module.def("hold_all", &hold_all, nb::arg("watched"), nb::arg("held"),
             nb::sig("def hold_all(watched: list[tuple[int, weakref.ref[Core]]], held: list[Core]) -> None"));
  module.def("release_all", &release_all, nb::arg("held"), nb::sig("def release_all(held: list[Core]) -> None"));
  module.def("renew_all", &renew_all, nb::arg("held"), nb::sig("def renew_all(held: list[Core]) -> None"));
  nb::class_<Reader>(module, "Reader")
      .def(nb::init<Core&, nb::handle, uint64_t, nb::dict, uint64_t, bool, Found>(), nb::keep_alive<1, 2>(),
           nb::arg("core"), nb::arg("memory"), nb::arg("offset"), nb::arg("options"), nb::arg("seed"),
           nb::arg("primary"), nb::arg("found"),
           nb::sig("def __init__(self, core: Core, memory: typing.Any, offset: int, options: dict[str, typing.Any], "
                   "seed: int, primary: bool, found: Found) -> None"))
      .def("cut", &Reader::cut, nb::arg("done"), nb::arg("room"), nb::arg("arrays"), nb::arg("tails"), nb::arg("lanes"),
           nb::arg("epochs"), nb::arg("values"), nb::arg("held"),
           nb::sig("def cut(self, done: numpy.typing.NDArray[numpy.uint64], room: int, arrays: " RELIVE_ARRAYS
                   ", tails: " RELIVE_ARRAYS ", lanes: numpy.typing.NDArray[numpy.uint64], "
                   "epochs: numpy.typing.NDArray[numpy.uint64], values: " RELIVE_VALUES ", held: bool) -> "
                   "tuple[" RELIVE_EXTENT ", " RELIVE_EXTENT ", dict[str, typing.Any]] | None"))
      .def_prop_ro("draws", &Reader::draws)
      .def("keeps", &Reader::keeps)
      .def("restore", &Reader::restore, nb::arg("state"), nb::arg("epochs"), nb::arg("values"),
           nb::sig("def restore(self, state: dict[str, typing.Any], epochs: numpy.typing.NDArray[numpy.uint64], "
                   "values: " RELIVE_VALUES ") -> bool"))
      .def("sample", &Reader::sample, nb::arg("count"), nb::arg("beta").none(), nb::arg("out").none(),
           nb::sig("def sample(self, count: int, beta: float | None, out: " RELIVE_ARRAYS " | None) -> " RELIVE_ARRAYS
                   " | int"))
      .def("sample_masses", &Reader::sample_masses, nb::arg("count"),
           nb::sig("def sample_masses(self, count: int) -> tuple[" RELIVE_ARRAYS
                   ", numpy.typing.NDArray[numpy.float64], float, float] | int"))
      .def("mass", &Reader::mass, nb::arg("largest"),
           nb::sig("def mass(self, largest: float) -> tuple[float, float, float]"))
      .def("get", &Reader::get, nb::arg("ids"), nb::arg("out").none(), nb::arg("number"),
           nb::sig("def get(self, ids: numpy.typing.NDArray[numpy.int64], out: " RELIVE_ARRAYS
                   " | None, number: int) -> " RELIVE_ARRAYS " | int"))
      .def("update", &Reader::update, nb::arg("ids"), nb::arg("raw"),
           nb::sig("def update(self, ids: numpy.typing.NDArray[numpy.int64], "
                   "raw: numpy.typing.NDArray[numpy.floating[typing.Any]]) -> int"))
      .def("anchors", &Reader::anchors, nb::sig("def anchors(self) -> numpy.typing.NDArray[numpy.int64]"))
      .def("advance", &Reader::advance)
      .def_prop_ro("epochs", &Reader::epochs);
}

}  // namespace relive
