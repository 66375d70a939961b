// Ways to gather, side by side: the same sums of scored rows in different orders, by different shares of the threads.
#include <cstdint>
#include <cstring>

#include "timing.h"

using namespace profiling;

namespace {

struct Job {
  const char* tables;    // [T][S][d]
  const int32_t* codes;  // [T][M]
  int64_t T, S, d, M;
  int element;  // bytes a number: 4 float32, 2 bfloat16, 1 int8
  int64_t ahead;
  int level;
};

template <int ELEMENT>
inline vf widened(const char* from) {
  if constexpr (ELEMENT == 4) {
    return *reinterpret_cast<const vf*>(from);
  } else {
    vf value;
    if constexpr (ELEMENT == 2) {
      uint16_t half[VL];
      std::memcpy(half, from, sizeof(half));
      for (int i = 0; i < VL; i++) {
        const uint32_t bits = uint32_t(half[i]) << 16;
        float one;
        std::memcpy(&one, &bits, 4);
        value[i] = one;
      }
    } else {
      int8_t small[VL];
      std::memcpy(small, from, sizeof(small));
      for (int i = 0; i < VL; i++) value[i] = small[i];
    }
    return value;
  }
}

inline void fetch(const char* row, int64_t bytes, int level) {
  if (level == 1)
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 0, 3);
  else
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 0, 2);
}

// y[m][c0..c1) += the row of table k that token m reads.
template <int ELEMENT>
inline void add(const Job& job, int64_t k, int64_t m, int64_t c0, int64_t c1, float* y) {
  const char* row = job.tables + ((k * job.S + job.codes[k * job.M + m]) * job.d) * ELEMENT;
  const vf score = vf{} + 0.5f;
  float* to = y + m * job.d;
  for (int64_t c = c0; c < c1; c += VL) *reinterpret_cast<vf*>(to + c) += score * widened<ELEMENT>(row + c * ELEMENT);
}

template <int ELEMENT>
inline void fetch_row(const Job& job, int64_t k, int64_t m, int64_t c0, int64_t c1) {
  const char* row = job.tables + ((k * job.S + job.codes[k * job.M + m]) * job.d) * ELEMENT;
  fetch(row + c0 * ELEMENT, (c1 - c0) * ELEMENT, job.level);
}

// table_major: all tokens read a table before the next one is read; else a token reads all tables.
template <int ELEMENT>
void gather(const Job& job, bool table_major, int64_t m0, int64_t m1, int64_t c0, int64_t c1, float* y) {
  const int64_t count = m1 - m0;
  if (table_major) {
    for (int64_t k = 0; k < job.T; k++)
      for (int64_t m = m0; m < m1; m++) {
        if (job.ahead) {
          const int64_t next = m - m0 + job.ahead, table = k + next / count;
          if (table < job.T) fetch_row<ELEMENT>(job, table, m0 + next % count, c0, c1);
        }
        add<ELEMENT>(job, k, m, c0, c1, y);
      }
    return;
  }
  for (int64_t m = m0; m < m1; m++)
    for (int64_t k = 0; k < job.T; k++) {
      if (job.ahead) {
        const int64_t next = k + job.ahead, token = m + next / job.T;
        if (token < m1) fetch_row<ELEMENT>(job, next % job.T, token, c0, c1);
      }
      add<ELEMENT>(job, k, m, c0, c1, y);
    }
}

}  // namespace

// Seconds of gathering M tokens' rows. codes: [variants][T][M], used in turn. by_columns: threads share out the columns
// and not the tokens.
LFFN_EXPORT double gather_seconds(const char* tables, const int32_t* codes, int variants, int64_t T, int64_t S,
                                  int64_t d, int64_t M, int element, int table_major, int64_t ahead, int level,
                                  int threads, int by_columns, int rounds, double* cpu_share) {
  std::vector<float> sums(M * d + 16);
  float* y = sums.data() + (64 - reinterpret_cast<uintptr_t>(sums.data()) % 64) % 64 / 4;
  const Result result = timed(threads, rounds, [&](int thread, int round) {
    const Job job{tables, codes + (round % variants) * T * M, T, S, d, M, element, ahead, level};
    const int64_t m0 = by_columns ? 0 : M * thread / threads, m1 = by_columns ? M : M * (thread + 1) / threads;
    const int64_t c0 = by_columns ? d * thread / threads / 64 * 64 : 0;
    const int64_t c1 = by_columns ? (thread + 1 == threads ? d : d * (thread + 1) / threads / 64 * 64) : d;
    if (element == 4) gather<4>(job, table_major, m0, m1, c0, c1, y);
    else if (element == 2) gather<2>(job, table_major, m0, m1, c0, c1, y);
    else gather<1>(job, table_major, m0, m1, c0, c1, y);
    sink = y[m0 * d + c0];
  });
  *cpu_share = result.cpu_share;
  return result.seconds;
}
