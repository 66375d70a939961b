// Codes, scores and their gradient for VL (token, table) pairs at once; see ../hash.py for the mathematics.
#pragma once

#include "simd.h"

namespace lookupffn {

// From ../limits.py.
constexpr int MAX_BITS = LFFN_MAX_BITS;
constexpr int MAX_PROBES = LFFN_MAX_PROBES;
static_assert(MAX_PROBES == 4, "hash_lanes keeps four terms");

// z: [bits] vectors. codes, scores: [N] vectors, largest softmax term first.
template <int N>
inline void hash_lanes(const vf* z, int bits, vi* codes, vf* scores) {
  const vf infinity = broadcast(std::numeric_limits<float>::infinity());
  vf total = {}, normaliser = broadcast(1.f);
  vi code = {};
  vf least[3] = {infinity, infinity, infinity};  // the smallest magnitudes, ascending
  vi flip[3] = {};                               // their bits
  for (int j = 0; j < bits; j++) {
    vf v = z[j], a = magnitude(v);
    vi bit = broadcast(static_cast<int32_t>(1) << j);
    total += a;
    normaliser += normaliser * decay(a);  // NaN reaches the score through total
    code |= (v > 0.f) & bit;
    if constexpr (N == 2) {
      vi less = a < least[0];
      least[0] = less ? a : least[0];
      flip[0] = less ? bit : flip[0];
    }
    if constexpr (N > 2) {
      vf value = a;
      vi which = bit;
      for (int i = 0; i < N - 1; i++) {  // insert, carrying the larger one on
        vi less = value < least[i];
        vf carried = less ? least[i] : value;
        vi carried_bit = less ? flip[i] : which;
        least[i] = less ? value : least[i];
        flip[i] = less ? which : flip[i];
        value = carried;
        which = carried_bit;
      }
    }
  }
  vf weight = 1.f / normaliser;
  codes[0] = code;
  scores[0] = total * weight;
  if constexpr (N > 1) {
    vf mass[MAX_PROBES] = {vf{}, least[0], least[1], vf{}};
    vi flips[MAX_PROBES] = {vi{}, flip[0], flip[1], vi{}};
    if constexpr (N > 3) {
      vf both = least[0] + least[1];
      vi third = least[2] < both;
      mass[3] = third ? least[2] : both;
      flips[3] = third ? flip[2] : (flip[0] | flip[1]);
    }
    for (int n = 1; n < N; n++) {
      codes[n] = code ^ flips[n];
      scores[n] = (total - 2.f * mass[n]) * (exp_nonpositive(-2.f * mass[n]) * weight);
    }
  }
}

// grad_z [bits] from grad_scores [N] and what hash_lanes returned.
inline void hash_backward_lanes(const vf* z, int bits, int N, const vi* codes, const vf* scores, const vf* grad_scores,
                                vf* grad_z) {
  vf falls[MAX_BITS], below[MAX_BITS];  // e^(-2|z|), and the normaliser of the bits below
  vf normaliser = broadcast(1.f);
  vf mass[MAX_PROBES] = {};
  for (int j = 0; j < bits; j++) {
    vf a = magnitude(z[j]);
    falls[j] = decay(a);
    below[j] = normaliser;
    normaliser += normaliser * falls[j];
    for (int n = 1; n < N; n++) mass[n] += ((codes[n] ^ codes[0]) & (1 << j)) != 0 ? a : vf{};
  }
  // sum of g (p + s) sign - g s tanh|z|, arranged so that nothing cancels where tanh|z| is nearly 1
  vf along_sign[MAX_PROBES], along_weight = {}, along_score = {};
  const vf inverse = 1.f / normaliser;
  for (int n = 0; n < N; n++) {
    vf weight = n ? exp_nonpositive(-2.f * mass[n]) * inverse : inverse;
    along_sign[n] = grad_scores[n] * (weight + scores[n]);
    along_weight += grad_scores[n] * weight;
    along_score += grad_scores[n] * scores[n];
  }
  along_score *= 2.f * inverse;
  for (int j = bits - 1; j >= 0; j--) {
    // along_score has the normaliser of the bits above as a factor: with that of the bits below it is 1 / (1 + falls)
    vf toward = along_weight + along_score * (below[j] * falls[j]);
    along_score += along_score * falls[j];
    for (int n = 1; n < N; n++) toward -= ((codes[n] ^ codes[0]) & (1 << j)) != 0 ? 2.f * along_sign[n] : vf{};
    grad_z[j] = z[j] > 0.f ? toward : -toward;
  }
}

inline void hash_lanes(const vf* z, int bits, int N, vi* codes, vf* scores) {
  switch (N) {
    case 1:
      return hash_lanes<1>(z, bits, codes, scores);
    case 2:
      return hash_lanes<2>(z, bits, codes, scores);
    case 3:
      return hash_lanes<3>(z, bits, codes, scores);
    default:
      return hash_lanes<4>(z, bits, codes, scores);
  }
}

// dst[c][lane] = src[lane * stride + c] for lanes < rows, else 0; dst has room for cols rounded up to VL vectors.
inline void load_transposed(const float* src, int64_t stride, int rows, int64_t cols, vf* dst) {
  for (int64_t c = 0; c < cols; c += VL) {
    const int width = cols - c < VL ? static_cast<int>(cols - c) : VL;
    for (int i = 0; i < VL; i++) {
      dst[c + i] = vf{};
      if (i >= rows) continue;
      const float* from = src + i * stride + c;
      if (width == VL) dst[c + i] = load(from);
      else std::memcpy(&dst[c + i], from, width * sizeof(float));
    }
    transpose(dst + c);
  }
}

// dst[lane * stride + c] = src[c][lane] for lanes < rows. Destroys src.
inline void store_transposed(vf* src, int64_t cols, float* dst, int64_t stride, int rows) {
  for (int64_t c = 0; c < cols; c += VL) {
    const int width = cols - c < VL ? static_cast<int>(cols - c) : VL;
    transpose(src + c);
    for (int i = 0; i < rows; i++) {
      if (width == VL) store(dst + i * stride + c, src[c + i]);
      else std::memcpy(dst + i * stride + c, &src[c + i], width * sizeof(float));
    }
  }
}

}  // namespace lookupffn
