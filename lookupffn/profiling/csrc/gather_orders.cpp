// Ways to gather, side by side: the same sums of scored rows in different orders, by different shares of the threads.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "int8_sums.h"
#include "tables.h"
#include "timing.h"

using namespace profiling;

namespace {

enum Order { token_by_token, table_by_table, in_slices };

template <class E>
struct Job {
  const E* tables;       // [T][S][d]; in int8 [d / 64][T][S][64], as the kernels pack them
  const int32_t* codes;  // [T][M]
  int64_t T, S, d, M;
  int64_t ahead;
  int level;

  const E* row(int64_t k, int64_t m) const { return tables + (k * S + codes[k * M + m]) * d; }
};

inline void fetch(const void* row, int64_t bytes, int level) {
  const char* from = static_cast<const char*>(row);
  if (level == 1)
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, 0, 3);
  else
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(from + b, 0, 2);
}

// y[m][c0..c1) += the row of table k that token m reads.
template <class E>
inline void add(const Job<E>& job, int64_t k, int64_t m, int64_t c0, int64_t c1, float* y) {
  const E* row = job.row(k, m);
  const vf score = vf{} + 0.5f;
  float* to = y + m * job.d;
  for (int64_t c = c0; c < c1; c += VL)
    lookupffn::store(to + c, lookupffn::load(to + c) + score * lookupffn::load_row(row + c));
}

template <class E>
void gather(const Job<E>& job, Order order, int64_t m0, int64_t m1, int64_t c0, int64_t c1, float* y) {
  const int64_t count = m1 - m0, bytes = (c1 - c0) * static_cast<int64_t>(sizeof(E));
  const auto fetch_row = [&](int64_t k, int64_t m) { fetch(job.row(k, m) + c0, bytes, job.level); };
  if (order == table_by_table) {
    for (int64_t k = 0; k < job.T; k++)
      for (int64_t m = m0; m < m1; m++) {
        const int64_t next = m - m0 + job.ahead, table = k + next / count;
        if (job.ahead && table < job.T) fetch_row(table, m0 + next % count);
        add(job, k, m, c0, c1, y);
      }
    return;
  }
  for (int64_t m = m0; m < m1; m++)
    for (int64_t k = 0; k < job.T; k++) {
      const int64_t next = k + job.ahead, token = m + next / job.T;
      if (job.ahead && token < m1) fetch_row(next % job.T, token);
      add(job, k, m, c0, c1, y);
    }
}

// Some tables, CHUNK columns wide, are copied to where they fit the second-level cache; all tokens pass over the copy.
template <class E>
void gather_sliced(const Job<E>& job, int64_t m0, int64_t m1, int64_t c0, int64_t c1, float* y) {
  constexpr int64_t CHUNK = lookupffn::CHUNK;
  static thread_local lookupffn::Scratch memory;
  const int64_t group = lookupffn::tables_per_slice(job.S, job.T);
  float* slice = memory.get<float>(group * job.S * CHUNK);
  const vf score = vf{} + 0.5f;
  for (int64_t c = c0; c < c1; c += CHUNK)
    for (int64_t first = 0; first < job.T; first += group) {
      const int64_t tables = std::min(group, job.T - first);
      lookupffn::pack_slice<CHUNK>(job.tables, nullptr, job.d, first * job.S, tables * job.S, c, slice);
      for (int64_t m = m0; m < m1; m++) {
        vf sums[lookupffn::CHUNK_VECTORS];
        float* to = y + m * job.d + c;
        for (int v = 0; v < lookupffn::CHUNK_VECTORS; v++) sums[v] = lookupffn::load(to + v * VL);
        for (int64_t k = 0; k < tables; k++) {
          const float* row = slice + (k * job.S + job.codes[(first + k) * job.M + m]) * CHUNK;
          for (int v = 0; v < lookupffn::CHUNK_VECTORS; v++) sums[v] += score * lookupffn::load(row + v * VL);
        }
        for (int v = 0; v < lookupffn::CHUNK_VECTORS; v++) lookupffn::store(to + v * VL, sums[v]);
      }
    }
}

