// Attention of packed sequences (no padding): for each head softmax(Q K^T) V, Q already scaled by log2(e) / sqrt(size).
//
// One task is a head of a sequence, or a part of its queries. Keys and values are laid out once a task, so that both
// products read whole vectors; a strip of queries holds its scores for all keys, so softmax is exact.
#pragma once

#include <algorithm>
#include <cstdint>

#include "int8_product.h"
#include "rows.h"

namespace lookupffn {

// Products in float32, or of bfloat16 pairs summed in float32.
struct Exact {
  using Element = float;
  static constexpr int PAIR = 1;  // elements a 32-bit word
  static void put(float* p, vf v) { store(p, v); }
  static vf dot(vf sum, const float* a, const float* b) { return sum + broadcast(*a) * load(b); }
};

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define LFFN_BF16_DOT 1
struct Bf16 {
  using Element = uint16_t;
  static constexpr int PAIR = 2;
  static void put(uint16_t* p, vf v) { store_bf16(p, v); }
  static vf dot(vf sum, const float* a, const float* b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)broadcast(*a), (__m512bh)load(b));
  }
};
#endif

#if LFFN_VECTOR_BYTES == 64
constexpr int QUERY_ROWS = 6, KEY_VECTORS = 4;
#else
constexpr int QUERY_ROWS = 4, KEY_VECTORS = 2;
#endif

// sum[r][v] = a[r] @ panel v. Everything in 32-bit words; a panel is [steps][VL].
template <class D, int ROWS, int NV>
inline void panel_product(const float* a, int64_t lda, const float* panels, int64_t panel_size, int64_t steps,
                          vf (&sum)[ROWS][NV]) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) sum[r][v] = vf{};
  for (int64_t k = 0; k < steps; k++)
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[r][v] = D::dot(sum[r][v], a + r * lda + k, panels + v * panel_size + k * VL);
}

// f(r, first column, vector) for all panels, KEY_VECTORS at a time.
template <class D, int ROWS, int NV = KEY_VECTORS, class F>
inline void panel_products(const float* a, int64_t lda, const float* panels, int64_t count, int64_t steps, const F& f,
                           int64_t from = 0) {
  int64_t p = from;
  for (; p + NV <= count; p += NV) {
    vf sum[ROWS][NV];
    panel_product<D, ROWS, NV>(a, lda, panels + p * steps * VL, steps * VL, steps, sum);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) f(r, (p + v) * VL, sum[r][v]);
  }
  if constexpr (NV > 1)
    if (p < count) panel_products<D, ROWS, NV / 2>(a, lda, panels, count, steps, f, p);
}

struct HeadInput {
  const void* q;  // first row of the sequence; rows are `ld` elements apart
  const void* k;
  const void* v;
  int64_t ld, length, size;  // size: of the head, a multiple of 16
};

// Keys as panels [keys / VL][size / PAIR][VL], values as [size / VL][keys / PAIR][VL]; zeros beyond the last key.
template <class D>
inline void lay_out(const HeadInput& in, int64_t padded, float* keys, float* values) {
  using E = typename D::Element;
  const E* k = static_cast<const E*>(in.k);
  const E* v = static_cast<const E*>(in.v);
  const int64_t words = in.size / D::PAIR;
  for (int64_t t = 0; t < padded; t += VL)
    for (int64_t w = 0; w < words; w += VL) {
      vf block[VL];
      const int64_t width = std::min<int64_t>(VL, words - w);
      for (int i = 0; i < VL; i++) {
        block[i] = vf{};
        if (t + i < in.length)
          std::memcpy(&block[i], reinterpret_cast<const float*>(k + (t + i) * in.ld) + w, width * sizeof(float));
      }
      transpose(block);
      for (int64_t i = 0; i < width; i++) store(keys + t * words + (w + i) * VL, block[i]);
    }
  const int64_t steps = padded / D::PAIR;
  for (int64_t t = 0; t < padded; t += D::PAIR)
    for (int64_t c = 0; c < in.size; c += VL) {
      float* to = values + c * steps + t / D::PAIR * VL;
      if constexpr (D::PAIR == 1) {
        store(to, t < in.length ? load(v + t * in.ld + c) : vf{});
      } else {
        const auto wide = [&](int64_t row) {
          vi bits = {};
          if (row < in.length) {
#if defined(__AVX512F__)
            bits = (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + row * in.ld + c)));
#else
            for (int i = 0; i < VL; i++) bits[i] = v[row * in.ld + c + i];
#endif
          }
          return bits;
        };
        store(to, bits_to_float(wide(t) | (wide(t + 1) << 16)));
      }
    }
}

template <class D, int ROWS>
inline void attend_strip(const HeadInput& in, int64_t query, int64_t padded, const float* keys, const float* values,
                         float* scores, float* shares, float* out, int64_t out_ld) {
  using E = typename D::Element;
  const float* q = reinterpret_cast<const float*>(static_cast<const E*>(in.q) + query * in.ld);
  panel_products<D, ROWS>(q, in.ld / D::PAIR, keys, padded / VL, in.size / D::PAIR,
                          [&](int r, int64_t c, vf s) { store(scores + r * padded + c, s); });
  float inverse[ROWS];
  for (int r = 0; r < ROWS; r++) {
    float* row = scores + r * padded;
    std::fill(row + in.length, row + padded, -std::numeric_limits<float>::infinity());
    vf most = load(row);
    for (int64_t c = VL; c < padded; c += VL) {
      const vf s = load(row + c);
      most = s > most ? s : most;
    }
    float largest = most[0];
    for (int i = 1; i < VL; i++) largest = most[i] > largest ? most[i] : largest;
    vf total = {};
    E* share = reinterpret_cast<E*>(shares) + r * padded;
    for (int64_t c = 0; c < padded; c += VL) {
      const vf s = load(row + c), p = exp2_nonpositive(s - largest);
      total += s == s ? p : s;  // exp2 would turn NaN into a number
      D::put(share + c, p);
    }
    inverse[r] = 1.f / sum_lanes(total);
  }
  panel_products<D, ROWS>(shares, padded / D::PAIR, values, in.size / VL, padded / D::PAIR,
                          [&](int r, int64_t c, vf sum) { store(out + (query + r) * out_ld + c, sum * inverse[r]); });
}

template <class D, int ROWS, class... ARGS>
inline void attend_rest(int rows, ARGS... args) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return attend_strip<D, ROWS>(args...);
    return attend_rest<D, ROWS - 1>(rows, args...);
  }
}

// out[query][size] for the queries [begin, end) of one head.
template <class D>
inline void attend(const HeadInput& in, int64_t begin, int64_t end, float* out, int64_t out_ld) {
  static thread_local Scratch memory;
  const int64_t padded = rounded_up(in.length, VL);
  float* keys = memory.get<float>(2 * padded * in.size + 2 * QUERY_ROWS * padded);
  float* values = keys + padded * in.size;
  float* scores = values + padded * in.size;
  float* shares = scores + QUERY_ROWS * padded;
  lay_out<D>(in, padded, keys, values);
  for (int64_t query = begin; query < end; query += QUERY_ROWS)
    attend_rest<D, QUERY_ROWS>(static_cast<int>(std::min<int64_t>(QUERY_ROWS, end - query)), in, query, padded, keys,
                               values, scores, shares, out, out_ld);
}

}  // namespace lookupffn
