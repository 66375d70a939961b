// lookup_ffn: the whole feed-forward without gradients, from x to y.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "bh4.h"
#include "bh4_amx.h"
#include "digits_amx.h"
#include "gather_half.h"
#include "hash_tokens.h"
#include "memory.h"
#include "parallel.h"
#include "tables.h"
#include "tensors.h"

namespace lookupffn {
namespace {

constexpr int64_t LEAST_FOR_DIGITS = 96;  // below, reading the digits of the weights takes longer
constexpr int64_t TILE = 48;              // tokens: a multiple of every VL and of the register kernels' strips

struct Hash {
  int64_t tables;
  int bits, probes;
  int64_t columns() const { return tables * bits; }
};

// Where codes and scores go: as gather.h reads them, or, if `half` is set, as gather_half.h does.
struct Output {
  int32_t* codes;
  float* scores;
  int64_t ld;
  const HalfReads* half;

  // Of the VL tokens from t.
  void put(const Hash& hash, const vf* lanes, int64_t t) const {
    if (!half) return hash_across_tokens(lanes, hash.tables, hash.bits, hash.probes, codes + t, scores + t, ld);
    static thread_local Scratch memory;
    const int64_t size = padded_columns(hash.tables * hash.probes) * VL;
    int32_t* own_codes = memory.get<int32_t>(2 * size);
    float* own_scores = reinterpret_cast<float*>(own_codes + size);
    hash_across_tokens(lanes, hash.tables, hash.bits, hash.probes, own_codes, own_scores, VL);
    put_reads(*half, t, own_codes, own_scores, VL);
  }
};

// What BH4 turns into hash inputs: z = BH4(x) + skip * x + bias.
struct Projection {
  Bh4 bh4;
  int64_t size;  // columns of a copy that count (less than bh4.padded() only below 16)
  float skip;
  const float* bias;  // [columns]
};

struct Input {
  const void* data;
  bool bf16;
  int64_t columns;

