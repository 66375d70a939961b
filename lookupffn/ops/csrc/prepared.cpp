#include "prepared.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <list>
#include <mutex>
#include <vector>

#include "parallel.h"
#include "tables.h"

namespace lookupffn {
namespace {

constexpr int64_t SMALLEST_BLOCK = LFFN_SMALLEST_BLOCK;
constexpr int64_t SPEED_OF_TILES = 3;  // products of a multiplied-out matrix in the time of one of BH4's

typedef uint64_t vu __attribute__((vector_size(LFFN_VECTOR_BYTES)));
typedef uint64_t vu_unaligned __attribute__((vector_size(LFFN_VECTOR_BYTES), aligned(1), may_alias));

using Fingerprint = std::array<uint64_t, 2>;

inline uint64_t mix(uint64_t h, uint64_t value) {
  h = (h ^ value) * 0x9e3779b97f4a7c15;
  return h ^ (h >> 32);
}

// Of `bytes` bytes. Every step can be undone, so that a change of one word always changes the result.
Fingerprint fingerprint_of(const char* data, int64_t bytes) {
  constexpr int LANES = 8;
  constexpr int64_t STEP = LANES * LFFN_VECTOR_BYTES;
  vu state[LANES];
  for (int i = 0; i < LANES; i++) state[i] = vu{} + (0x243f6a8885a308d3 + i * 0x13198a2e03707344);
  int64_t at = 0;
  for (; at + STEP <= bytes; at += STEP)
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++) {
      const vu word = *reinterpret_cast<const vu_unaligned*>(data + at + i * LFFN_VECTOR_BYTES);
      const vu mixed = (state[i] ^ word) * 0x9e3779b97f4a7c15;
      state[i] = (mixed << 29) | (mixed >> 35);
    }
  Fingerprint result{static_cast<uint64_t>(bytes), 0x452821e638d01377};
  for (; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + at, std::min<int64_t>(8, bytes - at));
    result[0] = mix(result[0], word);
  }
  for (int i = 0; i < LANES; i++)
    for (size_t lane = 0; lane < LFFN_VECTOR_BYTES / 8; lane++)
      result[lane % 2] = mix(result[lane % 2], state[i][lane]);
  result[1] = mix(result[1], result[0]);
  return result;
}

Fingerprint fingerprint_of(const ProjectionWeights& weights) {
  constexpr int64_t PIECE = LFFN_CHECKED_BYTES;  // a fixed size: the result does not depend on the number of threads
  const int64_t bytes = weights.count() * (weights.bf16 ? 2 : 4), pieces = (bytes + PIECE - 1) / PIECE;
  std::vector<Fingerprint> parts(pieces);
  const char* data = static_cast<const char*>(weights.data);
  const auto piece = [&](int64_t i) {
    parts[i] = fingerprint_of(data + i * PIECE, std::min(PIECE, bytes - i * PIECE));
  };
  if (pieces <= LFFN_CHECKED_ALONE)
    for (int64_t i = 0; i < pieces; i++) piece(i);
  else parallel_tasks(pieces, piece);
  uint32_t alpha;
  std::memcpy(&alpha, &weights.alpha, 4);
  Fingerprint result{alpha, weights.bf16};
  for (int64_t size : {weights.copies, weights.blocks, weights.block, weights.columns, weights.depth})
    result[0] = mix(result[0], static_cast<uint64_t>(size));
  for (const Fingerprint& part : parts)
    for (int i = 0; i < 2; i++) result[i] = mix(result[i], part[i]);
  return result;
}

// What was prepared lately, the latest first. Never destroyed: threads may outlive the statics of this library.
class Cache {
 public:
  struct Entry {
    Fingerprint key;
    int digit_uses = 0;
    std::shared_ptr<const Prepared> folded, digits;
  };

  static Cache& instance() {
    static Cache* cache = new Cache();
    return *cache;
  }

  // f(entry) under the lock; the entry is new if the key was not known.
  template <class F>
  auto with(const Fingerprint& key, const F& f) {
    const std::lock_guard<std::mutex> guard(lock_);
    auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
    if (found == entries_.end()) {
      entries_.push_front({key});
      if (entries_.size() > MOST) entries_.pop_back();
    } else if (found != entries_.begin()) {
      entries_.splice(entries_.begin(), entries_, found);
    }
    return f(entries_.front());
  }

 private:
  static constexpr size_t MOST = 128;  // layers
  std::mutex lock_;
  std::list<Entry> entries_;
};

float number(const ProjectionWeights& w, int64_t i) {
  return w.bf16 ? load_one(static_cast<const uint16_t*>(w.data) + i) : static_cast<const float*>(w.data)[i];
}

// The unscaled transform of n numbers.
void transform(double* h, int64_t n) {
  for (int64_t s = 1; s < n; s *= 2)
    for (int64_t i = 0; i < n; i += 2 * s)
      for (int64_t j = i; j < i + s; j++) {
        const double a = h[j], b = h[j + s];
        h[j] = a + b;
        h[j + s] = a - b;
      }
}

