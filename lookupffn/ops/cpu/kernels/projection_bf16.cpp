// See projection_bf16.h. Tokens are the columns of every product: with one token a lane the transform, the split into
// parts and the hash are plain arithmetic, and nothing is transposed but x.
#include "projection_bf16.h"

#include <algorithm>

#include "hash.h"
#include "parallel.h"

#if defined(__AVX512F__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

namespace lookupffn {
namespace {

constexpr int SUBTILES = TILE_TOKENS / VL;
constexpr int64_t WORDS = 256;  // of a tile: 16 rows of 64 bytes
constexpr int64_t PARTS = 2;    // high, low

static_assert(VL == 16);

// The system grants the 8 KB of tile state a thread once, to the process.
bool permitted() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Two columns, a token a lane, as words of high parts and words of low parts, the even column in the lower half.
struct Words {
  __m512i high, low;
};

inline Words split(vf even, vf odd) {
  const auto pair = [](vi e, vi o) {
    return _mm512_or_si512(_mm512_srli_epi32((__m512i)e, 16), (__m512i)(o & -65536));
  };
  // rounded, not cut off: the low parts are half as large and of either sign, and so is what low * low would have added
  const vi high_even = (float_to_bits(even) + 0x8000) & -65536, high_odd = (float_to_bits(odd) + 0x8000) & -65536;
  return {pair(high_even, high_odd), pair(float_to_bits(even - bits_to_float(high_even)),
                                          float_to_bits(odd - bits_to_float(high_odd)))};
}

// A block of a subtile of tokens: [pair of columns][high, low][token] words, or as sums [column][token] floats.
constexpr int64_t PAIR = 2 * VL;

// Words of a block of all subtiles. Blocks of 4 KB would all fall into the same sets of the first-level cache.
inline int64_t block_words(int64_t block) { return SUBTILES * block * VL + PAIR; }

// sums = weights^T @ in for STRIPS strips of 16 columns; in and sums may be the same. weight: [block / 32][PARTS]
// [block / 16] tiles. exact: the low part of `in` is zero.
template <int STRIPS>
inline void multiply(const uint32_t* weight, int64_t strips, const uint32_t* in, int64_t k_tiles, bool exact,
                     uint32_t* sums) {
  __asm__ volatile("" ::: "memory");  // tile loads are not known to read memory
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (STRIPS == 4) {
    _tile_zero(2);
    _tile_zero(3);
  }
// One strip of weights, both parts, with both parts of the tokens; a macro, since tiles are named by literals.
#define LFFN_STRIP(SUM)                                   \
  _tile_loadd(4, weight + (SUM) * WORDS, 64);             \
  _tile_dpbf16ps(SUM, 4, 6);                              \
  if (!exact) _tile_dpbf16ps(SUM, 4, 7);                  \
  _tile_loadd(5, weight + (strips + (SUM)) * WORDS, 64);  \
  _tile_dpbf16ps(SUM, 5, 6);

  for (int64_t k = 0; k < k_tiles; k++, in += 16 * PAIR, weight += PARTS * strips * WORDS) {
    _tile_loadd(6, in, 4 * PAIR);
    if (!exact) _tile_loadd(7, in + VL, 4 * PAIR);
    LFFN_STRIP(0)
    LFFN_STRIP(1)
    if constexpr (STRIPS == 4) {
      LFFN_STRIP(2)
      LFFN_STRIP(3)
    }
  }
#undef LFFN_STRIP
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + WORDS, 64);
  if constexpr (STRIPS == 4) {
    _tile_stored(2, sums + 2 * WORDS, 64);
    _tile_stored(3, sums + 3 * WORDS, 64);
  }
}

// The transform across R blocks `step` words apart, of `pairs` pairs of columns; block j goes to done(j, pair, even,
// odd).
template <int R, class F>
inline void transform(const uint32_t* sums, int64_t step, int64_t pairs, const F& done) {
  for (int64_t i = 0; i < pairs; i++, sums += PAIR) {
    vf v[2][R];
#pragma GCC unroll 2
    for (int side = 0; side < 2; side++) {
#pragma GCC unroll 8
      for (int j = 0; j < R; j++) v[side][j] = load(reinterpret_cast<const float*>(sums + j * step + side * VL));
#pragma GCC unroll 3
      for (int s = 1; s < R; s *= 2)
#pragma GCC unroll 8
        for (int j = 0; j < R; j++)
          if (!(j & s)) {
            const vf a = v[side][j], b = v[side][j + s];
            v[side][j] = a + b;
            v[side][j + s] = a - b;
          }
    }
#pragma GCC unroll 8
    for (int j = 0; j < R; j++) done(j, i, v[0][j], v[1][j]);
  }
}

// sums = weights^T @ in for a block of a subtile; in and sums may be the same.
inline void multiply_block(const uint32_t* weight, int64_t block, const uint32_t* in, bool exact, uint32_t* spare,
                           uint32_t* sums) {
  const int64_t strips = block / 16, k_tiles = block / 32;
  if (strips == 2) return multiply<2>(weight, strips, in, k_tiles, exact, sums);
  uint32_t* to = strips == 4 ? sums : spare;  // one pass over `in` has only four sums
  for (int64_t strip = 0; strip < strips; strip += 4)
    multiply<4>(weight + strip * WORDS, strips, in, k_tiles, exact, to + strip * WORDS);
  if (to != sums) std::memcpy(sums, to, block * VL * 4);
}

// done(block, subtile, pair, even, odd) for every pair of columns of the transform of h.
template <int R, class F>
inline void transform_all(uint32_t* h, int64_t blocks, int64_t block, const F& done) {
  const int64_t step = block_words(block), inner = blocks / R, own = block * VL;
  for (int64_t j = 0; j < blocks; j += inner)
    across_blocks(reinterpret_cast<float*>(h + j * step), inner, step, SUBTILES * own);
  for (int64_t first = 0; first < inner; first++)
    for (int s = 0; s < SUBTILES; s++)
      transform<R>(h + first * step + s * own, inner * step, block / 2, [&](int64_t j, int64_t i, vf even, vf odd) {
        done(first + j * inner, s, i, even, odd);
      });
}

}  // namespace

