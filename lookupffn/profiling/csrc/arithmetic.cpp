// Arithmetic peaks: independent multiply-adds in registers, by each kind of instruction that this build has.
#include <cstdint>
#include <cstring>
#include <string>

#include "timing.h"

#if defined(__linux__) && defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace profiling {

volatile double sink;

namespace {

constexpr int SUMS = 12;  // two a cycle of six cycles' latency; copies of them fit the registers too
constexpr int64_t STEPS = 20000;

// `step` on SUMS independent sums, STEPS times. Its factor changes unknown to the optimiser.
template <class V, class F, class Step>
inline void steps(V start, F factor, const Step& step) {
  V sums[SUMS];
#pragma GCC unroll 12
  for (auto& s : sums) {
    s = start;
    keep(s);  // equal sums would become one
  }
  for (int64_t i = 0; i < STEPS; i++) {
    keep(factor);
#pragma GCC unroll 12
    for (int j = 0; j < SUMS; j++) sums[j] = step(sums[j], factor);
  }
#pragma GCC unroll 12
  for (auto& s : sums) keep(s);
}

struct Kind {
  const char* type;
  const char* instruction;
  double operations;  // of one round of one thread
  void (*work)();
};

void fma_float32() {
  steps(vf{} + 1.f, vf{} + 0.5f, [](vf s, vf a) { return a * s + a; });
}

#if defined(__AVX512FP16__)
void fma_float16() {
  const __m512h half = _mm512_set1_ph(0.5f);
  steps(half, half, [](__m512h s, __m512h a) { return _mm512_fmadd_ph(a, s, a); });
}
#endif

#if defined(__AVX512BF16__)
void dot_bfloat16() {
  steps(_mm512_setzero_ps(), _mm512_set1_epi32(0x3f803f80),
        [](__m512 s, __m512i a) { return _mm512_dpbf16_ps(s, (__m512bh)a, (__m512bh)a); });
}
#endif

#if defined(__AVX512VNNI__)
void dot_int8_512() {
  steps(_mm512_setzero_si512(), _mm512_set1_epi32(0x01010101),
        [](__m512i s, __m512i a) { return _mm512_dpbusd_epi32(s, a, a); });
}
#endif

#if defined(__AVXVNNI__)
void dot_int8_256() {
  steps(_mm256_setzero_si256(), _mm256_set1_epi32(0x01010101),
        [](__m256i s, __m256i a) { return _mm256_dpbusd_avx_epi32(s, a, a); });
}
#endif

#if defined(__AVX2__)
void pairs_int8() {
  const __m256i ones = _mm256_set1_epi16(1);
  steps(_mm256_setzero_si256(), _mm256_set1_epi32(0x01010101), [&](__m256i s, __m256i a) {
    __m256i pairs = _mm256_maddubs_epi16(a, a);
    keep(pairs);  // the same for every sum
    return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, ones));
  });
}
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_BF16)
void matrix_bfloat16_arm() {
  steps(vdupq_n_f32(0), vreinterpretq_bf16_u16(vdupq_n_u16(0x3f80)),
        [](float32x4_t s, bfloat16x8_t a) { return vbfmmlaq_f32(s, a, a); });
}
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
void dot_int8_arm() {
  steps(vdupq_n_s32(0), vdupq_n_s8(1), [](int32x4_t s, int8x16_t a) { return vdotq_s32(s, a, a); });
}
#endif

#if defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8)
void matrix_int8_arm() {
  steps(vdupq_n_s32(0), vdupq_n_s8(1), [](int32x4_t s, int8x16_t a) { return vmmlaq_s32(s, a, a); });
}
#endif

#if defined(__linux__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define LFFN_TILES 1
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

bool tiles_allowed() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return allowed;
}

constexpr int64_t TILE_STEPS = STEPS / 4;

