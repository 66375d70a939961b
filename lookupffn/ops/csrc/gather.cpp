// Forward: y = bias + sum of scored rows.
//
// Many tokens: a group of tables, CHUNK columns wide, is copied to where it fits the second-level cache, and all tokens
// pass over it with their sums in registers. Few tokens: whole rows from wherever they lie, prefetched.
#include "gather.h"

#include <type_traits>

#include "parallel.h"
#include "tables.h"

namespace lookupffn {
namespace {

// out[m - begin] = in[m - begin] + the reads of one group; slice is [tables of the group * rows][CHUNK]. A step of 0
// starts every token from the same row.
template <int N>
void add_reads(const float* slice, const Reads& reads, int64_t rows, int64_t first_table, int64_t group, int64_t begin,
               int64_t end, const float* in, int64_t in_step, float* out, int64_t out_step, bool past_cache) {
  const int64_t stride = rows * CHUNK, ld = reads.ld;
  const int32_t* codes = reads.codes + first_table * N * ld;
  const float* scores = reads.scores + first_table * N * ld;
  for (int64_t m = begin; m < end; m++, in += in_step, out += out_step) {
    if (m % 16 == 0)  // the next cache line of every read: too many streams for the hardware to follow
      for (int64_t r = 0; r < group * N; r++) {
        __builtin_prefetch(codes + r * ld + m + 16);
        __builtin_prefetch(scores + r * ld + m + 16);
      }
    const int32_t* code = codes + m;
    const float* score = scores + m;
    vf even[CHUNK_VECTORS], odd[CHUNK_VECTORS];
    for (int v = 0; v < CHUNK_VECTORS; v++) {
      even[v] = load(in + v * VL);
      odd[v] = vf{};
    }
    const auto add = [&](vf* to, const float* table, int64_t read) {
      const float* row = table + static_cast<int64_t>(code[read * ld]) * CHUNK;
      const vf s = broadcast(score[read * ld]);
      for (int v = 0; v < CHUNK_VECTORS; v++) to[v] += s * load(row + v * VL);
    };
    const float* table = slice;
    int64_t k = 0;
    for (; k + 2 <= group; k += 2, table += 2 * stride, code += 2 * N * ld, score += 2 * N * ld)
      for (int n = 0; n < N; n++) {
        add(even, table, n);
        add(odd, table + stride, N + n);
      }
    if (k < group)
      for (int n = 0; n < N; n++) add(even, table, n);
    if (past_cache) {
      for (int v = 0; v < CHUNK_VECTORS; v++) store_past_cache(out + v * VL, even[v] + odd[v]);
    } else {
      for (int v = 0; v < CHUNK_VECTORS; v++) store(out + v * VL, even[v] + odd[v]);
    }
  }
}

void gather_sliced(const Table& table, const Reads& reads, const float* bias, float* y) {
  const int64_t columns = table.columns, chunks = (columns + CHUNK - 1) / CHUNK;
  const int64_t group = tables_per_slice(table.rows, reads.tables);
  const int64_t splits = token_splits(chunks, num_threads(), reads.tokens);
  // y is written a few cache lines a row; what the cache cannot keep anyway should not be fetched for that
  const bool past_cache = columns % VL == 0 && reinterpret_cast<uintptr_t>(y) % sizeof(vf) == 0 &&
                          reads.tokens * columns * static_cast<int64_t>(sizeof(float)) >= 8 * slice_bytes();
  parallel_tasks(chunks * splits, [&](int64_t task) {
    static thread_local Scratch slice_memory, sum_memory;
    const int64_t c0 = task / splits * CHUNK, split = task % splits, width = std::min<int64_t>(CHUNK, columns - c0);
    const int64_t begin = reads.tokens * split / splits, end = reads.tokens * (split + 1) / splits;
    float* slice = slice_memory.get<float>(group * table.rows * CHUNK);
    float* sums = sum_memory.get<float>((end - begin) * CHUNK);  // dense, so that they stream
    float first[CHUNK] = {};
    if (bias) std::copy(bias + c0, bias + c0 + width, first);
    for (int64_t k = 0; k < reads.tables; k += group) {
      const int64_t tables = std::min(group, reads.tables - k);
      with_rows(table, [&](auto* data) {
        pack_slice<CHUNK>(data, table.scales, columns, k * table.rows, tables * table.rows, c0, slice);
      });
      const bool direct = k + tables == reads.tables && width == CHUNK;  // the last group writes y itself
      const auto add = [&](auto n) {
        add_reads<n()>(slice, reads, table.rows, k, tables, begin, end, k ? sums : first, k ? CHUNK : 0,
                       direct ? y + begin * columns + c0 : sums, direct ? columns : CHUNK, direct && past_cache);
      };
      switch (reads.probes) {
        case 1:
          add(std::integral_constant<int, 1>());
          break;
        case 2:
          add(std::integral_constant<int, 2>());
          break;
        case 3:
          add(std::integral_constant<int, 3>());
          break;
        default:
          add(std::integral_constant<int, 4>());
      }
    }
    finish_stores();
    for (int64_t m = begin; m < end && width < CHUNK; m++)
      std::memcpy(y + m * columns + c0, sums + (m - begin) * CHUNK, width * sizeof(float));
  });
}

// sums[m - begin] += the reads [first, last) of each token: whole rows, four of a token at a time, those of the next
// token on their way. One table after another, so that a row that several tokens read comes from the second-level cache
// again.
template <class E>
void add_whole_rows(const E* data, const Table& table, const Reads& reads, int64_t first, int64_t last, int64_t begin,
                    int64_t end, float* sums) {
  constexpr int ROWS = 4;
  constexpr int LEVEL = sizeof(E) == 1 ? 3 : 2;  // of the cache to prefetch to: rows on their way overflow the first
  constexpr int64_t STEP = 64 / sizeof(E) > VL ? 64 / sizeof(E) : VL;  // at least a cache line
  const int64_t columns = table.columns;
  struct Rows {
    const E* row[ROWS];
    float score[ROWS];
  };
  const auto find = [&](int64_t read, int64_t m) {
    Rows found;
    for (int i = 0; i < ROWS; i++) {
      const int64_t r = std::min(read + i, last - 1);  // beyond the last: any row
      const int64_t row =
          static_cast<uint32_t>(r) / static_cast<uint32_t>(reads.probes) * table.rows + reads.codes[r * reads.ld + m];
      found.row[i] = data + row * columns;
      found.score[i] = reads.scores[r * reads.ld + m] * (table.scales ? table.scales[row] : 1.f);
    }
    return found;
  };
  Rows next = find(first, begin);
  for (int64_t read = first; read < last; read += ROWS) {
    const int here = static_cast<int>(std::min<int64_t>(ROWS, last - read));
    float* y = sums;
    for (int64_t m = begin; m < end; m++, y += columns) {
      const Rows now = next;
      next = m + 1 < end ? find(read, m + 1) : find(std::min(read + ROWS, last - 1), begin);
      int64_t c = 0;
      if (here == ROWS) {
        const vf s0 = broadcast(now.score[0]), s1 = broadcast(now.score[1]);
        const vf s2 = broadcast(now.score[2]), s3 = broadcast(now.score[3]);
        for (; c + STEP <= columns; c += STEP) {
          for (int i = 0; i < ROWS; i++) __builtin_prefetch(next.row[i] + c, 0, LEVEL);
          for (int64_t e = c; e < c + STEP; e += VL) {
            const vf low = s0 * load_row(now.row[0] + e) + s1 * load_row(now.row[1] + e);
            const vf high = s2 * load_row(now.row[2] + e) + s3 * load_row(now.row[3] + e);
            store(y + e, load(y + e) + (low + high));
          }
        }
      }
      for (int i = 0; i < here; i++)
        for (int64_t e = c; e < columns; e++) y[e] += now.score[i] * load_one(now.row[i] + e);
    }
  }
}

// Tiles of tokens whose sums fit the second-level cache; fewer tiles than threads: reads are shared out too, each share
// with sums of its own.
void gather_direct(const Table& table, const Reads& reads, const float* bias, float* y) {
  static thread_local Scratch scratch;
  const int64_t columns = table.columns, count = reads.tables * reads.probes, threads = num_threads();
  const int64_t most = std::max<int64_t>(1, slice_bytes() / (columns * static_cast<int64_t>(sizeof(float))));
  const int64_t tiles = (reads.tokens + most - 1) / most;
  const int64_t shares = std::clamp<int64_t>(threads / tiles, 1, std::max<int64_t>(1, count / 4));
  float* others = scratch.get<float>((shares - 1) * reads.tokens * columns);
  parallel_tasks(tiles * shares, [&](int64_t task) {
    const int64_t share = task % shares, begin = reads.tokens * (task / shares) / tiles;
    const int64_t end = reads.tokens * (task / shares + 1) / tiles;
    float* sums = (share ? others + (share - 1) * reads.tokens * columns : y) + begin * columns;
    for (int64_t m = 0; m < end - begin; m++) {
      if (bias && !share) std::copy(bias, bias + columns, sums + m * columns);
      else std::fill(sums + m * columns, sums + (m + 1) * columns, 0.f);
    }
    with_rows(table, [&](auto* data) {
      // whole fours for every share
      add_whole_rows(data, table, reads, count / 4 * share / shares * 4,
                     share + 1 == shares ? count : count / 4 * (share + 1) / shares * 4, begin, end, sums);
    });
  });
  if (shares == 1) return;
  parallel_tasks(reads.tokens, [&](int64_t m) {
    for (int64_t share = 1; share < shares; share++) {
      const float* more = others + ((share - 1) * reads.tokens + m) * columns;
      for (int64_t c = 0; c < columns; c++) y[m * columns + c] += more[c];
    }
  });
}

}  // namespace

void gather(const Table& table, const Reads& reads, const float* bias, float* y) {
  if (reads.tokens == 0 || table.columns == 0) return;
  if (slices_pay(table.rows, reads.tokens, reads.probes)) return gather_sliced(table, reads, bias, y);
  gather_direct(table, reads, bias, y);
}

}  // namespace lookupffn
