#include "int8_lookup.h"

#include <cmath>
#include <vector>

#include "hash.h"

namespace lookupffn {
namespace {

constexpr int64_t CHUNK_BYTES = 64;
constexpr int64_t MOST_FETCHED = 2048;      // tokens
constexpr int64_t SLICE_BYTES = 512 << 10;  // of a chunk's rows that are read over and over: half a second-level cache

// Where in a row's 64 bytes column c lies, so that after four rows are interleaved the sums come out in order.
inline int64_t place(int64_t c) { return c % 16 / 4 * 16 + c / 16 * 4 + c % 4; }

// Sums of 64 columns over `count` reads (a multiple of 4), added to `sums`.
void sum_reads_plain(const uint8_t* chunk, const uint32_t* offsets, const int8_t* weights, int64_t count,
                     int32_t* sums) {
  int32_t placed[CHUNK_BYTES] = {};
  for (int64_t r = 0; r < count; r++) {
    const uint8_t* row = chunk + offsets[r];
    const int32_t weight = weights[r];
    for (int64_t c = 0; c < CHUNK_BYTES; c++) placed[c] += weight * row[c];
  }
  for (int64_t c = 0; c < CHUNK_BYTES; c++) sums[c] += placed[place(c)];
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LFFN_FAST_READS 1

inline __m512i row_at(const uint8_t* p) { return _mm512_load_si512(p); }

inline void sum_reads(const uint8_t* chunk, const uint32_t* offsets, const int8_t* weights, int64_t count,
                      int32_t* sums) {
  __m512i sum[4];
  for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_si512(sums + 16 * i);
  for (int64_t r = 0; r < count; r += 4) {
    const __m512i a = row_at(chunk + offsets[r]), b = row_at(chunk + offsets[r + 1]);
    const __m512i c = row_at(chunk + offsets[r + 2]), d = row_at(chunk + offsets[r + 3]);
    int32_t four;
    std::memcpy(&four, weights + r, 4);
    const __m512i w = _mm512_set1_epi32(four);
    const __m512i low_ab = _mm512_unpacklo_epi8(a, b), high_ab = _mm512_unpackhi_epi8(a, b);
    const __m512i low_cd = _mm512_unpacklo_epi8(c, d), high_cd = _mm512_unpackhi_epi8(c, d);
    sum[0] = _mm512_dpbusd_epi32(sum[0], _mm512_unpacklo_epi16(low_ab, low_cd), w);
    sum[1] = _mm512_dpbusd_epi32(sum[1], _mm512_unpackhi_epi16(low_ab, low_cd), w);
    sum[2] = _mm512_dpbusd_epi32(sum[2], _mm512_unpacklo_epi16(high_ab, high_cd), w);
    sum[3] = _mm512_dpbusd_epi32(sum[3], _mm512_unpackhi_epi16(high_ab, high_cd), w);
  }
  for (int i = 0; i < 4; i++) _mm512_storeu_si512(sums + 16 * i, sum[i]);
}
#endif

inline vf gathered(const float* from, vi at) {
#if defined(__AVX512F__)
  return (vf)_mm512_i32gather_ps((__m512i)at, from, 4);
#else
  vf v;
  for (int i = 0; i < VL; i++) v[i] = from[at[i]];
  return v;
#endif
}

// The first `left` lanes, at most all.
inline void put(float* to, int64_t left, vf v, bool add) {
  if (left >= VL) return store(to, add ? load(to) + v : v);
  for (int64_t i = 0; i < left; i++) to[i] = add ? to[i] + v[i] : v[i];
}

template <class F>
void add_chunk_by(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, int64_t begin, int64_t end,
                  const F& sum_of, float* y, bool add) {
  static thread_local Scratch memory;
  const int64_t tokens = end - begin, count = l.reads(), group_reads = TABLE_GROUP * l.probes;
  const int64_t table_bytes = l.rows * CHUNK_BYTES;
  // as many tables a pass as stay in the cache; all at once if no row is likely to be read again
  const bool few = tokens * l.probes < 2 * l.rows;
  // the next token's rows into the second-level cache: 4.8 to 2.8 us a token at 1,024, nothing where all come from
  // there
  const bool fetch = tokens <= MOST_FETCHED;
  const int64_t groups =
      few ? l.groups() : std::clamp<int64_t>(SLICE_BYTES / (table_bytes * TABLE_GROUP), 1, l.groups());
  const uint8_t* from = l.table.data() + chunk * l.groups() * TABLE_GROUP * table_bytes;
  int32_t* sums = memory.get<int32_t>(tokens * CHUNK_BYTES);
  for (int64_t m = 0; m < tokens; m++) std::fill(sums + m * 64, sums + (m + 1) * 64, reads.starts[begin + m]);
  const int64_t width = std::min<int64_t>(64, l.columns - chunk * 64);
  for (int64_t first = 0; first < l.groups(); first += groups) {
    const int64_t here = std::min(groups, l.groups() - first) * group_reads, at = first * group_reads;
    const bool last = first + groups >= l.groups();
    for (int64_t m = 0; m < tokens; m++) {
      const int64_t token = begin + m;
      if (fetch && m + 1 < tokens) {
        const uint32_t* next = reads.offsets + (token + 1) * count + at;
        for (int64_t r = 0; r < here; r++) __builtin_prefetch(from + next[r], 0, 2);
      }
      sum_of(from, reads.offsets + token * count + at, reads.weights + token * count + at, here, sums + m * 64);
      if (!last) continue;
      float* to = y + token * l.columns + chunk * 64;
      const float* bias = l.bias.data() + chunk * 64;
      const float factor = reads.factors[token];
      for (int64_t c = 0; c < width; c += VL)
        put(to + c, width - c, to_float(load(sums + m * 64 + c)) * factor + load(bias + c), add);
    }
  }
}

}  // namespace

void put_reads(const Int8Lookup& l, const float* z, int64_t token, const Int8Reads& reads, Layout layout) {
  static thread_local Scratch memory;
  const int64_t count = l.reads();
  float* weights = memory.get<float>(count);
  uint32_t* offsets = reads.offsets + token * count;
  vf most = {};
  vi first_rows;
  for (int i = 0; i < VL; i++) first_rows[i] = static_cast<int32_t>(i * l.rows);
  for (int64_t g = 0; g < l.groups(); g++)
    for (int lane = 0; lane < TABLE_GROUP; lane += VL) {
      vf lanes[(MAX_BITS + VL - 1) / VL * VL], scores[MAX_PROBES];
      vi codes[MAX_PROBES];
      const int64_t table = g * TABLE_GROUP + lane;
      if (layout == Layout::bits_first) {
        for (int j = 0; j < l.bits; j++) lanes[j] = load(z + (g * l.bits + j) * TABLE_GROUP + lane);
      } else {
        const int tables = static_cast<int>(std::clamp<int64_t>(l.tables - table, 0, VL));
        load_transposed(z + table * l.bits, l.bits, tables, l.bits, lanes);
      }
      hash_lanes(lanes, l.bits, l.probes, codes, scores);
      for (int n = 0; n < l.probes; n++) {
        const int64_t at = (g * l.probes + n) * TABLE_GROUP + lane;
        const vi row = first_rows + static_cast<int32_t>(table * l.rows) + codes[n];
        store(reinterpret_cast<int32_t*>(offsets + at), row * static_cast<int32_t>(CHUNK_BYTES));
        // 0 for tables beyond the last
        const vf weight = gathered(l.scales.data(), row) * scores[n], size = magnitude(weight);
        store(weights + at, weight);
        most = size > most ? size : most;
        most = weight == weight ? most : weight;
      }
    }
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < VL; i++) {
    finite = finite && std::isfinite(most[i]);
    largest = std::max(largest, most[i]);
  }
  const float inverse = finite && largest > 1e-30f ? 127.f / largest : 0.f;
  vi sum = {};
  int8_t* rounded = reads.weights + token * count;
  for (int64_t r = 0; r < count; r += VL) {
    const vf scaled = (finite ? load(weights + r) : vf{}) * inverse + 12582912.f;
    const vi q = float_to_bits(scaled) - 0x4b400000;
    sum += q;
    store_bytes(reinterpret_cast<uint8_t*>(rounded + r), q);
  }
  int32_t total = 0;
  for (int i = 0; i < VL; i++) total += sum[i];
  reads.starts[token] = -128 * total;
  reads.factors[token] = finite ? (largest > 1e-30f ? largest / 127.f : 0.f) : std::numeric_limits<float>::quiet_NaN();
}

void add_chunk(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, int64_t begin, int64_t end,
               [[maybe_unused]] bool plain, float* y, bool add) {
#if defined(LFFN_FAST_READS)
  if (!plain) return add_chunk_by(l, reads, chunk, begin, end, sum_reads, y, add);
#endif
  add_chunk_by(l, reads, chunk, begin, end, sum_reads_plain, y, add);
}

Int8Lookup pack_lookup(const float* matrix, const float* matrix_bias, const int8_t* table, const float* scales,
                       const float* bias, int64_t depth, int64_t columns, int64_t tables, int64_t rows, int probes) {
  Int8Lookup l;
  l.depth = depth;
  l.columns = columns;
  l.tables = tables;
  l.rows = rows;
  l.probes = probes;
  while ((int64_t{1} << l.bits) < rows) l.bits++;
  const int64_t padded = l.groups() * TABLE_GROUP, hashes = padded * l.bits;
  std::vector<float> ordered(matrix ? hashes * depth : 0), ordered_bias(hashes);
  for (int64_t k = 0; k < (matrix ? tables : 0); k++)
    for (int64_t j = 0; j < l.bits; j++) {
      const int64_t to = (k / TABLE_GROUP * l.bits + j) * TABLE_GROUP + k % TABLE_GROUP, at = k * l.bits + j;
      std::copy(matrix + at * depth, matrix + (at + 1) * depth, ordered.begin() + to * depth);
      ordered_bias[to] = matrix_bias[at];
    }
  if (matrix) l.projection = pack_int8(ordered.data(), ordered_bias.data(), hashes, depth);
  l.table = Array<uint8_t>(l.chunks() * padded * rows * CHUNK_BYTES);
  l.scales = Array<float>(padded * rows);
  std::copy(scales, scales + tables * rows, l.scales.data());
  l.bias = Array<float>(l.chunks() * 64);
  std::copy(bias, bias + columns, l.bias.data());
  for (int64_t row = 0; row < tables * rows; row++)
    for (int64_t c = 0; c < columns; c++)
      l.table.data()[(c / 64 * padded * rows + row) * CHUNK_BYTES + place(c % 64)] =
          static_cast<uint8_t>(table[row * columns + c] + 128);
  return l;
}

}  // namespace lookupffn