// Four sums of two by two tiles, as a matrix product has them.
template <bool INT8>
void tiles() {
  TileConfig config;
  for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
  _tile_loadconfig(&config);
  alignas(64) uint8_t data[1024];
  for (int i = 0; i < 1024; i++) data[i] = INT8 ? 1 : (i & 1 ? 0x3f : 0x80);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, data, 64);
  _tile_loadd(5, data, 64);
  _tile_loadd(6, data, 64);
  _tile_loadd(7, data, 64);
  for (int64_t i = 0; i < TILE_STEPS; i++) {
    if constexpr (INT8) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, data, 64);
  _tile_release();
  sink = data[0];
}
#endif

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = [] {
    constexpr double ALL = double(STEPS) * SUMS;
    std::vector<Kind> list{{"float32",
                            VECTOR_BYTES == 64   ? "AVX-512 FMA"
                            : VECTOR_BYTES == 32 ? "AVX FMA"
                                                 : "128-bit FMA",
                            ALL * 2 * VL, fma_float32}};
#if defined(__AVX512FP16__)
    list.push_back({"float16", "AVX512-FP16", ALL * 64, fma_float16});
#endif
#if defined(__AVX512BF16__)
    list.push_back({"bfloat16", "AVX512-BF16", ALL * 64, dot_bfloat16});
#endif
#if defined(__AVX512VNNI__)
    list.push_back({"int8", "AVX512-VNNI", ALL * 128, dot_int8_512});
#endif
#if defined(__AVXVNNI__)
    list.push_back({"int8", "AVX-VNNI", ALL * 64, dot_int8_256});
#endif
#if defined(__AVX2__)
    list.push_back({"int8", "AVX2 multiply-add pairs", ALL * 64, pairs_int8});
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_BF16)
    list.push_back({"bfloat16", "BFMMLA", ALL * 32, matrix_bfloat16_arm});
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    list.push_back({"int8", "SDOT", ALL * 32, dot_int8_arm});
#endif
#if defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8)
    list.push_back({"int8", "SMMLA", ALL * 64, matrix_int8_arm});
#endif
#if defined(LFFN_TILES)
    if (tiles_allowed()) {
      list.push_back({"bfloat16", "AMX-BF16", TILE_STEPS * 4. * 2 * 16 * 16 * 32, tiles<false>});
      list.push_back({"int8", "AMX-INT8", TILE_STEPS * 4. * 2 * 16 * 16 * 64, tiles<true>});
    }
#endif
    return list;
  }();
  return all;
}

}  // namespace
}  // namespace profiling

using namespace profiling;

// Processors that threads are put on, one each.
LFFN_EXPORT void set_processors(const int* list, int count) { processors().assign(list, list + count); }

// "type: instruction" lines of what arithmetic_rate can measure.
LFFN_EXPORT const char* arithmetic_kinds() {
  static const std::string text = [] {
    std::string lines;
    for (const Kind& kind : kinds()) lines += std::string(kind.type) + ": " + kind.instruction + "\n";
    return lines;
  }();
  return text.c_str();
}

// Operations a second (a multiply and an add are two) of all threads together.
LFFN_EXPORT double arithmetic_rate(int kind, int threads, int rounds) {
  const Kind& chosen = kinds()[kind];
  const double seconds = timed(threads, rounds, [&](int, int) { chosen.work(); });
  return threads * chosen.operations / seconds;
}

// Hertz, by a chain of operations of one cycle each.
LFFN_EXPORT double clock_rate(int threads, int rounds) {
  constexpr int64_t CHAIN = 400000;
  const double seconds = timed(threads, rounds, [](int, int) {
    uint64_t x = 1, y = 0x123456789abcdef;
    for (int64_t i = 0; i < CHAIN / 16; i++) {
#pragma GCC unroll 16
      for (int j = 0; j < 16; j++) {
        x ^= y;  // a register: additions of a constant are free on some processors
        asm volatile("" : "+r"(x), "+r"(y));
      }
    }
    sink = double(x);
  });
  return CHAIN / seconds;
}
