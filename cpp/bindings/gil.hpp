// Working without the GIL, under the buffer's lock, on memory that Python allocated.
#pragma once

#include <mutex>

#include "../core/buffer_lock.hpp"

namespace nb = nanobind;

namespace relive {

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
// hand, nor for the GIL with the lock in hand, nor repairs with the GIL in hand.
template <typename Work>
void locked(BufferLock& lock, uint64_t bytes, Work work) {
  const Taken taken = bytes < kReleaseBytes ? lock.try_lock() : Taken::kNo;
  if (taken == Taken::kYes) {
    const std::lock_guard guard(lock, std::adopt_lock);
    work();
    return;
  }
  without_gil([&] {
    if (taken == Taken::kNo)
      lock.lock();
    else
      lock.repair();
    const std::lock_guard guard(lock, std::adopt_lock);
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

}  // namespace relive
