#include "int8_lookup.h"

#include <cmath>
#include <vector>

#include "hash.h"
#include "int8_sums.h"

namespace lookupffn {
namespace {

// The second-level cache holds the slice of the tables in use, the next one on its way, and the sums of a block of
// tokens.
constexpr int64_t SLICE_BYTES = LFFN_SLICE_BYTES, BLOCK = LFFN_SLICE_TOKENS;

inline vf gathered(const float* from, vi at) {
#if defined(__AVX512F__)
  return (vf)_mm512_i32gather_ps((__m512i)at, from, 4);
#else
  vf v;
  for (int i = 0; i < VL; i++) v[i] = from[at[i]];
  return v;
#endif
}

// The first `left` lanes, at most all.
inline void put(float* to, int64_t left, vf v, bool add) {
  if (left >= VL) return store(to, add ? load(to) + v : v);
  for (int64_t i = 0; i < left; i++) to[i] = add ? to[i] + v[i] : v[i];
}

// Memory that is fetched into the second-level cache a little at a time.
class Ahead {
 public:
  Ahead(const uint8_t* begin, const uint8_t* end) : at_(begin), end_(end) {}

  void fetch(int64_t bytes) {
    for (const uint8_t* to = at_ + std::min<int64_t>(bytes, end_ - at_); at_ < to; at_ += 64)
      __builtin_prefetch(at_, 0, 2);
  }

 private:
  const uint8_t *at_, *end_;
};

// One chunk for a block of tokens.
template <class F>
class ChunkSums {
 public:
  ChunkSums(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, const F& sum_of, float* y, bool add)
      : l_(l), reads_(reads), chunk_(chunk), sum_of_(sum_of), y_(y), add_(add) {}

  const uint8_t* tables(int64_t chunk) const {
    return l_.table.data() + chunk * l_.groups() * TABLE_GROUP * l_.rows * CHUNK_BYTES;
  }

  // The groups of tables [first, last) for the tokens [begin, end), the tables' next slice on its way meanwhile.
  void pass(int64_t first, int64_t last, int64_t begin, int64_t end, Ahead ahead, int64_t ahead_bytes,
            int32_t* sums) const {
    const int64_t step = (ahead_bytes / (end - begin) + 64) / 64 * 64, count = l_.reads();
    const int64_t at = first * TABLE_GROUP * l_.probes, here = (last - first) * TABLE_GROUP * l_.probes;
    const uint8_t* from = tables(chunk_);
    for (int64_t token = begin; token < end; token++, sums += CHUNK_BYTES) {
      if (ahead_bytes) ahead.fetch(step);
      if (!first) std::fill(sums, sums + CHUNK_BYTES, reads_.starts[token]);
      const uint32_t* offsets = reads_.offsets + token * count + at;
      sum_of_(from, offsets, reads_.weights + token * count + at, here, sums);
      if (last == l_.groups()) finish(token, sums);
    }
  }

  // The same where few rows are read twice or a slice does not fit: all tables at once, the next token's rows on their
  // way.
  void pass_few(int64_t begin, int64_t end, int32_t* sums) const {
    const int64_t count = l_.reads();
    const uint8_t* from = tables(chunk_);
    for (int64_t token = begin; token < end; token++) {
      const uint32_t* offsets = reads_.offsets + token * count;
      for (int64_t r = count; r < 2 * count && token + 1 < end; r++) __builtin_prefetch(from + offsets[r], 0, 2);
      std::fill(sums, sums + CHUNK_BYTES, reads_.starts[token]);
      sum_of_(from, offsets, reads_.weights + token * count, count, sums);
      finish(token, sums);
    }
  }

 private:
  void finish(int64_t token, const int32_t* sums) const {
    float* to = y_ + token * l_.columns + chunk_ * CHUNK_BYTES;
    const float* bias = l_.bias.data() + chunk_ * CHUNK_BYTES;
    const float factor = reads_.factors[token];
    const int64_t width = std::min<int64_t>(CHUNK_BYTES, l_.columns - chunk_ * CHUNK_BYTES);
    for (int64_t c = 0; c < width; c += VL)
      put(to + c, width - c, to_float(load(sums + c)) * factor + load(bias + c), add_);
  }

  const Int8Lookup& l_;
  const Int8Reads& reads_;
  const int64_t chunk_;
  const F& sum_of_;
  float* const y_;
  const bool add_;
};

template <class F>
void add_chunk_by(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, int64_t next, int64_t begin, int64_t end,
                  const F& sum_of, float* y, bool add) {
  static thread_local Scratch memory;
  int32_t* sums = memory.get<int32_t>(std::min(BLOCK, end - begin) * CHUNK_BYTES);
  const ChunkSums<F> chunk_sums(l, reads, chunk, sum_of, y, add);
  const int64_t group_bytes = TABLE_GROUP * l.rows * CHUNK_BYTES;
  if ((end - begin) * l.probes < 2 * l.rows || group_bytes > 2 * SLICE_BYTES)
    return chunk_sums.pass_few(begin, end, sums);
  const int64_t groups = std::clamp<int64_t>(SLICE_BYTES / group_bytes, 1, l.groups());
  const int64_t blocks = (end - begin + BLOCK - 1) / BLOCK;
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t first_token = begin + (end - begin) * block / blocks;
    const int64_t last_token = begin + (end - begin) * (block + 1) / blocks;
    for (int64_t first = 0; first < l.groups(); first += groups) {
      const int64_t last = std::min(first + groups, l.groups());
      const uint8_t* from = chunk_sums.tables(chunk) + last * group_bytes;
      int64_t bytes = std::min(groups, l.groups() - last) * group_bytes;
      if (last == l.groups()) {
        const int64_t then = block + 1 < blocks ? chunk : next;
        from = chunk_sums.tables(then);
        bytes = then < l.chunks() ? groups * group_bytes : 0;
      }
      chunk_sums.pass(first, last, first_token, last_token, {from, from + bytes}, bytes, sums);
    }
  }
}

}  // namespace