// A token reads all tables, 64 columns after 64; the next token's rows are prefetched. T is a multiple of 4. offsets:
// [M][T], of rows in a chunk, in bytes.
void gather_int8(const Job<uint8_t>& job, const uint32_t* offsets, int64_t m0, int64_t m1, int64_t c0, int64_t c1,
                 float* y) {
  constexpr int64_t CHUNK = lookupffn::CHUNK_BYTES;
  const std::vector<int8_t> weights(job.T, 1);
  for (int64_t c = c0; c < c1; c += CHUNK) {
    const uint8_t* chunk = job.tables + c * job.T * job.S;
    for (int64_t m = m0; m < m1; m++) {
      const uint32_t* own = offsets + m * job.T;
      if (job.ahead && m + 1 < m1)
        for (int64_t k = 0; k < job.T; k++) fetch(chunk + own[job.T + k], CHUNK, job.level);
      int32_t sums[CHUNK] = {};
#if defined(LFFN_FAST_SUMS)
      lookupffn::sum_reads(chunk, own, weights.data(), job.T, sums);
#else
      lookupffn::sum_reads_plain(chunk, own, weights.data(), job.T, sums);
#endif
      for (int64_t i = 0; i < CHUNK; i++) y[m * job.d + c + i] = static_cast<float>(sums[i]);
    }
  }
}

}  // namespace

// Seconds of gathering M tokens' rows. codes: [rounds + WARM][T][M]: rows that wait in a cache since the round before
// would flatter few tokens. element: bytes a number, 4 float32, 2 bfloat16, 1 int8, which knows one order only.
// by_columns: threads share out the columns and not the tokens.
LFFN_EXPORT double gather_seconds(const char* tables, const int32_t* codes, int64_t T, int64_t S, int64_t d, int64_t M,
                                  int element, int order, int64_t ahead, int level, int threads, int by_columns,
                                  int rounds) {
  lookupffn::Scratch memory;
  float* y = memory.get<float>(M * d);
  std::fill(y, y + M * d, 0.f);
  std::vector<uint32_t> offsets(element == 1 ? (rounds + WARM) * T * M : 0);
  for (size_t i = 0; i < offsets.size(); i++) {
    const int64_t k = i % T, m = i / T % M, round = i / (T * M);
    offsets[i] = static_cast<uint32_t>((k * S + codes[(round * T + k) * M + m]) * lookupffn::CHUNK_BYTES);
  }
  return timed(threads, rounds, [&](int thread, int round) {
    const int64_t m0 = by_columns ? 0 : M * thread / threads, m1 = by_columns ? M : M * (thread + 1) / threads;
    const int64_t c0 = by_columns ? d * thread / threads / 64 * 64 : 0;
    const int64_t c1 = by_columns ? (thread + 1 == threads ? d : d * (thread + 1) / threads / 64 * 64) : d;
    const auto run = [&](auto* data) {
      const Job<std::remove_cvref_t<decltype(*data)>> job{data, codes + round * T * M, T, S, d, M, ahead, level};
      if constexpr (sizeof(*data) == 1) gather_int8(job, offsets.data() + round * T * M, m0, m1, c0, c1, y);
      else if (order == in_slices) gather_sliced(job, m0, m1, c0, c1, y);
      else gather(job, static_cast<Order>(order), m0, m1, c0, c1, y);
    };
    if (element == 4) run(reinterpret_cast<const float*>(tables));
    else if (element == 2) run(reinterpret_cast<const uint16_t*>(tables));
    else run(reinterpret_cast<const uint8_t*>(tables));
    sink = y[m0 * d + c0];
  });
}

LFFN_EXPORT int warm_rounds() { return WARM; }