  const float* rows(int64_t first, int64_t count, int64_t padded, float* buffer) const {
    if (!bf16 && columns == padded) return static_cast<const float*>(data) + first * columns;
    for (int64_t t = 0; t < count; t++, buffer += padded) {
      const int64_t at = (first + t) * columns;
      for (int64_t c = 0; c < columns; c++)
        buffer[c] =
            bf16 ? load_one(static_cast<const uint16_t*>(data) + at + c) : static_cast<const float*>(data)[at + c];
      std::fill(buffer + columns, buffer + padded, 0.f);
    }
    return buffer - count * padded;
  }
};

// z[t][column of copy j] for one vector of columns c of block g: the projection's result, mixed and biased.
inline vf mixed(const Projection& p, const float* h, const float* x, int64_t column, int64_t bias_column) {
  return load(h) + p.skip * load(x + column) + load(p.bias + bias_column);
}

// Hash inputs of a tile, transposed: lanes[subtile of VL tokens][columns].
void project_tile(const Projection& p, const Hash& hash, const float* x, int tokens, float* buffers, vf* lanes,
                  int64_t lanes_ld) {
  const int64_t padded = p.bh4.padded(), block = p.bh4.block, piece = tokens * block;
  for (int64_t copy = 0; copy < p.bh4.copies; copy++) {
    const float* h = bh4_tile(p.bh4, copy, x, padded, tokens, buffers, buffers + TILE * padded);
    const int64_t last = std::min(p.size, hash.columns() - copy * p.size);
    for (int64_t c = 0; c < last; c += VL) {
      const float* from = h + c / block * piece + c % block;
      for (int t = 0; t < tokens; t += VL) {
        vf v[VL];
        for (int i = 0; i < VL; i++)
          v[i] = t + i < tokens ? mixed(p, from + (t + i) * block, x + (t + i) * padded, c, copy * p.size + c) : vf{};
        transpose(v);
        vf* to = lanes + t / VL * lanes_ld + copy * p.size + c;
        const int width = static_cast<int>(std::min<int64_t>(VL, last - c));
        for (int i = 0; i < width; i++) to[i] = v[i];
      }
    }
  }
}

// Few tokens: copies of BH4 are shared out among the threads, hash inputs pass through memory.
void hash_few(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens, int32_t* codes,
              float* scores, int64_t ld) {
  static thread_local Scratch scratch;
  const int64_t padded = p.bh4.padded(), columns = hash.columns();
  float* z = scratch.get<float>(tokens * (columns + padded));
  const float* rows = x.rows(begin, tokens, padded, z + tokens * columns);
  parallel_tasks(p.bh4.copies, [&](int64_t copy) {
    static thread_local Scratch memory;
    float* buffers = memory.get<float>(2 * tokens * padded);
    const float* h = bh4_tile(p.bh4, copy, rows, padded, static_cast<int>(tokens), buffers, buffers + tokens * padded);
    const int64_t first = copy * p.size, last = std::min(p.size, columns - first), block = p.bh4.block;
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t c = 0; c < last; c += VL) {
        const vf v = mixed(p, h + (c / block * tokens + t) * block + c % block, rows + t * padded, c, first + c);
        const int64_t width = std::min<int64_t>(VL, last - c);
        std::memcpy(z + t * columns + first + c, &v, width * sizeof(float));
      }
  });
  for (int64_t t = 0; t < tokens; t++)
    hash_across_tables(z + t * columns, hash.tables, hash.bits, hash.probes, codes + t, scores + t, ld);
}

void hash_many(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens,
               const Output& out) {
  const int64_t threads = num_threads(), padded = p.bh4.padded(), lanes_ld = padded_columns(hash.columns());
  // tiles of equal size for every thread
  const int64_t share = (tokens + threads - 1) / threads, rounds = (share + TILE - 1) / TILE;
  const int64_t tile = std::min(TILE, ((share + rounds - 1) / rounds + 15) / 16 * 16);
  parallel_tasks((tokens + tile - 1) / tile, [&](int64_t task) {
    static thread_local Scratch memory, lane_memory;
    float* buffers = memory.get<float>(3 * TILE * padded);
    vf* lanes = lane_memory.get<vf>(TILE / VL * lanes_ld);
    const int64_t first = task * tile;
    const int count = static_cast<int>(std::min(tile, tokens - first));
    const float* rows = x.rows(begin + first, count, padded, buffers + 2 * TILE * padded);
    project_tile(p, hash, rows, count, buffers, lanes, lanes_ld);
    for (int t = 0; t < count; t += VL) out.put(hash, lanes + t / VL * lanes_ld, first + t);
  });
}

// The same on the CPU's matrix tiles.
void hash_on_tiles(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens, int parts,
                   const Output& out) {
  static thread_local Scratch weight_memory;
  uint32_t* weight = weight_memory.get<uint32_t>(split_words(p.bh4, parts));
  split_weights(p.bh4, parts, weight);
  const TileProjection tiles{weight, parts, p.bh4.copies, p.bh4.blocks, p.bh4.block, hash.columns(), p.skip, p.bias};
  const int64_t padded = p.bh4.padded(), lanes_ld = padded_columns(hash.columns());
  parallel_tasks((tokens + TILE_TOKENS - 1) / TILE_TOKENS, [&](int64_t task) {
    static thread_local Scratch memory, row_memory, lane_memory;
    const int64_t first = task * TILE_TOKENS;
    const int count = static_cast<int>(std::min<int64_t>(TILE_TOKENS, tokens - first));
    vf* lanes = lane_memory.get<vf>(TILE_TOKENS / VL * lanes_ld);
    const float* rows = x.rows(begin + first, count, padded, row_memory.get<float>(TILE_TOKENS * padded));
    project_on_tiles(tiles, rows, x.bf16, count, memory.get<uint32_t>(tile_words(p.bh4, parts)), lanes, lanes_ld);
    for (int t = 0; t < count; t += VL) out.put(hash, lanes + t / VL * lanes_ld, first + t);
  });
}

// The same by the projection multiplied out. A panel of 16 tables is whole strips of columns, whatever the bits.
void hash_by_digits(const DigitProjection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens,
                    const Output& out) {
  constexpr int64_t LARGEST = 512, PANEL = 16;  // digits of a block of tokens stay in the second-level cache
  static thread_local Scratch shared_memory;
  const int64_t share = (tokens + num_threads() - 1) / num_threads();
  const int64_t block = std::clamp<int64_t>((share + SUBTILE - 1) / SUBTILE * SUBTILE, 4 * SUBTILE, LARGEST);
  const int64_t panels = (hash.tables + PANEL - 1) / PANEL;
  const int64_t subtile_bytes = token_digits(p.depth), row_bytes = p.depth * (x.bf16 ? 2 : 4);
  const auto split = [&](int64_t t, int8_t* digits, float* scales) {
    const char* rows = static_cast<const char*>(x.data) + (begin + t) * row_bytes;
    split_tokens(rows, x.bf16, p.depth, static_cast<int>(std::min(SUBTILE, tokens - t)), digits, scales);
  };
  const auto hash_panel = [&](int64_t panel, int64_t first, int64_t subtiles, const int8_t* digits,
                              const float* scales) {
    static thread_local Scratch memory;
    const int64_t k = panel * PANEL, tables = std::min(PANEL, hash.tables - k);
    const int64_t strips = (tables * hash.bits + STRIP - 1) / STRIP, columns = strips * STRIP;
    vf* z = memory.get<vf>(subtiles * columns);
    project_digits(p, panel * hash.bits, strips, digits, scales, subtiles, z);
    const int64_t at = k * hash.probes * out.ld + first;
    for (int64_t s = 0; s < subtiles; s++, z += columns)
      hash_across_tokens(z, tables, hash.bits, hash.probes, out.codes + at + s * SUBTILE, out.scores + at + s * SUBTILE,
                         out.ld);
  };
  if (tokens <= LARGEST) {  // every thread all tokens, so that each reads only a part of the weights
    const int64_t subtiles = (tokens + SUBTILE - 1) / SUBTILE;
    int8_t* digits = shared_memory.get<int8_t>(subtiles * subtile_bytes);
    float scales[LARGEST];
    parallel_tasks(subtiles, [&](int64_t s) { split(s * SUBTILE, digits + s * subtile_bytes, scales + s * SUBTILE); });
    parallel_tasks(panels, [&](int64_t panel) { hash_panel(panel, 0, subtiles, digits, scales); });
    return;
  }
  parallel_tasks((tokens + block - 1) / block, [&](int64_t task) {
    static thread_local Scratch memory;
    const int64_t first = task * block, subtiles = (std::min(block, tokens - first) + SUBTILE - 1) / SUBTILE;
    int8_t* digits = memory.get<int8_t>(subtiles * subtile_bytes);
    float scales[LARGEST];
    for (int64_t s = 0; s < subtiles; s++) split(first + s * SUBTILE, digits + s * subtile_bytes, scales + s * SUBTILE);
    for (int64_t panel = 0; panel < panels; panel++) hash_panel(panel, first, subtiles, digits, scales);
  });
}

void hash_dense(const float* z, const Hash& hash, int64_t tokens, const Output& out) {
  const int64_t columns = hash.columns();
  if (tokens < VL) {
    for (int64_t t = 0; t < tokens; t++)
      hash_across_tables(z + t * columns, hash.tables, hash.bits, hash.probes, out.codes + t, out.scores + t, out.ld);
    return;
  }
  parallel_tasks((tokens + VL - 1) / VL, [&](int64_t task) {
    static thread_local Scratch memory;
    vf* lanes = memory.get<vf>(padded_columns(columns));
    const int64_t t = task * VL;
    const int rows = static_cast<int>(std::min<int64_t>(VL, tokens - t));
    load_transposed(z + t * columns, columns, rows, columns, lanes);
    out.put(hash, lanes, t);
  });
}

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

}  // namespace