bool tiles_serve(const Bh4& p) { return p.block >= 32 && p.blocks >= 2 && permitted(); }

int64_t split_words(const Bh4& p) { return p.copies * 4 * p.padded() * p.block; }

int64_t tile_words(const Bh4& p) { return 2 * p.blocks * block_words(p.block) + p.block * VL; }

// out: [copies][4][blocks][block / 32][PARTS][block / 16] tiles in the order of their use; a tile is [column][pair].
void split_weights(const Bh4& p, uint32_t* out) {
  const int64_t k_tiles = p.block / 32, strips = p.block / 16, matrix = p.block * p.block;
  parallel_tasks(p.copies * 4 * p.blocks, [&](int64_t task) {
    for (int64_t k = 0; k < k_tiles; k++)
      for (int64_t strip = 0; strip < strips; strip++) {
        const float* from = p.weight + task * matrix + k * 32 * p.block + strip * 16;
        vf words[PARTS][VL];
        for (int i = 0; i < VL; i++, from += 2 * p.block) {
          const Words pair = split(load(from), load(from + p.block));
          words[0][i] = (vf)pair.high;
          words[1][i] = (vf)pair.low;
        }
        for (int part = 0; part < PARTS; part++) {
          transpose(words[part]);
          std::memcpy(out + task * matrix + ((k * PARTS + part) * strips + strip) * WORDS, words[part], WORDS * 4);
        }
      }
  });
}

// h: [blocks] of block_words, each [SUBTILES][block] as PAIR says.
void project_on_tiles(const TileProjection& p, const float* x, bool exact, int tokens, uint32_t* scratch, vf* lanes,
                      int64_t lanes_ld) {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
  const int64_t padded = p.blocks * p.block, step = block_words(p.block), own = p.block * VL;
  uint32_t *first = scratch, *h = first + p.blocks * step, *spare = h + p.blocks * step;
  const auto put = [&](uint32_t* to, vf even, vf odd) {
    const Words words = split(even, odd);
    _mm512_store_si512(to, words.high);
    _mm512_store_si512(to + VL, words.low);
  };
  vf* columns = reinterpret_cast<vf*>(h);  // of x, transposed
  for (int s = 0; s < SUBTILES; s++) {
    load_transposed(x + s * VL * padded, padded, std::clamp(tokens - s * VL, 0, VL), padded, columns);
    const vf* from = columns;
    for (int64_t g = 0; g < p.blocks; g++) {
      uint32_t* to = first + g * step + s * own;
      for (int64_t c = 0; c < p.block; c += 2, from += 2, to += PAIR) put(to, from[0], from[1]);
    }
  }
  const auto with_radix = [&](const auto& done) {
    if (p.blocks >= 8) transform_all<8>(h, p.blocks, p.block, done);
    else if (p.blocks == 4) transform_all<4>(h, p.blocks, p.block, done);
    else transform_all<2>(h, p.blocks, p.block, done);
  };
  const uint32_t* weight = p.weight;
  for (int64_t copy = 0; copy < p.copies; copy++) {
    for (int factor = 0; factor < 4; factor++) {
      const uint32_t* in = factor ? h : first;
      for (int64_t g = 0; g < p.blocks; g++, weight += p.block * p.block)
        for (int s = 0; s < SUBTILES; s++)
          multiply_block(weight, p.block, in + g * step + s * own, exact && !factor, spare, h + g * step + s * own);
      if (factor < 3)
        with_radix([&](int64_t g, int s, int64_t i, vf even, vf odd) {
          put(h + g * step + s * own + i * PAIR, even, odd);
        });
    }
    const float* bias = p.bias + copy * padded;
    const int64_t last = std::min(padded, p.columns - copy * padded);
    with_radix([&](int64_t g, int s, int64_t i, vf even, vf odd) {
      const int64_t c = g * p.block + 2 * i;
      const uint32_t* own_x = first + g * step + s * own + i * PAIR;
      const vi high = (vi)_mm512_load_si512(own_x), low = (vi)_mm512_load_si512(own_x + VL);
      vf* to = lanes + s * lanes_ld + copy * padded + c;
      if (c < last)
        to[0] = even + p.skip * (bits_to_float(high << 16) + bits_to_float(low << 16)) + broadcast(bias[c]);
      if (c + 1 < last)
        to[1] = odd + p.skip * (bits_to_float(high & -65536) + bits_to_float(low & -65536)) + broadcast(bias[c + 1]);
    });
  }
  _tile_release();
}

}  // namespace lookupffn

#else

namespace lookupffn {

bool tiles_serve(const Bh4&) { return false; }
int64_t split_words(const Bh4&) { return 0; }
int64_t tile_words(const Bh4&) { return 0; }
void split_weights(const Bh4&, uint32_t*) {}
void project_on_tiles(const TileProjection&, const float*, bool, int, uint32_t*, vf*, int64_t) {}

}  // namespace lookupffn

#endif
