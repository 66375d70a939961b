// BH4 with weights and activations in bfloat16 and sums in float32, on AVX512-BF16: twice the rate of float32. Rounding
// changes one code in 100 (the int8 product changes 3).
#pragma once

#include "bh4.h"
#include "quantize.h"

#if defined(__AVX512BF16__)
#define LFFN_BF16_BH4 1

namespace lookupffn {

// Rows [block][block] as pairs of rows: [block / 2][block] words, the lower half of a word from the first row.
inline void pack_pairs(const float* w, int64_t block, uint32_t* out) {
  const auto half = [](float x) {
    const vf v = broadcast(x);
    uint16_t rounded[VL];
    store_bf16(rounded, v);
    return static_cast<uint32_t>(rounded[0]);
  };
  for (int64_t k = 0; k < block; k += 2)
    for (int64_t c = 0; c < block; c++) *out++ = half(w[k * block + c]) | half(w[(k + 1) * block + c]) << 16;
}

// As FloatStrip, two rows of weights at a time.
struct PairsStrip {
  using In = uint16_t;
  using Weight = uint32_t;

  template <int NV, int MT>
  static void run(const uint16_t* in, int64_t in_ld, const uint32_t* w, int64_t block, float* out) {
    __m512 sum[MT][NV];
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[t][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < block; k += 2, w += block) {
      __m512bh row[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) row[v] = (__m512bh)_mm512_loadu_si512(w + v * VL);
#pragma GCC unroll 16
      for (int t = 0; t < MT; t++) {
        int32_t pair;
        std::memcpy(&pair, in + t * in_ld + k, sizeof pair);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum[t][v] = _mm512_dpbf16_ps(sum[t][v], a, row[v]);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) _mm512_storeu_ps(out + t * block + v * VL, sum[t][v]);
  }
};

inline void pairs_product(const uint16_t* in, int64_t in_ld, const uint32_t* w, int64_t block, float* out, int tokens) {
  if (block == 16) return strips_product<PairsStrip, 1, 16>(in, in_ld, w, block, out, tokens);
  if (block == 32) return strips_product<PairsStrip, 2, 12>(in, in_ld, w, block, out, tokens);
  return strips_product<PairsStrip, 4, 6>(in, in_ld, w, block, out, tokens);
}

// The last pass of a transform: as butterfly, the results rounded and written elsewhere.
template <int R>
inline void butterfly_to_bf16(const float* h, int64_t step, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += VL) {
    vf v[R];
#pragma GCC unroll 8
    for (int j = 0; j < R; j++) v[j] = load(h + j * step + i);
    butterflies<R>(v);
#pragma GCC unroll 8
    for (int j = 0; j < R; j++) store_bf16(out + j * step + i, v[j]);
  }
}

// across_blocks over contiguous pieces, rounded to `out`; destroys h.
inline void across_blocks_to_bf16(float* h, int64_t blocks, int64_t piece, uint16_t* out) {
  const int64_t radix = blocks < 8 ? blocks : 8, before = blocks / radix;
  for (int64_t group = 0; group < radix; group++) across_blocks(h + group * before * piece, before, piece, piece);
  for (int64_t j = 0; j < before; j++) {
    const float* from = h + j * piece;
    uint16_t* to = out + j * piece;
    const int64_t step = before * piece;
    if (radix == 8) butterfly_to_bf16<8>(from, step, piece, to);
    else if (radix == 4) butterfly_to_bf16<4>(from, step, piece, to);
    else if (radix == 2) butterfly_to_bf16<2>(from, step, piece, to);
    else butterfly_to_bf16<1>(from, step, piece, to);
  }
}

// One copy of BH4, weights [4][blocks][block / 2][block] words. x: [tokens][blocks * block]. `halves` and `sums` hold
// [blocks][tokens][block]; the result is in `sums`.
inline void bh4_tile_bf16(const uint32_t* w, int64_t blocks, int64_t block, const uint16_t* x, int tokens,
                          uint16_t* halves, float* sums) {
  const int64_t piece = tokens * block, words = block * block / 2;
  for (int factor = 0; factor < 4; factor++) {
    for (int64_t g = 0; g < blocks; g++, w += words)
      pairs_product(factor ? halves + g * piece : x + g * block, factor ? block : blocks * block, w, block,
                    sums + g * piece, tokens);
    if (factor < 3) across_blocks_to_bf16(sums, blocks, piece, halves);
    else across_blocks(sums, blocks, piece, piece);
  }
}

}  // namespace lookupffn

#endif
