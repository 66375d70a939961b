// See gather_half.h. As in gather.cpp a group of tables, HALF_CHUNK columns wide, is copied to where it fits the
// second-level cache, and all tokens pass over it.
#include "gather_half.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "parallel.h"

#if defined(__AVX512FP16__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && LFFN_VECTOR_BYTES == 64

namespace lookupffn {
namespace {

constexpr int HALF_VECTORS = 2, HALF_LANES = 32, HALF_CHUNK = HALF_VECTORS * HALF_LANES;
constexpr int SCORE_BITS = 13;          // a token's |scores| add up to 2^13 to 2^14
constexpr float LARGEST = 2.f;          // of a slice, so that no sum passes 2^15
constexpr float SMALLEST = 1.f / 1024;  // a slice whose largest number is smaller loses digits

// The power of two that brings `largest` to between 1 and 2.
float power_for(float largest) { return std::isfinite(largest) && largest > 0 ? std::exp2(-std::ilogb(largest)) : 1.f; }

// slice[row][HALF_CHUNK] = scale * rows [first, first + count) of the flattened table, columns from c0, zero beyond the
// last. Returns the largest magnitude copied, before scaling.
float pack(const uint16_t* data, int64_t columns, int64_t first, int64_t count, int64_t c0, float scale,
           _Float16* slice) {
  constexpr int AHEAD = 12;  // rows between a prefetch and its use
  const int width = static_cast<int>(std::min<int64_t>(HALF_CHUNK, columns - c0));
  const uint16_t* from = data + first * columns + c0;
  const __m512 factor = _mm512_set1_ps(scale);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t row = 0; row < count; row++, from += columns, slice += HALF_CHUNK) {
    for (int c = 0; c < HALF_CHUNK; c += 32) __builtin_prefetch(from + AHEAD * columns + c);
    for (int v = 0; v < HALF_VECTORS; v++) {
      const int left = std::clamp(width - v * HALF_LANES, 0, HALF_LANES);
      const __m512i bits = _mm512_maskz_loadu_epi16(left == HALF_LANES ? ~0u : (1u << left) - 1, from + v * HALF_LANES);
      largest = _mm512_max_epu16(largest, _mm512_slli_epi16(bits, 1));
      const auto half = [&](__m256i part) {
        return _mm512_cvtps_ph(factor * (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16), 8);
      };
      _Float16* to = slice + v * HALF_LANES;
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), half(_mm512_castsi512_si256(bits)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to) + 1, half(_mm512_extracti64x4_epi64(bits, 1)));
    }
  }
  uint16_t each[HALF_LANES];
  _mm512_storeu_si512(each, largest);
  const uint16_t most = *std::max_element(each, each + HALF_LANES) >> 1;
  return load_one(&most);
}

// slice = integers * row scale * scale.
void pack(const int8_t* data, const float* scales, int64_t columns, int64_t first, int64_t count, int64_t c0,
          float scale, _Float16* slice) {
  constexpr int AHEAD = 12;
  const int width = static_cast<int>(std::min<int64_t>(HALF_CHUNK, columns - c0));
  const int8_t* from = data + first * columns + c0;
  for (int64_t row = 0; row < count; row++, from += columns, slice += HALF_CHUNK) {
    __builtin_prefetch(from + AHEAD * columns);
    const __m512h factor = _mm512_set1_ph(static_cast<_Float16>(scales[first + row] * scale));
    for (int v = 0; v < HALF_VECTORS; v++) {
      const int left = std::clamp(width - v * HALF_LANES, 0, HALF_LANES);
      const __m256i bytes = _mm256_maskz_loadu_epi8(left == HALF_LANES ? ~0u : (1u << left) - 1, from + v * HALF_LANES);
      const __m512h values = _mm512_cvtepi16_ph(_mm512_cvtepi8_epi16(bytes));
      _mm512_store_ph(slice + v * HALF_LANES, _mm512_mul_ph(values, factor));
    }
  }
}

// Copies a group of tables and returns by what its sums are to be multiplied.
float pack_group(const Table& table, int64_t first, int64_t count, int64_t c0, _Float16* slice) {
  if (table.element == Element::s8) {
    const float* scales = table.scales + first;
    float largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::fabs(scales[i]));
    const float scale = power_for(127 * largest);
    pack(static_cast<const int8_t*>(table.data), table.scales, table.columns, first, count, c0, scale, slice);
    return 1 / scale;
  }
  const auto* data = static_cast<const uint16_t*>(table.data);
  const float largest = pack(data, table.columns, first, count, c0, 1.f, slice);
  if (largest == 0 || !std::isfinite(largest) || (largest >= SMALLEST && largest <= LARGEST)) return 1.f;
  const float scale = power_for(largest);  // rare: tables are of the order of 0.02 to 1
  pack(data, table.columns, first, count, c0, scale, slice);
  return 1 / scale;
}

