// Hash inputs of a lookup in int8, in the cheapest of three forms: the projection multiplied out as an int8 product, or
// BH4 as it stands in bfloat16 or float32, where its fewer operations make up for their slower rate.
#pragma once

#include <cstdint>

#include "codes.h"
#include "int8_product.h"
#include "prepared.h"

namespace lookupffn {

constexpr int TABLE_GROUP = LFFN_TABLE_GROUP;  // tables whose hash inputs lie together, bit by bit

class LFFN_EXPORT Int8Projection {
 public:
  // What the hash inputs of a token are laid out as: [groups of tables][bits][TABLE_GROUP], or [tables][bits] with room
  // for a vector after the last.
  enum class Layout { bits_first, tables_first };

  // Input rows as the form wants them.
  struct Rows {
    int64_t count = 0;
    const float* floats = nullptr;       // [count][padded size of BH4]
    const uint16_t* halves = nullptr;    // the same in bfloat16
    const uint8_t* quantized = nullptr;  // [count][padded depth], and a scale a row
    const float* scales = nullptr;
  };

  Int8Projection() = default;
  // bias: [tables * bits], as many as the projection has columns.
  Int8Projection(const ProjectionWeights& weights, const float* bias, int64_t tables, int bits,
                 const Int8Kernel& kernel);

  Layout layout() const { return form_ == Form::int8 ? Layout::bits_first : Layout::tables_first; }
  int64_t width() const;  // of a token's hash inputs
  int64_t bytes() const { return matrix_.bytes() + folded_.bytes() + pairs_.bytes() + bias_.bytes(); }

  // x: [count][depth]. What is returned lies in x and in `memory`.
  Rows rows(const float* x, int64_t count, Scratch& memory) const;
  // z: [count][width]. The work can be cut into `parts` by columns.
  int64_t parts() const;
  void run(const Int8Kernel& kernel, const Rows& rows, int64_t begin, int64_t end, float* z) const;

 private:
  enum class Form { int8, float32, bf16 };

  static Form cheapest(const ProjectionWeights& weights, const Int8Kernel& kernel);
  void copy(const Rows& rows, int64_t copy, float* z) const;

  Form form_ = Form::int8;
  int64_t depth_ = 0, columns_ = 0;
  Int8Matrix matrix_;
  Projection bh4_{};       // of folded_ and bias_
  Array<float> folded_;    // [copies][4][blocks][block][block]
  Array<uint32_t> pairs_;  // the same in bfloat16, pairs of rows
  Array<float> bias_;      // with room for a vector beyond
};

}  // namespace lookupffn
