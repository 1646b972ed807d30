// Pieces of work for threads, and the memory that they work in.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <thread>

#include "cpu/parallel.h"
#include "memory.h"

namespace clebsch {

// What tests say that the private sums of a wave of chunks may take; 0 for the rule.
extern std::atomic<std::int64_t> private_bytes_of_tests;

inline std::int64_t cores() {
  static const std::int64_t count = std::max<std::int64_t>(std::thread::hardware_concurrency(), 1);
  return count;
}

// Memory on cache lines, not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release_memory(data_); }
  T* reserve(std::int64_t count) {
    if (count > size_) {
      release_memory(data_);
      data_ = nullptr;
      size_ = 0;
      data_ = static_cast<T*>(acquire_memory(static_cast<std::size_t>(count) * sizeof(T)));
      size_ = count;
    }
    if (poisons_new_memory()) std::fill_n(data_, count, std::numeric_limits<T>::quiet_NaN());
    return data_;
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

// Kept from call to call: fresh pages cost more than the arithmetic of a small call.
template <class T>
T* thread_scratch(std::int64_t count) {
  static thread_local Buffer<T> buffer;
  return buffer.reserve(count);
}

template <class F>
void for_each_chunk(std::int64_t tasks, Parallel parallel, F f) {
  if (tasks == 0) return;
  parallel(
      tasks,
      [](void* context, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) (*static_cast<F*>(context))(i);
      },
      &f);
}

// Even pieces of [0, count) for work without private sums.
template <class F>
void for_each_piece(std::int64_t count, std::int64_t smallest, Parallel parallel, F f) {
  const std::int64_t pieces = std::clamp<std::int64_t>(count / smallest, 1, 64);
  for_each_chunk(pieces, parallel, [&](std::int64_t i) { f(count * i / pieces, count * (i + 1) / pieces); });
}

}  // namespace clebsch
