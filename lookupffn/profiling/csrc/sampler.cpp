// Where a thread's time goes: its program counter, some thousand times a second. Linux only: elsewhere no samples.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "timing.h"

#if defined(__linux__)
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#if !defined(sigev_notify_thread_id)
#define sigev_notify_thread_id _sigev_un._tid
#endif
#endif

namespace {

constexpr int64_t MOST = 1 << 20;
uint64_t counters[MOST];
std::atomic<int64_t> taken{0};
std::atomic<bool> keeping{false};

#if defined(__linux__)
timer_t timer;

void sample(int, siginfo_t*, void* context) {
  if (!keeping.load(std::memory_order_relaxed)) return;
  uint64_t at = 0;
#if defined(__x86_64__)
  at = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
  at = static_cast<ucontext_t*>(context)->uc_mcontext.pc;
#else
  (void)context;
#endif
  const int64_t i = taken.fetch_add(1, std::memory_order_relaxed);
  if (i < MOST) counters[i] = at;
}
#endif

}  // namespace

// Samples the calling thread from now on. A timer of its own: those of processor time know milliseconds only.
LFFN_EXPORT void sampler_start([[maybe_unused]] int microseconds) {
  taken = 0;
#if defined(__linux__)
  struct sigaction action{};
  action.sa_sigaction = sample;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGPROF, &action, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGPROF;
  event.sigev_notify_thread_id = static_cast<pid_t>(syscall(SYS_gettid));
  if (timer_create(CLOCK_MONOTONIC, &event, &timer)) return;
  const itimerspec interval{{0, microseconds * 1000L}, {0, microseconds * 1000L}};
  timer_settime(timer, 0, &interval, nullptr);
#endif
}

LFFN_EXPORT void sampler_stop() {
#if defined(__linux__)
  timer_delete(timer);
  signal(SIGPROF, SIG_IGN);
#endif
}

// Whether samples are kept from now on.
LFFN_EXPORT void sampler_keep(int keep) { keeping = keep; }

// Copies the samples since the start and forgets them; returns how many.
LFFN_EXPORT int64_t sampler_take(uint64_t* to, int64_t most) {
  const int64_t count = std::min({taken.load(), most, MOST});
  std::copy(counters, counters + count, to);
  taken = 0;
  return count;
}
