// From tokens to codes and scores, without gradients: BH4 or a dense projection, then the hash, tile by tile of tokens.
#pragma once

#include <algorithm>

#include "bh4.h"
#include "digits_amx.h"
#include "gather_half.h"
#include "hash_tokens.h"

namespace lookupffn {

constexpr int64_t TILE = LFFN_TILE;  // tokens: a multiple of every VL and of the register kernels' strips

struct Hash {
  int64_t tables;
  int bits, probes;
  int64_t columns() const { return tables * bits; }
};

// Where codes and scores go: as gather.h reads them, or, if `half` is set, as gather_half.h does.
struct HashOutput {
  int32_t* codes;
  float* scores;
  int64_t ld;
  const HalfReads* half;

  // Of the VL tokens from t.
  void put(const Hash& hash, const vf* lanes, int64_t t) const {
    if (!half) return hash_across_tokens(lanes, hash.tables, hash.bits, hash.probes, codes + t, scores + t, ld);
    static thread_local Scratch memory;
    const int64_t size = padded_columns(hash.tables * hash.probes) * VL;
    int32_t* own_codes = memory.get<int32_t>(2 * size);
    float* own_scores = reinterpret_cast<float*>(own_codes + size);
    hash_across_tokens(lanes, hash.tables, hash.bits, hash.probes, own_codes, own_scores, VL);
    put_reads(*half, t, own_codes, own_scores, VL);
  }
};

// What BH4 turns into hash inputs: z = BH4(x) + skip * x + bias.
struct Projection {
  Bh4 bh4;
  int64_t size;  // columns of a copy that count (less than bh4.padded() only below 16)
  float skip;
  const float* bias;  // [columns]
};

// z[t][column of copy j] for one vector of columns c of block g: the projection's result, mixed and biased.
inline vf mixed(const Projection& p, const float* h, const float* x, int64_t column, int64_t bias_column) {
  return load(h) + p.skip * load(x + column) + load(p.bias + bias_column);
}

// Rows of x, float or bfloat16.
struct Input {
  const void* data;
  bool bf16;
  int64_t columns;

  const float* rows(int64_t first, int64_t count, int64_t padded, float* buffer) const {
    if (!bf16 && columns == padded) return static_cast<const float*>(data) + first * columns;
    for (int64_t t = 0; t < count; t++, buffer += padded) {
      const int64_t at = (first + t) * columns;
      for (int64_t c = 0; c < columns; c++)
        buffer[c] =
            bf16 ? load_one(static_cast<const uint16_t*>(data) + at + c) : static_cast<const float*>(data)[at + c];
      std::fill(buffer + columns, buffer + padded, 0.f);
    }
    return buffer - count * padded;
  }
};

// Few tokens: copies of BH4 are shared out among the threads.
void hash_few(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens, int32_t* codes,
              float* scores, int64_t ld);

// Many: tiles of tokens are.
void hash_many(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens,
               const HashOutput& out);

// The same on the CPU's matrix tiles, numbers split into `parts` of bfloat16.
void hash_on_tiles(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens, int parts,
                   const HashOutput& out);

// The same by the projection multiplied out.
void hash_by_digits(const DigitProjection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens,
                    const HashOutput& out);

// From hash inputs z [tokens][columns].
void hash_dense(const float* z, const Hash& hash, int64_t tokens, const HashOutput& out);

}  // namespace lookupffn
