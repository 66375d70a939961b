// Memory of large tensors. A page that is written for the first time costs the system as much as the work done on it:
// outputs go on huge pages, and the memory of large outputs and table gradients is kept from call to call. Tables move
// to huge pages, since rows read at random from small ones cost a walk through the page tables each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <deque>
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
  for (uintptr_t page = begin; page < end; page += HUGE_PAGE)
    madvise(reinterpret_cast<void*>(page), HUGE_PAGE, COLLAPSE);
#endif
}

// Buffers given back and taken again: at most MOST of them idle, and LARGEST_IDLE bytes. Never destroyed: a tensor may
// outlive every static of this library.
template <size_t MOST>
class Pool {
 public:
  static constexpr int64_t LARGEST_IDLE = int64_t{1} << 30;

  static void* take(int64_t bytes) {
    Pool& pool = instance();
    const std::lock_guard<std::mutex> guard(pool.lock_);
    const auto fits = [&](const Buffer& idle) { return idle.bytes >= bytes && idle.bytes <= bytes + bytes / 8; };
    const auto found = std::find_if(pool.idle_.begin(), pool.idle_.end(), fits);
    Buffer buffer{nullptr, bytes};
    if (found != pool.idle_.end()) {
      buffer = *found;
      pool.idle_.erase(found);
      pool.idle_bytes_ -= buffer.bytes;
    } else {
      buffer.data = std::aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
      if (!buffer.data) throw std::bad_alloc();
      on_huge_pages(buffer.data, bytes);
    }
    pool.used_[buffer.data] = buffer.bytes;
    return buffer.data;
  }

  static void give_back(void* data) noexcept {
    Pool& pool = instance();
    const std::lock_guard<std::mutex> guard(pool.lock_);
    const auto found = pool.used_.find(data);
    pool.idle_.push_back({data, found->second});
    pool.idle_bytes_ += found->second;
    pool.used_.erase(found);
    while (pool.idle_.size() > MOST || pool.idle_bytes_ > LARGEST_IDLE) {  // the oldest go
      pool.idle_bytes_ -= pool.idle_.front().bytes;
      std::free(pool.idle_.front().data);
      pool.idle_.pop_front();
    }
  }

 private:
  struct Buffer {
    void* data;
    int64_t bytes;
  };

  static Pool& instance() {
    static Pool* pool = new Pool();
    return *pool;
  }

  std::mutex lock_;
  std::deque<Buffer> idle_;
  std::map<void*, int64_t> used_;
  int64_t idle_bytes_ = 0;
};

using GradientPool = Pool<4096>;            // a table gradient each layer
using OutputPool = Pool<1>;                 // one layer's output is done with when the next one's is made
constexpr int64_t LEAST_POOLED = 16 << 20;  // bytes; below, the allocator keeps memory itself

}  // namespace lookupffn