void put_reads(const Int8Lookup& l, const float* z, int64_t token, const Int8Reads& reads) {
  static thread_local Scratch memory;
  const int64_t count = l.reads();
  const auto layout = l.projection.layout();
  float* weights = memory.get<float>(count);
  uint32_t* offsets = reads.offsets + token * count;
  vf most = {};
  vi first_rows;
  for (int i = 0; i < VL; i++) first_rows[i] = static_cast<int32_t>(i * l.rows);
  for (int64_t g = 0; g < l.groups(); g++)
    for (int lane = 0; lane < TABLE_GROUP; lane += VL) {
      vf lanes[(MAX_BITS + VL - 1) / VL * VL], scores[MAX_PROBES];
      vi codes[MAX_PROBES];
      const int64_t table = g * TABLE_GROUP + lane;
      if (layout == Int8Projection::Layout::bits_first) {
        for (int j = 0; j < l.bits; j++) lanes[j] = load(z + (g * l.bits + j) * TABLE_GROUP + lane);
      } else {
        const int tables = static_cast<int>(std::clamp<int64_t>(l.tables - table, 0, VL));
        load_transposed(z + table * l.bits, l.bits, tables, l.bits, lanes);
      }
      hash_lanes(lanes, l.bits, l.probes, codes, scores);
      for (int n = 0; n < l.probes; n++) {
        const int64_t at = (g * l.probes + n) * TABLE_GROUP + lane;
        const vi row = first_rows + static_cast<int32_t>(table * l.rows) + codes[n];
        store(reinterpret_cast<int32_t*>(offsets + at), row * static_cast<int32_t>(CHUNK_BYTES));
        // 0 for tables beyond the last
        const vf weight = gathered(l.scales.data(), row) * scores[n], size = magnitude(weight);
        store(weights + at, weight);
        most = size > most ? size : most;
        most = weight == weight ? most : weight;
      }
    }
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < VL; i++) {
    finite = finite && std::isfinite(most[i]);
    largest = std::max(largest, most[i]);
  }
  const float inverse = finite && largest > 1e-30f ? 127.f / largest : 0.f;
  vi sum = {};
  int8_t* rounded = reads.weights + token * count;
  for (int64_t r = 0; r < count; r += VL) {
    const vf scaled = (finite ? load(weights + r) : vf{}) * inverse + 12582912.f;
    const vi q = float_to_bits(scaled) - 0x4b400000;
    sum += q;
    store_bytes(reinterpret_cast<uint8_t*>(rounded + r), q);
  }
  int32_t total = 0;
  for (int i = 0; i < VL; i++) total += sum[i];
  reads.starts[token] = -128 * total;
  reads.factors[token] = finite ? (largest > 1e-30f ? largest / 127.f : 0.f) : std::numeric_limits<float>::quiet_NaN();
}

void add_chunk(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, int64_t next, int64_t begin, int64_t end,
               [[maybe_unused]] bool plain, float* y, bool add) {
#if defined(LFFN_FAST_SUMS)
  if (!plain) return add_chunk_by(l, reads, chunk, next, begin, end, sum_reads, y, add);
#endif
  add_chunk_by(l, reads, chunk, next, begin, end, sum_reads_plain, y, add);
}

Int8Lookup pack_lookup(const ProjectionWeights& projection, const float* projection_bias, const int8_t* table,
                       const float* scales, const float* bias, int64_t columns, int64_t tables, int64_t rows,
                       int probes, const Int8Kernel& kernel) {
  Int8Lookup l;
  l.depth = projection.depth;
  l.columns = columns;
  l.tables = tables;
  l.rows = rows;
  l.probes = probes;
  while ((int64_t{1} << l.bits) < rows) l.bits++;
  l.projection = Int8Projection(projection, projection_bias, tables, l.bits, kernel);
  const int64_t padded = l.groups() * TABLE_GROUP;
  l.table = Array<uint8_t>(l.chunks() * padded * rows * CHUNK_BYTES);
  l.scales = Array<float>(padded * rows);
  std::copy(scales, scales + tables * rows, l.scales.data());
  l.bias = Array<float>(l.chunks() * CHUNK_BYTES);
  std::copy(bias, bias + columns, l.bias.data());
  for (int64_t row = 0; row < tables * rows; row++)
    for (int64_t c = 0; c < columns; c++)
      l.table.data()[(c / CHUNK_BYTES * padded * rows + row) * CHUNK_BYTES + place(row / rows, c % CHUNK_BYTES)] =
          static_cast<uint8_t>(table[row * columns + c] + 128);
  return l;
}

}  // namespace lookupffn
