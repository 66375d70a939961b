#include "int8_projection.h"

#include <algorithm>
#include <vector>

#include "bh4_bf16.h"

namespace lookupffn {
namespace {

// From ../limits.py, which says what they are.
constexpr int64_t FLOAT32_RATE = LFFN_FLOAT32_RATE, BF16_RATE = LFFN_BF16_RATE, INT8_RATE = LFFN_INT8_RATE;
constexpr int64_t TILES_RATE = LFFN_TILES_RATE, PASSES = LFFN_PASSES;

int64_t bh4_cycles(const ProjectionWeights& w, int64_t rate) {
  const Bh4 shape = folded_shape(w);
  int64_t levels = 0;
  while ((int64_t{1} << levels) < shape.blocks) levels++;
  return w.copies * 4 * shape.padded() * (shape.block * FLOAT32_RATE / rate + levels + PASSES) / FLOAT32_RATE;
}

}  // namespace

Int8Projection::Form Int8Projection::cheapest(const ProjectionWeights& w, const Int8Kernel& kernel) {
  if (!w.copies) return Form::int8;
  Form best = Form::int8;
  int64_t least = w.columns * w.depth / (kernel.begin ? TILES_RATE : INT8_RATE);
  const auto consider = [&](Form form, int64_t rate) {
    const int64_t cycles = bh4_cycles(w, rate);
    if (cycles < least) best = form, least = cycles;
  };
  consider(Form::float32, FLOAT32_RATE);
#if defined(LFFN_BF16_BH4)
  consider(Form::bf16, BF16_RATE);
#endif
  return best;
}

Int8Projection::Int8Projection(const ProjectionWeights& weights, const float* bias, int64_t tables, int bits,
                               const Int8Kernel& kernel)
    : form_(cheapest(weights, kernel)), depth_(weights.depth), columns_(tables * bits) {
  if (form_ == Form::int8) {
    std::vector<float> matrix(columns_ * depth_);
    multiply_out(weights, matrix.data());
    const int64_t ordered_columns = rounded_up(tables, TABLE_GROUP) * bits;
    std::vector<float> ordered(ordered_columns * depth_), ordered_bias(ordered_columns);
    for (int64_t k = 0; k < tables; k++)
      for (int64_t j = 0; j < bits; j++) {
        const int64_t to = (k / TABLE_GROUP * bits + j) * TABLE_GROUP + k % TABLE_GROUP, at = k * bits + j;
        std::copy(matrix.begin() + at * depth_, matrix.begin() + (at + 1) * depth_, ordered.begin() + to * depth_);
        ordered_bias[to] = bias[at];
      }
    matrix_ = pack_int8(ordered.data(), ordered_bias.data(), ordered_columns, depth_);
    return;
  }
  Bh4 bh4 = folded_shape(weights);
  bias_ = Array<float>(columns_ + std::max<int64_t>(bh4.padded(), VL));
  std::copy(bias, bias + columns_, bias_.data());
  const int64_t matrices = bh4.copies * 4 * bh4.blocks, area = bh4.block * bh4.block;
  folded_ = Array<float>(matrices * area);
  fold(weights, folded_.data());
#if defined(LFFN_BF16_BH4)
  if (form_ == Form::bf16) {
    pairs_ = Array<uint32_t>(matrices * area / 2);
    for (int64_t i = 0; i < matrices; i++)
      pack_pairs(folded_.data() + i * area, bh4.block, pairs_.data() + i * area / 2);
    folded_ = {};
  }
#endif
  bh4.weight = folded_.data();
  bh4_ = {bh4, weights.blocks * weights.block, 1.f - weights.alpha, bias_.data()};
}

int64_t Int8Projection::width() const {
  return form_ == Form::int8 ? matrix_.panels * PANEL : rounded_up(columns_, VL) + VL;
}

int64_t Int8Projection::parts() const {
  if (form_ == Form::int8) return matrix_.panels;
  return bh4_.size % VL ? 1 : bh4_.bh4.copies;  // else a copy writes a vector into the columns of the next one
}

Int8Projection::Rows Int8Projection::rows(const float* x, int64_t count, Scratch& memory) const {
  Rows rows{.count = count};
  if (form_ == Form::int8) {
    const int64_t padded = matrix_.padded_depth, whole = rounded_up(depth_, VL);
    const int64_t room = rounded_up(count, MOST_STRIP_ROWS);
    uint8_t* quantized = memory.get<uint8_t>(room * (padded + 4) + whole * 4);
    float* scales = reinterpret_cast<float*>(quantized + room * padded);
    float* copy = scales + room;
    for (int64_t t = 0; t < count; t++) {
      const float* row = x + t * depth_;
      if (whole != depth_) {
        std::copy(row, row + depth_, copy);
        std::fill(copy + depth_, copy + whole, 0.f);
        row = copy;
      }
      scales[t] = quantize_row(row, whole, padded, quantized + t * padded);
    }
    rows.quantized = quantized;
    rows.scales = scales;
    return rows;
  }
  const int64_t padded = bh4_.bh4.padded();
  float* floats = memory.get<float>(count * padded * 3 / 2);
  rows.floats = Input{x, false, depth_}.rows(0, count, padded, floats);
  if (form_ == Form::bf16) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(floats + count * padded);
    for (int64_t i = 0; i < count * padded; i += VL) store_bf16(halves + i, load(rows.floats + i));
    rows.halves = halves;
  }
  return rows;
}

void Int8Projection::run(const Int8Kernel& kernel, const Rows& rows, int64_t begin, int64_t end, float* z) const {
  if (form_ != Form::int8) {
    if (parts() == 1) begin = 0, end = bh4_.bh4.copies;
    for (int64_t c = begin; c < end; c++) copy(rows, c, z);
    return;
  }
  const int64_t ld = width();
  int8_product(kernel, matrix_, rows.quantized, rows.scales, rows.count, begin, end,
               [&](int64_t r, int64_t c, vf v) { store(z + r * ld + c, v); });
}

void Int8Projection::copy(const Rows& rows, int64_t copy, float* z) const {
  static thread_local Scratch memory;
  const int64_t padded = bh4_.bh4.padded(), block = bh4_.bh4.block, first = copy * bh4_.size, ld = width();
  const int tokens = static_cast<int>(rows.count);
  float* sums = memory.get<float>(2 * rows.count * padded);
  float* other = sums + rows.count * padded;
  const float* h = sums;
#if defined(LFFN_BF16_BH4)
  if (form_ == Form::bf16)
    bh4_tile_bf16(pairs_.data() + copy * 2 * padded * block, bh4_.bh4.blocks, block, rows.halves, tokens,
                  reinterpret_cast<uint16_t*>(other), sums);
#endif
  if (form_ == Form::float32) h = bh4_tile(bh4_.bh4, copy, rows.floats, padded, tokens, sums, other);
  const int64_t last = std::min(bh4_.size, columns_ - first);
  for (int64_t t = 0; t < rows.count; t++)
    for (int64_t c = 0; c < last; c += VL)  // beyond the last column only room is written
      store(z + t * ld + first + c,
            mixed(bh4_, h + (c / block * tokens + t) * block + c % block, rows.floats + t * padded, c, first + c));
}

}  // namespace lookupffn
