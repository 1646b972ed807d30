#include "memory.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#include "pages.h"

namespace clebsch {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t default_limit() {
  if (const char* text = std::getenv("CLEBSCH_KEEP_MEMORY"); text && *text) {
    return static_cast<std::size_t>(std::strtoull(text, nullptr, 10)) << 20;
  }
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page > 0 ? static_cast<std::size_t>(pages) * static_cast<std::size_t>(page) / 4 : 0;
}

// Where a single one would be nearly full: memory is taken by whole pages.
constexpr bool is_huge(std::size_t bytes) { return bytes >= kHugePage / 8 * 7; }

// A size class: whole huge pages, below 1.75 MiB 8 KiB, and at most sixteen classes to every power of two, so
// that problems of nearly the same size share blocks.
std::size_t rounded(std::size_t bytes) {
  std::size_t step = is_huge(bytes) ? kHugePage : std::size_t{8} << 10;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

struct Pool {
  std::mutex mutex;
  std::multimap<std::size_t, void*> kept;         // by size
  std::unordered_map<void*, std::size_t> in_use;  // pooled blocks that are out
  std::size_t kept_bytes = 0, limit = default_limit();
};
Pool& pool() {
  static Pool& one = *new Pool;  // never destroyed: tensors may outlive static destruction
  return one;
}

std::atomic<bool> poison{false};

}  // namespace

void* acquire_memory(std::size_t bytes) {
  if (bytes < kSmallestPooled) {
    void* block = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!block) throw std::bad_alloc();
    return block;
  }
  const bool huge = is_huge(bytes);
  const std::size_t alignment = huge ? kHugePage : 64;
  bytes = rounded(bytes);
  Pool& p = pool();
  {
    std::lock_guard lock(p.mutex);
    const auto fit = p.kept.lower_bound(bytes);
    if (fit != p.kept.end() && fit->first <= bytes + bytes / 4) {
      void* block = fit->second;
      p.kept_bytes -= fit->first;
      p.in_use.emplace(block, fit->first);
      p.kept.erase(fit);
      return block;
    }
  }
  void* block = std::aligned_alloc(alignment, bytes);
  if (!block) {
    drop_kept_memory();
    block = std::aligned_alloc(alignment, bytes);
    if (!block) throw std::bad_alloc();
  }
  if (huge) advise_huge_pages(block, bytes);
  std::lock_guard lock(p.mutex);
  p.in_use.emplace(block, bytes);
  return block;
}

void release_memory(void* block) noexcept {
  if (!block) return;
  Pool& p = pool();
  {
    std::lock_guard lock(p.mutex);
    const auto found = p.in_use.find(block);
    if (found != p.in_use.end()) {
      const std::size_t size = found->second;
      p.in_use.erase(found);
      if (p.kept_bytes + size <= p.limit) {
        p.kept.emplace(size, block);
        p.kept_bytes += size;
        return;
      }
    }
  }
  std::free(block);
}

std::size_t kept_memory() {
  std::lock_guard lock(pool().mutex);
  return pool().kept_bytes;
}

void drop_kept_memory() {
  Pool& p = pool();
  std::multimap<std::size_t, void*> dropped;
  {
    std::lock_guard lock(p.mutex);
    dropped.swap(p.kept);
    p.kept_bytes = 0;
  }
  for (const auto& [size, block] : dropped) std::free(block);
}

void poison_new_memory(bool on) { poison = on; }
bool poisons_new_memory() { return poison; }

}  // namespace clebsch
