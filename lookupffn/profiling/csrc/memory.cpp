// Memory: streams, random reads of whole rows, latency. Buffers are the caller's, see buffer_new.
#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "timing.h"

using namespace profiling;

namespace {

constexpr int64_t HUGE_PAGE = 2 << 20, LINE = 64;
constexpr int64_t WARMED = 128 << 20;  // more than most caches hold
constexpr int64_t MOST_CHAINED = 1 << 18;

// Uniform over [0, limit), limit below 2^32; new values at every call of the process.
class Random {
 public:
  uint32_t operator()(uint64_t limit) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(((state_ >> 32) * limit) >> 32);
  }

 private:
  static inline uint64_t state_ = 1;
};

// Reads memory in order, so that the caches hold what they can of it.
void warm(const char* data, int64_t bytes) {
  vf sum{};
  for (int64_t i = 0; i < bytes; i += LINE) sum += *reinterpret_cast<const vf*>(data + i);
  sink = sum_of(sum);
}

// The sum of `count` rows, PIECE bytes at a time, as the gather adds them; rows `ahead` later are prefetched.
template <int HINT, int PIECE>
vf read_rows(const char* table, const uint32_t* index, int64_t count, int64_t row, int64_t ahead) {
  constexpr int VECTORS = PIECE / VECTOR_BYTES;
  vf sum[VECTORS] = {};
  vf score = vf{} + 0.5f;
  keep(score);
  for (int64_t r = 0; r < count; r++) {
    const char* from = table + index[r] * row;
    const char* later = table + index[std::min(r + ahead, count - 1)] * row;
    for (int64_t b = 0; b < row; b += PIECE) {
      if constexpr (HINT >= 0)
        for (int64_t at = 0; at < PIECE; at += LINE) __builtin_prefetch(later + b + at, 0, HINT < 0 ? 0 : HINT);
#pragma GCC unroll 32
      for (int v = 0; v < VECTORS; v++) sum[v] += score * *reinterpret_cast<const vf*>(from + b + v * VECTOR_BYTES);
    }
  }
  for (int v = 1; v < VECTORS; v++) sum[0] += sum[v];
  return sum[0];
}

template <int HINT>
vf read_rows(const char* table, const uint32_t* index, int64_t count, int64_t row, int64_t ahead) {
  if (row == 64) return read_rows<HINT, 64>(table, index, count, row, ahead);
  if (row == 128) return read_rows<HINT, 128>(table, index, count, row, ahead);
  if (row % 512) return read_rows<HINT, 256>(table, index, count, row, ahead);
  return read_rows<HINT, 512>(table, index, count, row, ahead);
}

}  // namespace

