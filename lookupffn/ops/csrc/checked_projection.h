// A projection's weights from the tensor that Python hands over.
#pragma once

#include "prepared.h"
#include "tensors.h"

namespace lookupffn {

inline bool is_half(const Tensor& t) { return t.scalar_type() == ScalarType::BFloat16; }

// Contiguous, float32 or bfloat16.
template <class... SIZES>
inline void check_floating(const Tensor& t, const char* name, SIZES... sizes) {
  check(t, name, is_half(t) ? ScalarType::BFloat16 : ScalarType::Float, sizeof...(sizes));
  check_size(t, name, {sizes...});
}

// projection: BH4's [r, 4, G, b, b] or dense [columns, depth].
inline ProjectionWeights checked_projection(const Tensor& projection, double alpha, int64_t columns, int64_t depth) {
  const auto power_of_two = [](int64_t n) { return n >= 1 && (n & (n - 1)) == 0; };
  ProjectionWeights w{projection.data_ptr(), is_half(projection), 0, 0, 0, static_cast<float>(alpha), columns, depth};
  if (projection.dim() == 2) {
    check_floating(projection, "projection", columns, depth);
    return w;
  }
  check(projection, "projection", w.bf16 ? ScalarType::BFloat16 : ScalarType::Float, 5);
  w.copies = projection.size(0), w.blocks = projection.size(2), w.block = projection.size(4);
  check_size(projection, "projection", {w.copies, 4, w.blocks, w.block, w.block});
  STD_TORCH_CHECK(power_of_two(w.block) && power_of_two(w.blocks) && w.blocks * w.block >= depth &&
                      w.copies * w.blocks * w.block >= columns,
                  "projection does not fit x and table");
  return w;
}

}  // namespace lookupffn
