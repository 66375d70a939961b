// See digits_amx.h. Tokens are the columns of every product, so that a hash input has its tokens in the lanes of
// a vector, as the hash reads them.
#include "digits_amx.h"

#include <algorithm>
#include <cmath>

#include "amx.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(LFFN_TILES_INT8)

namespace lookupffn {
namespace {

constexpr int64_t DIGITS = 3, TILE_BYTES = 1024, DEPTH = 64;  // DEPTH: of a tile
constexpr float LARGEST = 0x7f7f00;  // three digits of -128 to 127 reach 0x7f7f7f; the rest is for rounding
constexpr int32_t MIDDLE = 0x808080;
constexpr float SMALLEST_SCALE = 1e-37f;  // its inverse is finite

static_assert(VL == 16);

int64_t depth_tiles(int64_t depth) { return (depth + DEPTH - 1) / DEPTH; }

// Three digits of each number, highest first, in the three low bytes of a word.
inline __m512i digits_of(__m512 number) {
  const __m512i middle = _mm512_set1_epi32(MIDDLE);
  return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(number), middle), middle);
}

inline __m512 load_numbers(const void* from, bool bf16, int64_t at, __mmask16 mask) {
  if (!bf16) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + at);
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + at);
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}

inline __mmask16 mask_of(int64_t left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1; }

// The scale that brings the largest of `count` numbers to LARGEST; NaN if one of them is not finite.
float scale_of(const void* from, bool bf16, int64_t at, int64_t count) {
  __m512 largest = _mm512_setzero_ps(), finite = _mm512_setzero_ps();
  for (int64_t c = 0; c < count; c += 16) {
    const __m512 v = load_numbers(from, bf16, at + c, mask_of(count - c));
    largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
    finite = _mm512_fmadd_ps(v, _mm512_setzero_ps(), finite);
  }
  const float scale = std::max(_mm512_reduce_max_ps(largest) / LARGEST, SMALLEST_SCALE);
  return scale + _mm512_reduce_add_ps(finite);
}

// A tile's 64 numbers of one row, as bytes at digits[digit * step].
inline void split_row(const void* from, bool bf16, int64_t at, int64_t left, float inverse, int8_t* digits,
                      int64_t step) {
  for (int64_t c = 0; c < DEPTH; c += 16) {
    const __m512i words = digits_of(load_numbers(from, bf16, at + c, mask_of(left - c)) * inverse);
    for (int i = 0; i < DIGITS; i++) {
      const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_srli_epi32(words, 8 * (DIGITS - 1 - i)));
      _mm_store_si128(reinterpret_cast<__m128i*>(digits + i * step + c), bytes);
    }
  }
}

// Sums of the digits' products for a strip and a subtile, a tile for each magnitude: [1 * 1], [1 * 2 + 2 * 1],
// [1 * 3 + 2 * 2 + 3 * 1] and [2 * 3 + 3 * 2].
inline void multiply(const int8_t* w, const int8_t* x, int64_t k_tiles, int32_t* sums) {
  constexpr int64_t D = TILE_BYTES;
  __asm__ volatile("" ::: "memory");  // tile loads are not known to read memory
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < k_tiles; k++, w += DIGITS * D, x += DIGITS * D) {
    // a product waits for the one before it into the same tile
    _tile_loadd(4, w, 64);
    _tile_loadd(7, x + 2 * D, 64);
    _tile_dpbssd(2, 4, 7);
    _tile_loadd(5, w + D, 64);
    _tile_dpbssd(3, 5, 7);
    _tile_loadd(6, x, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, x + D, 64);
    _tile_dpbssd(2, 5, 7);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(4, w + 2 * D, 64);
    _tile_dpbssd(3, 4, 7);
    _tile_dpbssd(2, 4, 6);
    _tile_dpbssd(1, 5, 6);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

}  // namespace

bool digits_serve() { return tiles_permitted(); }

int64_t weight_digits(int64_t columns, int64_t depth) {
  return (columns + STRIP - 1) / STRIP * depth_tiles(depth) * DIGITS * TILE_BYTES;
}

int64_t token_digits(int64_t depth) { return depth_tiles(depth) * DIGITS * TILE_BYTES; }

