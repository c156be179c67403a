// The floor: the least C++ that moves the bytes of a replay buffer. It knows its sizes when it is compiled, checks
// nothing, locks nothing, keeps no final observations and no episodes; whatever it is given fits. Same records as
// relive (next_obs is the obs of the following record), software prefetch, 2 MB pages, outputs that exist already.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace floor_ {

constexpr uint64_t kBlock = 128;  // records in flight
constexpr uint32_t kTerminated = 1u << 31, kTruncated = 1u << 30;

// Zeroed memory with 2 MB pages, as long as this object lives.
class HugeMemory {
 public:
  explicit HugeMemory(uint64_t bytes) : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    madvise(memory, bytes, MADV_HUGEPAGE);
    data_ = static_cast<char*>(memory);
  }
  ~HugeMemory() { munmap(data_, bytes_); }
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  char* data() const { return data_; }

 private:
  uint64_t bytes_;
  char* data_;
};

struct Outputs {
  char *obs, *action;
  float* reward;
  uint8_t *terminated, *truncated;
  char* next_obs;
  float* discount;
  int64_t* ids;
  float* weight;              // prioritized
  uint8_t *mask, *loss_mask;  // sequences
};

struct Ring {
  explicit Ring(uint64_t rows_) : rows(rows_) {}

  uint64_t rows, head = 0, head_row = 0, live = 0;
  uint64_t state = 0x9E3779B97F4A7C15u;

  uint64_t after(uint64_t row) const { return row + 1 == rows ? 0 : row + 1; }
  uint64_t row_before_head(uint64_t back) const { return head_row >= back ? head_row - back : head_row + rows - back; }
  void advance(uint64_t next, uint64_t capacity) {
    head_row = next;
    ++head;
    live = std::min(live + 1, capacity);
  }
  uint64_t random() {  // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  uint64_t draw() {  // multiply and shift: how far back from the newest
    return static_cast<uint64_t>((static_cast<unsigned __int128>(random()) * live) >> 64);
  }
};

// What every workload can do; each call is one indirect jump.
class Floor {
 public:
  virtual ~Floor() = default;
  virtual uint64_t record_bytes() const = 0;
  virtual void push(uint64_t lane, const char* obs, const char* action, float reward, uint32_t flags,
                    const char* next_obs) = 0;
  virtual void push_lanes(const char* obs, const char* action, const double* reward, const uint8_t* terminated,
                          const uint8_t* truncated, const char* next_obs) = 0;
  virtual void sample(uint64_t count, const Outputs& out) = 0;
  virtual void update(const int64_t*, const float*, uint64_t) {}
  Outputs bound{};
};

// Observation, action, reward and flags in one record of kRecord bytes.
template <uint64_t kObs, uint64_t kAction, uint64_t kRecord, uint32_t kSteps>
class Packed : public Floor {
 public:
  Packed(uint64_t capacity, uint64_t lanes, float gamma)
      : capacity_(capacity / lanes), rings_(lanes, Ring(capacity_ + 1)), memory_((capacity_ + 1) * lanes * kRecord) {
    records_ = memory_.data();
    for (uint32_t step = 0; step <= kSteps; ++step) powers_[step] = step == 0 ? 1.0f : powers_[step - 1] * gamma;
  }
  uint64_t record_bytes() const override { return kRecord; }

  void push(uint64_t lane, const char* obs, const char* action, float reward, uint32_t flags,
            const char* next_obs) override {
    Ring& ring = rings_[lane];
    char* base = records_ + lane * (capacity_ + 1) * kRecord;
    const uint64_t next = ring.after(ring.head_row);
    char* record = base + ring.head_row * kRecord;
    std::memcpy(record, obs, kObs);
    std::memcpy(record + kObs, action, kAction);
    std::memcpy(record + kObs + kAction, &reward, 4);
    std::memcpy(record + kObs + kAction + 4, &flags, 4);
    std::memcpy(base + next * kRecord, next_obs, kObs);
    ring.advance(next, capacity_);
  }

  void push_lanes(const char* obs, const char* action, const double* reward, const uint8_t* terminated,
                  const uint8_t* truncated, const char* next_obs) override {
    for (uint64_t lane = 0; lane < rings_.size(); ++lane)
      push(lane, obs + lane * kObs, action + lane * kAction, static_cast<float>(reward[lane]),
           (terminated[lane] ? kTerminated : 0) | (truncated[lane] ? kTruncated : 0), next_obs + lane * kObs);
  }

  void sample(uint64_t count, const Outputs& out) override {  // lane 0
    uint64_t rows[2][kBlock];
    draw(rows[0], std::min(count, kBlock));
    for (uint64_t first = 0, block = 0; first < count; first += kBlock, ++block) {
      const uint64_t size = std::min(kBlock, count - first);
      if (first + size < count) draw(rows[(block + 1) % 2], std::min(kBlock, count - first - size));
      gather(rows[block % 2], first, size, out);
    }
  }

 protected:
  static constexpr uint64_t kTouched = kRecord * kSteps + kObs;

  [[gnu::always_inline]] void fetch(uint64_t row) const {
    const char* record = records_ + row * kRecord;
    for (uint64_t at = 0; at < kTouched; at += 64) __builtin_prefetch(record + at);
    __builtin_prefetch(record + kTouched - 1);
  }

  void draw(uint64_t* rows, uint64_t size) {
    Ring& ring = rings_[0];
    for (uint64_t i = 0; i < size; ++i) {
      rows[i] = ring.row_before_head(1 + ring.draw());
      fetch(rows[i]);
    }
  }

