// bh4_forward and bh4_backward: hash inputs from x with BH4, and the gradients. Backward recomputes a tile's
// intermediates, which stay in cache: keeping them would move 12 times the size of x through memory.
#include "bh4.h"
#include "memory.h"
#include "parallel.h"
#include "tensors.h"

namespace lookupffn {
namespace {

constexpr int64_t TILE = LFFN_TILE;
constexpr auto F32 = ScalarType::Float;

struct Bh4Sizes {
  Bh4 bh4;
  int64_t tokens, width, size, columns;  // width: of x; size: columns a copy gives; columns: of z
  int64_t tiles() const { return (tokens + TILE - 1) / TILE; }
  int64_t weights() const { return bh4.copies * 4 * bh4.padded() * bh4.block; }
  // columns of z that copy gives
  int64_t used(int64_t copy) const { return std::clamp<int64_t>(columns - copy * size, 0, size); }
};

Bh4Sizes checked_bh4(const Tensor& x, const Tensor& weight, int64_t size, int64_t columns) {
  check(x, "x", F32, 2);
  check(weight, "weight", F32, 5);
  const int64_t b = weight.size(4), G = weight.size(2);
  check_size(weight, "weight", {weight.size(0), 4, G, b, b});
  const Bh4 bh4{data<float>(weight), weight.size(0), G, b};
  STD_TORCH_CHECK(b >= 16 && (b & (b - 1)) == 0 && G >= 1 && (G & (G - 1)) == 0, "weight is not folded");
  STD_TORCH_CHECK(x.size(1) <= size && size <= bh4.padded() && (size == bh4.padded() || G == 1) && columns >= 0 &&
                      columns <= bh4.copies * size,
                  "BH4 weight does not fit x");
  return {bh4, x.size(0), x.size(1), size, columns};
}

// Rows of x padded to the size of BH4, or x itself where it needs no padding.
const float* padded_rows(const float* x, int64_t width, int64_t padded, int64_t first, int64_t count, float* buffer) {
  if (width == padded) return x + first * width;
  for (int64_t t = 0; t < count; t++) {
    std::memcpy(buffer + t * padded, x + (first + t) * width, width * sizeof(float));
    std::fill(buffer + t * padded + width, buffer + (t + 1) * padded, 0.f);
  }
  return buffer;
}

// f(g, t, c, n): n columns from c on of block g lie at [g][t] of a tile, for the first `used` columns.
template <class F>
void for_pieces(int64_t used, int64_t block, int64_t tokens, const F& f) {
  for (int64_t g = 0; g * block < used; g++)
    for (int64_t t = 0; t < tokens; t++) f(g, t, g * block, std::min(block, used - g * block));
}

// Forward and backward of one tile of tokens for one copy.
struct Backward {
  const Bh4Sizes& s;
  const float* transposed;  // [copies][4][blocks][block][block], each block transposed
  float* buffers;           // 5 tiles