struct Span {
  int64_t group, tables, begin, end, c0;
  float own, before;  // by what the group's sums, and those of the groups before it, are multiplied when they are added
  float unit;         // of the sum of both
  bool first, last;   // of the groups
};

// sums [tokens of the span][HALF_CHUNK] (+)= the reads of one group for TOKENS tokens from m; the last group turns them
// into y.
template <int N, int TOKENS, bool BF16>
inline void add_reads(const _Float16* slice, const Table& table, const HalfReads& reads, const Span& span, int64_t m,
                      const float* bias, _Float16* sums, void* y) {
  const int64_t stride = table.rows * HALF_CHUNK, ld = reads.ld();
  const uint32_t* word = reads.words + (span.group * reads.tokens + m) * ld;
  __m512h sum[TOKENS][2][HALF_VECTORS] = {};
  const auto add = [&](int side, const _Float16* rows, int64_t read) {
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) {
      const uint16_t* parts = reinterpret_cast<const uint16_t*>(word + t * ld + read);
      const _Float16* row = rows + static_cast<int64_t>(parts[0]) * HALF_CHUNK;
      const __m512h score = (__m512h)_mm512_set1_epi16(static_cast<int16_t>(parts[1]));
#pragma GCC unroll 4
      for (int v = 0; v < HALF_VECTORS; v++)
        sum[t][side][v] = _mm512_fmadd_ph(score, _mm512_load_ph(row + v * HALF_LANES), sum[t][side][v]);
    }
  };
  const _Float16* rows = slice;
  int64_t k = 0;
  for (; k + 2 <= span.tables; k += 2, rows += 2 * stride, word += 2 * N)
    for (int n = 0; n < N; n++) {
      add(0, rows, n);
      add(1, rows + stride, N + n);
    }
  if (k < span.tables)
    for (int n = 0; n < N; n++) add(0, rows, n);
  const int64_t width = std::min<int64_t>(HALF_CHUNK, table.columns - span.c0);
  const vf own = broadcast(span.own), before = broadcast(span.before);
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; t++, sums += HALF_CHUNK) {
    vf total[HALF_CHUNK / VL];
    for (int v = 0; v < HALF_VECTORS; v++) {
      const __m512i both = (__m512i)(sum[t][0][v] + sum[t][1][v]);
      total[2 * v] = own * (vf)_mm512_cvtph_ps(_mm512_castsi512_si256(both));
      total[2 * v + 1] = own * (vf)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1));
    }
    __m256i* held = reinterpret_cast<__m256i*>(sums);
    if (!span.first)
      for (int v = 0; v < HALF_CHUNK / VL; v++) total[v] += before * (vf)_mm512_cvtph_ps(_mm256_load_si256(held + v));
    if (!span.last) {
      for (int v = 0; v < HALF_CHUNK / VL; v++) _mm256_store_si256(held + v, _mm512_cvtps_ph((__m512)total[v], 8));
      continue;
    }
    const vf factor = broadcast(span.unit * reads.factors[m + t]);
    for (int v = 0; v < HALF_CHUNK / VL; v++) total[v] = factor * total[v] + load(bias + v * VL);
    const int64_t at = (m + t) * table.columns + span.c0;
    for (int v = 0; v < HALF_VECTORS; v++) {
      const int64_t left = std::clamp<int64_t>(width - v * HALF_LANES, 0, HALF_LANES);
      const __mmask32 mask = left == HALF_LANES ? ~0u : (1u << left) - 1;
      if constexpr (BF16) {
        const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh((__m512)total[2 * v + 1], (__m512)total[2 * v]);
        _mm512_mask_storeu_epi16(static_cast<uint16_t*>(y) + at + v * HALF_LANES, mask, rounded);
      } else {
        float* out = static_cast<float*>(y) + at + v * HALF_LANES;
        _mm512_mask_storeu_ps(out, static_cast<__mmask16>(mask), (__m512)total[2 * v]);
        _mm512_mask_storeu_ps(out + VL, static_cast<__mmask16>(mask >> 16), (__m512)total[2 * v + 1]);
      }
    }
  }
}

template <int N, bool BF16>
void add_group(const _Float16* slice, const Table& table, const HalfReads& reads, const Span& span, const float* bias,
               _Float16* sums, void* y) {
  constexpr int TOKENS = 2, AHEAD = 16;
  const int64_t ld = reads.ld();
  const uint32_t* words = reads.words + span.group * reads.tokens * ld;
  int64_t m = span.begin;
  for (; m + TOKENS <= span.end; m += TOKENS, sums += TOKENS * HALF_CHUNK) {
    const char* later = reinterpret_cast<const char*>(words + (m + AHEAD) * ld);
    for (int64_t i = 0; i < TOKENS * ld * 4; i += 64) __builtin_prefetch(later + i);
    add_reads<N, TOKENS, BF16>(slice, table, reads, span, m, bias, sums, y);
  }
  for (; m < span.end; m++, sums += HALF_CHUNK) add_reads<N, 1, BF16>(slice, table, reads, span, m, bias, sums, y);
}

