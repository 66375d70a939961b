// See bh4_amx.h. Tokens are the columns of every product: with one token a lane the transform, the split into
// parts and the hash are plain arithmetic, and nothing is transposed but x.
#include "bh4_amx.h"

#include <algorithm>

#include "amx.h"
#include "hash.h"
#include "parallel.h"

#if defined(__AVX512F__) && defined(LFFN_TILES_BF16)

namespace lookupffn {
namespace {

constexpr int SUBTILES = TILE_TOKENS / VL;
constexpr int64_t WORDS = 256;  // of a tile: 16 rows of 64 bytes

static_assert(VL == 16);

// Two columns, a token a lane, as one word a part, the even column in the lower half.
template <int PARTS>
inline void put(uint32_t* to, vf even, vf odd) {
#pragma GCC unroll 3
  for (int part = 0; part < PARTS; part++, to += VL) {
    // rounded, not cut off, but for the last: what is left is half as large and of either sign
    const int32_t half = part + 1 < PARTS ? 0x8000 : 0;
    const vi high_even = (float_to_bits(even) + half) & -65536, high_odd = (float_to_bits(odd) + half) & -65536;
    _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32((__m512i)high_even, 16), (__m512i)high_odd));
    even -= bits_to_float(high_even);
    odd -= bits_to_float(high_odd);
  }
}

// A block of a subtile of tokens: [pair of columns][part][token] words, or as sums [column][token] floats.
template <int PARTS>
constexpr int64_t PAIR = PARTS * VL;

template <int PARTS>
inline int64_t subtile_words(int64_t block) {
  return block / 2 * PAIR<PARTS>;
}

// Words of a block of all subtiles. Blocks of 4 KB would all fall into the same sets of the first-level cache.
template <int PARTS>
inline int64_t block_words(int64_t block) {
  return SUBTILES * subtile_words<PARTS>(block) + PAIR<PARTS>;
}

