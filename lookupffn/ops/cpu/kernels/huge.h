// Memory of large tensors. A page that is written for the first time costs the system as much as the work done on it:
// outputs go on huge pages, and the memory of table gradients is kept from step to step. Tables move to huge pages, since
// rows read at random from small ones cost a walk through the page tables each.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lookupffn {

constexpr int64_t HUGE_PAGE = 2 << 20;

inline void on_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// For memory of somebody else, say a table's: to be called at each use. What comes back a few times is moved to huge
// pages, once. Not at the first use: the move costs as much as tens of calls, lost where every call brings new tables.
inline void keep_on_huge_pages([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, of Linux 6.1; older ones refuse, which changes nothing
  constexpr int64_t SMALLEST = 4 << 20;
  constexpr int USES = 3;
  constexpr size_t MOST_KNOWN = 4096;
  if (bytes < SMALLEST) return;
  static std::mutex lock;
  static std::map<std::pair<const void*, int64_t>, int>* uses = new std::map<std::pair<const void*, int64_t>, int>();
  const std::lock_guard<std::mutex> guard(lock);
  if (uses->size() > MOST_KNOWN) uses->clear();
  int& count = (*uses)[{data, bytes}];
  if (count > USES || ++count != USES) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / HUGE_PAGE * HUGE_PAGE;
  // a huge page at a time, so that one that cannot be had does not stop the rest
  for (uintptr_t page = begin; page < end; page += HUGE_PAGE) madvise(reinterpret_cast<void*>(page), HUGE_PAGE, COLLAPSE);
#endif
}

// Buffers given back and taken again, by size. Never destroyed: a tensor may outlive every static of this library.
class Pool {
 public:
  static constexpr int64_t SMALLEST = 16 << 20;  // below, the allocator keeps memory itself
  static constexpr int64_t LARGEST_IDLE = int64_t{1} << 30;

  static Pool& instance() {
    static Pool* pool = new Pool();
    return *pool;
  }

  void* take(int64_t bytes) {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = idle_.find(bytes);
    void* data;
    if (found != idle_.end()) {
      data = found->second;
      idle_.erase(found);
      idle_bytes_ -= bytes;
    } else {
      data = std::aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
      if (!data) throw std::bad_alloc();
      on_huge_pages(data, bytes);
    }
    used_[data] = bytes;
    return data;
  }

  static void give_back(void* data) noexcept {
    Pool& pool = instance();
    const std::lock_guard<std::mutex> guard(pool.lock_);
    const auto found = pool.used_.find(data);
    const int64_t bytes = found->second;
    pool.used_.erase(found);
    if (pool.idle_bytes_ + bytes > LARGEST_IDLE) return std::free(data);
    pool.idle_.emplace(bytes, data);
    pool.idle_bytes_ += bytes;
  }

 private:
  std::mutex lock_;
  std::multimap<int64_t, void*> idle_;
  std::map<void*, int64_t> used_;
  int64_t idle_bytes_ = 0;
};

}  // namespace lookupffn
