// Rounding rows of floats to int8, and vectors to bfloat16.
#pragma once

#include <cstdint>

#include "simd.h"

namespace lookupffn {

inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }

inline int32_t largest_lane(vi v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t largest = v[0];
  for (int i = 1; i < VL; i++) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

// The low byte of each lane.
inline void store_bytes(uint8_t* p, vi v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < VL; i++) p[i] = static_cast<uint8_t>(v[i]);
#endif
}

inline void store_bf16(uint16_t* p, vf v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
#else
  const vi bits = float_to_bits(v), rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const vi result = v == v ? rounded : (bits | 0x400000);
  for (int i = 0; i < VL; i++) p[i] = static_cast<uint16_t>(static_cast<uint32_t>(result[i]) >> 16);
#endif
}

// x = scale * (out - 128), |out - 128| <= 127; what is beyond n up to `padded` becomes 128. Returns the scale: NaN or
// infinite where x has such a number, so that every product of the row is NaN or infinite too.
inline float quantize_row(const float* x, int64_t n, int64_t padded, uint8_t* out) {
  vi most = {};
  for (int64_t c = 0; c < n; c += VL) {
    const vi bits = float_to_bits(load(x + c)) & 0x7fffffff;  // NaN is above infinity
    most = bits > most ? bits : most;
  }
  const int32_t largest_bits = largest_lane(most);
  float largest;
  std::memcpy(&largest, &largest_bits, sizeof largest);
  const float magic = 12582912.f;
  const bool finite = largest_bits < 0x7f800000;
  const float inverse = finite && largest > 1e-30f ? 127.f / largest : 0.f;
  for (int64_t c = 0; c < n; c += VL) {
    const vf x_here = finite ? load(x + c) : vf{};
    store_bytes(out + c, float_to_bits(x_here * inverse + magic) + 128);
  }
  std::memset(out + n, 128, padded - n);
  return finite && largest <= 1e-30f ? 0.f : largest * (1.f / 127.f);
}

}  // namespace lookupffn
