// lookup_ffn: the whole feed-forward without gradients, from x to y.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bh4_amx.h"
#include "checked_projection.h"
#include "codes.h"
#include "memory.h"
#include "parallel.h"
#include "prepared.h"
#include "tables.h"
#include "tensors.h"

namespace lookupffn {
namespace {

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(std::optional<Tensor>(bias))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void to_bf16(const float* from, int64_t count, uint16_t* to) {
  parallel_tasks((count + 65535) / 65536, [&](int64_t task) {
    for (int64_t i = task * 65536; i < std::min(count, (task + 1) * 65536); i++) {
      uint32_t bits;
      std::memcpy(&bits, from + i, 4);
      const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
    }
  });
}

// Read a vector at a time, so with room after the last.
const float* padded_bias(const Tensor& bias, int64_t columns, int64_t room) {
  static thread_local Scratch memory;
  float* padded = memory.get<float>(columns + room);
  if (is_half(bias))
    std::transform(data<uint16_t>(bias), data<uint16_t>(bias) + columns, padded,
                   [](const uint16_t& half) { return load_one(&half); });
  else std::memcpy(padded, bias.data_ptr(), columns * sizeof(float));
  std::fill(padded + columns, padded + columns + room, 0.f);
  return padded;
}

Table checked_table(const Tensor& table, const std::optional<Tensor>& scales) {
  const auto type = table.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Char,
                  "table must be float32, bfloat16 or int8");
  check(table, "table", type, 3);
  STD_TORCH_CHECK((type == ScalarType::Char) == scales.has_value(), "int8 tables, and only they, have scales");
  if (scales) {
    check(*scales, "scales", ScalarType::Float, 2);
    check_size(*scales, "scales", {table.size(0), table.size(1)});
  }
  const Element element = type == ScalarType::Float ? Element::f32 : is_half(table) ? Element::bf16 : Element::s8;
  keep_on_huge_pages(table.data_ptr(), table.numel() * (element == Element::f32    ? 4
                                                        : element == Element::bf16 ? 2
                                                                                   : 1));
  return {table.data_ptr(), element, scales ? data<float>(*scales) : nullptr, table.size(1), table.size(2)};
}

// A call's projection in the form that suits its tokens.
struct Hasher {
  const Tensor &x, &projection, &bias;
  Hash hash;
  bool exact;  // float32 tables, which are worth float32's accuracy of z
  std::shared_ptr<const Prepared> folded, digits;
  Projection bh4{};

  Hasher(const Tensor& x, const Tensor& projection, const Tensor& bias, const ProjectionWeights& weights, Hash hash,
         bool exact, const std::optional<Tensor>& ready)
      : x(x), projection(projection), bias(bias), hash(hash), exact(exact) {
    if (exact && x.size(0) >= LFFN_LEAST_FOR_DIGITS) digits = prepared(weights, Form::digits);
    const float* add = padded_bias(bias, hash.columns(),
                                   std::max<int64_t>(STRIP, weights.copies ? folded_shape(weights).padded() : 0));
    bh4 = {{}, weights.blocks * weights.block, 1.f - weights.alpha, add};
    if (digits || !weights.copies) return;
    if (!ready) {
      folded = prepared(weights, Form::folded);
      bh4.bh4 = folded->bh4;
      return;
    }
    bh4.bh4 = folded_shape(weights);
    check(*ready, "folded", ScalarType::Float, 5);
    check_size(*ready, "folded", {bh4.bh4.copies, 4, bh4.bh4.blocks, bh4.bh4.block, bh4.bh4.block});
    bh4.bh4.weight = data<float>(*ready);
  }

  void run(int64_t begin, int64_t tokens, const HashOutput& out) const {
    const bool dense = projection.dim() == 2;
    const Input input{x.data_ptr(), is_half(x), x.size(1)};
    if (digits && !out.half && tokens >= LFFN_LEAST_FOR_DIGITS) {
      const DigitProjection matrix{digits->digits.get(), digits->digit_scales.get(), bh4.bias, hash.columns(),
                                   x.size(1)};
      hash_by_digits(matrix, hash, input, begin, tokens, out);
    } else if (dense) {
      Tensor rows = x;
      run_dense(linear(torch::stable::narrow(rows, 0, begin, tokens), projection, bias), tokens, out);
    } else if (tokens < VL || (tokens < 2 * VL && bh4.bh4.copies > 1)) {  // two tiles of tokens are for two threads
      hash_few(bh4, hash, input, begin, tokens, out.codes, out.scores, out.ld);
    } else if (tokens >= (exact ? 1024 : 2 * TILE_TOKENS) && tiles_serve(bh4.bh4)) {  // splitting weights takes a while
      hash_on_tiles(bh4, hash, input, begin, tokens, exact ? 3 : 2, out);
    } else {
      hash_many(bh4, hash, input, begin, tokens, out);
    }
  }

