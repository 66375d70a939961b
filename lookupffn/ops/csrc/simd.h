// Vectors of the machine's width through GCC/Clang vector extensions: AVX-512, AVX2, NEON or anything else the compiler
// knows, from one source.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#if defined(__AVX__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
#define LFFN_VECTOR_BYTES 64
#define LFFN_REGISTERS 32
#elif defined(__AVX__)
#define LFFN_VECTOR_BYTES 32
#define LFFN_REGISTERS 16
#else
#define LFFN_VECTOR_BYTES 16
#define LFFN_REGISTERS 32
#endif

namespace lookupffn {

constexpr int VL = LFFN_VECTOR_BYTES / 4;  // floats a vector
typedef float vf __attribute__((vector_size(LFFN_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(LFFN_VECTOR_BYTES)));
typedef float vf_unaligned __attribute__((vector_size(LFFN_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(LFFN_VECTOR_BYTES), aligned(4), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
inline vi load(const int32_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
inline void store(int32_t* p, vi v) { *reinterpret_cast<vi_unaligned*>(p) = v; }
// For what nobody reads soon: the line is not fetched first. p must be aligned; end with finish_stores.
inline void store_past_cache(float* p, vf v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX__)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}
inline void finish_stores() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}
inline vf broadcast(float x) { return x - vf{}; }
inline vi broadcast(int32_t x) { return x - vi{}; }
inline vf bits_to_float(vi v) { return (vf)v; }
inline vi float_to_bits(vf v) { return (vi)v; }
inline vf magnitude(vf v) { return bits_to_float(float_to_bits(v) & 0x7fffffff); }

// e^x for x <= 0, to 2 units in the last place; exactly 0 below -87.3, NaN for NaN.
inline vf exp_nonpositive(vf x) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  vf clamped = x < -87.3f ? broadcast(-87.3f) : x;
  vf shifted = clamped * 1.44269504f + magic;
  vf n = shifted - magic;
  vf r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  vi exponent = float_to_bits(shifted) << 23;  // the integer sits in the low bits of the shifted float
  vf result = bits_to_float(float_to_bits(p) + exponent);
  result = x < -87.3f ? vf{} : result;
  return x == x ? result : x;
}

// e^(-2a) for a >= 0, to 1e-7 of 1 + e^(-2a); below 2^-126 it stays there. Any finite value for NaN.
inline vf decay(vf a) {
  const float magic = 12582912.f;  // as above
  vf x = a * -2.88539008f;         // in units of log 2
  x = x > -126.f ? x : broadcast(-126.f);
  vf shifted = x + magic;
  vf r = x - (shifted - magic);
  vf p = r * 0.0013264698f + 0.00967150927f;
  p = p * r + 0.0555073393f;
  p = p * r + 0.240222424f;
  p = p * r + 0.693147004f;
  p = p * r + 1.f;
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}

#if defined(__GNUC__) && !defined(__clang__)
#define LFFN_SHUFFLE 1
struct LaneMasks {
  vi low[8], high[8];
};
inline const LaneMasks& lane_masks() {
  static const LaneMasks masks = [] {
    LaneMasks m;
    int level = 0;
    for (int s = 1; s < VL; s *= 2, level++)
      for (int l = 0; l < VL; l++) {
        m.low[level][l] = (l & s) ? VL + l - s : l;
        m.high[level][l] = (l & s) ? VL + l : l + s;
      }
    return m;
  }();
  return masks;
}
#endif

// v[i][l] becomes v[l][i].
inline void transpose(vf* v) {
#ifdef LFFN_SHUFFLE
  const LaneMasks& m = lane_masks();
  int level = 0;
#pragma GCC unroll 8
  for (int s = 1; s < VL; s *= 2, level++) {
    vi low = m.low[level], high = m.high[level];
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
      if (i & s) continue;
      vf a = v[i], b = v[i + s];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + s] = __builtin_shuffle(a, b, high);
    }
  }
#else
  for (int i = 0; i < VL; i++)
    for (int l = 0; l < i; l++) {
      float t = v[i][l];
      v[i][l] = v[l][i];
      v[l][i] = t;
    }
#endif
}

// Lane i of the result is the sum over the lanes of v[i]. Destroys v.
inline vf sum_each(vf* v) {
#ifdef LFFN_SHUFFLE
  const LaneMasks& m = lane_masks();
  int level = 0;
#pragma GCC unroll 8
  for (int s = 1; s < VL; s *= 2, level++) {
    vi low = m.low[level], high = m.high[level];
#pragma GCC unroll 16
    for (int i = 0; i < VL; i += 2 * s)
      v[i] = __builtin_shuffle(v[i], v[i + s], low) + __builtin_shuffle(v[i], v[i + s], high);
  }
  return v[0];
#else
  vf out = {};
  for (int i = 0; i < VL; i++)
    for (int l = 0; l < VL; l++) out[i] += v[i][l];
  return out;
#endif
}

// Memory one thread keeps from call to call, on huge pages where the system has them.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  template <class T>
  T* get(int64_t count) {
    int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 4095) / 4096 * 4096 + 4096;
    if (bytes > size_) {
      std::free(data_);
      data_ = nullptr;
      size_ = 0;
      const bool large = bytes >= (1 << 20);
      const size_t alignment = large ? (2 << 20) : 4096;
      bytes = (bytes + alignment - 1) / alignment * alignment;
      data_ = std::aligned_alloc(alignment, bytes);
      if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      if (large) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      size_ = bytes;
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace lookupffn
