// The gather of bfloat16 and int8 tables in float16 arithmetic (AVX512-FP16), for calls of many tokens.
//
// float16 holds 11 bits: more than a row's own rounding (bfloat16 has 8, int8 7), in half of float32's space. Its small
// range is met by powers of two: of each slice of tables, and of each token's scores. Sums become float32 after every
// slice, so that their error does not grow with the number of tables.
#pragma once

#include "simd.h"
#include "tables.h"

namespace lookupffn {

// Reads token by token; ld is a multiple of VL.
struct HalfReads {
  uint32_t* words;  // [tokens][ld]: the code, and above it the score as float16, divided by the token's factor
  float* factors;   // [tokens rounded up to VL]
  int64_t ld, tokens, tables;
  int probes;
};

bool half_serves(const Table& table, int64_t tokens, int probes);

// Reads of VL tokens from `first`, which has room for them: codes and scores are [tables * probes][ld].
void put_reads(const HalfReads& to, int64_t first, const int32_t* codes, const float* scores, int64_t ld);

// y[m] = bias + sum over reads of score * row; y is bfloat16 or float.
void gather_half(const Table& table, const HalfReads& reads, const float* bias, void* y, bool bf16);

}  // namespace lookupffn
