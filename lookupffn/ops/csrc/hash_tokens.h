// Codes and scores of many tokens, in the layout of gather.h.
#pragma once

#include <algorithm>

#include "hash.h"

namespace lookupffn {

inline int64_t padded_columns(int64_t columns) { return (columns + VL - 1) / VL * VL; }

// VL tokens at once; lanes is [tables * bits] vectors. codes and scores point at the first of the tokens.
inline void hash_across_tokens(const vf* lanes, int64_t tables, int bits, int N, int32_t* codes, float* scores,
                               int64_t ld) {
  for (int64_t k = 0; k < tables; k++) {
    vi code[MAX_PROBES];
    vf score[MAX_PROBES];
    hash_lanes(lanes + k * bits, bits, N, code, score);
    for (int n = 0; n < N; n++) {
      store(codes + (k * N + n) * ld, code[n]);
      store(scores + (k * N + n) * ld, score[n]);
    }
  }
}

// One token, VL tables at once: for calls of few tokens. z is [tables * bits].
inline void hash_across_tables(const float* z, int64_t tables, int bits, int N, int32_t* codes, float* scores,
                               int64_t ld) {
  vf lanes[(MAX_BITS + VL - 1) / VL * VL];
  for (int64_t k = 0; k < tables; k += VL) {
    const int rows = static_cast<int>(std::min<int64_t>(VL, tables - k));
    load_transposed(z + k * bits, bits, rows, bits, lanes);
    vi code[MAX_PROBES];
    vf score[MAX_PROBES];
    hash_lanes(lanes, bits, N, code, score);
    for (int i = 0; i < rows; i++)
      for (int n = 0; n < N; n++) {
        codes[((k + i) * N + n) * ld] = code[n][i];
        scores[((k + i) * N + n) * ld] = score[n][i];
      }
  }
}

}  // namespace lookupffn