// More than gather.cpp's slices: every group costs a pass over the sums, and rows of half the size miss less.
int64_t half_slice_bytes() { return 2 * slice_bytes(); }

}  // namespace

int64_t half_group(const Table& table, int64_t tables) {
  const int64_t table_bytes = table.rows * HALF_CHUNK * static_cast<int64_t>(sizeof(_Float16));
  const int64_t most = std::clamp<int64_t>(half_slice_bytes() / table_bytes, 1, tables);
  const int64_t groups = (tables + most - 1) / most;
  return (tables + groups - 1) / groups;
}

bool half_serves(const Table& table, int64_t tokens, int probes) {
  return table.element != Element::f32 && tokens >= VL && table.rows <= 65536 && slices_pay(table.rows, tokens, probes);
}

void put_reads(const HalfReads& to, int64_t first, const int32_t* codes, const float* scores, int64_t ld) {
  const int64_t reads = to.tables * to.probes;
  vf sum = {};
  for (int64_t r = 0; r < reads; r++) sum += magnitude(load(scores + r * ld));
  vi exponent = (float_to_bits(sum) >> 23) - SCORE_BITS;  // NaN and infinity stay what they are under any factor
  exponent = exponent < 1 ? broadcast(1) : exponent;
  const vf inverse = bits_to_float((254 - exponent) << 23);
  store(to.factors + first, bits_to_float(exponent << 23));
  const int64_t ld_words = to.ld(), count = std::min<int64_t>(VL, to.tokens - first);
  for (int64_t r = 0, g = 0; r < reads; r += ld_words, g++)
    for (int64_t c = 0; c < std::min(ld_words, reads - r); c += VL) {
      const int width = static_cast<int>(std::min<int64_t>(VL, std::min(ld_words, reads - r) - c));
      vf words[VL] = {};
      for (int i = 0; i < width; i++) {
        const int64_t at = (r + c + i) * ld;
        const __m512i half = _mm512_cvtepu16_epi32(_mm512_cvtps_ph((__m512)(load(scores + at) * inverse), 8));
        words[i] = (vf)(vi)_mm512_or_si512(_mm512_slli_epi32(half, 16), (__m512i)load(codes + at));
      }
      transpose(words);
      uint32_t* out = to.words + (g * to.tokens + first) * ld_words + c;
      for (int t = 0; t < count; t++, out += ld_words)
        _mm512_mask_storeu_epi32(out, static_cast<__mmask16>((1u << width) - 1), (__m512i)words[t]);
    }
}

void gather_half(const Table& table, const HalfReads& reads, const float* bias, void* y, bool bf16) {
  const int64_t columns = table.columns, chunks = (columns + HALF_CHUNK - 1) / HALF_CHUNK;
  const int64_t splits = token_splits(chunks, num_threads(), reads.tokens);
  const int64_t group = reads.group, groups = reads.groups();
  parallel_tasks(chunks * splits, [&](int64_t task) {
    static thread_local Scratch slice_memory, sum_memory;
    const int64_t split = task % splits;
    Span span{};
    span.c0 = task / splits * HALF_CHUNK;
    span.begin = reads.tokens * split / splits;
    span.end = reads.tokens * (split + 1) / splits;
    _Float16* slice = slice_memory.get<_Float16>(group * table.rows * HALF_CHUNK);
    _Float16* sums = sum_memory.get<_Float16>((span.end - span.begin) * HALF_CHUNK);
    float start[HALF_CHUNK] = {};
    std::copy(bias + span.c0, bias + std::min(columns, span.c0 + HALF_CHUNK), start);
    for (span.group = 0; span.group < groups; span.group++) {
      const int64_t k = span.group * group;
      span.tables = std::min(group, reads.tables - k);
      span.first = span.group == 0;
      span.last = span.group + 1 == groups;
      const float own = pack_group(table, k * table.rows, span.tables * table.rows, span.c0, slice);
      const float unit = span.first ? own : std::max(own, span.unit);  // the larger, so that no sum overflows
      span.own = own / unit;
      span.before = span.first ? 0.f : span.unit / unit;
      span.unit = unit;
      const auto add = [&](auto n) {
        if (bf16) add_group<n(), true>(slice, table, reads, span, start, sums, y);
        else add_group<n(), false>(slice, table, reads, span, start, sums, y);
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
  });
}

}  // namespace lookupffn

#else

namespace lookupffn {

bool half_serves(const Table&, int64_t, int) { return false; }
int64_t half_group(const Table&, int64_t tables) { return tables; }
void put_reads(const HalfReads&, int64_t, const int32_t*, const float*, int64_t) {}
void gather_half(const Table&, const HalfReads&, const float*, void*, bool) {}

}  // namespace lookupffn

#endif
