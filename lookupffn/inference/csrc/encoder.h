// A whole pre-norm encoder at inference: embeddings, layers, final LayerNorm, and the language-model head.
#pragma once

#include <cstdint>
#include <vector>

#include "int8_lookup.h"
#include "int8_product.h"
#include "rows.h"

namespace lookupffn {

struct Norm {
  Array<float> gain, bias;
  float eps = 0;
  void apply(const float* x, float* out) const { layer_norm(x, gain.data(), bias.data(), eps, gain.size(), out); }
};

enum class Activation { gelu, relu };

struct EncoderLayer {
  Norm attention_norm, ffn_norm;
  Int8Matrix qkv;  // columns by head: its query (scaled), key, value
  Int8Matrix output;
  // the feed-forward: two products, or a lookup, or nothing at all
  Int8Matrix up, down;
  Activation activation = Activation::gelu;
  Int8Lookup lookup;
};

struct Embeddings {
  const float* words = nullptr;  // owned by the caller
  const float* positions = nullptr;
  const float* types = nullptr;
  int64_t num_words = 0, num_positions = 0, num_types = 0, padding = 0;
  Norm norm;
};

struct LanguageHead {
  Int8Matrix dense, decoder;
  Norm norm;
};

struct Tokens {
  const int64_t* ids;        // [batch][length]
  const uint8_t* mask;       // [batch][length], 0 where padded; null: nothing is
  const int64_t* types;      // [batch][length], null: all 0
  const int64_t* positions;  // [batch][length], null: counted from padding + 1 over ids other than padding
  int64_t batch, length;
};

struct Encoder {
  int64_t hidden = 0, heads = 0;
  const Int8Kernel* kernel = nullptr;
  bool plain_reads = false;  // table rows are summed without VNNI
  bool exact_attention = false;
  Embeddings embeddings;
  std::vector<EncoderLayer> layers;
  Norm norm;
  LanguageHead head;

  // out [batch][length][hidden], zeros where padded. Returns null, or what is wrong with the tokens.
  const char* run(const Tokens& tokens, float* out) const;
  // logits [rows][vocabulary] of x [rows][hidden].
  void language_head(const float* x, int64_t rows, float* logits) const;
  int64_t bytes() const;
};

}  // namespace lookupffn
