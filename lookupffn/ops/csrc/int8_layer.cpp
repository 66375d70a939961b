// lookup_int8: the whole feed-forward in int8, its weights packed beforehand and named by a handle.
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "bh4.h"
#include "checked_projection.h"
#include "codes.h"
#include "int8_lookup.h"
#include "parallel.h"
#include "prepared.h"
#include "tensors.h"

namespace lookupffn {
namespace {

constexpr int64_t FEW_A_THREAD = 8;      // tokens: fewer, and threads share the weights instead
constexpr int64_t BLOCK = 48;            // tokens a task, at most
constexpr int64_t READ_BYTES = 4 << 20;  // of the tokens looked up at a time: each chunk of columns passes over it
constexpr int64_t INT8_SPEED = 4;        // products in int8 in the time of one in float32

struct Layer {
  Int8Lookup lookup;
  std::unique_ptr<float[]> folded;  // BH4 in float32, where that is as fast as int8: its codes are exact
  Projection bh4{};
  std::vector<float> projection_bias;
};

struct Registry {
  std::mutex lock;
  std::map<int64_t, std::shared_ptr<const Layer>> layers;
  int64_t next = 1;
};

Registry& registry() {
  static Registry* r = new Registry();  // never destroyed: threads may outlive the statics of this library
  return *r;
}

// Products and butterflies a token, in those of float32.
bool bh4_pays(const ProjectionWeights& w) {
  if (!w.copies) return false;
  const Bh4 shape = folded_shape(w);
  int64_t levels = 0;
  while ((int64_t{1} << levels) < shape.blocks) levels++;
  return w.copies * 4 * shape.padded() * (shape.block + levels) <= w.columns * w.depth / INT8_SPEED * 5 / 4;
}

struct Call {
  const Layer& layer;
  const Int8Kernel& kernel;
  const float* x;
  int64_t first, tokens;  // of x
  Int8Reads reads;

  int64_t width() const {
    const Int8Lookup& l = layer.lookup;
    return layer.folded ? rounded_up(l.tables * l.bits, VL) + VL : l.projection.panels * PANEL;
  }

  // Hash inputs [tokens][width] of the tokens [begin, end), whole weights.
  void project(int64_t begin, int64_t end, float* z) const {
    static thread_local Scratch memory;
    if (layer.folded) {
      float* buffers = memory.get<float>(3 * BLOCK * layer.bh4.bh4.padded());
      for (int64_t copy = 0; copy < layer.bh4.bh4.copies; copy++) project_copy(begin, end, copy, buffers, z);
      return;
    }
    const Int8Matrix& w = layer.lookup.projection;
    uint8_t* a = memory.get<uint8_t>(rounded_up(end - begin, MOST_STRIP_ROWS) * (w.padded_depth + 4));
    float* scales = reinterpret_cast<float*>(a + rounded_up(end - begin, MOST_STRIP_ROWS) * w.padded_depth);
    quantize(begin, end, a, scales);
    product(a, scales, end - begin, 0, w.panels, z);
  }

  void project_copy(int64_t begin, int64_t end, int64_t copy, float* buffers, float* z) const {
    const Projection& p = layer.bh4;
    const int64_t padded = p.bh4.padded(), block = p.bh4.block, columns = layer.lookup.tables * layer.lookup.bits;
    const int tokens = static_cast<int>(end - begin);
    const Input input{x, false, layer.lookup.depth};
    const float* rows = input.rows(first + begin, tokens, padded, buffers + 2 * tokens * padded);
    const float* h = bh4_tile(p.bh4, copy, rows, padded, tokens, buffers, buffers + tokens * padded);
    const int64_t at = copy * p.size, last = std::min(p.size, columns - at);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t c = 0; c < last; c += VL)  // beyond the last column only room is written
        store(z + t * width() + at + c,
              mixed(p, h + (c / block * tokens + t) * block + c % block, rows + t * padded, c, at + c));
  }