// A projection [columns, d] float32 as lookup_ffn takes it beside the original; empty where the machine has no use for
// it.
std::tuple<Tensor, Tensor> split_projection(Tensor matrix) {
  check(matrix, "matrix", ScalarType::Float, 2);
  const int64_t columns = matrix.size(0), depth = matrix.size(1);
  const bool serve = digits_serve() && depth <= DEEPEST;
  Tensor digits = empty(matrix, {serve ? weight_digits(columns, depth) : 0}, ScalarType::Char);
  Tensor scales = empty(matrix, {serve ? padded_columns(columns) : 0}, ScalarType::Float);
  if (serve) split_weight(data<float>(matrix), columns, depth, data<int8_t>(digits), data<float>(scales));
  return {digits, scales};
}

// projection: [r, 4, G, b, b] folded (float32), or dense [columns, d] (type of x). size: columns a copy of BH4 gives.
// digits and digit_scales: what split_projection made of the whole projection, where that is to be used.
Tensor lookup_ffn(Tensor x, Tensor projection, Tensor projection_bias, Tensor table, std::optional<Tensor> scales,
                  Tensor bias, double skip, int64_t size, int64_t num_probes, std::optional<Tensor> digits,
                  std::optional<Tensor> digit_scales) {
  const bool bf16 = x.scalar_type() == ScalarType::BFloat16, dense = projection.dim() == 2;
  const auto x_type = bf16 ? ScalarType::BFloat16 : ScalarType::Float;
  check(x, "x", x_type, 2);
  const auto type = table.scalar_type();
  const bool exact = type == ScalarType::Float;
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Char,
                  "table must be float32, bfloat16 or int8");
  check(table, "table", type, 3);
  const int64_t T = table.size(0), S = table.size(1), d = table.size(2), M = x.size(0);
  const Hash hash{T, checked_bits(S, num_probes), static_cast<int>(num_probes)};
  check_size(x, "x", {M, d});
  STD_TORCH_CHECK(M < (int64_t{1} << 31), "at most 2^31 tokens a call");
  check(bias, "bias", ScalarType::Float, 1);
  check_size(bias, "bias", {d});
  STD_TORCH_CHECK((type == ScalarType::Char) == scales.has_value(), "int8 tables, and only they, have scales");
  if (scales) {
    check(*scales, "scales", ScalarType::Float, 2);
    check_size(*scales, "scales", {T, S});
  }
  Projection p{{}, size, static_cast<float>(skip), nullptr};
  if (dense) {
    check(projection, "projection", x_type, 2);
    check_size(projection, "projection", {hash.columns(), d});
    check(projection_bias, "projection_bias", x_type, 1);
    check_size(projection_bias, "projection_bias", {hash.columns()});
  } else {
    check(projection, "projection", ScalarType::Float, 5);
    const int64_t b = projection.size(4), G = projection.size(2);
    check_size(projection, "projection", {projection.size(0), 4, G, b, b});
    p.bh4 = {data<float>(projection), projection.size(0), G, b};
    STD_TORCH_CHECK(b >= 16 && (b & (b - 1)) == 0 && (G & (G - 1)) == 0 && G >= 1, "projection is not folded");
    STD_TORCH_CHECK(size <= p.bh4.padded() && d <= p.bh4.padded() && (size == p.bh4.padded() || G == 1) &&
                        p.bh4.copies * size >= hash.columns(),
                    "projection does not fit x and table");
    check(projection_bias, "projection_bias", ScalarType::Float, 1);
    check_size(projection_bias, "projection_bias", {hash.columns()});
  }
  static thread_local Scratch bias_memory, code_memory, score_memory, sum_memory;
  static thread_local Scratch word_memory, factor_memory;
  {  // read a vector at a time, so padded
    const int64_t columns = hash.columns(), room = std::max<int64_t>(p.bh4.padded(), STRIP);
    float* padded = bias_memory.get<float>(columns + room);
    if (dense && bf16)
      std::transform(data<uint16_t>(projection_bias), data<uint16_t>(projection_bias) + columns, padded,
                     [](const uint16_t& half) { return load_one(&half); });
    else std::memcpy(padded, projection_bias.data_ptr(), columns * sizeof(float));
    std::fill(padded + columns, padded + columns + room, 0.f);
    p.bias = padded;
  }
  DigitProjection by_digits{nullptr, nullptr, p.bias, hash.columns(), d};
  STD_TORCH_CHECK(digits.has_value() == digit_scales.has_value(), "digits come with their scales");
  if (digits) {
    STD_TORCH_CHECK(digits_serve(), "digits are for a CPU with int8 matrix tiles");
    check(*digits, "digits", ScalarType::Char, 1);
    check_size(*digits, "digits", {weight_digits(hash.columns(), d)});
    check(*digit_scales, "digit_scales", ScalarType::Float, 1);
    check_size(*digit_scales, "digit_scales", {padded_columns(hash.columns())});
    by_digits.weight = data<int8_t>(*digits);
    by_digits.scales = data<float>(*digit_scales);
  }
  Tensor y = empty_pooled<OutputPool>(x, {M, d}, x_type);
  on_huge_pages(y.data_ptr(), y.numel() * (bf16 ? 2 : 4));
  const Table rows{table.data_ptr(),
                   type == ScalarType::Float  ? Element::f32
                   : type == ScalarType::Char ? Element::s8
                                              : Element::bf16,
                   scales ? data<float>(*scales) : nullptr, S, d};
  keep_on_huge_pages(rows.data, table.numel() * (type == ScalarType::Float ? 4 : type == ScalarType::Char ? 1 : 2));
  const int64_t reads = T * num_probes;
  // Codes and scores of a chunk take at most 24 MB, and so do the sums that become bfloat16. Fewer chunks are faster:
  // each reads all tables.
  const int64_t per_token = std::max<int64_t>(8 * reads, bf16 ? 4 * std::max(d, dense ? hash.columns() : 0) : 0);
  const int64_t most = std::max<int64_t>(TILE, (24 << 20) / per_token / TILE * TILE);
  const Input input{x.data_ptr(), bf16, d};
  for (int64_t begin = 0; begin < M; begin += most) {
    const int64_t tokens = std::min(most, M - begin), ld = padded_tokens(tokens);
    int32_t* codes = code_memory.get<int32_t>(reads * ld);
    float* scores = score_memory.get<float>(reads * ld);
    HalfReads half_reads{};
    const bool in_half = half_serves(rows, tokens, hash.probes);
    if (in_half) {
      half_reads = {nullptr,    factor_memory.get<float>(padded_columns(tokens)), tokens, T, half_group(rows, T),
                    hash.probes};
      half_reads.words = word_memory.get<uint32_t>(half_reads.groups() * tokens * half_reads.ld());
    }
    const Output out{codes, scores, ld, in_half ? &half_reads : nullptr};
    if (by_digits.weight && !in_half && tokens >= LEAST_FOR_DIGITS) {
      hash_by_digits(by_digits, hash, input, begin, tokens, out);
    } else if (dense) {
      Tensor z = linear(torch::stable::narrow(x, 0, begin, tokens), projection, projection_bias);
      if (z.scalar_type() == ScalarType::BFloat16) {  // by type of x, or by autocast
        const uint16_t* half = data<uint16_t>(z);
        float* wide = sum_memory.get<float>(tokens * hash.columns());
        for (int64_t i = 0; i < tokens * hash.columns(); i++) wide[i] = load_one(half + i);
        hash_dense(wide, hash, tokens, out);
      } else {
        check(z, "z", ScalarType::Float, 2);
        hash_dense(data<float>(z), hash, tokens, out);
      }
    } else if (tokens < VL) {
      hash_few(p, hash, input, begin, tokens, codes, scores, ld);
    } else if (tokens >= (exact ? 1024 : 2 * TILE_TOKENS) && tiles_serve(p.bh4)) {  // splitting weights takes a while
      hash_on_tiles(p, hash, input, begin, tokens, exact ? 3 : 2, out);
    } else {
      hash_many(p, hash, input, begin, tokens, out);
    }
    if (in_half) {
      gather_half(rows, half_reads, data<float>(bias), data<char>(y) + begin * d * (bf16 ? 2 : 4), bf16);
      continue;
    }
    float* sums = bf16 ? sum_memory.get<float>(tokens * d) : data<float>(y) + begin * d;
    gather(rows, {codes, scores, ld, tokens, T, hash.probes}, data<float>(bias), sums);
    if (bf16) to_bf16(sums, tokens * d, data<uint16_t>(y) + begin * d);
  }
  return y;
}

}  // namespace lookupffn

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CPU, m) {
  m.impl("lookup_ffn", TORCH_BOX(&lookupffn::lookup_ffn));
  m.impl("split_projection", TORCH_BOX(&lookupffn::split_projection));
}
