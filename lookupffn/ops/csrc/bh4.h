// BH4 for a tile of tokens: four block products, each followed by the across-block Hadamard transform. The within-block
// part, the scale and alpha are folded into the weights (../bh4/cpu.py).
#pragma once

#include <utility>

#include "simd.h"

namespace lookupffn {

struct Bh4 {
  const float* weight;  // [copies][4][blocks][block][block], block a multiple of 16
  int64_t copies, blocks, block;
  int64_t padded() const { return blocks * block; }
};

// out[t][c..] = in[t][:] @ w[:, c..] for MT tokens and NV vectors of columns.
struct FloatStrip {
  using In = float;
  using Weight = float;

  template <int NV, int MT>
  static void run(const float* in, int64_t in_ld, const float* w, int64_t block, float* out) {
    vf sum[MT][NV];
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[t][v] = vf{};
    for (int64_t k = 0; k < block; k++, w += block) {
      vf row[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) row[v] = load(w + v * VL);
#pragma GCC unroll 16
      for (int t = 0; t < MT; t++) {
        const vf a = broadcast(in[t * in_ld + k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum[t][v] += a * row[v];
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < MT; t++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) store(out + t * block + v * VL, sum[t][v]);
  }
};

template <class Strip, int NV, int MT>
inline void product_rest(const typename Strip::In* in, int64_t in_ld, const typename Strip::Weight* w, int64_t block,
                         float* out, int tokens) {
  if constexpr (MT > 0) {
    if (tokens == MT) return Strip::template run<NV, MT>(in, in_ld, w, block, out);
    return product_rest<Strip, NV, MT - 1>(in, in_ld, w, block, out, tokens);
  }
}

// out [tokens][block] = in [tokens][block of row stride in_ld] @ w [block][block], MT tokens and NV vectors of columns
// at a time.
template <class Strip, int NV, int MT>
inline void strips_product(const typename Strip::In* in, int64_t in_ld, const typename Strip::Weight* w, int64_t block,
                           float* out, int tokens) {
  for (int64_t c = 0; c < block; c += NV * VL) {
    int t = 0;
    for (; t + MT <= tokens; t += MT)
      Strip::template run<NV, MT>(in + t * in_ld, in_ld, w + c, block, out + t * block + c);
    product_rest<Strip, NV, MT - 1>(in + t * in_ld, in_ld, w + c, block, out + t * block + c, tokens - t);
  }
}

inline void block_product(const float* in, int64_t in_ld, const float* w, int64_t block, float* out, int tokens) {
#if LFFN_VECTOR_BYTES == 64
  if (block == 16) return strips_product<FloatStrip, 1, 12>(in, in_ld, w, block, out, tokens);
  if (block == 32) return strips_product<FloatStrip, 2, 12>(in, in_ld, w, block, out, tokens);
  return strips_product<FloatStrip, 4, 6>(in, in_ld, w, block, out, tokens);
#elif LFFN_VECTOR_BYTES == 32
  return strips_product<FloatStrip, 2, 6>(in, in_ld, w, block, out, tokens);
#else
  return strips_product<FloatStrip, 4, 6>(in, in_ld, w, block, out, tokens);
#endif
}

// v becomes its unscaled Hadamard transform, lane by lane.
template <int R>
inline void butterflies(vf* v) {
#pragma GCC unroll 3
  for (int s = 1; s < R; s *= 2)
#pragma GCC unroll 8
    for (int j = 0; j < R; j++)
      if (!(j & s)) {
        const vf a = v[j], b = v[j + s];
        v[j] = a + b;
        v[j + s] = a - b;
      }
}

// R values `step` apart become their Hadamard transform, for n floats from each.
template <int R>
inline void butterfly(float* h, int64_t step, int64_t n) {
  for (int64_t i = 0; i < n; i += VL) {
    vf v[R];
#pragma GCC unroll 8
    for (int j = 0; j < R; j++) v[j] = load(h + j * step + i);
    butterflies<R>(v);
#pragma GCC unroll 8
    for (int j = 0; j < R; j++) store(h + j * step + i, v[j]);
  }
}

// The unscaled Hadamard transform over `blocks` pieces of n floats (n a multiple of VL), `stride` floats apart.
inline void across_blocks(float* h, int64_t blocks, int64_t stride, int64_t n) {
  for (int64_t done = 1; done < blocks;) {
    const int64_t radix = blocks / done < 8 ? blocks / done : 8;
    for (int64_t first = 0; first < blocks; first += done * radix)
      for (int64_t j = 0; j < done; j++) {
        float* from = h + (first + j) * stride;
        if (radix == 8) butterfly<8>(from, done * stride, n);
        else if (radix == 4) butterfly<4>(from, done * stride, n);
        else butterfly<2>(from, done * stride, n);
      }
    done *= radix;
  }
}

// grad_w [block][block] += in^T @ grad: MT rows and NV vectors of columns at a time.
template <int NV, int MT>
inline void outer_strip(const float* in, int64_t in_ld, const float* grad, int64_t block, int tokens, float* grad_w) {
  vf sum[MT][NV];
#pragma GCC unroll 16
  for (int k = 0; k < MT; k++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) sum[k][v] = load(grad_w + k * block + v * VL);
  for (int t = 0; t < tokens; t++, in += in_ld, grad += block) {
    vf row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) row[v] = load(grad + v * VL);
#pragma GCC unroll 16
    for (int k = 0; k < MT; k++) {
      const vf a = broadcast(in[k]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[k][v] += a * row[v];
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < MT; k++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) store(grad_w + k * block + v * VL, sum[k][v]);
}

template <int NV, int MT>
inline void outer_product(const float* in, int64_t in_ld, const float* grad, int64_t block, int tokens, float* grad_w) {
  for (int64_t c = 0; c < block; c += NV * VL) {
    int64_t k = 0;
    for (; k + MT <= block; k += MT)
      outer_strip<NV, MT>(in + k, in_ld, grad + c, block, tokens, grad_w + k * block + c);
    for (; k < block; k++) outer_strip<NV, 1>(in + k, in_ld, grad + c, block, tokens, grad_w + k * block + c);
  }
}

inline void outer_product(const float* in, int64_t in_ld, const float* grad, int64_t block, int tokens, float* grad_w) {
  // MT divides every block
#if LFFN_VECTOR_BYTES == 64
  if (block == 16) return outer_product<1, 16>(in, in_ld, grad, block, tokens, grad_w);
  if (block == 32) return outer_product<2, 8>(in, in_ld, grad, block, tokens, grad_w);
  return outer_product<4, 4>(in, in_ld, grad, block, tokens, grad_w);
#elif LFFN_VECTOR_BYTES == 32
  return outer_product<2, 4>(in, in_ld, grad, block, tokens, grad_w);
#else
  return outer_product<4, 4>(in, in_ld, grad, block, tokens, grad_w);
#endif
}

// One factor: out [blocks][tokens][block] = the transform of in @ w, block by block; in_step between blocks of in.
inline void bh4_factor(const float* w, int64_t blocks, int64_t block, const float* in, int64_t in_ld, int64_t in_step,
                       int tokens, float* out) {
  const int64_t piece = tokens * block;
  for (int64_t g = 0; g < blocks; g++)
    block_product(in + g * in_step, in_ld, w + g * block * block, block, out + g * piece, tokens);
  across_blocks(out, blocks, piece, piece);
}

// One copy of BH4. x: [tokens][padded size], row stride x_ld. Two buffers [blocks][tokens][block]; returns the one
// that holds the result.
inline float* bh4_tile(const Bh4& p, int64_t copy, const float* x, int64_t x_ld, int tokens, float* buffer,
                       float* other) {
  const int64_t factor_size = p.padded() * p.block;
  const float* w = p.weight + copy * 4 * factor_size;
  bh4_factor(w, p.blocks, p.block, x, x_ld, p.block, tokens, buffer);
  for (int factor = 1; factor < 4; factor++) {
    bh4_factor(w + factor * factor_size, p.blocks, p.block, buffer, p.block, tokens * p.block, tokens, other);
    std::swap(buffer, other);
  }
  return buffer;
}

}  // namespace lookupffn
