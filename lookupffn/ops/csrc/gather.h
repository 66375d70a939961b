// Sums of scored table rows, and their gradients, for reads laid out probe-major: codes and scores are [reads][ld],
// read r = table * probes + probe, token-contiguous. ld is a multiple of VL and an odd number of cache lines.
#pragma once

#include <cstdint>

namespace lookupffn {

enum class Element { f32, bf16, s8 };

struct Reads {
  const int32_t* codes;
  const float* scores;
  int64_t ld;  // tokens, padded
  int64_t tokens;
  int64_t tables;
  int probes;
};

struct Table {
  const void* data;  // [tables][rows][columns]
  Element element;
  const float* scales;  // [tables][rows], for s8 only
  int64_t rows;
  int64_t columns;
};

inline int64_t padded_tokens(int64_t tokens) {
  const int64_t lines = (tokens + 15) / 16;
  return (lines | 1) * 16;  // an odd number of cache lines: the reads of one token fall into different cache sets
}

// y[m] = bias + sum over reads of score * row. y: [tokens][columns]; bias may be null.
void gather(const Table& table, const Reads& reads, const float* bias, float* y);

// grad_scores: [tokens][grad_ld], the inner product of each row read with the token's gradient [tokens][columns].
void score_gradient(const Table& table, const Reads& reads, const float* grad_y, float* grad_scores, int64_t grad_ld);

// grad_table [tables][rows][columns] = for each row the sum over the tokens that read it of score * grad_y.
void table_gradient(const Reads& reads, int64_t rows, int64_t columns, const float* grad_y, float* grad_table);

}  // namespace lookupffn