// sums = weights^T @ in for STRIPS strips of 16 columns; in and sums may be the same. weight: [block / 32][PARTS]
// [block / 16] tiles. exact: the lower parts of `in` are zero.
template <int PARTS, int STRIPS>
inline void multiply(const uint32_t* weight, int64_t strips, const uint32_t* in, int64_t k_tiles, bool exact,
                     uint32_t* sums) {
  constexpr int64_t ROW = 4 * PAIR<PARTS>;  // bytes
  __asm__ volatile("" ::: "memory");        // tile loads are not known to read memory
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (STRIPS == 4) {
    _tile_zero(2);
    _tile_zero(3);
  }
// One part of the weights with the part of the tokens in TILE, strip by strip: a product waits for the one before it
// into the same sum. A macro, since tiles are named by literals.
#define LFFN_STRIP(SUM, PART, TILE)                               \
  _tile_loadd(4, weight + ((PART) * strips + (SUM)) * WORDS, 64); \
  _tile_dpbf16ps(SUM, 4, TILE);
#define LFFN_PRODUCTS(PART, TILE) \
  LFFN_STRIP(0, PART, TILE)       \
  LFFN_STRIP(1, PART, TILE)       \
  if constexpr (STRIPS == 4) {    \
    LFFN_STRIP(2, PART, TILE)     \
    LFFN_STRIP(3, PART, TILE)     \
  }

  for (int64_t k = 0; k < k_tiles; k++, in += 16 * PAIR<PARTS>, weight += PARTS * strips * WORDS) {
    _tile_loadd(5, in, ROW);
    LFFN_PRODUCTS(0, 5)
    LFFN_PRODUCTS(1, 5)
    if constexpr (PARTS == 3) {
      LFFN_PRODUCTS(2, 5)
    }
    if (exact) continue;
    _tile_loadd(6, in + VL, ROW);
    LFFN_PRODUCTS(0, 6)
    if constexpr (PARTS == 3) {
      LFFN_PRODUCTS(1, 6)
      _tile_loadd(7, in + 2 * VL, ROW);
      LFFN_PRODUCTS(0, 7)
    }
  }
#undef LFFN_PRODUCTS
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
  sums += 2 * VL * pairs;
  for (int64_t i = pairs - 1; i >= 0; i--) {  // from the last: done may write parts, which are longer, over sums
    sums -= 2 * VL;
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
template <int PARTS>
inline void multiply_block(const uint32_t* weight, int64_t block, const uint32_t* in, bool exact, uint32_t* spare,
                           uint32_t* sums) {
  const int64_t strips = block / 16, k_tiles = block / 32;
  if (strips == 2) return multiply<PARTS, 2>(weight, strips, in, k_tiles, exact, sums);
  uint32_t* to = strips == 4 ? sums : spare;  // one pass over `in` has only four sums
  for (int64_t strip = 0; strip < strips; strip += 4)
    multiply<PARTS, 4>(weight + strip * WORDS, strips, in, k_tiles, exact, to + strip * WORDS);
  if (to != sums) std::memcpy(sums, to, block * VL * 4);
}

// done(block, subtile, pair, even, odd) for every pair of columns of the transform of h.
template <int PARTS, int R, class F>
inline void transform_all(uint32_t* h, int64_t blocks, int64_t block, const F& done) {
  const int64_t step = block_words<PARTS>(block), inner = blocks / R, own = subtile_words<PARTS>(block);
  for (int64_t j = 0; j < blocks; j += inner)
    for (int s = 0; s < SUBTILES; s++)
      across_blocks(reinterpret_cast<float*>(h + j * step + s * own), inner, step, block * VL);
  for (int64_t first = 0; first < inner; first++)
    for (int s = 0; s < SUBTILES; s++)
      transform<R>(h + first * step + s * own, inner * step, block / 2,
                   [&](int64_t j, int64_t i, vf even, vf odd) { done(first + j * inner, s, i, even, odd); });
}

// out: [copies][4][blocks][block / 32][PARTS][block / 16] tiles in the order of their use; a tile is [column][pair].
template <int PARTS>
void split(const Bh4& p, uint32_t* out) {
  const int64_t k_tiles = p.block / 32, strips = p.block / 16, matrix = p.block * p.block;
  parallel_tasks(p.copies * 4 * p.blocks, [&](int64_t task) {
    uint32_t* to = out + task * matrix / 2 * PARTS;
    for (int64_t k = 0; k < k_tiles; k++, to += PARTS * strips * WORDS)
      for (int64_t strip = 0; strip < strips; strip++) {
        const float* from = p.weight + task * matrix + k * 32 * p.block + strip * 16;
        alignas(64) uint32_t words[VL][PAIR<PARTS>];
        for (int i = 0; i < VL; i++, from += 2 * p.block) put<PARTS>(words[i], load(from), load(from + p.block));
        for (int part = 0; part < PARTS; part++) {
          vf rows[VL];
          for (int i = 0; i < VL; i++) rows[i] = load(reinterpret_cast<const float*>(words[i] + part * VL));
          transpose(rows);
          std::memcpy(to + (part * strips + strip) * WORDS, rows, WORDS * 4);
        }
      }
  });
}

// h: [blocks] of block_words, each [SUBTILES][block] as PAIR says.
template <int PARTS>
void project(const TileProjection& p, const float* x, bool exact, int tokens, uint32_t* scratch, vf* lanes,
             int64_t lanes_ld) {
  const int64_t padded = p.blocks * p.block, step = block_words<PARTS>(p.block), own = subtile_words<PARTS>(p.block);
  uint32_t *first = scratch, *h = first + p.blocks * step, *spare = h + p.blocks * step;
  vf* columns = reinterpret_cast<vf*>(h);  // of x, transposed
  for (int s = 0; s < SUBTILES; s++) {
    load_transposed(x + s * VL * padded, padded, std::clamp(tokens - s * VL, 0, VL), padded, columns);
    const vf* from = columns;
    for (int64_t g = 0; g < p.blocks; g++) {
      uint32_t* to = first + g * step + s * own;
      for (int64_t c = 0; c < p.block; c += 2, from += 2, to += PAIR<PARTS>) put<PARTS>(to, from[0], from[1]);
    }
  }
  const auto with_radix = [&](const auto& done) {
    if (p.blocks >= 8) transform_all<PARTS, 8>(h, p.blocks, p.block, done);
    else if (p.blocks == 4) transform_all<PARTS, 4>(h, p.blocks, p.block, done);
    else transform_all<PARTS, 2>(h, p.blocks, p.block, done);
  };
  const uint32_t* weight = p.weight;
  for (int64_t copy = 0; copy < p.copies; copy++) {
    for (int factor = 0; factor < 4; factor++) {
      const uint32_t* in = factor ? h : first;
      for (int64_t g = 0; g < p.blocks; g++, weight += p.block * p.block / 2 * PARTS)
        for (int s = 0; s < SUBTILES; s++)
          multiply_block<PARTS>(weight, p.block, in + g * step + s * own, exact && !factor, spare,
                                h + g * step + s * own);
      if (factor < 3)
        with_radix([&](int64_t g, int s, int64_t i, vf even, vf odd) {
          put<PARTS>(h + g * step + s * own + i * PAIR<PARTS>, even, odd);
        });
    }
    const float* bias = p.bias + copy * padded;
    const int64_t last = std::min(padded, p.columns - copy * padded);
    with_radix([&](int64_t g, int s, int64_t i, vf even, vf odd) {
      const int64_t c = g * p.block + 2 * i;
      const uint32_t* own_x = first + g * step + s * own + i * PAIR<PARTS>;
      vf x_even = {}, x_odd = {};
      for (int part = PARTS - 1; part >= 0; part--) {  // the smallest first
        const vi words = (vi)_mm512_load_si512(own_x + part * VL);
        x_even += bits_to_float(words << 16);
        x_odd += bits_to_float(words & -65536);
      }
      vf* to = lanes + s * lanes_ld + copy * padded + c;
      if (c < last) to[0] = even + p.skip * x_even + broadcast(bias[c]);
      if (c + 1 < last) to[1] = odd + p.skip * x_odd + broadcast(bias[c + 1]);
    });
  }
}

}  // namespace

bool tiles_serve(const Bh4& p) { return p.block >= 32 && p.blocks >= 2 && tiles_permitted(); }

int64_t split_words(const Bh4& p, int parts) { return p.copies * 4 * p.padded() * p.block / 2 * parts; }

int64_t tile_words(const Bh4& p, int parts) {
  return 2 * p.blocks * (parts == 3 ? block_words<3>(p.block) : block_words<2>(p.block)) + p.block * VL;
}

void split_weights(const Bh4& p, int parts, uint32_t* out) { parts == 3 ? split<3>(p, out) : split<2>(p, out); }

void project_on_tiles(const TileProjection& p, const float* x, bool exact, int tokens, uint32_t* scratch, vf* lanes,
                      int64_t lanes_ld) {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
  if (p.parts == 3) project<3>(p, x, exact, tokens, scratch, lanes, lanes_ld);
  else project<2>(p, x, exact, tokens, scratch, lanes, lanes_ld);
  _tile_release();
}

}  // namespace lookupffn

#else

namespace lookupffn {

bool tiles_serve(const Bh4&) { return false; }
int64_t split_words(const Bh4&, int) { return 0; }
int64_t tile_words(const Bh4&, int) { return 0; }
void split_weights(const Bh4&, int, uint32_t*) {}
void project_on_tiles(const TileProjection&, const float*, bool, int, uint32_t*, vf*, int64_t) {}

}  // namespace lookupffn

#endif
