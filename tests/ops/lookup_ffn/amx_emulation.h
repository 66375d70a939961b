// The instructions of AMX that the kernels use, in plain C++, so that the kernels' own source runs on any CPU.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>  // first: it declares what is replaced below
#endif

namespace lookupffn::emulated {

struct Tile {
  uint8_t data[16][64];
  int rows, row_bytes;
};

inline Tile& tile(int index, bool configure = false) {
  static thread_local Tile tiles[8];
  Tile& t = tiles[index];
  if (!configure && !t.rows) {
    std::fputs("a tile is used outside of _tile_loadconfig and _tile_release\n", stderr);
    std::abort();
  }
  return t;
}

inline void load_config(const void* config) {
  uint16_t row_bytes[8];
  uint8_t rows[8];
  std::memcpy(row_bytes, static_cast<const char*>(config) + 16, sizeof row_bytes);
  std::memcpy(rows, static_cast<const char*>(config) + 48, sizeof rows);
  for (int i = 0; i < 8; i++) tile(i, true) = {{}, rows[i], row_bytes[i]};
}

inline void release() {
  for (int i = 0; i < 8; i++) tile(i, true) = {};
}

inline void zero(int t) { std::memset(tile(t).data, 0, sizeof tile(t).data); }

inline void load(int t, const void* from, int64_t stride) {
  zero(t);
  for (int r = 0; r < tile(t).rows; r++)
    std::memcpy(tile(t).data[r], static_cast<const char*>(from) + r * stride, tile(t).row_bytes);
}

inline void store(int t, void* to, int64_t stride) {
  for (int r = 0; r < tile(t).rows; r++)
    std::memcpy(static_cast<char*>(to) + r * stride, tile(t).data[r], tile(t).row_bytes);
}

template <class T>
T element(const Tile& t, int row, int64_t index) {
  T value;
  std::memcpy(&value, t.data[row] + index * sizeof value, sizeof value);
  return value;
}

// sum[m][n] += the dot products of words: word k of row m of a with word n of row k of b.
template <class SUM, class A, class B, class MULTIPLY>
void dot(int sum, int a, int b, const MULTIPLY& multiply) {
  constexpr int EACH = 4 / sizeof(A);
  Tile &c = tile(sum), &left = tile(a), &right = tile(b);
  for (int m = 0; m < c.rows; m++)
    for (int n = 0; n < c.row_bytes / 4; n++) {
      SUM total = element<SUM>(c, m, n);
      for (int k = 0; k < left.row_bytes / 4; k++)
        for (int i = 0; i < EACH; i++)
          total += multiply(element<A>(left, m, k * EACH + i), element<B>(right, k, n * EACH + i));
      std::memcpy(c.data[m] + n * sizeof total, &total, sizeof total);
    }
}

template <class A, class B>
void dot_bytes(int sum, int a, int b) {
  dot<int32_t, A, B>(sum, a, b, [](int x, int y) { return x * y; });
}

inline void dot_bf16(int sum, int a, int b) {
  const auto wide = [](uint16_t half) {
    const uint32_t word = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  };
  dot<float, uint16_t, uint16_t>(sum, a, b, [&](uint16_t x, uint16_t y) { return wide(x) * wide(y); });
}

}  // namespace lookupffn::emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) lookupffn::emulated::load_config(config)
#define _tile_release() lookupffn::emulated::release()
#define _tile_zero(t) lookupffn::emulated::zero(t)
#define _tile_loadd(t, from, stride) lookupffn::emulated::load(t, from, stride)
#define _tile_stored(t, to, stride) lookupffn::emulated::store(t, to, stride)
#define _tile_dpbusd(c, a, b) lookupffn::emulated::dot_bytes<uint8_t, int8_t>(c, a, b)
#define _tile_dpbssd(c, a, b) lookupffn::emulated::dot_bytes<int8_t, int8_t>(c, a, b)
#define _tile_dpbf16ps(c, a, b) lookupffn::emulated::dot_bf16(c, a, b)
