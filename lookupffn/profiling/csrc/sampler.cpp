// Where the processor's time goes: the program counter, a few hundred times a second of processor time.
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include <cstdint>

#include "timing.h"

namespace {

constexpr int64_t MOST = 1 << 20;
uint64_t counters[MOST];
int32_t buckets[MOST];
std::atomic<int64_t> taken{0};
std::atomic<int32_t> current{0};

void sample(int, siginfo_t*, void* context) {
  const int32_t bucket = current.load(std::memory_order_relaxed);
  if (!bucket) return;
  uint64_t at = 0;
#if defined(__linux__) && defined(__x86_64__)
  at = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__linux__) && defined(__aarch64__)
  at = static_cast<ucontext_t*>(context)->uc_mcontext.pc;
#else
  (void)context;
#endif
  const int64_t i = taken.fetch_add(1, std::memory_order_relaxed);
  if (i < MOST) counters[i] = at, buckets[i] = bucket;
}

void every(long microseconds) {
  const itimerval interval{{0, microseconds}, {0, microseconds}};
  setitimer(ITIMER_PROF, &interval, nullptr);
}

}  // namespace

LFFN_EXPORT void sampler_start(int microseconds) {
  struct sigaction action{};
  action.sa_sigaction = sample;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGPROF, &action, nullptr);
  taken = 0;
  every(microseconds);
}

LFFN_EXPORT void sampler_stop() {
  every(0);
  signal(SIGPROF, SIG_IGN);
}

// What is being done now; samples of bucket 0 are not kept.
LFFN_EXPORT void sampler_bucket(int bucket) { current = bucket; }

// Copies the samples since the start and forgets them; returns how many.
LFFN_EXPORT int64_t sampler_take(uint64_t* to_counters, int32_t* to_buckets, int64_t most) {
  const int64_t count = std::min({taken.load(), most, MOST});
  std::copy(counters, counters + count, to_counters);
  std::copy(buckets, buckets + count, to_buckets);
  taken = 0;
  return count;
}
