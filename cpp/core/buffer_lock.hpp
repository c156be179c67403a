// The one lock of a buffer, for all processes that map it. Who takes it after the death of its holder repairs what that
// one left behind, before anything else.
#pragma once

#include <atomic>
#include <memory>
#include <stdexcept>

#include "recovery.hpp"
#include "selector_state.hpp"

namespace relive {

class BufferLock {
 public:
  explicit BufferLock(const Arena& arena) : arena_(arena) {}

  // The selector that lies beside the arena, and is repaired with it. Its memory outlives this.
  void follow(const Selector& primary) { primary_ = std::make_unique<Selector>(primary); }

  void init() {
    mutex().init();
    arena_.header().damaged = 0;
  }

  void lock() {
    if (keeper_.load(std::memory_order_relaxed) == this_thread())
      throw std::runtime_error(
          "the buffer was called by what interrupted the same thread while it saves, forks or closes, such as a signal "
          "handler: that would wait for itself for ever");
    const Taken taken = mutex().lock();
    if (taken == Taken::kNo) refuse();
    if (taken == Taken::kAfterDeath)
      repair();
    else
      refuse_damage();
  }

  // kAfterDeath: taken, but `repair` comes first, which takes its time.
  [[nodiscard]] Taken try_lock() {
    const Taken taken = mutex().try_lock();
    if (taken == Taken::kYes) refuse_damage();
    return taken;
  }

  // Makes everything whole. O(rows used). Throws where what is there is nothing that a death can have left: then nobody
  // gets the lock any more.
  void repair() {
    if (mend())
      ++reinterpret_cast<int64_t*>(arena_.at(kBoard))[kBoardRecoveries];
    else
      arena_.header().damaged = 1;
    mutex().make_consistent();
    refuse_damage();
  }

  void unlock() { mutex().unlock(); }

  // The lock for as long as Python runs, signal handlers among it: a second `lock` of this thread throws.
  void hold() {
    lock();
    keeper_.store(this_thread(), std::memory_order_relaxed);
  }
  void release() {
    forget_keeper();
    unlock();
  }
  // In the child of a fork, whose one thread looks like the parent's.
  void forget_keeper() { keeper_.store(nullptr, std::memory_order_relaxed); }

 private:
  static const void* this_thread() {
    static thread_local char one_a_thread;
    return &one_a_thread;
  }

  SharedMutex& mutex() const { return arena_.header().mutex; }

  // Both steps may be killed and done again. No exception may leave the lock to somebody else: a process without the
  // memory for it ends here, and the next one tries.
  bool mend() noexcept {
    if (!Recovery(arena_).after_kill()) return false;
    if (primary_) SelectorState::recover(*primary_);
    return true;
  }

  // With the lock in hand.
  void refuse_damage() {
    if (!arena_.header().damaged) return;
    unlock();
    refuse();
  }

  [[noreturn]] static void refuse() {
    throw std::runtime_error("the buffer's memory was damaged by a process that ended while it wrote");
  }

  Arena arena_;
  std::unique_ptr<Selector> primary_;
  std::atomic<const void*> keeper_ = nullptr;  // the thread that holds it by `hold` through this object
};

}  // namespace relive
