// BH4 on the matrix tiles (AMX) of the CPU, which multiply bfloat16 and add in float32.
//
// A code is the sign of a hash input, so weights and activations rounded to bfloat16 would change codes. Each is split
// into bfloat16 parts instead. Two parts and three products, all but low * low, flip a code in 50,000; three parts and
// the six largest products are as good as float32.
#pragma once

#include "bh4.h"

namespace lookupffn {

// z = BH4(x) + skip * x + bias, as far as `columns`.
struct TileProjection {
  const uint32_t* weight;  // from split_weights
  int parts;               // 2 or 3
  int64_t copies, blocks, block, columns;
  float skip;
  const float* bias;  // [columns], readable as far as a vector beyond
};

constexpr int TILE_TOKENS = 64;

// Whether the kernels are built for tiles, the system lets this process use them, and they take blocks of this shape.
bool tiles_serve(const Bh4& p);

// Words (pairs of bfloat16) that split_weights writes, and that one thread needs for a tile of tokens.
int64_t split_words(const Bh4& p, int parts);
int64_t tile_words(const Bh4& p, int parts);

void split_weights(const Bh4& p, int parts, uint32_t* out);

// Hash inputs of at most TILE_TOKENS tokens, transposed: lanes[subtile of VL tokens][lanes_ld]. x: [tokens][blocks *
// block]; exact: all of it is bfloat16, so its other parts are zero.
void project_on_tiles(const TileProjection& p, const float* x, bool exact, int tokens, uint32_t* scratch, vf* lanes,
                      int64_t lanes_ld);

}  // namespace lookupffn
