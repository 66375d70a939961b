// Rounds of work on several threads that start together.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "simd.h"

#define LFFN_EXPORT extern "C" __attribute__((visibility("default")))

namespace profiling {

using lookupffn::vf;
using lookupffn::VL;
constexpr int VECTOR_BYTES = LFFN_VECTOR_BYTES;

// Keeps a value alive and unknown to the optimiser.
template <class T>
inline void keep(T& value) {
#if defined(__x86_64__) || defined(__i386__)
  asm volatile("" : "+v"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : "+m"(value));
#endif
}

inline double sum_of(vf v) {
  double sum = 0;
  for (int i = 0; i < VL; i++) sum += v[i];
  return sum;
}

extern volatile double sink;

inline double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    const int round = round_.load();
    if (arrived_.fetch_add(1) + 1 == threads_) {
      arrived_.store(0);
      round_.fetch_add(1);
      return;
    }
    while (round_.load() == round) {
#if defined(__x86_64__) || defined(__i386__)
      _mm_pause();
#endif
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, round_{0};
};

// The processors that threads are put on, one each; none: wherever the system likes.
inline std::vector<int>& processors() {
  static std::vector<int> list;
  return list;
}

// The calling thread stays on one processor as long as this lives: two new threads may else share one for milliseconds.
class Pinned {
 public:
  explicit Pinned([[maybe_unused]] int thread) {
#if defined(__linux__)
    const auto& list = processors();
    if (list.empty()) return;
    pinned_ = pthread_getaffinity_np(pthread_self(), sizeof(before_), &before_) == 0;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(list[thread % list.size()], &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
#endif
  }
  ~Pinned() {
#if defined(__linux__)
    if (pinned_) pthread_setaffinity_np(pthread_self(), sizeof(before_), &before_);
#endif
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
#if defined(__linux__)
  cpu_set_t before_;
#endif
  bool pinned_ = false;
};

constexpr int WARM = 2;  // rounds that do not count

// Runs work(thread, round) `rounds` times on every thread, after WARM rounds that do not count. A round lasts until its
// last thread is done. Returns a round's seconds, the lower quartile.
template <class F>
double timed(int threads, int rounds, const F& work) {
  Barrier barrier(threads);
  std::vector<std::vector<double>> begin(threads), end(threads);
  const auto run = [&](int thread) {
    const Pinned pinned(thread);
    for (int round = 0; round < rounds + WARM; round++) {
      barrier.wait();
      const double before = wall_seconds();
      work(thread, round);
      const double after = wall_seconds();
      if (round < WARM) continue;
      begin[thread].push_back(before);
      end[thread].push_back(after);
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; thread++) others.emplace_back(run, thread);
  run(0);
  for (auto& other : others) other.join();
  std::vector<double> seconds;
  for (int round = 0; round < rounds; round++) {
    double first = begin[0][round], last = end[0][round];
    for (int thread = 1; thread < threads; thread++) {
      first = std::min(first, begin[thread][round]);
      last = std::max(last, end[thread][round]);
    }
    seconds.push_back(last - first);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 4];
}

}  // namespace profiling