void split_weight(const float* weight, int64_t columns, int64_t depth, int8_t* digits, float* scales) {
  const int64_t k_tiles = depth_tiles(depth);
  for (int64_t c = 0; c < (columns + STRIP - 1) / STRIP * STRIP; c++)
    scales[c] = c < columns ? scale_of(weight, false, c * depth, depth) : 0.f;
  for (int64_t strip = 0; strip * STRIP < columns; strip++)
    for (int64_t k = 0; k < k_tiles; k++, digits += DIGITS * TILE_BYTES) {
      std::fill(digits, digits + DIGITS * TILE_BYTES, 0);
      for (int64_t c = strip * STRIP; c < std::min(columns, (strip + 1) * STRIP); c++)
        split_row(weight, false, c * depth + k * DEPTH, depth - k * DEPTH, 1 / scales[c],
                  digits + (c - strip * STRIP) * 64, TILE_BYTES);
    }
}

void split_tokens(const void* x, bool bf16, int64_t depth, int tokens, int8_t* digits, float* scales) {
  float inverse[SUBTILE] = {};
  for (int t = 0; t < SUBTILE; t++) {
    scales[t] = t < tokens ? scale_of(x, bf16, t * depth, depth) : 0.f;
    inverse[t] = t < tokens ? 1 / scales[t] : 0.f;
  }
  for (int64_t k = 0; k < depth; k += DEPTH) {
    alignas(64) int8_t rows[DIGITS][SUBTILE][64] = {};
    for (int t = 0; t < tokens; t++)
      split_row(x, bf16, t * depth + k, depth - k, inverse[t], rows[0][t], sizeof rows[0]);
    for (int i = 0; i < DIGITS; i++, digits += TILE_BYTES) {  // a row of a tile: four numbers of each token
      vf words[SUBTILE];
      std::memcpy(words, rows[i], sizeof words);
      transpose(words);
      std::memcpy(digits, words, sizeof words);
    }
  }
}

void project_digits(const DigitProjection& p, int64_t first_strip, int64_t strips, const int8_t* x,
                    const float* token_scales, int64_t subtiles, vf* z) {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
  const int64_t k_tiles = depth_tiles(p.depth), strip_bytes = k_tiles * DIGITS * TILE_BYTES;
  const int64_t ahead = (strip_bytes + subtiles - 1) / subtiles;
  alignas(64) int32_t sums[4][STRIP * SUBTILE];
  for (int64_t strip = 0; strip < strips; strip++) {
    const int64_t column = (first_strip + strip) * STRIP;
    const int8_t* w = p.weight + (first_strip + strip) * strip_bytes;
    for (int64_t s = 0; s < subtiles; s++) {
      // the next strip comes from the third-level cache while this one is at work
      for (int64_t i = 0; i < ahead; i += 64) __builtin_prefetch(w + strip_bytes + s * ahead + i, 0, 2);
      multiply(w, x + s * strip_bytes, k_tiles, sums[0]);
      const vf scale = load(token_scales + s * SUBTILE) * 65536.f;
      vf* to = z + (s * strips + strip) * STRIP;
      for (int64_t c = 0; c < STRIP; c++) {
        const auto sum = [&](int i) { return _mm512_load_si512(sums[i] + c * SUBTILE); };
        const auto as_float = [](__m512i v) { return (vf)_mm512_cvtepi32_ps(v); };
        const vf low = as_float(sum(2)) + as_float(sum(3)) * (1.f / 256);
        const vf total = (as_float(sum(0)) * 256.f + as_float(sum(1))) * 256.f + low;
        to[c] = total * (scale * p.scales[column + c]) + p.bias[column + c];
      }
    }
  }
  _tile_release();
}

}  // namespace lookupffn

#else

namespace lookupffn {

bool digits_serve() { return false; }
int64_t weight_digits(int64_t, int64_t) { return 0; }
int64_t token_digits(int64_t) { return 0; }
void split_weight(const float*, int64_t, int64_t, int8_t*, float*) {}
void split_tokens(const void*, bool, int64_t, int, int8_t*, float*) {}
void project_digits(const DigitProjection&, int64_t, int64_t, const int8_t*, const float*, int64_t, vf*) {}

}  // namespace lookupffn

#endif
