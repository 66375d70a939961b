// Sums of 64 columns over rows of int8, four rows to a multiply-add.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace lookupffn {

constexpr int64_t CHUNK_BYTES = 64;

// Where in the 64 bytes of a row of table k column c lies: four rows of consecutive tables then become vectors with the
// same column of each in four neighbouring bytes by blends alone.
inline int64_t place(int64_t k, int64_t c) { return c % 16 * 4 + (c / 16 ^ k % 4); }

// Sums of 64 columns over `count` reads (a multiple of 4), added to `sums`.
inline void sum_reads_plain(const uint8_t* chunk, const uint32_t* offsets, const int8_t* weights, int64_t count,
                            int32_t* sums) {
  for (int64_t r = 0; r < count; r++) {
    const uint8_t* row = chunk + offsets[r];
    const int32_t weight = weights[r];
    for (int64_t c = 0; c < CHUNK_BYTES; c++) sums[c] += weight * row[place(r, c)];
  }
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LFFN_FAST_SUMS 1

inline __m512i row_at(const uint8_t* p) { return _mm512_load_si512(p); }

// Byte i of each word of w becomes its byte `order[i]`.
template <int B0, int B1, int B2, int B3>
inline __m512i reordered(__m512i w) {
  constexpr int ORDER = B0 | B1 << 8 | B2 << 16 | B3 << 24, NEXT = 0x04040404;
  return _mm512_shuffle_epi8(w, _mm512_set4_epi32(ORDER + 3 * NEXT, ORDER + 2 * NEXT, ORDER + NEXT, ORDER));
}

inline void sum_reads(const uint8_t* chunk, const uint32_t* offsets, const int8_t* weights, int64_t count,
                      int32_t* sums) {
  constexpr __mmask64 ODD = 0xaaaaaaaaaaaaaaaa, HIGH = 0xcccccccccccccccc;
  const auto blend = [](__mmask64 mask, __m512i a, __m512i b) { return _mm512_mask_blend_epi8(mask, a, b); };
  __m512i sum[4];
  for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_si512(sums + 16 * i);
  for (int64_t r = 0; r < count; r += 4) {
    const __m512i a = row_at(chunk + offsets[r]), b = row_at(chunk + offsets[r + 1]);
    const __m512i c = row_at(chunk + offsets[r + 2]), d = row_at(chunk + offsets[r + 3]);
    int32_t four;
    std::memcpy(&four, weights + r, 4);
    const __m512i w = _mm512_set1_epi32(four);
    // byte i of a word is of row i in the first vector, of row i ^ v in vector v
    const __m512i ab = blend(ODD, a, b), ba = blend(ODD, b, a), cd = blend(ODD, c, d), dc = blend(ODD, d, c);
    sum[0] = _mm512_dpbusd_epi32(sum[0], blend(HIGH, ab, cd), w);
    sum[1] = _mm512_dpbusd_epi32(sum[1], blend(HIGH, ba, dc), reordered<1, 0, 3, 2>(w));
    sum[2] = _mm512_dpbusd_epi32(sum[2], blend(HIGH, cd, ab), reordered<2, 3, 0, 1>(w));
    sum[3] = _mm512_dpbusd_epi32(sum[3], blend(HIGH, dc, ba), reordered<3, 2, 1, 0>(w));
  }
  for (int i = 0; i < 4; i++) _mm512_storeu_si512(sums + 16 * i, sum[i]);
}
#endif

}  // namespace lookupffn
