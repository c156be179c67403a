// The locks of buffers, held while Python runs: around a fork, and for a save that must not be overtaken.
//
// Python handles signals between two of its own steps, and a handler may raise. So taking a lock and noting that it is
// held are one step here, as are letting go and forgetting; and a fork's hooks are these functions themselves, in which
// nothing of Python's runs.
#pragma once

#include <algorithm>

#include "core.hpp"

namespace relive {

// Takes the lock of this core and appends the core to `held`, if that is a list.
inline void hold(nb::handle core, nb::handle held) {
  auto& native = nb::cast<Core&>(core);
  native.hold();
  if (!held.is_none() && PyList_Append(held.ptr(), core.ptr()) != 0) {
    native.release();
    throw nb::python_error();
  }
}

// Takes the locks of these cores, a list of (key, weak reference to one); those of one key have one lock. In the same
// order in all processes, or two that fork wait for each other. Memory that is damaged has no lock any more.
inline void hold_all(nb::list watched, nb::list held) {
  std::vector<std::pair<uint64_t, nb::object>> cores;
  for (nb::handle entry : watched) {
    nb::object core = nb::borrow(PyWeakref_GetObject(nb::handle(entry[1]).ptr()));
    if (!core.is_none()) cores.emplace_back(nb::cast<uint64_t>(entry[0]), std::move(core));
  }
  std::sort(cores.begin(), cores.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < cores.size(); ++i) {
    if (i && cores[i].first == cores[i - 1].first) continue;
    try {
      hold(cores[i].second, held);
    } catch (const std::runtime_error&) {
    }
  }
}

// Lets go of all that are in the list, and empties it.
inline void release_all(nb::list held) {
  for (nb::handle core : held) nb::cast<Core&>(core).release();
  if (PyList_SetSlice(held.ptr(), 0, PyList_GET_SIZE(held.ptr()), nullptr) != 0) throw nb::python_error();
}

// The same in the child of a fork.
inline void renew_all(nb::list held) {
  for (nb::handle core : held) nb::cast<Core&>(core).after_fork();
  if (PyList_SetSlice(held.ptr(), 0, PyList_GET_SIZE(held.ptr()), nullptr) != 0) throw nb::python_error();
}

}  // namespace relive
