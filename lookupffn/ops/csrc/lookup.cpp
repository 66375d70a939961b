// lookup_forward and lookup_backward: the lookup from hash inputs to outputs, and its gradients.
#include "hash_tokens.h"
#include "memory.h"
#include "parallel.h"
#include "tensors.h"

namespace lookupffn {
namespace {

constexpr int64_t BLOCK = 4 * VL;  // tokens a task
constexpr auto F32 = ScalarType::Float;
constexpr auto I32 = ScalarType::Int;

// codes and scores [tables * N][ld] of z [tokens][tables * bits]; zero beyond the last token.
void hash_tokens(const float* z, int64_t tokens, int64_t tables, int bits, int N, int32_t* codes, float* scores,
                 int64_t ld) {
  const int64_t columns = tables * bits;
  parallel_tasks((ld + BLOCK - 1) / BLOCK, [&](int64_t task) {
    static thread_local Scratch scratch;
    vf* lanes = scratch.get<vf>(padded_columns(columns));
    for (int64_t m = task * BLOCK; m < std::min(ld, (task + 1) * BLOCK); m += VL) {
      const int rows = static_cast<int>(std::clamp<int64_t>(tokens - m, 0, VL));
      if (rows == 0) {
        for (int64_t r = 0; r < tables * N; r++) {
          store(codes + r * ld + m, vi{});
          store(scores + r * ld + m, vf{});
        }
        continue;
      }
      load_transposed(z + m * columns, columns, rows, columns, lanes);
      hash_across_tokens(lanes, tables, bits, N, codes + m, scores + m, ld);
    }
  });
}

void hash_tokens_backward(const float* z, const Reads& reads, int bits, const float* grad_scores, int64_t grad_ld,
                          float* grad_z) {
  const int64_t columns = reads.tables * bits;
  const int N = reads.probes;
  parallel_tasks((reads.tokens + BLOCK - 1) / BLOCK, [&](int64_t task) {
    static thread_local Scratch scratch;
    vf* lanes = scratch.get<vf>(2 * padded_columns(columns) + grad_ld);
    vf* grad_lanes = lanes + padded_columns(columns);
    vf* grads = grad_lanes + padded_columns(columns);
    for (int64_t c = columns; c < padded_columns(columns); c++) grad_lanes[c] = vf{};
    for (int64_t m = task * BLOCK; m < std::min(reads.tokens, (task + 1) * BLOCK); m += VL) {
      const int rows = static_cast<int>(std::min<int64_t>(reads.tokens - m, VL));
      load_transposed(z + m * columns, columns, rows, columns, lanes);
      load_transposed(grad_scores + m * grad_ld, grad_ld, rows, reads.tables * N, grads);
      for (int64_t k = 0; k < reads.tables; k++) {
        vi code[MAX_PROBES];
        vf score[MAX_PROBES];
        for (int n = 0; n < N; n++) {
          code[n] = load(reads.codes + (k * N + n) * reads.ld + m);
          score[n] = load(reads.scores + (k * N + n) * reads.ld + m);
        }
        hash_backward_lanes(lanes + k * bits, bits, N, code, score, grads + k * N, grad_lanes + k * bits);
      }
      store_transposed(grad_lanes, columns, grad_z + m * columns, columns, rows);
    }
  });
}

// Codes and scores have room for a multiple of 16 tokens, which every vector length divides.
void check_stride(int64_t ld, int64_t tokens) {
  STD_TORCH_CHECK(ld >= tokens && ld % 16 == 0, "codes must have room for a multiple of 16 tokens, at least ", tokens);
}

struct Sizes {
  int64_t tokens, tables, rows, columns;
  int bits, probes;
};

Sizes checked_sizes(const Tensor& z, const Tensor& table, int64_t num_probes) {
  check(z, "z", F32, 2);
  check(table, "table", F32, 3);
  const int bits = checked_bits(table.size(1), num_probes);
  check_size(z, "z", {z.size(0), table.size(0) * bits});
  STD_TORCH_CHECK(z.size(0) < (int64_t{1} << 31), "at most 2^31 tokens a call");
  return {z.size(0), table.size(0), table.size(1), table.size(2), bits, static_cast<int>(num_probes)};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> lookup_forward(Tensor z, Tensor table, int64_t num_probes, int64_t ld) {
  const Sizes s = checked_sizes(z, table, num_probes);
  check_stride(ld, s.tokens);
  keep_on_huge_pages(table.data_ptr(), table.numel() * 4);
  Tensor y = empty(z, {s.tokens, s.columns}, F32);
  Tensor codes = empty(z, {s.tables * s.probes, ld}, I32), scores = empty(z, {s.tables * s.probes, ld}, F32);
  hash_tokens(data<float>(z), s.tokens, s.tables, s.bits, s.probes, data<int32_t>(codes), data<float>(scores), ld);
  const Reads reads{data<int32_t>(codes), data<float>(scores), ld, s.tokens, s.tables, s.probes};
  gather({table.data_ptr(), Element::f32, nullptr, s.rows, s.columns}, reads, nullptr, data<float>(y));
  return {y, codes, scores};
}

std::tuple<Tensor, Tensor> lookup_backward(Tensor grad_y, Tensor z, Tensor table, Tensor codes, Tensor scores,
                                           int64_t num_probes, bool need_z, bool need_table) {
  const Sizes s = checked_sizes(z, table, num_probes);
  check(codes, "codes", I32, 2);
  const int64_t ld = codes.size(1);
  check_stride(ld, s.tokens);
  check(grad_y, "grad_y", F32, 2);
  check_size(grad_y, "grad_y", {s.tokens, s.columns});
  check_size(codes, "codes", {s.tables * s.probes, ld});
  check(scores, "scores", F32, 2);
  check_size(scores, "scores", {s.tables * s.probes, ld});
  const int32_t* code = data<int32_t>(codes);
  bool inside = true;
  for (int64_t i = 0; i < s.tables * s.probes * ld; i++) inside &= static_cast<uint32_t>(code[i]) < s.rows;
  STD_TORCH_CHECK(inside, "codes out of range");
  const Reads reads{code, data<float>(scores), ld, s.tokens, s.tables, s.probes};
  const float* grad = data<float>(grad_y);
  Tensor grad_z = empty(z, {need_z ? s.tokens : 0, s.tables * s.bits}, F32);
  Tensor grad_table = empty_pooled<GradientPool>(z, {need_table ? s.tables : 0, s.rows, s.columns}, F32);
  if (need_z) {
    static thread_local Scratch scratch;
    const int64_t grad_ld = padded_columns(s.tables * s.probes);
    float* grad_scores = scratch.get<float>(s.tokens * grad_ld);
    score_gradient({table.data_ptr(), Element::f32, nullptr, s.rows, s.columns}, reads, grad, grad_scores, grad_ld);
    hash_tokens_backward(data<float>(z), reads, s.bits, grad_scores, grad_ld, data<float>(grad_z));
  }
  if (need_table) table_gradient(reads, s.rows, s.columns, grad, data<float>(grad_table));
  return {grad_z, grad_table};
}

}  // namespace lookupffn

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CPU, m) {
  m.impl("lookup_forward", TORCH_BOX(&lookupffn::lookup_forward));
  m.impl("lookup_backward", TORCH_BOX(&lookupffn::lookup_backward));
}
