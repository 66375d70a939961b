// What happens to one row of floats between two products: LayerNorm, GELU. Row lengths are multiples of 16.
#pragma once

#include <cmath>
#include <cstdint>

#include "quantize.h"
#include "simd.h"

namespace lookupffn {

inline float sum_lanes(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float sum = 0;
  for (int i = 0; i < VL; i++) sum += v[i];
  return sum;
#endif
}

// x Phi(x) to 4e-5: Phi(x) - 1/2 = x P(x^2), P of degree 8 fitted on |x| < 4.5.
inline vf gelu(vf x) {
  vf c = x < 4.5f ? x : broadcast(4.5f);
  c = c > -4.5f ? c : broadcast(-4.5f);
  const vf t = c * c * (2.f / (4.5f * 4.5f)) - 1.f;
  vf p = t * 0.00335312495f - 0.00932785403f;
  p = p * t + 0.0122090727f;
  p = p * t - 0.016744826f;
  p = p * t + 0.0276293013f;
  p = p * t - 0.0405555293f;
  p = p * t + 0.0548185594f;
  p = p * t - 0.077171974f;
  p = p * t + 0.15690212f;
  return x * (0.5f + c * p);
}

// 2^x for x <= 0 to 3e-6; below 2^-126 it stays there.
inline vf exp2_nonpositive(vf x) {
#if defined(__AVX512F__)
  x = _mm512_max_ps(broadcast(-126.f), x);
  const vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = x - n;
#else
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x > -126.f ? x : broadcast(-126.f);
  const vf shifted = x + magic, r = x - (shifted - magic);
#endif
  vf p = r * 0.00957009476f + 0.0559178665f;
  p = p * r + 0.240247443f;
  p = p * r + 0.693121791f;
  p = p * r + 0.999999285f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
#endif
}

// out = (x - mean) / sqrt(var + eps) * gain + bias; out may be x.
inline void layer_norm(const float* x, const float* gain, const float* bias, float eps, int64_t n, float* out) {
  vf sum = {};
  for (int64_t c = 0; c < n; c += VL) sum += load(x + c);
  const float mean = sum_lanes(sum) / static_cast<float>(n);
  vf squares = {};
  for (int64_t c = 0; c < n; c += VL) {
    const vf centred = load(x + c) - mean;
    squares += centred * centred;
  }
  const float inverse = 1.f / std::sqrt(sum_lanes(squares) / static_cast<float>(n) + eps);
  for (int64_t c = 0; c < n; c += VL) store(out + c, (load(x + c) - mean) * inverse * load(gain + c) + load(bias + c));
}

}  // namespace lookupffn
