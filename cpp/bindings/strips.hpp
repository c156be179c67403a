// Arrays of Python's as the native core takes those of a snapshot, and the words that say how much is in them.
#pragma once

#include <array>

#include "../core/crc32.hpp"
#include "../core/segment.hpp"
#include "../core/selector_state.hpp"
#include "gil.hpp"

namespace relive {

using Triple = std::array<uint64_t, 3>;  // rows, final observations, prefixes

inline Extent extent_of(const Triple& triple) {
  return {triple[0], triple[1], triple[2]};
}
inline Triple triple_of(const Extent& extent) {
  return {extent.rows, extent.finals, extent.prefixes};
}

// The bytes of a C-contiguous array, at least so many.
inline void* array_data(nb::handle array, uint64_t bytes) {
  auto* values = reinterpret_cast<PyArrayObject*>(array.ptr());
  if (!PyArray_Check(array.ptr()) || !PyArray_IS_C_CONTIGUOUS(values) ||
      static_cast<uint64_t>(PyArray_NBYTES(values)) < bytes)
    throw std::invalid_argument("an array is too small");
  return PyArray_DATA(values);
}

// Arrays in order: records, columns, packed final observations, columns of those, prefixes; each with room for `room`.
inline Strips strips_of(const Layout& layout, nb::tuple arrays, const Extent& room) {
  Strips strips;
  size_t at = 0;
  const auto take = [&](uint64_t count, uint64_t bytes) {
    return static_cast<char*>(array_data(arrays[at++], count * bytes));
  };
  size_t expected = 2;
  for (const Leaf& leaf : layout.obs) expected += (leaf.packed ? 0 : 2) + (layout.spec.stacked > 1 ? 1 : 0);
  for (const Leaf& leaf : layout.rest) expected += leaf.packed ? 0 : 1;
  if (arrays.size() != expected) throw std::invalid_argument("wrong number of arrays");
  strips.records = take(room.rows, layout.record_bytes);
  for (const auto* leaves : {&layout.obs, &layout.rest})
    for (const Leaf& leaf : *leaves)
      if (!leaf.packed) strips.columns.push_back(take(room.rows, leaf.bytes));
  strips.finals = take(room.finals, layout.final_bytes);
  for (const Leaf& leaf : layout.obs)
    if (!leaf.packed) strips.final_columns.push_back(take(room.finals, leaf.bytes));
  if (layout.spec.stacked > 1)
    for (const Leaf& leaf : layout.obs)
      strips.prefixes.push_back(take(room.prefixes, leaf.bytes * (layout.spec.stacked - 1)));
  return strips;
}

// (masses, places, uses), each an array or None.
inline SelectorValues values_of(nb::tuple arrays, uint64_t count) {
  const auto data = [&](size_t i, uint64_t bytes) {
    return nb::handle(arrays[i]).is_none() ? nullptr : array_data(arrays[i], count * bytes);
  };
  return {static_cast<double*>(data(0, sizeof(double))), static_cast<uint32_t*>(data(1, sizeof(uint32_t))),
          static_cast<uint32_t*>(data(2, sizeof(uint32_t)))};
}

inline nb::dict as_dict(const SelectorHeader& header) {
  nb::dict state;
  state["seed"] = header.seed;
  state["draws"] = header.draws;
  state["largest"] = header.largest;
  state["epoch"] = header.epoch;
  state["epoch_size"] = header.epoch_size;
  state["epoch_at"] = header.epoch_at;
  state["changes"] = header.changes;
  return state;
}
inline SelectorHeader header_of(nb::dict state) {
  SelectorHeader header{};
  header.seed = nb::cast<uint64_t>(state["seed"]);
  header.draws = nb::cast<uint64_t>(state["draws"]);
  header.largest = nb::cast<double>(state["largest"]);
  header.epoch = nb::cast<uint64_t>(state["epoch"]);
  header.epoch_size = nb::cast<uint64_t>(state["epoch_size"]);
  header.epoch_at = nb::cast<uint64_t>(state["epoch_at"]);
  header.changes = nb::cast<uint64_t>(state["changes"]);
  return header;
}

// Of every lane: begin, head, open, and the oldest time that is needed.
inline void copy_lanes(const Arena& arena, uint64_t* to) {
  const Segment segment(arena);
  for (uint64_t lane = 0; lane < arena.layout().spec.lanes; ++lane) {
    const LaneHeader& state = arena.lane(lane);
    *to++ = state.begin;
    *to++ = state.head;
    *to++ = state.open;
    *to++ = segment.first_needed(lane);
  }
}

// Lanes that an arena of unknown make can have: they follow the first page.
inline uint64_t num_lanes_of(const Memory& bytes) {
  const uint64_t room = (std::max(bytes.bytes(), kPage) - kPage) / sizeof(LaneHeader);
  return std::min(reinterpret_cast<const Header*>(bytes.data())->lanes, room);
}

// Of the headers of an arena and its lanes as they are now, seal and lock apart; never 0. FNV-1a.
inline uint64_t checksum_of_headers(const Memory& bytes) {
  uint64_t sum = 0xCBF29CE484222325u;
  const auto add = [&](uint64_t begin, uint64_t end) {
    for (uint64_t at = begin; at < end; ++at)
      sum = (sum ^ static_cast<unsigned char>(bytes.data()[at])) * 0x100000001B3u;
  };
  add(0, offsetof(Header, clean));
  add(kPage, kPage + num_lanes_of(bytes) * sizeof(LaneHeader));
  return sum | 1;
}

// CRC-32 of bytes that follow those of which `before` is the checksum.
inline uint32_t crc32(nb::handle data, uint32_t before) {
  Py_buffer view;
  if (PyObject_GetBuffer(data.ptr(), &view, PyBUF_SIMPLE) != 0) throw nb::python_error();
  const auto bytes = static_cast<uint64_t>(view.len);
  uint32_t sum = 0;
  const auto work = [&] { sum = Crc32::of(static_cast<const char*>(view.buf), bytes, before); };
  if (bytes < kReleaseBytes)
    work();
  else
    without_gil(work);
  PyBuffer_Release(&view);
  return sum;
}

// Whether an arena in a file was closed, and its headers are what they were then; on which boot of the machine it was
// opened last; and how many transitions were ever pushed to it.
inline std::tuple<bool, uint64_t, uint64_t> read_seal(nb::handle memory) {
  const Memory bytes(memory);
  if (bytes.bytes() < sizeof(Header)) throw std::invalid_argument("the memory is smaller than a header");
  const Header& header = *reinterpret_cast<const Header*>(bytes.data());
  if (header.magic != kMagic) return {false, header.boot, 0};
  uint64_t pushed = 0;
  const auto* lanes = reinterpret_cast<const LaneHeader*>(bytes.data() + kPage);
  for (uint64_t lane = 0; lane < num_lanes_of(bytes); ++lane) pushed += lanes[lane].head;
  return {header.clean == checksum_of_headers(bytes), header.boot, pushed};
}
inline void write_seal(nb::handle memory, bool clean, uint64_t boot) {
  const Memory bytes(memory);
  if (bytes.bytes() < sizeof(Header)) throw std::invalid_argument("the memory is smaller than a header");
  Header& header = *reinterpret_cast<Header*>(bytes.data());
  header.boot = boot;  // first: what was closed is whole on every boot
  std::atomic_thread_fence(std::memory_order_release);
  header.clean = clean ? checksum_of_headers(bytes) : 0;
}

}  // namespace relive
