// What the kernels make of a projection's weights before they use them, kept from call to call.
//
// Kept by content: a fingerprint of all the weights is taken at every call (at the speed of memory) and what was
// prepared is used only under the fingerprint it was made from. So it cannot be stale, whatever wrote the weights, and
// it needs no owner: it serves any tensor of the same content.
#pragma once

#include <memory>

#include "bh4.h"
#include "digits_amx.h"

namespace lookupffn {

// BH4's weights [copies][4][blocks][block][block] as they are learned, or a dense matrix [columns][depth] if copies is
// 0.
struct ProjectionWeights {
  const void* data;
  bool bf16;
  int64_t copies, blocks, block;
  float alpha;
  int64_t columns, depth;  // of the matrix they stand for; the copies of BH4 are cut to it
  int64_t count() const { return copies ? copies * 4 * blocks * block * block : columns * depth; }
};

struct Prepared {
  std::unique_ptr<float[]> folded;  // [copies][4][bh4.blocks][bh4.block][bh4.block]
  Bh4 bh4{};
  std::unique_ptr<int8_t[]> digits;  // see digits_amx.h
  std::unique_ptr<float[]> digit_scales;
};

// The shape that weights have once folded: blocks below a vector of AVX-512 are joined, or padded where one is all.
Bh4 folded_shape(const ProjectionWeights& weights);

// BH4's weights with everything in them that can be: within-block transforms, scales, and alpha.
void fold(const ProjectionWeights& weights, float* folded);

// The matrix [columns][depth] that BH4 mixed with its input is.
void multiply_out(const ProjectionWeights& weights, float* matrix);

enum class Form { folded, digits };

// From the cache, or prepared now; null where the form does not pay. Digits are made at the second use: splitting takes
// as long as a call of hundreds of tokens.
std::shared_ptr<const Prepared> prepared(const ProjectionWeights& weights, Form form);

}  // namespace lookupffn
