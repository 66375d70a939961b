// The gather of bfloat16 and int8 tables in float16 arithmetic (AVX512-FP16), for calls of many tokens.
//
// float16 holds 11 bits: more than a row's own rounding (bfloat16 has 8, int8 7), in half of float32's space. Its small
// range is met by powers of two: of each slice of tables, and of each token's scores. The sums of a slice are added in
// float32 to those of the slices before, which wait in float16: rounding them costs 2^-12 a slice.
#pragma once

#include "simd.h"
#include "tables.h"

namespace lookupffn {

// Reads group by group of tables, as the slices are, and in a group token by token.
struct HalfReads {
  uint32_t* words;  // [groups][tokens][ld]: the code, and above it the score as float16, divided by the token's factor
  float* factors;   // [tokens rounded up to VL]
  int64_t tokens, tables, group;
  int probes;
  int64_t ld() const { return group * probes; }
  int64_t groups() const { return (tables + group - 1) / group; }
};

// Tables a slice.
int64_t half_group(const Table& table, int64_t tables);

bool half_serves(const Table& table, int64_t tokens, int probes);

// Reads of at most VL tokens from `first`; codes and scores are [tables * probes][ld], of VL tokens each.
void put_reads(const HalfReads& to, int64_t first, const int32_t* codes, const float* scores, int64_t ld);

// y[m] = bias + sum over reads of score * row; y is bfloat16 or float.
void gather_half(const Table& table, const HalfReads& reads, const float* bias, void* y, bool bf16);

}  // namespace lookupffn
