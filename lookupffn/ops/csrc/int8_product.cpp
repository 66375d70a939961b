#include "int8_product.h"

#include <cmath>

#include "amx.h"

namespace lookupffn {
namespace {

void run_plain(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start, int rows,
               int32_t* tile) {
  for (int r = 0; r < rows; r++) {
    int32_t* sums = tile + r * PANEL;
    std::copy(start, start + PANEL, sums);
    for (int64_t k = 0; k < steps; k++)
      for (int c = 0; c < PANEL; c++)
        for (int i = 0; i < 4; i++) sums[c] += a[r * lda + 4 * k + i] * panel[(k * PANEL + c) * 4 + i];
  }
}

// The rows of a strip as a template argument.
template <template <int> class STRIP, int ROWS, class... ARGS>
inline void dispatch_rows(int rows, ARGS... args) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return STRIP<ROWS>::run(args...);
    return dispatch_rows<STRIP, ROWS - 1>(rows, args...);
  }
}

inline int32_t word_at(const uint8_t* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

#if defined(__AVX2__)

struct Madd {  // exact without VNNI: vpmaddubsw alone would saturate
  static __m256i dot(__m256i sum, __m256i a, __m256i w) {
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
};

#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#define LFFN_VNNI256 1
struct Vnni256 {
  static __m256i dot(__m256i sum, __m256i a, __m256i w) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, a, w);
#else
    return _mm256_dpbusd_avx_epi32(sum, a, w);
#endif
  }
};
#endif

template <class D, int ROWS>
inline void strip256(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start,
                     int32_t* tile) {
  for (int c = 0; c < PANEL; c += 16) {  // 16 registers: 12 sums, 2 of weights, a row
    __m256i sum[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) sum[r][v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + c + 8 * v));
    const int8_t* w = panel + 4 * c;
    for (int64_t k = 0; k < steps; k++, w += 4 * PANEL) {
      const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
      const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32));
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const __m256i x = _mm256_set1_epi32(word_at(a + r * lda + 4 * k));
        sum[r][0] = D::dot(sum[r][0], x, w0);
        sum[r][1] = D::dot(sum[r][1], x, w1);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile + r * PANEL + c + 8 * v), sum[r][v]);
  }
}

constexpr int ROWS_256 = 6;

template <class D>
struct Strips256 {
  template <int ROWS>
  struct Strip {
    static void run(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start,
                    int32_t* tile) {
      strip256<D, ROWS>(a, lda, panel, steps, start, tile);
    }
  };
  static void run(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start, int rows,
                  int32_t* tile) {
    dispatch_rows<Strip, ROWS_256>(rows, a, lda, panel, steps, start, tile);
  }
};

#endif

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

constexpr int ROWS_512 = 6;  // 24 sums, 4 of weights, a row

template <int ROWS>
struct Strip512 {
  static void run(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start,
                  int32_t* tile) {
    __m512i sum[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) sum[r][v] = _mm512_loadu_si512(start + 16 * v);
    for (int64_t k = 0; k < steps; k++, panel += 4 * PANEL) {
      __m512i w[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) w[v] = _mm512_loadu_si512(panel + 64 * v);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const __m512i x = _mm512_set1_epi32(word_at(a + r * lda + 4 * k));
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], x, w[v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) _mm512_storeu_si512(tile + r * PANEL + 16 * v, sum[r][v]);
  }
};

void run_vnni512(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start, int rows,
                 int32_t* tile) {
  dispatch_rows<Strip512, ROWS_512>(rows, a, lda, panel, steps, start, tile);
}

#endif

#if defined(LFFN_TILES_INT8)

void begin_amx() {
  static const TileShapes shapes;
  _tile_loadconfig(&shapes);
}

void end_amx() { _tile_release(); }

// Always 16 rows: those beyond `rows` are read and computed for nothing.
void run_amx(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t steps, const int32_t* start, int,
             int32_t* tile) {
  _tile_loadd(0, start, 0);
  _tile_loadd(1, start + 16, 0);
  _tile_loadd(2, start + 32, 0);
  _tile_loadd(3, start + 48, 0);
  for (int64_t k = 0; k < steps; k += 16, panel += 16 * 4 * PANEL) {
    _tile_loadd(4, a + 4 * k, lda);
    _tile_loadd(5, panel, 4 * PANEL);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(6, panel + 64, 4 * PANEL);
    _tile_dpbusd(1, 4, 6);
    _tile_loadd(5, panel + 128, 4 * PANEL);
    _tile_dpbusd(2, 4, 5);
    _tile_loadd(6, panel + 192, 4 * PANEL);
    _tile_dpbusd(3, 4, 6);
  }
  _tile_stored(0, tile, 4 * PANEL);
  _tile_stored(1, tile + 16, 4 * PANEL);
  _tile_stored(2, tile + 32, 4 * PANEL);
  _tile_stored(3, tile + 48, 4 * PANEL);
}

