// Checks of what Python hands over; every violation becomes a Python RuntimeError.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <vector>

#include "gather.h"
#include "hash.h"
#include "memory.h"

namespace lookupffn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check(const Tensor& t, const char* name, ScalarType type, int64_t dim) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(t.scalar_type() == type, name, " has the wrong type");
  STD_TORCH_CHECK(t.dim() == dim, name, " must have ", dim, " dimensions, not ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

inline void check_size(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  int64_t i = 0;
  for (int64_t size : sizes) {
    STD_TORCH_CHECK(t.size(i) == size, name, ": dimension ", i, " must be ", size, ", not ", t.size(i));
    i++;
  }
}

// log2 of the rows of a table, with everything the kernels rely on checked.
inline int checked_bits(int64_t rows, int64_t num_probes) {
  int bits = 0;
  while (bits <= MAX_BITS && (int64_t{1} << bits) < rows) bits++;
  STD_TORCH_CHECK(bits >= 1 && bits <= MAX_BITS && (int64_t{1} << bits) == rows,
                  "tables must have 2 to 2^24 rows, a power of two, not ", rows);
  STD_TORCH_CHECK(num_probes >= 1 && num_probes <= MAX_PROBES && num_probes <= rows, "num_probes must be 1 to ",
                  MAX_PROBES, ", not ", num_probes);
  return bits;
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

// The same in memory of a pool, if it is large.
template <class FROM>
inline Tensor empty_pooled(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t bytes = type == ScalarType::BFloat16 ? 2 : 4;
  for (int64_t size : sizes) bytes *= size;
  if (bytes < LEAST_POOLED) return empty(like, sizes, type);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; i--) strides[i - 1] = strides[i] * sizes.begin()[i];
  return torch::stable::from_blob(FROM::take(bytes), {sizes.begin(), sizes.size()}, {strides.data(), strides.size()},
                                  like.device(), type, &FROM::give_back);
}

template <class T>
inline T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

}  // namespace lookupffn
