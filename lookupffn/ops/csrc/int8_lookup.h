// The lookup feed-forward in int8: y[m] = bias + sum over tables and probes of score * row.
//
// A token's scores, times the scales of the rows they belong to, are rounded to int8 with one factor a token; rows are
// read 64 columns at a time, four rows to a multiply-add, summed exactly in int32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "int8_projection.h"

namespace lookupffn {

struct Int8Lookup {
  int64_t depth = 0, columns = 0, tables = 0, rows = 0;
  int bits = 0, probes = 0;
  Int8Projection projection;
  Array<uint8_t> table;  // [chunks of 64 columns][tables, padded][rows][64]: plus 128, columns in the order of `place`
  Array<float> scales;   // [tables, padded][rows]
  Array<float> bias;     // [chunks * 64]

  int64_t groups() const { return (tables + TABLE_GROUP - 1) / TABLE_GROUP; }
  int64_t chunks() const { return (columns + 63) / 64; }
  int64_t reads() const { return groups() * TABLE_GROUP * probes; }  // of a token
  // Tokens to look up at a time, so that their reads (5 bytes each) stay in the last cache.
  int64_t tokens_at_a_time() const {
    return std::max<int64_t>(LFFN_TILE, LFFN_READ_BYTES / (5 * reads() + 8) / LFFN_TILE * LFFN_TILE);
  }
  int64_t bytes() const { return projection.bytes() + table.bytes() + scales.bytes() + bias.bytes(); }
};

// projection_bias: [tables * bits]; table: [tables][rows][columns] with a scale a row; bias: [columns].
LFFN_EXPORT Int8Lookup pack_lookup(const ProjectionWeights& projection, const float* projection_bias,
                                   const int8_t* table, const float* scales, const float* bias, int64_t columns,
                                   int64_t tables, int64_t rows, int probes, const Int8Kernel& kernel);

// What a token reads: for each group of tables and each probe, TABLE_GROUP reads.
struct Int8Reads {
  uint32_t* offsets;  // [tokens][reads], of a row in a chunk, in bytes
  int8_t* weights;    // [tokens][reads]
  float* factors;     // [tokens]: weight = score * scale / factor
  int32_t* starts;    // [tokens]: -128 times the sum of weights
};

// z: what the projection gave for one token.
LFFN_EXPORT void put_reads(const Int8Lookup& l, const float* z, int64_t token, const Int8Reads& reads);

// y[m][c..] = bias + sums, or += if `add`, for the tokens [begin, end) and one chunk of columns; y's rows have
// `columns` floats. The tables of chunk `next` are fetched towards the end, if there is one. `plain`: without VNNI.
LFFN_EXPORT void add_chunk(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, int64_t next, int64_t begin,
                           int64_t end, bool plain, float* y, bool add);

}  // namespace lookupffn