  void run(int64_t copy, const float* x, const float* grad_z, int tokens, float* grad_w, float* grad_x) const {
    const int64_t b = s.bh4.block, G = s.bh4.blocks, padded = s.bh4.padded(), piece = tokens * b, factor = padded * b;
    const float* w = s.bh4.weight + copy * 4 * factor;
    const float* wt = transposed + copy * 4 * factor;
    float* hidden[3] = {buffers, buffers + TILE * padded, buffers + 2 * TILE * padded};
    float* grad = buffers + 3 * TILE * padded;
    float* other = buffers + 4 * TILE * padded;
    bh4_factor(w, G, b, x, padded, b, tokens, hidden[0]);
    for (int f = 1; f < 3; f++) bh4_factor(w + f * factor, G, b, hidden[f - 1], b, piece, tokens, hidden[f]);
    std::fill(grad, grad + G * piece, 0.f);
    const float* from = grad_z + copy * s.size;
    for_pieces(s.used(copy), b, tokens, [&](int64_t g, int64_t t, int64_t c, int64_t n) {
      std::memcpy(grad + g * piece + t * b, from + t * s.columns + c, n * sizeof(float));
    });
    for (int f = 3; f >= 0; f--) {
      across_blocks(grad, G, piece, piece);
      for (int64_t g = 0; g < G; g++) {
        const float* in = f ? hidden[f - 1] + g * piece : x + g * b;
        outer_product(in, f ? b : padded, grad + g * piece, b, tokens, grad_w + (copy * 4 + f) * factor + g * b * b);
        block_product(grad + g * piece, b, wt + f * factor + g * b * b, b, other + g * piece, tokens);
      }
      std::swap(grad, other);
    }
    for_pieces(s.width, b, tokens, [&](int64_t g, int64_t t, int64_t c, int64_t n) {
      const float* more = grad + g * piece + t * b;
      float* to = grad_x + t * s.width + c;
      int64_t i = 0;
      for (; i + VL <= n; i += VL) store(to + i, load(to + i) + load(more + i));
      for (; i < n; i++) to[i] += more[i];
    });
  }
};

}  // namespace

// z [M, columns] = BH4(x) + skip * x + bias, copies side by side.
Tensor bh4_forward(Tensor x, Tensor weight, Tensor bias, double skip, int64_t size) {
  const Bh4Sizes s = checked_bh4(x, weight, size, bias.numel());
  check(bias, "bias", F32, 1);
  Tensor z = empty(x, {s.tokens, s.columns}, F32);
  const float* shift = data<float>(bias);
  const float mix = static_cast<float>(skip);
  parallel_tasks(s.tiles(), [&](int64_t task) {
    static thread_local Scratch memory;
    const int64_t padded = s.bh4.padded(), b = s.bh4.block, first = task * TILE;
    const int tokens = static_cast<int>(std::min(TILE, s.tokens - first));
    float* buffers = memory.get<float>(3 * TILE * padded);
    const float* rows = padded_rows(data<float>(x), s.width, padded, first, tokens, buffers + 2 * TILE * padded);
    for (int64_t copy = 0; copy < s.bh4.copies; copy++) {
      const float* h = bh4_tile(s.bh4, copy, rows, padded, tokens, buffers, buffers + TILE * padded);
      float* out = data<float>(z) + first * s.columns + copy * s.size;
      const float* add = shift + copy * s.size;
      for_pieces(s.used(copy), b, tokens, [&](int64_t g, int64_t t, int64_t c, int64_t n) {
        const float* from = h + (g * tokens + t) * b;
        const float* row = rows + t * padded + c;
        float* to = out + t * s.columns + c;
        int64_t i = 0;
        for (; i + VL <= n; i += VL) store(to + i, load(from + i) + mix * load(row + i) + load(add + c + i));
        for (; i < n; i++) to[i] = from[i] + mix * row[i] + add[c + i];
      });
    }
  });
  return z;
}

// Gradients with respect to x [M, d], the folded weight and the bias.
std::tuple<Tensor, Tensor, Tensor> bh4_backward(Tensor grad_z, Tensor x, Tensor weight, Tensor transposed, double skip,
                                                int64_t size) {
  check(grad_z, "grad_z", F32, 2);
  const Bh4Sizes s = checked_bh4(x, weight, size, grad_z.size(1));
  check_size(grad_z, "grad_z", {s.tokens, s.columns});
  check(transposed, "transposed", F32, 5);
  check_size(transposed, "transposed", {s.bh4.copies, 4, s.bh4.blocks, s.bh4.block, s.bh4.block});
  Tensor grad_x = empty(x, {s.tokens, s.width}, F32), grad_bias = empty(x, {s.columns}, F32);
  Tensor grad_w = empty(x, {s.bh4.copies, 4, s.bh4.blocks, s.bh4.block, s.bh4.block}, F32);
  on_huge_pages(grad_x.data_ptr(), grad_x.numel() * 4);
  // a sum for each thread over a fixed share of the tiles, so that results do not vary from run to run
  const int64_t shares = std::clamp<int64_t>(num_threads(), 1, std::max<int64_t>(1, s.tiles()));
  static thread_local Scratch sum_memory;
  const int64_t each = s.weights() + s.columns;
  float* sums = sum_memory.get<float>(shares * each);
  const float mix = static_cast<float>(skip);
  parallel_tasks(shares, [&](int64_t share) {
    static thread_local Scratch memory;
    const int64_t padded = s.bh4.padded();
    float* buffers = memory.get<float>(6 * TILE * padded);
    const Backward backward{s, data<float>(transposed), buffers};
    float* weight_sum = sums + share * each;
    float* bias_sum = weight_sum + s.weights();
    std::fill(weight_sum, weight_sum + each, 0.f);
    for (int64_t tile = s.tiles() * share / shares; tile < s.tiles() * (share + 1) / shares; tile++) {
      const int64_t first = tile * TILE;
      const int tokens = static_cast<int>(std::min(TILE, s.tokens - first));
      const float* rows = padded_rows(data<float>(x), s.width, padded, first, tokens, buffers + 5 * TILE * padded);
      const float* grads = data<float>(grad_z) + first * s.columns;
      float* out = data<float>(grad_x) + first * s.width;
      std::fill(out, out + tokens * s.width, 0.f);
      for (int64_t t = 0; t < tokens; t++) {
        for (int64_t c = 0; c < s.columns; c++) bias_sum[c] += grads[t * s.columns + c];
        for (int64_t copy = 0; copy < s.bh4.copies; copy++) {
          const float* from = grads + t * s.columns + copy * s.size;
          for (int64_t c = 0; c < std::min(s.used(copy), s.width); c++) out[t * s.width + c] += mix * from[c];
        }
      }
      for (int64_t copy = 0; copy < s.bh4.copies; copy++) backward.run(copy, rows, grads, tokens, weight_sum, out);
    }
  });
  parallel_tasks((each + 16383) / 16384, [&](int64_t task) {
    for (int64_t i = task * 16384; i < std::min(each, (task + 1) * 16384); i++) {
      float sum = 0.f;
      for (int64_t share = 0; share < shares; share++) sum += sums[share * each + i];
      if (i < s.weights()) data<float>(grad_w)[i] = sum;
      else data<float>(grad_bias)[i - s.weights()] = sum;
    }
  });
  return {grad_x, grad_w, grad_bias};
}

}  // namespace lookupffn

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CPU, m) {
  m.impl("bh4_forward", TORCH_BOX(&lookupffn::bh4_forward));
  m.impl("bh4_backward", TORCH_BOX(&lookupffn::bh4_backward));
}
