// Arrays of exactly the size that is asked for, so that a kernel that reads or writes beyond them is caught:
// on the heap by AddressSanitizer, and before a page that may not be touched by the processor itself, which
// sees the masked loads and stores of vector instructions too.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "check.h"

enum class Place { heap, page_end };

template <class T>
class Buffer {
 public:
  // alignment: of the first element, in bytes; the end lies less than that before the page.
  Buffer(std::int64_t count, Place place, std::size_t alignment = alignof(T)) : count_(count), place_(place) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (place == Place::heap) {
      data_ = static_cast<T*>(::operator new(bytes, std::align_val_t(alignment)));
      alignment_ = alignment;
      return;
    }
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t room = (bytes + alignment + page - 1) / page * page;
    mapped_ = room + 2 * page;
    map_ = static_cast<char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (map_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(map_, page, PROT_NONE);
    mprotect(map_ + page + room, page, PROT_NONE);
    const std::size_t start = (room - bytes) / alignment * alignment;
    first_ = map_ + page;
    slack_ = start;
    std::memset(first_, kSlack, start);
    data_ = reinterpret_cast<T*>(first_ + start);
  }
  Buffer(const std::vector<double>& values, Place place)
      : Buffer(static_cast<std::int64_t>(values.size()), place) {
    for (std::int64_t i = 0; i < count_; ++i) data_[i] = static_cast<T>(values[i]);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (place_ == Place::heap) {
      ::operator delete(data_, std::align_val_t(alignment_));
      return;
    }
    bool intact = true;
    for (std::size_t i = 0; i < slack_; ++i) intact &= first_[i] == kSlack;
    CHECK(intact, "written before a buffer of", count_);
    munmap(map_, mapped_);
  }

  T* data() const { return data_; }
  std::int64_t size() const { return count_; }
  T& operator[](std::int64_t i) const { return data_[i]; }
  Buffer& poison() {
    for (std::int64_t i = 0; i < count_; ++i) data_[i] = std::numeric_limits<T>::quiet_NaN();
    return *this;
  }

 private:
  static constexpr char kSlack = 0x5a;
  std::int64_t count_;
  Place place_;
  std::size_t alignment_ = 0, mapped_ = 0, slack_ = 0;
  char *map_ = nullptr, *first_ = nullptr;
  T* data_ = nullptr;
};