  void gather(const uint64_t* rows, uint64_t first, uint64_t size, const Outputs& out) const {
    const Ring& ring = rings_[0];
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t at = first + i;
      uint64_t row = rows[i], next = ring.after(row);
      const char* record = records_ + row * kRecord;
      std::memcpy(out.obs + at * kObs, record, kObs);
      std::memcpy(out.action + at * kAction, record + kObs, kAction);
      float reward;
      uint32_t flags;
      std::memcpy(&reward, record + kObs + kAction, 4);
      std::memcpy(&flags, record + kObs + kAction + 4, 4);
      uint32_t steps = 1;
      for (; steps < kSteps && !flags && next != ring.head_row; ++steps) {
        const char* following = records_ + next * kRecord;
        float more;
        std::memcpy(&more, following + kObs + kAction, 4);
        std::memcpy(&flags, following + kObs + kAction + 4, 4);
        reward += powers_[steps] * more;
        next = ring.after(next);
      }
      out.reward[at] = reward;
      out.terminated[at] = flags >> 31;
      out.truncated[at] = flags >> 30 & 1;
      out.discount[at] = flags >> 31 ? 0.0f : powers_[steps];
      out.ids[at] = static_cast<int64_t>(row < ring.head_row ? ring.head - ring.head_row + row
                                                             : ring.head - ring.head_row + row - ring.rows);
      std::memcpy(out.next_obs + at * kObs, records_ + next * kRecord, kObs);
    }
  }

  uint64_t capacity_;
  std::vector<Ring> rings_;
  HugeMemory memory_;
  char* records_;
  float powers_[kSteps + 1];
};

// Frames lie in a column; a stack of four is four neighbours, so it is one copy. Five distinct frames a transition,
// read from memory once and from the cache once more. Without an array for next_obs the five are written once, one
// after the other, for a caller who looks at them through two overlapping views: less than relive gives, for
// comparison.
template <uint64_t kFrame, uint64_t kAction, uint64_t kRecord, uint64_t kStack>
class Frames final : public Floor {
 public:
  Frames(uint64_t capacity, uint64_t lanes, float gamma)
      : capacity_(capacity / lanes),
        lane_rows_(capacity_ + kStack),
        gamma_(gamma),
        rings_(lanes, Ring(lane_rows_)),
        record_memory_(lane_rows_ * lanes * kRecord),
        frame_memory_(lane_rows_ * lanes * kFrame) {
    records_ = record_memory_.data();
    frames_ = frame_memory_.data();
  }
  uint64_t record_bytes() const override { return kRecord + kFrame; }

  void push(uint64_t lane, const char* obs, const char* action, float reward, uint32_t flags,
            const char* next_obs) override {
    Ring& ring = rings_[lane];
    const uint64_t base = lane * lane_rows_, next = ring.after(ring.head_row);
    char* record = records_ + (base + ring.head_row) * kRecord;
    std::memcpy(record, action, kAction);
    std::memcpy(record + kAction, &reward, 4);
    std::memcpy(record + kAction + 4, &flags, 4);
    (void)obs;  // it is the next_obs of the push before, and lies there already
    std::memcpy(frames_ + (base + next) * kFrame, next_obs, kFrame);
    ring.advance(next, capacity_);
  }

  void push_lanes(const char* obs, const char* action, const double* reward, const uint8_t* terminated,
                  const uint8_t* truncated, const char* next_obs) override {
    for (uint64_t lane = 0; lane < rings_.size(); ++lane)
      push(lane, obs, action + lane * kAction, static_cast<float>(reward[lane]),
           (terminated[lane] ? kTerminated : 0) | (truncated[lane] ? kTruncated : 0), next_obs + lane * kFrame);
  }

  void sample(uint64_t count, const Outputs& out) override {  // lane 0
    Ring& ring = rings_[0];
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t back = 1 + ring.draw();
      const uint64_t row = ring.row_before_head(back);
      const char* record = records_ + row * kRecord;
      std::memcpy(out.action + i * kAction, record, kAction);
      uint32_t flags;
      std::memcpy(&out.reward[i], record + kAction, 4);
      std::memcpy(&flags, record + kAction + 4, 4);
      out.terminated[i] = flags >> 31;
      out.truncated[i] = flags >> 30 & 1;
      out.discount[i] = flags >> 31 ? 0.0f : gamma_;
      out.ids[i] = static_cast<int64_t>(ring.head - back);
      const uint64_t first = row >= kStack - 1 ? row - (kStack - 1) : row + ring.rows - (kStack - 1);
      if (!out.next_obs) {
        copy(out.obs + i * (kStack + 1) * kFrame, first, kStack + 1);
        continue;
      }
      copy(out.obs + i * kStack * kFrame, first, kStack);
      copy(out.next_obs + i * kStack * kFrame, ring.after(first), kStack);
    }
  }

 private:
  void copy(char* to, uint64_t row, uint64_t count) const {
    const uint64_t before_seam = std::min(count, lane_rows_ - row);
    std::memcpy(to, frames_ + row * kFrame, before_seam * kFrame);
    if (before_seam < count) std::memcpy(to + before_seam * kFrame, frames_, (count - before_seam) * kFrame);
  }

  uint64_t capacity_, lane_rows_;
  float gamma_;
  std::vector<Ring> rings_;
  HugeMemory record_memory_, frame_memory_;
  char *records_, *frames_;
};

}  // namespace floor_