  void quantize(int64_t begin, int64_t end, uint8_t* a, float* scales) const {
    static thread_local Scratch memory;
    const int64_t depth = layer.lookup.depth, padded = layer.lookup.projection.padded_depth;
    for (int64_t t = begin; t < end; t++) {
      const float* row = x + (first + t) * depth;
      if (depth % VL) {
        float* copy = memory.get<float>(rounded_up(depth, VL));
        std::copy(row, row + depth, copy);
        std::fill(copy + depth, copy + rounded_up(depth, VL), 0.f);
        row = copy;
      }
      scales[t - begin] = quantize_row(row, rounded_up(depth, VL), padded, a + (t - begin) * padded);
    }
  }

  void product(const uint8_t* a, const float* scales, int64_t rows, int64_t begin, int64_t end, float* z) const {
    const int64_t ld = width();
    int8_product(kernel, layer.lookup.projection, a, scales, rows, begin, end,
                 [&](int64_t r, int64_t c, vf v) { store(z + r * ld + c, v); });
  }

  void hash(int64_t begin, int64_t end, const float* z) const {
    const Layout layout = layer.folded ? Layout::tables_first : Layout::bits_first;
    for (int64_t t = begin; t < end; t++) put_reads(layer.lookup, z + (t - begin) * width(), t, reads, layout);
  }

  void hash_all() const {
    static thread_local Scratch z_memory, a_memory;
    if (tokens > FEW_A_THREAD * num_threads()) {
      const int64_t tasks = rounded_up((tokens + BLOCK - 1) / BLOCK, num_threads());
      return parallel_tasks(tasks, [&](int64_t task) {
        static thread_local Scratch memory;
        const int64_t begin = tokens * task / tasks, end = tokens * (task + 1) / tasks;
        float* z = memory.get<float>((end - begin) * width());
        project(begin, end, z);
        hash(begin, end, z);
      });
    }
    // every thread a part of the weights
    float* z = z_memory.get<float>(tokens * width());
    if (layer.folded) {
      const int64_t copies = layer.bh4.bh4.copies;
      const int64_t parts =
          layer.bh4.size % VL ? 1 : copies;  // else a copy writes a vector into the next one's columns
      parallel_tasks(parts, [&](int64_t part) {
        static thread_local Scratch memory;
        float* buffers = memory.get<float>(3 * tokens * layer.bh4.bh4.padded());
        for (int64_t c = copies * part / parts; c < copies * (part + 1) / parts; c++)
          project_copy(0, tokens, c, buffers, z);
      });
    } else {
      const Int8Matrix& w = layer.lookup.projection;
      const int64_t rows = rounded_up(tokens, MOST_STRIP_ROWS), parts = std::min(num_threads(), w.panels);
      uint8_t* a = a_memory.get<uint8_t>(rows * (w.padded_depth + 4));
      float* scales = reinterpret_cast<float*>(a + rows * w.padded_depth);
      quantize(0, tokens, a, scales);
      parallel_tasks(parts, [&](int64_t part) {
        product(a, scales, tokens, w.panels * part / parts, w.panels * (part + 1) / parts, z);
      });
    }
    if (tokens < 4) return hash(0, tokens, z);
    parallel_tasks(tokens, [&](int64_t t) { hash(t, t + 1, z + t * width()); });
  }

  // A thread takes chunks of columns, so that their slices of the tables stay in its cache.
  void look_up(float* y) const {
    const int64_t chunks = layer.lookup.chunks(), threads = num_threads();
    const int64_t parts = chunks >= threads ? 1 : std::clamp<int64_t>(tokens / 64, 1, threads);
    parallel_tasks(chunks * parts, [&](int64_t task) {
      const int64_t part = task % parts;
      add_chunk(layer.lookup, reads, task / parts, tokens * part / parts, tokens * (part + 1) / parts, false, y, false);
    });
  }
};

std::shared_ptr<const Layer> find(int64_t handle) {
  const std::lock_guard<std::mutex> guard(registry().lock);
  const auto found = registry().layers.find(handle);
  STD_TORCH_CHECK(found != registry().layers.end(), "no int8 layer of this handle");
  return found->second;
}

}  // namespace

