// The lookup feed-forward in int8: y[m] = bias + sum over tables and probes of score * row.
//
// The projection is multiplied out to one matrix and runs as an int8 product; its columns are ordered so that a vector
// of results holds one bit of several tables, as the hash wants it. A token's scores, times the scales of the rows they
// belong to, are rounded to int8 with one factor a token; rows are read 64 columns at a time, four rows to a
// multiply-add, summed exactly in int32.
#pragma once

#include <cstdint>

#include "int8_product.h"

namespace lookupffn {

constexpr int TABLE_GROUP = 16;  // tables whose reads lie together

struct Int8Lookup {
  int64_t depth = 0, columns = 0, tables = 0, rows = 0;
  int bits = 0, probes = 0;
  Int8Matrix projection;  // [groups of tables][bits][TABLE_GROUP]
  Array<uint8_t> table;   // [chunks of 64 columns][tables, padded][rows][64]: plus 128, in the order of sum_four
  Array<float> scales;    // [tables, padded][rows]
  Array<float> bias;      // [chunks * 64]

  int64_t groups() const { return (tables + TABLE_GROUP - 1) / TABLE_GROUP; }
  int64_t chunks() const { return (columns + 63) / 64; }
  int64_t reads() const { return groups() * TABLE_GROUP * probes; }  // of a token
  int64_t bytes() const { return projection.bytes() + table.bytes() + scales.bytes() + bias.bytes(); }
};

// matrix: [tables * bits][depth]; table: [tables][rows][columns] with a scale a row.
Int8Lookup pack_lookup(const float* matrix, const float* matrix_bias, const int8_t* table, const float* scales,
                       const float* bias, int64_t depth, int64_t columns, int64_t tables, int64_t rows, int probes);

// What a token reads: for each group of tables and each probe, TABLE_GROUP reads.
struct Int8Reads {
  uint32_t* offsets;  // [tokens][reads], of a row in a chunk, in bytes
  int8_t* weights;    // [tokens][reads]
  float* factors;     // [tokens]: weight = score * scale / factor
  int32_t* starts;    // [tokens]: -128 times the sum of weights
};

// z: [groups][bits][TABLE_GROUP], what the projection gave for one token.
void put_reads(const Int8Lookup& l, const float* z, int64_t token, const Int8Reads& reads);

// y[m][c..] += bias + sums for the tokens [begin, end) and one chunk of columns; y's rows have `columns` floats.
// `level` picks the instructions as for products.
void add_chunk(const Int8Lookup& l, const Int8Reads& reads, int64_t chunk, int64_t begin, int64_t end, bool plain,
               float* y);

}  // namespace lookupffn
