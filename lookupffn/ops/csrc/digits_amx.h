// A projection multiplied out to one matrix, on the matrix tiles (AMX) of the CPU, which multiply int8 and add in
// int32.
//
// BH4 is linear: its four factors and the mix with x are one dense matrix. That has more FLOPs than the factors, but
// the tiles do them ten times faster than vectors. A code is the sign of a hash input, so what is needed is float32's
// accuracy: every number becomes a 24-bit integer, relative to the largest of its token or column, of three digits of 8
// bits, and of the nine products of digits all but the smallest are formed, exactly. The error of z is 2^-24 or so of
// the largest of the token times the largest of the column: float32's, unless a number that dwarfs the rest of its
// token meets weights that are nearly zero.
#pragma once

#include "simd.h"

namespace lookupffn {

constexpr int64_t STRIP = 16;         // columns of a tile
constexpr int64_t SUBTILE = 16;       // tokens of a tile
constexpr int64_t DEEPEST = 1 << 15;  // beyond, sums could leave int32

// z = weight @ x + bias.
struct DigitProjection {
  const int8_t* weight;        // from split_weight: [strips][depth / 64][3][tile]
  const float *scales, *bias;  // [columns, rounded up to strips]
  int64_t columns, depth;
};

// Whether the kernels are built for tiles and the system lets this process use them.
bool digits_serve();

int64_t weight_digits(int64_t columns, int64_t depth);  // bytes that split_weight writes
int64_t token_digits(int64_t depth);                    // bytes of SUBTILE tokens

// weight: [columns][depth]. scales: [columns, rounded up to strips].
void split_weight(const float* weight, int64_t columns, int64_t depth, int8_t* digits, float* scales);

// Digits and scales [SUBTILE] of at most SUBTILE tokens. x: [tokens][depth], float or bfloat16. NaN and infinity make
// the scale NaN.
void split_tokens(const void* x, bool bf16, int64_t depth, int tokens, int8_t* digits, float* scales);

// z[subtile][column - first_strip * STRIP], a token a lane; x and token_scales from split_tokens, subtile by subtile.
void project_digits(const DigitProjection& p, int64_t first_strip, int64_t strips, const int8_t* x,
                    const float* token_scales, int64_t subtiles, vf* z);

}  // namespace lookupffn