#endif

const Int8Kernel PLAIN{4, nullptr, nullptr, run_plain};

const Int8Kernel* compiled(Int8Level level) {
  switch (level) {
    case Int8Level::plain:
      return &PLAIN;
#if defined(__AVX2__)
    case Int8Level::avx2: {
      static const Int8Kernel kernel{ROWS_256, nullptr, nullptr, Strips256<Madd>::run};
      return &kernel;
    }
#endif
#if defined(LFFN_VNNI256)
    case Int8Level::vnni256: {
      static const Int8Kernel kernel{ROWS_256, nullptr, nullptr, Strips256<Vnni256>::run};
      return &kernel;
    }
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
    case Int8Level::vnni512: {
      static const Int8Kernel kernel{ROWS_512, nullptr, nullptr, run_vnni512};
      return &kernel;
    }
#endif
#if defined(LFFN_TILES_INT8)
    case Int8Level::amx: {
      static const Int8Kernel kernel{16, begin_amx, end_amx, run_amx};
      return tiles_permitted() ? &kernel : nullptr;
    }
#endif
    default:
      return nullptr;
  }
}

// Extremes and pseudo-random bytes through both kernels.
bool agrees_with_plain(const Int8Kernel& kernel) {
  constexpr int64_t DEPTH = 128;
  alignas(64) uint8_t a[MOST_STRIP_ROWS * DEPTH];
  alignas(64) int8_t panel[DEPTH * PANEL];
  alignas(64) int32_t start[PANEL], tile[MOST_STRIP_ROWS * PANEL], expected[MOST_STRIP_ROWS * PANEL];
  uint32_t state = 1;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 24; };
  for (auto& x : a) x = static_cast<uint8_t>(next() < 32 ? 255 : next());
  for (auto& x : panel) x = static_cast<int8_t>(next() < 32 ? -127 : static_cast<int>(next() % 255) - 127);
  for (auto& x : start) x = static_cast<int32_t>(next()) * -1000;
  for (int rows = 1; rows <= kernel.rows; rows++) {
    run_plain(a, DEPTH, panel, DEPTH / 4, start, rows, expected);
    if (kernel.begin) kernel.begin();
    kernel.run(a, DEPTH, panel, DEPTH / 4, start, rows, tile);
    if (kernel.end) kernel.end();
    if (!std::equal(tile, tile + rows * PANEL, expected)) return false;
  }
  return true;
}

}  // namespace

const Int8Kernel* int8_kernel(Int8Level level) {
  const Int8Kernel* kernel = compiled(level);
  return kernel && (kernel == &PLAIN || agrees_with_plain(*kernel)) ? kernel : nullptr;
}

const Int8Kernel* best_int8_kernel() {
  static const Int8Kernel* best = [] {
    for (const auto level : {Int8Level::amx, Int8Level::vnni512, Int8Level::vnni256, Int8Level::avx2})
      if (const Int8Kernel* kernel = int8_kernel(level)) return kernel;
    return &PLAIN;
  }();
  return best;
}

Int8Matrix pack_int8(const float* weight, const float* bias, int64_t columns, int64_t depth, const float* factor) {
  Int8Matrix m;
  m.columns = columns;
  m.depth = depth;
  m.padded_depth = rounded_up(depth, DEPTH_STEP);
  m.panels = (columns + PANEL - 1) / PANEL;
  m.weight = Array<int8_t>(m.panels * PANEL * m.padded_depth);
  m.start = Array<int32_t>(m.panels * PANEL);
  m.scales = Array<float>(m.panels * PANEL);
  m.bias = Array<float>(m.panels * PANEL);
  for (int64_t n = 0; n < columns; n++) {
    const float* row = weight + n * depth;
    float largest = 0;
    for (int64_t k = 0; k < depth; k++) largest = std::max(largest, std::fabs(row[k]));
    const float inverse = largest > 0 ? 127.f / largest : 0.f, by = factor ? factor[n] : 1.f;
    int8_t* to = m.weight.data() + n / PANEL * PANEL * m.padded_depth + n % PANEL * 4;
    int32_t sum = 0;
    for (int64_t k = 0; k < depth; k++) {
      const int32_t q = static_cast<int32_t>(std::lrintf(row[k] * inverse));
      to[k / 4 * 4 * PANEL + k % 4] = static_cast<int8_t>(q);
      sum += q;
    }
    m.start.data()[n] = -128 * sum;
    m.scales.data()[n] = largest / 127.f * by;
    m.bias.data()[n] = (bias ? bias[n] : 0.f) * by;
  }
  return m;
}

}  // namespace lookupffn