// Memory of its own, written once; on huge pages if they are asked for and to be had.
LFFN_EXPORT void* buffer_new(int64_t bytes, int huge) {
  char* data =
      static_cast<char*>(mmap(nullptr, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (data == MAP_FAILED) return nullptr;
  char* aligned = data + (HUGE_PAGE - reinterpret_cast<uintptr_t>(data) % HUGE_PAGE) % HUGE_PAGE;
  // what is before and after the aligned part is given back, so that buffer_free needs no more than that part
  if (aligned > data) munmap(data, aligned - data);
  const int64_t after = data + HUGE_PAGE - aligned;
  if (after > 0) munmap(aligned + bytes, after);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(aligned, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
  for (int64_t i = 0; i < bytes; i += 4096) aligned[i] = 0;  // pages that were never written are all one page
  return aligned;
}

// Seconds for a page of 4 KB that is written for the first time.
LFFN_EXPORT double page_seconds(int64_t bytes, int rounds) {
  void* data = nullptr;
  const double seconds = timed(1, rounds, [&](int, int) {
    if (data) munmap(data, bytes);
    data = buffer_new(bytes, 0);
  });
  munmap(data, bytes);
  return seconds / (bytes / 4096);
}

LFFN_EXPORT void buffer_free(void* data, int64_t bytes) { munmap(data, bytes); }

// Bytes a second of a pass over `bytes`, each thread its own part. operation 0: read, 1: write, 2: copy one half to the
// other (both count).
LFFN_EXPORT double stream_rate(char* data, int64_t bytes, int threads, int operation, int rounds) {
  const int64_t part = bytes / threads / 1024 * 1024, passes = std::max<int64_t>(1, (4 << 20) / part);
  const double seconds = timed(threads, rounds, [&](int thread, int) {
    char* from = data + thread * part;
    vf sum[8] = {}, value = vf{} + 1.f;
    keep(value);
    for (int64_t pass = 0; pass < passes; pass++) {
      if (operation == 0) {
        for (int64_t i = 0; i < part; i += 8 * VECTOR_BYTES)
#pragma GCC unroll 8
          for (int v = 0; v < 8; v++) sum[v] += *reinterpret_cast<const vf*>(from + i + v * VECTOR_BYTES);
      } else if (operation == 1) {
        for (int64_t i = 0; i < part; i += 4 * VECTOR_BYTES)
#pragma GCC unroll 4
          for (int v = 0; v < 4; v++) *reinterpret_cast<vf*>(from + i + v * VECTOR_BYTES) = value;
      } else {
        for (int64_t i = 0; i < part / 2; i += 4 * VECTOR_BYTES)
#pragma GCC unroll 4
          for (int v = 0; v < 4; v++)
            *reinterpret_cast<vf*>(from + part / 2 + i + v * VECTOR_BYTES) =
                *reinterpret_cast<const vf*>(from + i + v * VECTOR_BYTES);
      }
      keep(value);
    }
    for (int v = 1; v < 8; v++) sum[0] += sum[v];
    sink = sum_of(sum[0]);
  });
  return double(threads) * part * passes / seconds;
}

LFFN_EXPORT int64_t rows_a_round(int64_t row) { return std::clamp<int64_t>((4 << 20) / row, 2048, 32768); }

// Bytes a second of reading rows of `row` bytes (64, 128 or a multiple of 256) at random out of the first `bytes` of a
// buffer, all threads out of the same. No two rounds read the same rows: a large working set would else be a smaller
// one. `ahead`: rows between a prefetch and its use, 0 for none; level: the cache that prefetching fills, 1 or 2.
LFFN_EXPORT double row_rate(const char* data, int64_t bytes, int64_t row, int threads, int64_t ahead, int level,
                            int rounds) {
  const int64_t rows = bytes / row, reads = rows_a_round(row);
  std::vector<uint32_t> index((rounds + WARM) * threads * reads);
  Random random;
  for (auto& i : index) i = random(rows);
  const double seconds = timed(threads, rounds, [&](int thread, int round) {
    if (round == 0) warm(data, std::min(bytes, WARMED));
    const uint32_t* own = index.data() + (int64_t(round) * threads + thread) * reads;
    const vf sum = !ahead       ? read_rows<-1>(data, own, reads, row, 0)
                   : level == 1 ? read_rows<3>(data, own, reads, row, ahead)
                                : read_rows<2>(data, own, reads, row, ahead);
    sink = sum_of(sum);
  });
  return double(threads) * reads * row / seconds;
}

// Seconds from an address to its value, each the address of the next, in the first `bytes` of a buffer. The chain goes
// through one line of each of equal parts, as many as no timed step sees twice in a set larger than the caches.
LFFN_EXPORT double chase_seconds(char* data, int64_t bytes, int rounds) {
  const int64_t lines = std::min(bytes / LINE, MOST_CHAINED), part = bytes / LINE / lines;
  const int64_t steps = std::min<int64_t>(20000, MOST_CHAINED / (rounds + WARM));
  Random random;
  std::vector<char*> order(lines);
  for (int64_t i = 0; i < lines; i++) order[i] = data + (i * part + random(part)) * LINE;
  for (int64_t i = lines - 1; i > 0; i--) std::swap(order[i], order[random(i + 1)]);
  for (int64_t i = 0; i < lines; i++) *reinterpret_cast<char**>(order[i]) = order[(i + 1) % lines];
  char* at = order[0];
  const double seconds = timed(1, rounds, [&](int, int round) {
    if (round == 0) warm(data, std::min(bytes, WARMED));
    for (int64_t i = 0; i < steps; i++) at = *reinterpret_cast<char**>(at);
    sink = double(reinterpret_cast<uintptr_t>(at));
  });
  return seconds / steps;
}
