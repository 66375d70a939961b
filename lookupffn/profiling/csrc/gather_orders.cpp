// Ways to gather, side by side: the same sums of scored rows in different orders, by different shares of the threads.
#include <cstdint>
#include <cstring>

#include "timing.h"

using namespace profiling;

namespace {

struct Job {
  const char* tables;    // [T][S][d]; in int8 [d / 64][T][S][64], as the kernels pack them
  const int32_t* codes;  // [T][M]
  int64_t T, S, d, M;
  int element;  // bytes a number: 4 float32, 2 bfloat16, 1 int8
  int64_t ahead;
  int level;
};

typedef uint16_t halves __attribute__((vector_size(2 * VL)));
typedef uint32_t words __attribute__((vector_size(4 * VL)));

template <int ELEMENT>
inline vf widened(const char* from) {
  if constexpr (ELEMENT == 4) return *reinterpret_cast<const vf*>(from);
  return reinterpret_cast<vf>(__builtin_convertvector(*reinterpret_cast<const halves*>(from), words) << 16);
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

constexpr int64_t CHUNK = 64;

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
// Four rows of 64 bytes into sums of 64 columns, as csrc/int8_lookup.cpp of ops does it.
inline void add_four(const char* const* rows, __m512i weights, __m512i* sums) {
  const __m512i a = _mm512_loadu_si512(rows[0]), b = _mm512_loadu_si512(rows[1]);
  const __m512i c = _mm512_loadu_si512(rows[2]), d = _mm512_loadu_si512(rows[3]);
  constexpr __mmask64 ODD = 0xaaaaaaaaaaaaaaaa, HIGH = 0xcccccccccccccccc;
  const auto blend = [](__mmask64 mask, __m512i x, __m512i y) { return _mm512_mask_blend_epi8(mask, x, y); };
  const __m512i ab = blend(ODD, a, b), ba = blend(ODD, b, a), cd = blend(ODD, c, d), dc = blend(ODD, d, c);
  const auto turned = [&](int32_t order) { return _mm512_shuffle_epi8(weights, _mm512_set1_epi32(order)); };
  sums[0] = _mm512_dpbusd_epi32(sums[0], blend(HIGH, ab, cd), weights);
  sums[1] = _mm512_dpbusd_epi32(sums[1], blend(HIGH, ba, dc), turned(0x02030001));
  sums[2] = _mm512_dpbusd_epi32(sums[2], blend(HIGH, cd, ab), turned(0x01000302));
  sums[3] = _mm512_dpbusd_epi32(sums[3], blend(HIGH, dc, ba), turned(0x00010203));
}
using Sums = __m512i[4];
#else
typedef int8_t bytes64 __attribute__((vector_size(CHUNK)));
typedef int32_t words64 __attribute__((vector_size(4 * CHUNK)));
using Sums = words64[1];
inline void add_four(const char* const* rows, int32_t weight, words64* sums) {
  for (int i = 0; i < 4; i++)
    sums[0] += __builtin_convertvector(*reinterpret_cast<const bytes64*>(rows[i]), words64) * weight;
}
#endif

// A token reads all tables in fours, 64 columns after 64; the next token's rows are prefetched. T is a multiple of 4.
void gather_int8(const Job& job, int64_t m0, int64_t m1, int64_t c0, int64_t c1, float* y) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  __m512i weights = _mm512_set1_epi8(1);
#else
  int32_t weights = 1;
#endif
  keep(weights);
  for (int64_t c = c0; c < c1; c += CHUNK) {
    const char* chunk = job.tables + c / CHUNK * job.T * job.S * CHUNK;
    const auto row = [&](int64_t k, int64_t m) { return chunk + (k * job.S + job.codes[k * job.M + m]) * CHUNK; };
    for (int64_t m = m0; m < m1; m++) {
      if (job.ahead && m + 1 < m1)
        for (int64_t k = 0; k < job.T; k++) fetch(row(k, m + 1), CHUNK, job.level);
      Sums sums = {};
      for (int64_t k = 0; k < job.T; k += 4) {
        const char* rows[4] = {row(k, m), row(k + 1, m), row(k + 2, m), row(k + 3, m)};
        add_four(rows, weights, sums);
      }
      int32_t whole[CHUNK];
      std::memcpy(whole, sums, sizeof(whole));
      for (int64_t i = 0; i < CHUNK; i++) y[m * job.d + c + i] = float(whole[i]);
    }
  }
}

}  // namespace

// Seconds of gathering M tokens' rows. codes: [rounds + WARM][T][M]: rows that wait in a cache since the round before
// would flatter few tokens. by_columns: threads share out the columns and not the tokens. int8 knows one order only.
LFFN_EXPORT double gather_seconds(const char* tables, const int32_t* codes, int64_t T, int64_t S, int64_t d, int64_t M,
                                  int element, int table_major, int64_t ahead, int level, int threads, int by_columns,
                                  int rounds) {
  std::vector<float> sums(M * d + 16);
  float* y = sums.data() + (64 - reinterpret_cast<uintptr_t>(sums.data()) % 64) % 64 / 4;
  const double seconds = timed(threads, rounds, [&](int thread, int round) {
    const Job job{tables, codes + int64_t(round) * T * M, T, S, d, M, element, ahead, level};
    const int64_t m0 = by_columns ? 0 : M * thread / threads, m1 = by_columns ? M : M * (thread + 1) / threads;
    const int64_t c0 = by_columns ? d * thread / threads / 64 * 64 : 0;
    const int64_t c1 = by_columns ? (thread + 1 == threads ? d : d * (thread + 1) / threads / 64 * 64) : d;
    if (element == 4) gather<4>(job, table_major, m0, m1, c0, c1, y);
    else if (element == 2) gather<2>(job, table_major, m0, m1, c0, c1, y);
    else gather_int8(job, m0, m1, c0, c1, y);
    sink = y[m0 * d + c0];
  });
  return seconds;
}