  void run_dense(const Tensor& z, int64_t tokens, const HashOutput& out) const {
    if (!is_half(z)) {
      check(z, "z", ScalarType::Float, 2);
      return hash_dense(data<float>(z), hash, tokens, out);
    }
    static thread_local Scratch memory;  // by type of x, or by autocast
    float* wide = memory.get<float>(tokens * hash.columns());
    for (int64_t i = 0; i < tokens * hash.columns(); i++) wide[i] = load_one(data<uint16_t>(z) + i);
    hash_dense(wide, hash, tokens, out);
  }
};

}  // namespace

// projection: [r, 4, G, b, b], or dense [columns, d] (type of x). folded: what fold_projection made of BH4's, if the
// caller vouches for it.
Tensor lookup_ffn(Tensor x, Tensor projection, Tensor projection_bias, Tensor table, std::optional<Tensor> scales,
                  Tensor bias, double alpha, int64_t num_probes, std::optional<Tensor> folded) {
  const int64_t M = x.size(0), T = table.size(0), outputs = table.size(2);
  const bool bf16 = is_half(x);
  const Table rows = checked_table(table, scales);
  const Hash hash{T, checked_bits(rows.rows, num_probes), static_cast<int>(num_probes)};
  check(x, "x", bf16 ? ScalarType::BFloat16 : ScalarType::Float, 2);
  STD_TORCH_CHECK(M < (int64_t{1} << 31), "at most 2^31 tokens a call");
  check(bias, "bias", ScalarType::Float, 1);
  check_size(bias, "bias", {outputs});
  check_floating(projection_bias, "projection_bias", hash.columns());
  const ProjectionWeights weights = checked_projection(projection, alpha, hash.columns(), x.size(1));
  STD_TORCH_CHECK(weights.copies || (is_half(projection) == bf16 && is_half(projection_bias) == bf16),
                  "a dense projection must have the type of x");
  const Hasher hasher(x, projection, projection_bias, weights, hash, rows.element == Element::f32, folded);
  Tensor y = empty_pooled<OutputPool>(x, {M, outputs}, bf16 ? ScalarType::BFloat16 : ScalarType::Float);
  const int64_t y_bytes = outputs * (bf16 ? 2 : 4), reads = T * num_probes;
  on_huge_pages(y.data_ptr(), M * y_bytes);
  static thread_local Scratch code_memory, score_memory, sum_memory, word_memory, factor_memory;
  // Few chunks are fast: each reads all tables.
  const int64_t wide = bf16 ? 4 * std::max(outputs, weights.copies ? 0 : hash.columns()) : 0;
  const int64_t most = std::max<int64_t>(TILE, LFFN_CODES_AT_ONCE / std::max<int64_t>(8 * reads, wide) / TILE * TILE);
  for (int64_t begin = 0; begin < M; begin += most) {
    const int64_t tokens = std::min(most, M - begin), ld = padded_tokens(tokens);
    int32_t* codes = code_memory.get<int32_t>(reads * ld);
    float* scores = score_memory.get<float>(reads * ld);
    HalfReads half{};
    const bool in_half = half_serves(rows, tokens, hash.probes);
    if (in_half) {
      half = {nullptr, factor_memory.get<float>(padded_columns(tokens)), tokens, T, half_group(rows, T), hash.probes};
      half.words = word_memory.get<uint32_t>(half.groups() * tokens * half.ld());
    }
    hasher.run(begin, tokens, {codes, scores, ld, in_half ? &half : nullptr});
    char* out = data<char>(y) + begin * y_bytes;
    if (in_half) {
      gather_half(rows, half, data<float>(bias), out, bf16);
      continue;
    }
    float* sums = bf16 ? sum_memory.get<float>(tokens * outputs) : reinterpret_cast<float*>(out);
    gather(rows, {codes, scores, ld, tokens, T, hash.probes}, data<float>(bias), sums);
    if (bf16) to_bf16(sums, tokens * outputs, reinterpret_cast<uint16_t*>(out));
  }
  return y;
}

// BH4's weights as lookup_ffn takes them beside the originals.
Tensor fold_projection(Tensor projection, double alpha) {
  STD_TORCH_CHECK(projection.dim() == 5, "only BH4 has weights to fold");
  const ProjectionWeights weights = checked_projection(projection, alpha, 0, 0);
  const Bh4 shape = folded_shape(weights);
  Tensor folded = empty(projection, {shape.copies, 4, shape.blocks, shape.block, shape.block}, ScalarType::Float);
  fold(weights, data<float>(folded));
  return folded;
}

// The matrix [columns, depth] that BH4 mixed with its input is.
Tensor multiply_out_projection(Tensor projection, double alpha, int64_t columns, int64_t depth) {
  const ProjectionWeights weights = checked_projection(projection, alpha, columns, depth);
  Tensor matrix = empty(projection, {columns, depth}, ScalarType::Float);
  multiply_out(weights, data<float>(matrix));
  return matrix;
}

}  // namespace lookupffn

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CPU, m) {
  m.impl("lookup_ffn", TORCH_BOX(&lookupffn::lookup_ffn));
  m.impl("fold_projection", TORCH_BOX(&lookupffn::fold_projection));
  m.impl("multiply_out_projection", TORCH_BOX(&lookupffn::multiply_out_projection));
}
