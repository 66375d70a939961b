// Reading table rows of any element type as float vectors, and how they are cut to fit the second-level cache.
#pragma once

#include <algorithm>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "gather.h"
#include "simd.h"

namespace lookupffn {

// Columns of a slice. Wide enough to read whole cache lines, narrow enough that two sums of a row stay in registers.
constexpr int CHUNK_VECTORS = 4;
constexpr int CHUNK = CHUNK_VECTORS * VL;

typedef uint16_t vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef int8_t vb_unaligned __attribute__((vector_size(VL), aligned(1), may_alias));

inline vf load_row(const float* p) { return load(p); }
// Compilers widen short vectors poorly, hence the intrinsics.
inline vf load_row(const uint16_t* p) {  // bfloat16
#if defined(__AVX512F__)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  vi wide = __builtin_convertvector(*reinterpret_cast<const vh_unaligned*>(p), vi);
  return (vf)(wide << 16);
#endif
}
inline vf load_row(const int8_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const vb_unaligned*>(p), vi), vf);
#endif
}
inline float load_one(const float* p) { return *p; }
inline float load_one(const uint16_t* p) {
  const uint32_t wide = static_cast<uint32_t>(*p) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
inline float load_one(const int8_t* p) { return *p; }

// Call f with a typed pointer to the table's first element.
template <class F>
inline void with_rows(const Table& table, const F& f) {
  switch (table.element) {
    case Element::f32:
      return f(static_cast<const float*>(table.data));
    case Element::bf16:
      return f(static_cast<const uint16_t*>(table.data));
    case Element::s8:
      return f(static_cast<const int8_t*>(table.data));
  }
}

// Bytes of the second-level cache that a slice may fill; the rest is for what streams past it.
inline int64_t slice_bytes() {
  static const int64_t bytes = [] {
    long size = 0;
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
    size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp<int64_t>(size / 4, 128 << 10, 512 << 10);
  }();
  return bytes;
}

// Copying a slice pays once each of its rows is read about three times; a slice far beyond the cache never pays.
inline bool slices_pay(int64_t rows, int64_t tokens, int probes) {
  return tokens * probes >= 3 * rows && rows * CHUNK * static_cast<int64_t>(sizeof(float)) <= 4 * slice_bytes();
}

inline int64_t tables_per_slice(int64_t rows, int64_t tables) {
  return std::clamp<int64_t>(slice_bytes() / (rows * CHUNK * static_cast<int64_t>(sizeof(float))), 1, tables);
}

// slice[row][C] = rows [first, first + count) of the flattened table, columns from c0, zero beyond the last.
template <int C, class E>
inline void pack_slice(const E* data, const float* scales, int64_t columns, int64_t first, int64_t count, int64_t c0,
                       float* slice) {
  constexpr int AHEAD = 64;  // rows between a prefetch and its use
  const int64_t width = std::min<int64_t>(C, columns - c0);
  const E* from = data + first * columns + c0;
  for (int64_t row = 0; row < count; row++, from += columns, slice += C) {
    const char* later = reinterpret_cast<const char*>(from + AHEAD * columns);
    for (size_t byte = 0; byte < C * sizeof(E); byte += 64) __builtin_prefetch(later + byte, 0, 2);
    const float scale = scales ? scales[first + row] : 1.f;
    if (width == C) {
      for (int v = 0; v < C / VL; v++) {
        vf value = load_row(from + v * VL);
        store(slice + v * VL, scales ? value * scale : value);
      }
    } else {
      for (int64_t c = 0; c < C; c++) slice[c] = c < width ? load_one(from + c) * scale : 0.f;
    }
  }
}

// How many ways to cut the tokens so that `tasks` tasks occupy all threads.
inline int64_t token_splits(int64_t tasks, int64_t threads, int64_t tokens) {
  const int64_t wanted = tasks >= threads ? 1 : (threads + tasks - 1) / tasks;
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, tokens / 64));
}

}  // namespace lookupffn