std::shared_ptr<const Prepared> make_folded(const ProjectionWeights& weights) {
  auto made = std::make_shared<Prepared>();
  made->bh4 = folded_shape(weights);
  made->folded.reset(new float[made->bh4.copies * 4 * made->bh4.padded() * made->bh4.block]);
  fold(weights, made->folded.get());
  made->bh4.weight = made->folded.get();
  return made;
}

std::shared_ptr<const Prepared> make_digits(const ProjectionWeights& weights) {
  auto made = std::make_shared<Prepared>();
  std::unique_ptr<float[]> matrix(new float[weights.columns * weights.depth]);
  multiply_out(weights, matrix.get());
  made->digits.reset(new int8_t[weight_digits(weights.columns, weights.depth)]);
  made->digit_scales.reset(new float[(weights.columns + STRIP - 1) / STRIP * STRIP]);
  split_weight(matrix.get(), weights.columns, weights.depth, made->digits.get(), made->digit_scales.get());
  return made;
}

}  // namespace

Bh4 folded_shape(const ProjectionWeights& w) {
  const int64_t size = w.blocks * w.block, block = std::min(std::max(w.block, SMALLEST_BLOCK), size);
  return {nullptr, w.copies, size / block, std::max(block, SMALLEST_BLOCK)};
}

void fold(const ProjectionWeights& w, float* folded) {
  const Bh4 shape = folded_shape(w);
  const int64_t b = w.block, B = shape.block, inside = std::min(B, w.blocks * b), joined = inside / b;
  parallel_tasks(w.copies * 4 * shape.blocks, [&](int64_t task) {
    const double scale =
        std::pow(shape.blocks * inside, -0.5) * (task / shape.blocks % 4 == 3 ? static_cast<double>(w.alpha) : 1.);
    std::vector<double> row(inside);
    float* out = folded + task * B * B;
    std::fill(out, out + B * B, 0.f);
    for (int64_t i = 0; i < inside; i++) {
      std::fill(row.begin(), row.end(), 0.);
      const int64_t from = ((task * joined + i / b) * b + i % b) * b;
      for (int64_t j = 0; j < b; j++) row[i / b * b + j] = number(w, from + j);
      transform(row.data(), inside);
      for (int64_t j = 0; j < inside; j++) out[i * B + j] = static_cast<float>(row[j] * scale);
    }
  });
}

void multiply_out(const ProjectionWeights& w, float* matrix) {
  if (!w.copies) {
    for (int64_t i = 0; i < w.count(); i++) matrix[i] = number(w, i);
    return;
  }
  const int64_t b = w.block, padded = w.blocks * b, factor = padded * b;
  const double scale = 1 / std::sqrt(static_cast<double>(padded));
  std::vector<float> weights(w.count());
  for (int64_t i = 0; i < w.count(); i++) weights[i] = number(w, i);
  parallel_tasks(w.depth, [&](int64_t i) {  // the i-th unit vector becomes column i
    std::vector<double> in(padded), out(padded);
    for (int64_t copy = 0; copy < w.copies; copy++) {
      std::fill(in.begin(), in.end(), 0.);
      in[i] = 1;
      for (int64_t f = 0; f < 4; f++, in.swap(out)) {
        std::fill(out.begin(), out.end(), 0.);
        for (int64_t k = 0; k < padded; k++) {
          if (in[k] == 0) continue;
          const float* row = weights.data() + (copy * 4 + f) * factor + k * b;
          for (int64_t j = 0; j < b; j++) out[k / b * b + j] += in[k] * row[j];
        }
        transform(out.data(), padded);
        for (double& v : out) v *= scale;
      }
      const double alpha = static_cast<double>(w.alpha);
      for (int64_t j = 0; j < std::min(padded, w.columns - copy * padded); j++)
        matrix[(copy * padded + j) * w.depth + i] = static_cast<float>(alpha * in[j] + (i == j ? 1 - alpha : 0.));
    }
  });
}

std::shared_ptr<const Prepared> prepared(const ProjectionWeights& weights, Form form) {
  if (form == Form::digits) {
    const int64_t most = (weights.copies ? SPEED_OF_TILES : 1) * weights.count();
    if (!digits_serve() || weights.depth > DEEPEST || weights.columns * weights.depth > most) return nullptr;
  }
  const Fingerprint key = fingerprint_of(weights);
  auto& cache = Cache::instance();
  if (form == Form::folded) {
    auto found = cache.with(key, [](auto& entry) { return entry.folded; });
    if (!found) {
      found = make_folded(weights);
      cache.with(key, [&](auto& entry) { return entry.folded = found; });
    }
    return found;
  }
  bool first = false;
  auto found = cache.with(key, [&](auto& entry) {
    first = entry.digit_uses++ == 0;
    return entry.digits;
  });
  if (!found && !first) {
    found = make_digits(weights);
    cache.with(key, [&](auto& entry) { return entry.digits = found; });
  }
  return found;
}

}  // namespace lookupffn
