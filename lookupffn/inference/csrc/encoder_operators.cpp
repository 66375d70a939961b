// The encoder as torch operators. An encoder is a number that Python holds and gives back with encoder_free.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <map>
#include <mutex>
#include <optional>

#include "checked_projection.h"
#include "encoder.h"
#include "tensors.h"

namespace lookupffn {
namespace {

struct Held {
  Encoder encoder;
  std::vector<Tensor> tensors;  // whose memory the encoder reads
};

struct Registry {
  std::mutex lock;
  std::map<int64_t, std::shared_ptr<Held>> held;
  int64_t next = 1;
};

Registry& registry() {
  static Registry* one = new Registry();
  return *one;
}

std::shared_ptr<Held> find(int64_t handle) {
  const std::lock_guard<std::mutex> guard(registry().lock);
  const auto found = registry().held.find(handle);
  STD_TORCH_CHECK(found != registry().held.end(), "this encoder was freed");
  return found->second;
}

const float* floats(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  check(t, name, ScalarType::Float, static_cast<int64_t>(sizes.size()));
  check_size(t, name, sizes);
  return data<float>(t);
}

Norm norm_of(const Tensor& gain, const Tensor& bias, int64_t d, double eps) {
  return {Array<float>(d, floats(gain, "gain", {d})), Array<float>(d, floats(bias, "bias", {d})),
          static_cast<float>(eps)};
}

Int8Matrix matrix_of(const Tensor& weight, const Tensor& bias, int64_t columns, int64_t depth,
                     const float* factor = nullptr) {
  STD_TORCH_CHECK(depth <= DEEPEST_INT8, "a product is too deep for int8: ", depth);
  return pack_int8(floats(weight, "weight", {columns, depth}), floats(bias, "bias", {columns}), columns, depth, factor);
}

EncoderLayer& layer_of(Held& held, int64_t layer) {
  STD_TORCH_CHECK(layer >= 0 && layer < static_cast<int64_t>(held.encoder.layers.size()), "no such layer");
  return held.encoder.layers[layer];
}

}  // namespace

bool int8_level_served(int64_t level) {
  return level >= 0 && level <= static_cast<int64_t>(Int8Level::amx) &&
         int8_kernel(static_cast<Int8Level>(level)) != nullptr;
}

// level: of Int8Level, or -1 for the best.
int64_t encoder_new(int64_t hidden, int64_t heads, int64_t layers, int64_t level, bool exact_attention) {
  STD_TORCH_CHECK(hidden >= 16 && heads >= 1 && hidden % heads == 0 && hidden / heads % 16 == 0 && layers >= 0,
                  "heads must have a multiple of 16 columns");
  STD_TORCH_CHECK(level == -1 || int8_level_served(level), "this CPU has no such int8 kernel");
  auto held = std::make_shared<Held>();
  Encoder& e = held->encoder;
  e.hidden = hidden;
  e.heads = heads;
  e.exact_attention = exact_attention;
  e.kernel = level < 0 ? best_int8_kernel() : int8_kernel(static_cast<Int8Level>(level));
  e.plain_reads = level >= 0 && level < static_cast<int64_t>(Int8Level::vnni512);
  e.layers.resize(layers);
  const std::lock_guard<std::mutex> guard(registry().lock);
  const int64_t handle = registry().next++;
  registry().held[handle] = held;
  return handle;
}

void encoder_free(int64_t handle) {
  const std::lock_guard<std::mutex> guard(registry().lock);
  registry().held.erase(handle);
}

void encoder_embeddings(int64_t handle, Tensor words, Tensor positions, Tensor types, int64_t padding, Tensor gain,
                        Tensor bias, double eps) {
  const auto held = find(handle);
  const int64_t d = held->encoder.hidden;
  Embeddings& em = held->encoder.embeddings;
  em.num_words = words.size(0);
  em.num_positions = positions.size(0);
  em.num_types = types.size(0);
  em.padding = padding;
  em.words = floats(words, "words", {em.num_words, d});
  em.positions = floats(positions, "positions", {em.num_positions, d});
  em.types = floats(types, "types", {em.num_types, d});
  em.norm = norm_of(gain, bias, d, eps);
  held->tensors.insert(held->tensors.end(), {words, positions, types});
}

// qkv: [3 * hidden, hidden], rows by head: its query, key, value.
void encoder_attention(int64_t handle, int64_t layer, Tensor gain, Tensor bias, double eps, Tensor qkv, Tensor qkv_bias,
                       Tensor output, Tensor output_bias) {
  const auto held = find(handle);
  const Encoder& e = held->encoder;
  const int64_t d = e.hidden, size = d / e.heads;
  EncoderLayer& l = layer_of(*held, layer);
  std::vector<float> factor(3 * d, 1.f);
  const float scale = 1.4426950408889634f / std::sqrt(static_cast<float>(size));
  for (int64_t c = 0; c < 3 * d; c++)
    if (c % (3 * size) < size) factor[c] = scale;
  l.attention_norm = norm_of(gain, bias, d, eps);
  l.qkv = matrix_of(qkv, qkv_bias, 3 * d, d, factor.data());
  l.output = matrix_of(output, output_bias, d, d);
}

void encoder_gemm(int64_t handle, int64_t layer, Tensor gain, Tensor bias, double eps, Tensor up, Tensor up_bias,
                  Tensor down, Tensor down_bias, int64_t activation) {
  const auto held = find(handle);
  const int64_t d = held->encoder.hidden, width = up.size(0);
  STD_TORCH_CHECK(width % 16 == 0, "the intermediate size must be a multiple of 16");
  EncoderLayer& l = layer_of(*held, layer);
  l.ffn_norm = norm_of(gain, bias, d, eps);
  l.up = matrix_of(up, up_bias, width, d);
  l.down = matrix_of(down, down_bias, d, width);
  l.activation = static_cast<Activation>(activation);
}

// projection: BH4's or dense; table [tables, rows, hidden] with a scale a row.
void encoder_lookup(int64_t handle, int64_t layer, Tensor gain, Tensor bias, double eps, Tensor projection,
                    Tensor projection_bias, Tensor table, Tensor scales, Tensor ffn_bias, double alpha,
                    int64_t num_probes) {
  const auto held = find(handle);
  const int64_t d = held->encoder.hidden;
  EncoderLayer& l = layer_of(*held, layer);
  check(table, "table", ScalarType::Char, 3);
  const int64_t tables = table.size(0), rows = table.size(1);
  check_size(table, "table", {tables, rows, d});
  const int64_t columns = tables * checked_bits(rows, num_probes);
  STD_TORCH_CHECK(rounded_up(tables, TABLE_GROUP) * rows < (int64_t{1} << 26), "tables have too many rows for int8");
  l.ffn_norm = norm_of(gain, bias, d, eps);
  l.lookup = pack_lookup(checked_projection(projection, alpha, columns, d),
                         floats(projection_bias, "projection_bias", {columns}), data<int8_t>(table),
                         floats(scales, "scales", {tables, rows}), floats(ffn_bias, "ffn_bias", {d}), d, tables, rows,
                         static_cast<int>(num_probes), *held->encoder.kernel);
}

void encoder_norm(int64_t handle, Tensor gain, Tensor bias, double eps) {
  const auto held = find(handle);
  held->encoder.norm = norm_of(gain, bias, held->encoder.hidden, eps);
}

void encoder_head(int64_t handle, Tensor dense, Tensor dense_bias, Tensor gain, Tensor bias, double eps, Tensor decoder,
                  Tensor decoder_bias) {
  const auto held = find(handle);
  const int64_t d = held->encoder.hidden;
  LanguageHead& head = held->encoder.head;
  head.dense = matrix_of(dense, dense_bias, d, d);
  head.norm = norm_of(gain, bias, d, eps);
  head.decoder = matrix_of(decoder, decoder_bias, decoder.size(0), d);
}

Tensor encoder_run(int64_t handle, Tensor ids, std::optional<Tensor> mask, std::optional<Tensor> types,
                   std::optional<Tensor> positions) {
  const auto held = find(handle);
  check(ids, "input_ids", ScalarType::Long, 2);
  const int64_t batch = ids.size(0), length = ids.size(1);
  Tokens tokens{data<int64_t>(ids), nullptr, nullptr, nullptr, batch, length};
  if (mask) {
    check(*mask, "attention_mask", ScalarType::Bool, 2);
    check_size(*mask, "attention_mask", {batch, length});
    tokens.mask = data<uint8_t>(*mask);
  }
  const auto indices = [&](const std::optional<Tensor>& t, const char* name) -> const int64_t* {
    if (!t) return nullptr;
    check(*t, name, ScalarType::Long, 2);
    check_size(*t, name, {batch, length});
    return data<int64_t>(*t);
  };
  tokens.types = indices(types, "token_type_ids");
  tokens.positions = indices(positions, "position_ids");
  Tensor out = empty_pooled<OutputPool>(held->tensors.at(0), {batch, length, held->encoder.hidden}, ScalarType::Float);
  const char* wrong = held->encoder.run(tokens, data<float>(out));
  STD_TORCH_CHECK(!wrong, wrong ? wrong : "");
  return out;
}

Tensor encoder_logits(int64_t handle, Tensor rows) {
  const auto held = find(handle);
  const int64_t count = rows.size(0), vocabulary = held->encoder.head.decoder.columns;
  STD_TORCH_CHECK(vocabulary, "this encoder has no language-model head");
  const float* x = floats(rows, "rows", {count, held->encoder.hidden});
  Tensor logits = empty_pooled<OutputPool>(rows, {count, vocabulary}, ScalarType::Float);
  held->encoder.language_head(x, count, data<float>(logits));
  return logits;
}

int64_t encoder_bytes(int64_t handle) { return find(handle)->encoder.bytes(); }

}  // namespace lookupffn

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CompositeExplicitAutograd, m) {
  m.impl("int8_level_served", TORCH_BOX(&lookupffn::int8_level_served));
  m.impl("encoder_new", TORCH_BOX(&lookupffn::encoder_new));
  m.impl("encoder_free", TORCH_BOX(&lookupffn::encoder_free));
  m.impl("encoder_embeddings", TORCH_BOX(&lookupffn::encoder_embeddings));
  m.impl("encoder_attention", TORCH_BOX(&lookupffn::encoder_attention));
  m.impl("encoder_gemm", TORCH_BOX(&lookupffn::encoder_gemm));
  m.impl("encoder_lookup", TORCH_BOX(&lookupffn::encoder_lookup));
  m.impl("encoder_norm", TORCH_BOX(&lookupffn::encoder_norm));
  m.impl("encoder_head", TORCH_BOX(&lookupffn::encoder_head));
  m.impl("encoder_run", TORCH_BOX(&lookupffn::encoder_run));
  m.impl("encoder_logits", TORCH_BOX(&lookupffn::encoder_logits));
  m.impl("encoder_bytes", TORCH_BOX(&lookupffn::encoder_bytes));
}
