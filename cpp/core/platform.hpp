// Everything that depends on the platform: the lock, prefetching, and nothing else.
#pragma once

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace relive {

inline constexpr uint64_t kCacheLine = 64;

// Asks for the cache lines of [address, address + bytes) without waiting for them. Inlined by force, as everything
// that does nothing else must be: GCC removes calls of functions that only prefetch, taking them for pure.
#define RELIVE_INLINE [[gnu::always_inline]] inline
RELIVE_INLINE void prefetch(const void* address, uint64_t bytes) {
  const char* line = static_cast<const char*>(address);
  for (uint64_t done = 0; done < bytes; done += kCacheLine) __builtin_prefetch(line + done);
  __builtin_prefetch(line + (bytes ? bytes - 1 : 0));
}

// Never returns: for a thread whose process is about to end without it.
[[noreturn]] inline void wait_for_the_end() {
  for (;;) pause();
}

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Writes the changed pages of a file's mapping to the disk and waits until they are there. 0, or the error.
inline int write_out(char* memory, uint64_t bytes) {
  return msync(memory, bytes, MS_SYNC) == 0 ? 0 : errno;
}

enum class Taken { kNo, kYes, kAfterDeath };

// A mutex that lives inside the buffer's memory, so that it means the same in every process that maps it.
// Process-shared and robust: the death of its holder is reported to the next one instead of locking it out. Who takes
// it after a death calls `make_consistent` once what it protects is whole; dies he before, the next one is told again.
class SharedMutex {
 public:
  void init() {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex_, &attributes);
    pthread_mutexattr_destroy(&attributes);
  }

  // Whether it was taken at once or after a short spin: critical sections are mostly shorter than going to sleep.
  [[nodiscard]] Taken try_lock() {
    for (int attempt = 0; attempt < 64; ++attempt) {
      const Taken taken = outcome(pthread_mutex_trylock(&mutex_));
      if (taken != Taken::kNo) return taken;
      spin_pause();
    }
    return Taken::kNo;
  }

  // kNo: there is no lock in this memory. (It is never let go inconsistent: glibc's trylock would leave such a one
  // locked.)
  [[nodiscard]] Taken lock() { return outcome(pthread_mutex_lock(&mutex_)); }

  void make_consistent() { pthread_mutex_consistent(&mutex_); }

  void unlock() { pthread_mutex_unlock(&mutex_); }

 private:
  static Taken outcome(int result) {
    return result == 0 ? Taken::kYes : result == EOWNERDEAD ? Taken::kAfterDeath : Taken::kNo;
  }

  pthread_mutex_t mutex_;
};

}  // namespace relive
