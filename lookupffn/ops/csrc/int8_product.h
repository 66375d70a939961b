// Products of rows of int8 activations with int8 weights, exact in int32:
//   y[m][n] = row_scale[m] * scale[n] * (sum over k of a[m][k] w[n][k]) + bias[n]
// Activations are kept unsigned (plus 128), as the instructions want them; the sum starts at -128 times the column's
// sum of weights, which undoes it. A panel is 64 columns: [depth / 4][64][4] bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "export.h"
#include "quantize.h"

namespace lookupffn {

constexpr int PANEL = 64;
constexpr int64_t DEPTH_STEP = 64;       // depths are padded to it
constexpr int64_t DEEPEST_INT8 = 65536;  // 255 * 127 * depth stays below 2^31
constexpr int MOST_STRIP_ROWS = 16;

inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Memory of its own, on huge pages if large, zeroed.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size) : size_(size) {
    const int64_t bytes = std::max<int64_t>(64, size * static_cast<int64_t>(sizeof(T)));
    const bool large = bytes >= (1 << 20);
    const int64_t alignment = large ? 2 << 20 : 64;
    void* memory = std::aligned_alloc(alignment, rounded_up(bytes, alignment));
    if (!memory) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (large) madvise(memory, rounded_up(bytes, alignment), MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, bytes);
    data_.reset(static_cast<T*>(memory));
  }
  Array(int64_t size, const T* from) : Array(size) { std::memcpy(data_.get(), from, size * sizeof(T)); }
  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  int64_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

struct Int8Matrix {
  int64_t columns = 0, depth = 0, padded_depth = 0, panels = 0;
  Array<int8_t> weight;  // [panels][padded_depth / 4][PANEL][4]
  Array<int32_t> start;  // [panels * PANEL]
  Array<float> scales, bias;
  int64_t bytes() const { return weight.bytes() + start.bytes() + scales.bytes() + bias.bytes(); }
};

// weight: [columns][depth]; `factor` [columns], or null, multiplies columns and their bias.
LFFN_EXPORT Int8Matrix pack_int8(const float* weight, const float* bias, int64_t columns, int64_t depth,
                                 const float* factor = nullptr);

// Instruction sets, from the slowest. Which of them this build and CPU have is known at run time.
enum class Int8Level { plain, avx2, vnni256, vnni512, amx };

struct Int8Kernel {
  int rows;         // that `run` takes at most; amx reads as many in any case
  void (*begin)();  // before runs on a thread, or null
  void (*end)();
  // tile [rows][PANEL] = start + a @ panel, `steps` of 4 deep
  void (*run)(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start, int rows,
              int32_t* tile);
};

// null where this build or CPU lacks it, or where it fails its check against the plain one.
LFFN_EXPORT const Int8Kernel* int8_kernel(Int8Level level);
LFFN_EXPORT const Int8Kernel* best_int8_kernel();

// f(row, column, values of VL columns) for all rows and the panels [begin, end). Columns beyond the last have weights,
// scales and bias of 0. a: [rows rounded up to MOST_STRIP_ROWS][padded_depth].
template <class F>
inline void int8_product(const Int8Kernel& kernel, const Int8Matrix& w, const uint8_t* a, const float* row_scales,
                         int64_t rows, int64_t begin, int64_t end, const F& f) {
  alignas(64) int32_t tile[MOST_STRIP_ROWS * PANEL];
  if (kernel.begin) kernel.begin();
  for (int64_t p = begin; p < end; p++) {
    const int64_t first = p * PANEL;
    vf scales[PANEL / VL], bias[PANEL / VL];
    for (int v = 0; v < PANEL / VL; v++) {
      scales[v] = load(w.scales.data() + first + v * VL);
      bias[v] = load(w.bias.data() + first + v * VL);
    }
    for (int64_t row = 0; row < rows; row += kernel.rows) {
      const int here = static_cast<int>(std::min<int64_t>(kernel.rows, rows - row));
      kernel.run(a + row * w.padded_depth, w.padded_depth, w.weight.data() + p * w.padded_depth * PANEL,
                 w.padded_depth / 4, w.start.data() + first, here, tile);
      for (int r = 0; r < here; r++) {
        const float scale = row_scales[row + r];
        for (int v = 0; v < PANEL / VL; v++)
          f(row + r, first + v * VL, to_float(load(tile + r * PANEL + v * VL)) * (scale * scales[v]) + bias[v]);
      }
    }
  }
  if (kernel.end) kernel.end();
}

}  // namespace lookupffn
