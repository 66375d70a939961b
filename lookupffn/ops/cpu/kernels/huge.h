// Memory of large tensors. A page that is written for the first time costs the system as much as the work done on it:
// outputs go on huge pages, and the memory of table gradients is kept from step to step.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lookupffn {

inline void on_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / PAGE * PAGE;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
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
      constexpr int64_t PAGE = 2 << 20;
      data = std::aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
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
