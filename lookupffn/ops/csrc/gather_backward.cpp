// Gradients of the gather. Deterministic for any number of threads: each sum is one thread's, in the order of tokens.
#include "gather.h"

#include <type_traits>

#include "parallel.h"
#include "tables.h"

namespace lookupffn {
namespace {

// The table gradient keeps many tokens of the output's gradient in cache, so its slices are narrower.
constexpr int GRAD_VECTORS = 2;
constexpr int GRAD_CHUNK = GRAD_VECTORS * VL;

// grad_scores[m][reads of the group] (+)= <row, grad_y[m]> over the columns of one slice.
template <int N>
void dot_reads(const float* slice, const Reads& reads, int64_t rows, int64_t first_table, int64_t group, int64_t begin,
               int64_t end, const float* grad_y, int64_t columns, int64_t c0, float* grad_scores, int64_t grad_ld) {
  const int64_t width = std::min<int64_t>(CHUNK, columns - c0);
  const int64_t stride = rows * CHUNK, count = group * reads.probes, first_read = first_table * reads.probes;
  for (int64_t m = begin; m < end; m++) {
    if (m % 16 == 0)  // as in the forward pass
      for (int64_t r = 0; r < count; r++) __builtin_prefetch(reads.codes + (first_read + r) * reads.ld + m + 16);
    for (int v = 0; v < CHUNK_VECTORS; v++) __builtin_prefetch(grad_y + (m + 6) * columns + c0 + v * VL);
    float edge[CHUNK];
    const float* from = grad_y + m * columns + c0;
    if (width < CHUNK) {
      std::memset(edge, 0, sizeof edge);
      std::memcpy(edge, from, width * sizeof(float));
      from = edge;
    }
    vf g[CHUNK_VECTORS];
    for (int v = 0; v < CHUNK_VECTORS; v++) g[v] = load(from + v * VL);
    const int32_t* code = reads.codes + first_read * reads.ld + m;
    const auto product = [&](int64_t r) {
      const float* row = slice + r / N * stride + static_cast<int64_t>(code[r * reads.ld]) * CHUNK;
      vf low = g[0] * load(row), high = g[1] * load(row + VL);
      for (int v = 2; v < CHUNK_VECTORS; v += 2) {
        low += g[v] * load(row + v * VL);
        high += g[v + 1] * load(row + (v + 1) * VL);
      }
      return low + high;
    };
    float* out = grad_scores + m * grad_ld + first_read;
    int64_t r = 0;
    for (; r + VL <= count; r += VL) {
      vf products[VL];
#pragma GCC unroll 16
      for (int i = 0; i < VL; i++) products[i] = product(r + i);
      const vf sums = sum_each(products);
      store(out + r, c0 ? load(out + r) + sums : sums);
    }
    if (r < count) {
      vf products[VL] = {};
      for (int i = 0; i < count - r; i++) products[i] = product(r + i);
      const vf sums = sum_each(products);
      for (int i = 0; i < count - r; i++) out[r + i] = c0 ? out[r + i] + sums[i] : sums[i];
    }
  }
}

// The same over whole rows, for few tokens.
void dot_token(const float* data, const Table& table, const Reads& reads, int64_t m, const float* grad, float* out) {
  const int64_t count = reads.tables * reads.probes, columns = table.columns;
  for (int64_t r = 0; r < count; r++) {
    const float* row = data + (r / reads.probes * table.rows + reads.codes[r * reads.ld + m]) * columns;
    vf sums[2] = {vf{}, vf{}};
    int64_t c = 0;
    for (; c + 2 * VL <= columns; c += 2 * VL) {
      sums[0] += load(grad + c) * load(row + c);
      sums[1] += load(grad + c + VL) * load(row + c + VL);
    }
    sums[0] += sums[1];
    float sum = 0.f;
    for (int l = 0; l < VL; l++) sum += sums[0][l];
    for (; c < columns; c++) sum += grad[c] * row[c];
    out[r] = sum;
  }
}

// The reads of one table in the order of its rows: tokens and scores [tokens * probes], first [rows + 1].
struct SortedReads {
  int32_t* tokens;
  float* scores;
  int64_t* first;
};

void sort_reads(const Reads& reads, int64_t table, int64_t rows, int64_t begin, int64_t end, SortedReads out) {
  static thread_local Scratch scratch;
  int64_t* next = scratch.get<int64_t>(rows + 1);
  std::fill(out.first, out.first + rows + 1, 0);
  const int64_t offset = table * reads.probes * reads.ld;
  for (int n = 0; n < reads.probes; n++) {
    const int32_t* codes = reads.codes + offset + n * reads.ld;
    for (int64_t m = begin; m < end; m++) out.first[codes[m] + 1]++;
  }
  for (int64_t row = 0; row < rows; row++) out.first[row + 1] += out.first[row];
  std::copy(out.first, out.first + rows + 1, next);
  for (int n = 0; n < reads.probes; n++) {
    const int32_t* codes = reads.codes + offset + n * reads.ld;
    const float* scores = reads.scores + offset + n * reads.ld;
    for (int64_t m = begin; m < end; m++) {
      const int64_t place = next[codes[m]]++;
      out.tokens[place] = static_cast<int32_t>(m - begin);
      out.scores[place] = scores[m];
    }
  }
}

// grad[row][c0..] = (or +=) the sum over the row's reads; slice is grad_y's [tokens][GRAD_CHUNK].
void add_rows(const float* slice, const SortedReads& sorted, int64_t rows, int64_t columns, int64_t c0, bool accumulate,
              float* grad) {
  const int64_t width = std::min<int64_t>(GRAD_CHUNK, columns - c0);
  const bool aligned = columns % VL == 0 && reinterpret_cast<uintptr_t>(grad) % sizeof(vf) == 0;
  for (int64_t row = 0; row < rows; row++) {
    int64_t i = sorted.first[row];
    const int64_t end = sorted.first[row + 1];
    if (accumulate && i == end) continue;
    float* out = grad + row * columns + c0;
    vf even[GRAD_VECTORS], odd[GRAD_VECTORS];
    for (int v = 0; v < GRAD_VECTORS; v++) even[v] = odd[v] = vf{};
    for (; i + 2 <= end; i += 2) {
      const float* a = slice + static_cast<int64_t>(sorted.tokens[i]) * GRAD_CHUNK;
      const float* b = slice + static_cast<int64_t>(sorted.tokens[i + 1]) * GRAD_CHUNK;
      const vf sa = broadcast(sorted.scores[i]), sb = broadcast(sorted.scores[i + 1]);
      for (int v = 0; v < GRAD_VECTORS; v++) even[v] += sa * load(a + v * VL);
      for (int v = 0; v < GRAD_VECTORS; v++) odd[v] += sb * load(b + v * VL);
    }
    if (i < end) {
      const float* a = slice + static_cast<int64_t>(sorted.tokens[i]) * GRAD_CHUNK;
      const vf sa = broadcast(sorted.scores[i]);
      for (int v = 0; v < GRAD_VECTORS; v++) even[v] += sa * load(a + v * VL);
    }
    for (int v = 0; v < GRAD_VECTORS; v++) even[v] += odd[v];
    if (width == GRAD_CHUNK) {
      for (int v = 0; v < GRAD_VECTORS; v++) {
        float* to = out + v * VL;
        if (accumulate) store(to, load(to) + even[v]);
        else if (aligned) store_past_cache(to, even[v]);
        else store(to, even[v]);
      }
    } else {
      for (int64_t c = 0; c < width; c++) {
        const float sum = even[c / VL][c % VL];
        out[c] = accumulate ? out[c] + sum : sum;
      }
    }
  }
}

}  // namespace

void score_gradient(const Table& table, const Reads& reads, const float* grad_y, float* grad_scores, int64_t grad_ld) {
  const float* data = static_cast<const float*>(table.data);
  if (!slices_pay(table.rows, reads.tokens, reads.probes)) {
    return parallel_tasks(reads.tokens, [&](int64_t m) {
      dot_token(data, table, reads, m, grad_y + m * table.columns, grad_scores + m * grad_ld);
    });
  }
  int64_t group = tables_per_slice(table.rows, reads.tables);
  // sums are formed VL reads at a time: a slice of twice the size beats half-empty vectors
  if (group * reads.probes < VL) group = std::min<int64_t>(reads.tables, 2 * group);
  const int64_t groups = (reads.tables + group - 1) / group;
  const int64_t splits = token_splits(groups, num_threads(), reads.tokens);
  parallel_tasks(groups * splits, [&](int64_t task) {
    static thread_local Scratch scratch;
    float* slice = scratch.get<float>(group * table.rows * CHUNK);
    const int64_t k = task / splits * group, tables = std::min(group, reads.tables - k), split = task % splits;
    const int64_t begin = reads.tokens * split / splits, end = reads.tokens * (split + 1) / splits;
    for (int64_t c0 = 0; c0 < table.columns; c0 += CHUNK) {
      pack_slice<CHUNK>(data, nullptr, table.columns, k * table.rows, tables * table.rows, c0, slice);
      const auto dot = [&](auto n) {
        dot_reads<n()>(slice, reads, table.rows, k, tables, begin, end, grad_y, table.columns, c0, grad_scores,
                       grad_ld);
      };
      switch (reads.probes) {
        case 1:
          dot(std::integral_constant<int, 1>());
          break;
        case 2:
          dot(std::integral_constant<int, 2>());
          break;
        case 3:
          dot(std::integral_constant<int, 3>());
          break;
        default:
          dot(std::integral_constant<int, 4>());
      }
    }
  });
}

void table_gradient(const Reads& reads, int64_t rows, int64_t columns, const float* grad_y, float* grad_table) {
  static thread_local Scratch token_memory, score_memory, first_memory;
  const int64_t block =
      std::min<int64_t>(std::max<int64_t>(reads.tokens, 1), 2 * slice_bytes() / (GRAD_CHUNK * sizeof(float)));
  const int64_t per_table = block * reads.probes;
  int32_t* tokens = token_memory.get<int32_t>(per_table * reads.tables);
  float* scores = score_memory.get<float>(per_table * reads.tables);
  int64_t* first = first_memory.get<int64_t>((rows + 1) * reads.tables);
  const auto sorted = [&](int64_t k) {
    return SortedReads{tokens + k * per_table, scores + k * per_table, first + k * (rows + 1)};
  };
  const int64_t chunks = (columns + GRAD_CHUNK - 1) / GRAD_CHUNK;
  const int64_t threads = num_threads();
  const int64_t splits = chunks >= threads ? 1 : std::min(reads.tables, (threads + chunks - 1) / chunks);
  for (int64_t begin = 0; begin == 0 || begin < reads.tokens; begin += block) {
    const int64_t end = std::min(reads.tokens, begin + block);
    parallel_tasks(reads.tables, [&](int64_t k) { sort_reads(reads, k, rows, begin, end, sorted(k)); });
    parallel_tasks(chunks * splits, [&](int64_t task) {
      static thread_local Scratch scratch;
      float* slice = scratch.get<float>(block * GRAD_CHUNK);
      const int64_t c0 = task / splits * GRAD_CHUNK, split = task % splits;
      pack_slice<GRAD_CHUNK>(grad_y, nullptr, columns, begin, end - begin, c0, slice);
      for (int64_t k = reads.tables * split / splits; k < reads.tables * (split + 1) / splits; k++)
        add_rows(slice, sorted(k), rows, columns, c0, begin > 0, grad_table + k * rows * columns);
      finish_stores();
    });
  }
}

}  // namespace lookupffn
