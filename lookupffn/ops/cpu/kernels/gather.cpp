// Forward: y = bias + sum of scored rows.
//
// Many tokens: a group of tables, CHUNK columns wide, is copied to where it fits the second-level cache, and all tokens
// pass over it with their sums in registers. Few tokens: whole rows, prefetched, in one pass.
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
               int64_t end, const float* in, int64_t in_step, float* out, int64_t out_step) {
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
    for (int v = 0; v < CHUNK_VECTORS; v++) store(out + v * VL, even[v] + odd[v]);
  }
}

void gather_sliced(const Table& table, const Reads& reads, const float* bias, float* y) {
  const int64_t columns = table.columns, chunks = (columns + CHUNK - 1) / CHUNK;
  const int64_t group = tables_per_slice(table.rows, reads.tables);
  const int64_t splits = token_splits(chunks, num_threads(), reads.tokens);
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
                       direct ? y + begin * columns + c0 : sums, direct ? columns : CHUNK);
      };
      switch (reads.probes) {
        case 1: add(std::integral_constant<int, 1>()); break;
        case 2: add(std::integral_constant<int, 2>()); break;
        case 3: add(std::integral_constant<int, 3>()); break;
        default: add(std::integral_constant<int, 4>());
      }
    }
    for (int64_t m = begin; m < end && width < CHUNK; m++)
      std::memcpy(y + m * columns + c0, sums + (m - begin) * CHUNK, width * sizeof(float));
  });
}

// y[begin, end) += the reads of token m: whole rows, four at a time, the next four on their way.
template <class E>
void add_token(const E* data, const Table& table, const Reads& reads, int64_t m, int64_t begin, int64_t end, float* y) {
  constexpr int ROWS = 4;
  const int64_t count = reads.tables * reads.probes;
  const E* rows[2][ROWS];
  float scores[2][ROWS];
  int64_t read = 0, first = 0;  // the next read, and the first row of its table
  int probe = 0;
  const auto find = [&](int side) {
    for (int i = 0; i < ROWS; i++) {
      rows[side][i] = data;  // beyond the last read: any row, no weight
      scores[side][i] = 0.f;
      if (read == count) continue;
      const int64_t row = first + reads.codes[read * reads.ld + m];
      rows[side][i] = data + row * table.columns;
      scores[side][i] = reads.scores[read * reads.ld + m] * (table.scales ? table.scales[row] : 1.f);
      read++;
      if (++probe == reads.probes) {
        probe = 0;
        first += table.rows;
      }
    }
  };
  find(0);
  for (int64_t done = 0, side = 0; done < count; done += ROWS, side ^= 1) {
    find(static_cast<int>(side ^ 1));
    const int here = static_cast<int>(std::min<int64_t>(ROWS, count - done));
    const E* const* from = rows[side];
    const E* const* next = rows[side ^ 1];
    const float* score = scores[side];
    int64_t c = begin;
    if (here == ROWS) {
      const vf s0 = broadcast(score[0]), s1 = broadcast(score[1]), s2 = broadcast(score[2]), s3 = broadcast(score[3]);
      constexpr int64_t STEP = 64 / sizeof(E) > VL ? 64 / sizeof(E) : VL;  // at least a cache line
      for (; c + STEP <= end; c += STEP) {
        for (int i = 0; i < ROWS; i++) __builtin_prefetch(next[i] + c);
        for (int64_t e = c; e < c + STEP; e += VL) {
          const vf low = s0 * load_row(from[0] + e) + s1 * load_row(from[1] + e);
          const vf high = s2 * load_row(from[2] + e) + s3 * load_row(from[3] + e);
          store(y + e, load(y + e) + (low + high));
        }
      }
    }
    for (int i = 0; i < here; i++)
      for (int64_t e = c; e < end; e++) y[e] += score[i] * load_one(from[i] + e);
  }
}

void gather_direct(const Table& table, const Reads& reads, float* y) {
  const int64_t threads = num_threads();
  // a token a task; fewer tokens than threads: columns are shared out too, whole cache lines at a time
  int64_t parts = reads.tokens >= 2 * threads ? 1 : (threads + reads.tokens - 1) / reads.tokens;
  parts = std::clamp<int64_t>(parts, 1, std::max<int64_t>(1, table.columns / 64));
  const int64_t width = ((table.columns + parts - 1) / parts + 63) / 64 * 64;
  parallel_tasks(reads.tokens * parts, [&](int64_t task) {
    const int64_t m = task / parts, begin = task % parts * width;
    const int64_t end = std::min(begin + width, table.columns);
    if (begin < end)
      with_rows(table, [&](auto* data) { add_token(data, table, reads, m, begin, end, y + m * table.columns); });
  });
}

}  // namespace

void gather(const Table& table, const Reads& reads, const float* bias, float* y) {
  if (reads.tokens == 0 || table.columns == 0) return;
  if (slices_pay(table.rows, reads.tokens, reads.probes)) return gather_sliced(table, reads, bias, y);
  for (int64_t m = 0; m < reads.tokens; m++) {
    float* out = y + m * table.columns;
    if (bias) std::copy(bias, bias + table.columns, out);
    else std::fill(out, out + table.columns, 0.f);
  }
  gather_direct(table, reads, y);
}

}  // namespace lookupffn
