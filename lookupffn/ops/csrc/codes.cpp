#include "codes.h"

#include "bh4_amx.h"
#include "parallel.h"

namespace lookupffn {
namespace {

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

}  // namespace

// Hash inputs pass through memory.
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
  const int64_t parts = tokens < 4 ? 1 : num_threads();
  parallel_tasks(parts, [&](int64_t part) {
    for (int64_t t = tokens * part / parts; t < tokens * (part + 1) / parts; t++)
      hash_across_tables(z + t * columns, hash.tables, hash.bits, hash.probes, codes + t, scores + t, ld);
  });
}

void hash_many(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens,
               const HashOutput& out) {
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

void hash_on_tiles(const Projection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens, int parts,
                   const HashOutput& out) {
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

// A panel of 16 tables is whole strips of columns, whatever the bits.
void hash_by_digits(const DigitProjection& p, const Hash& hash, const Input& x, int64_t begin, int64_t tokens,
                    const HashOutput& out) {
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

void hash_dense(const float* z, const Hash& hash, int64_t tokens, const HashOutput& out) {
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

}  // namespace lookupffn
