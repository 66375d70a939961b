// lookup_int8: the whole feed-forward in int8, its weights packed beforehand and named by a handle.
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "checked_projection.h"
#include "int8_lookup.h"
#include "parallel.h"
#include "tensors.h"

namespace lookupffn {
namespace {

constexpr int64_t FEW_A_THREAD = LFFN_FEW_A_THREAD;
constexpr int64_t BLOCK = LFFN_TILE;  // tokens a task, at most

struct Registry {
  std::mutex lock;
  std::map<int64_t, std::shared_ptr<const Int8Lookup>> layers;
  int64_t next = 1;
};

Registry& registry() {
  static Registry* r = new Registry();  // never destroyed: threads may outlive the statics of this library
  return *r;
}

struct Call {
  const Int8Lookup& lookup;
  const float* x;
  int64_t tokens;
  Int8Reads reads;

  void hash(int64_t begin, int64_t end, const float* z) const {
    const int64_t width = lookup.projection.width();
    for (int64_t t = begin; t < end; t++) put_reads(lookup, z + (t - begin) * width, t, reads);
  }

  void hash_all() const {
    const Int8Projection& p = lookup.projection;
    const Int8Kernel& kernel = *best_int8_kernel();
    if (tokens > FEW_A_THREAD * num_threads()) {
      const int64_t tasks = rounded_up((tokens + BLOCK - 1) / BLOCK, num_threads());
      return parallel_tasks(tasks, [&](int64_t task) {
        static thread_local Scratch memory, row_memory;
        const int64_t begin = tokens * task / tasks, end = tokens * (task + 1) / tasks;
        float* z = memory.get<float>((end - begin) * p.width());
        p.run(kernel, p.rows(x + begin * lookup.depth, end - begin, row_memory), 0, p.parts(), z);
        hash(begin, end, z);
      });
    }
    // every thread a part of the weights
    static thread_local Scratch memory, row_memory;
    float* z = memory.get<float>(tokens * p.width());
    const Int8Projection::Rows rows = p.rows(x, tokens, row_memory);
    const int64_t tasks = std::min(num_threads(), p.parts());
    parallel_tasks(
        tasks, [&](int64_t task) { p.run(kernel, rows, p.parts() * task / tasks, p.parts() * (task + 1) / tasks, z); });
    if (tokens < 4) return hash(0, tokens, z);
    parallel_tasks(tokens, [&](int64_t t) { hash(t, t + 1, z + t * p.width()); });
  }

  // A thread takes chunks of columns, so that their slices of the tables stay in its cache.
  void look_up(float* y) const {
    const int64_t chunks = lookup.chunks(), threads = num_threads();
    const int64_t parts = chunks >= threads ? 1 : std::clamp<int64_t>(tokens / 64, 1, threads);
    parallel_tasks(chunks * parts, [&](int64_t task) {
      const int64_t chunk = task / parts, part = task % parts;
      add_chunk(lookup, reads, chunk, chunk + 1, tokens * part / parts, tokens * (part + 1) / parts, false, y, false);
    });
  }
};

std::shared_ptr<const Int8Lookup> find(int64_t handle) {
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
  auto layer = std::make_shared<Int8Lookup>(pack_lookup(weights, data<float>(projection_bias), data<int8_t>(table),
                                                        data<float>(scales), data<float>(bias), outputs, T, S,
                                                        static_cast<int>(num_probes), *best_int8_kernel()));
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
  const Int8Lookup& l = *layer;
  check(x, "x", ScalarType::Float, 2);
  check_size(x, "x", {x.size(0), l.depth});
  const int64_t M = x.size(0), reads = l.reads();
  STD_TORCH_CHECK(M < (int64_t{1} << 31), "at most 2^31 tokens a call");
  Tensor y = empty_pooled<OutputPool>(x, {M, l.columns}, ScalarType::Float);
  on_huge_pages(y.data_ptr(), M * l.columns * 4);
  static thread_local Scratch memory;
  const int64_t most = l.tokens_at_a_time();
  for (int64_t first = 0; first < M; first += most) {
    Call call{l, data<float>(x) + first * l.depth, std::min(most, M - first), {}};
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