// projection: BH4's [r, 4, G, b, b] or dense [columns, d], float32; table int8 with a scale a row. A handle.
int64_t lookup_int8_new(Tensor projection, Tensor projection_bias, Tensor table, Tensor scales, Tensor bias,
                        double alpha, int64_t num_probes, int64_t depth) {
  check(table, "table", ScalarType::Char, 3);
  const int64_t T = table.size(0), S = table.size(1), outputs = table.size(2);
  const int64_t columns = T * checked_bits(S, num_probes);
  STD_TORCH_CHECK(rounded_up(T, TABLE_GROUP) * S < (int64_t{1} << 26), "tables have too many rows for int8");
  STD_TORCH_CHECK(depth <= DEEPEST_INT8, "at most ", DEEPEST_INT8, " inputs in int8");
  check(projection_bias, "projection_bias", ScalarType::Float, 1);
  check_size(projection_bias, "projection_bias", {columns});
  check(scales, "scales", ScalarType::Float, 2);
  check_size(scales, "scales", {T, S});
  check(bias, "bias", ScalarType::Float, 1);
  check_size(bias, "bias", {outputs});
  const ProjectionWeights weights = checked_projection(projection, alpha, columns, depth);
  auto layer = std::make_shared<Layer>();
  std::vector<float> matrix;
  if (bh4_pays(weights)) {
    Bh4 shape = folded_shape(weights);
    layer->folded.reset(new float[shape.copies * 4 * shape.padded() * shape.block]);
    fold(weights, layer->folded.get());
    shape.weight = layer->folded.get();
    layer->projection_bias.assign(data<float>(projection_bias), data<float>(projection_bias) + columns);
    layer->projection_bias.resize(columns + std::max<int64_t>(shape.padded(), VL));
    layer->bh4 = {shape, weights.blocks * weights.block, 1.f - weights.alpha, layer->projection_bias.data()};
  } else {
    matrix.resize(columns * depth);
    multiply_out(weights, matrix.data());
  }
  layer->lookup =
      pack_lookup(matrix.empty() ? nullptr : matrix.data(), data<float>(projection_bias), data<int8_t>(table),
                  data<float>(scales), data<float>(bias), depth, outputs, T, S, static_cast<int>(num_probes));
  const std::lock_guard<std::mutex> guard(registry().lock);
  registry().layers[registry().next] = layer;
  return registry().next++;
}

void lookup_int8_free(int64_t handle) {
  const std::lock_guard<std::mutex> guard(registry().lock);
  registry().layers.erase(handle);
}

Tensor lookup_int8(Tensor x, int64_t handle) {
  const auto layer = find(handle);
  const Int8Lookup& l = layer->lookup;
  check(x, "x", ScalarType::Float, 2);
  check_size(x, "x", {x.size(0), l.depth});
  const int64_t M = x.size(0), reads = l.reads();
  STD_TORCH_CHECK(M < (int64_t{1} << 31), "at most 2^31 tokens a call");
  Tensor y = empty_pooled<OutputPool>(x, {M, l.columns}, ScalarType::Float);
  on_huge_pages(y.data_ptr(), M * l.columns * 4);
  static thread_local Scratch memory;
  const int64_t most = std::max<int64_t>(BLOCK, READ_BYTES / (5 * reads + 8) / BLOCK * BLOCK);
  for (int64_t first = 0; first < M; first += most) {
    Call call{*layer, *best_int8_kernel(), data<float>(x), first, std::min(most, M - first), {}};
    uint32_t* room = memory.get<uint32_t>(call.tokens * (reads + reads / 4 + 2) + 64);
    call.reads = {room, nullptr, nullptr, nullptr};
    call.reads.factors = reinterpret_cast<float*>(room + call.tokens * reads);
    call.reads.starts = reinterpret_cast<int32_t*>(call.reads.factors + call.tokens);
    call.reads.weights = reinterpret_cast<int8_t*>(call.reads.starts + call.tokens);
    call.hash_all();
    call.look_up(data<float>(y) + first * l.columns);
  }
  return y;
}

}  // namespace lookupffn

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CompositeExplicitAutograd, m) {
  m.impl("lookup_int8_new", TORCH_BOX(&lookupffn::lookup_int8_new));
  m.impl("lookup_int8_free", TORCH_BOX(&lookupffn::lookup_int8_free));
}

STABLE_TORCH_LIBRARY_IMPL(lookupffn, CPU, m) { m.impl("lookup_int8", TORCH_BOX(&lookupffn::lookup_int8)); }
