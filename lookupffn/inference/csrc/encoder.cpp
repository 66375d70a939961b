#include "encoder.h"

#include <atomic>

#include "attention.h"
#include "parallel.h"

namespace lookupffn {
namespace {

constexpr int64_t BLOCK = 48;         // rows that pass through a layer's products together
constexpr int64_t FEW_A_THREAD = 16;  // rows a thread below which columns are shared out instead
constexpr int64_t HEAD_BLOCK = 96, HEAD_PANELS = 8;

// Tasks go to whichever thread is free: sequences differ in length, and cores in what else they do.
template <class F>
void parallel_dynamic(int64_t count, const F& f) {
  if (count == 1) return f(int64_t{0});
  std::atomic<int64_t> next{0};
  parallel_tasks(std::min(count, num_threads()), [&](int64_t) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(task);
  });
}

struct Sequence {
  int64_t first, length;
};

// Rows of int8 with their scales, and room for what a strip reads beyond the last.
struct QuantizedRows {
  uint8_t* data;
  float* scales;
  QuantizedRows(Scratch& memory, int64_t rows, int64_t depth) {
    const int64_t padded = rounded_up(rows, MOST_STRIP_ROWS);
    scales = memory.get<float>(padded + padded * depth / 4 + 16);
    data = reinterpret_cast<uint8_t*>(scales + padded);
  }
};

inline void add_to(float* to, vf y) { store(to, load(to) + y); }

inline vf activate(Activation activation, vf y) {
  return activation == Activation::gelu ? gelu(y) : (y > 0.f ? y : vf{});
}

class Run {
 public:
  Run(const Encoder& e, const Tokens& tokens) : e_(e), t_(tokens), d_(e.hidden) {}

  const char* pack() {
    const int64_t total = t_.batch * t_.length;
    source_.reserve(total);
    for (int64_t b = 0; b < t_.batch; b++) {
      const int64_t first = static_cast<int64_t>(source_.size());
      for (int64_t i = b * t_.length; i < (b + 1) * t_.length; i++)
        if (!t_.mask || t_.mask[i]) source_.push_back(i);
      const int64_t length = static_cast<int64_t>(source_.size()) - first;
      if (length) sequences_.push_back({first, length});
    }
    rows_ = static_cast<int64_t>(source_.size());
    return place();
  }

  template <class D>
  void run(float* out) {
    static thread_local Scratch memory;
    const int64_t d = d_, elements = rows_ * d;
    h_ = memory.get<float>(5 * elements);
    context_ = h_ + elements;
    qkv_ = context_ + elements;
    out_ = out;
    make_room_for_reads();
    if (rows_ < t_.batch * t_.length) std::fill(out, out + t_.batch * t_.length * d, 0.f);
    if (rows_ <= FEW_A_THREAD * num_threads()) return run_few<D>();
    run_blocks<D>();
  }

 private:
  // Positions, with every index checked before anything is read by it.
  const char* place() {
    const Embeddings& em = e_.embeddings;
    positions_.resize(t_.batch * t_.length);
    for (int64_t b = 0; b < t_.batch; b++) {
      int64_t counted = 0;
      for (int64_t i = b * t_.length; i < (b + 1) * t_.length; i++) {
        const int64_t id = t_.ids[i];
        if (id < 0 || id >= em.num_words) return "input_ids: an id is not in the vocabulary";
        if (t_.types && (t_.types[i] < 0 || t_.types[i] >= em.num_types))
          return "token_type_ids: a type is not in the model";
        const int64_t at = t_.positions ? t_.positions[i] : id == em.padding ? em.padding : em.padding + ++counted;
        if (at < 0 || at >= em.num_positions) return "a sequence is longer than the model's positions";
        positions_[i] = at;
      }
    }
    return nullptr;
  }

  template <class D>
  void run_blocks() {
    const int64_t threads = num_threads();
    const int64_t wanted = rounded_up((rows_ + BLOCK - 1) / BLOCK, threads);
    const int64_t step = e_.kernel->rows, size = rounded_up((rows_ + wanted - 1) / wanted, step);
    const auto blocks = [&](const auto& f) {
      parallel_dynamic((rows_ + size - 1) / size, [&](int64_t b) { f(b * size, std::min(rows_, (b + 1) * size)); });
    };
    blocks([&](int64_t begin, int64_t end) {
      embed(begin, end);
      project_qkv<D>(0, begin, end);
    });
    for (size_t i = 0; i < e_.layers.size(); i++) {
      const EncoderLayer& layer = e_.layers[i];
      attention<D>();
      if (!layer.lookup.tables) {
        blocks([&](int64_t begin, int64_t end) {
          project_output(layer, begin, end);
          if (layer.up.columns) gemm(layer, begin, end);
          project_qkv<D>(i + 1, begin, end);
        });
        continue;
      }
      blocks([&](int64_t begin, int64_t end) {
        project_output(layer, begin, end);
        hash(layer, begin, end);
      });
      look_up(layer.lookup);
      blocks([&](int64_t begin, int64_t end) { project_qkv<D>(i + 1, begin, end); });
    }
  }

  // Few rows: every thread takes all of them and a part of the weights.
  template <class D>
  void run_few() {
    static thread_local Scratch quantized_memory, wide_memory;
    using E = typename D::Element;
    embed(0, rows_);
    for (const EncoderLayer& layer : e_.layers) {
      const QuantizedRows a(quantized_memory, rows_, std::max(layer.qkv.padded_depth, layer.down.padded_depth));
      normalize(layer.attention_norm, layer.qkv, 0, rows_, a);
      E* qkv = reinterpret_cast<E*>(qkv_);
      columns(layer.qkv, a, [&](int64_t r, int64_t c, vf y) {
        if (c < 3 * d_) D::put(qkv + r * 3 * d_ + c, y);
      });
      attention<D>();
      for (int64_t r = 0; r < rows_; r++) quantize(layer.output, context_ + r * d_, r, a);
      columns(layer.output, a, [&](int64_t r, int64_t c, vf y) { add_inside(r, c, y); });
      if (layer.lookup.tables) {
        const Int8Projection& projection = layer.lookup.projection;
        const int64_t width = projection.width();
        float* z = wide_memory.get<float>(rows_ * width);
        const Int8Projection::Rows rows = normalized(layer, 0, rows_, quantized_memory);
        parallel_dynamic(projection.parts(), [&](int64_t p) { projection.run(*e_.kernel, rows, p, p + 1, z); });
        parallel_dynamic(rows_, [&](int64_t r) { put_reads(layer.lookup, z + r * width, r, reads_); });
        look_up(layer.lookup);
      } else if (layer.up.columns) {
        normalize(layer.ffn_norm, layer.up, 0, rows_, a);
        const int64_t width = layer.up.panels * PANEL;
        float* wide = wide_memory.get<float>(rows_ * width);
        columns(layer.up, a,
                [&](int64_t r, int64_t c, vf y) { store(wide + r * width + c, activate(layer.activation, y)); });
        for (int64_t r = 0; r < rows_; r++) quantize(layer.down, wide + r * width, r, a);
        columns(layer.down, a, [&](int64_t r, int64_t c, vf y) { add_inside(r, c, y); });
      }
    }
    finish(0, rows_);
  }

  template <class F>
  void columns(const Int8Matrix& w, const QuantizedRows& a, const F& f) const {
    parallel_dynamic(w.panels, [&](int64_t p) { int8_product(*e_.kernel, w, a.data, a.scales, rows_, p, p + 1, f); });
  }

  void embed(int64_t begin, int64_t end) {
    const Embeddings& em = e_.embeddings;
    for (int64_t r = begin; r < end; r++) {
      const int64_t i = source_[r];
      const float* word = em.words + t_.ids[i] * d_;
      const float* position = em.positions + positions_[i] * d_;
      const float* type = em.types + (t_.types ? t_.types[i] : 0) * d_;
      float* h = h_ + r * d_;
      for (int64_t c = 0; c < d_; c += VL) store(h + c, load(word + c) + load(type + c) + load(position + c));
      em.norm.apply(h, h);
    }
  }

  void quantize(const Int8Matrix& w, const float* x, int64_t r, const QuantizedRows& a) const {
    a.scales[r] = quantize_row(x, w.depth, w.padded_depth, a.data + r * w.padded_depth);
  }

  // LayerNorm of the rows [begin, end), rounded for a product with w.
  void normalize(const Norm& norm, const Int8Matrix& w, int64_t begin, int64_t end, const QuantizedRows& a) const {
    static thread_local Scratch memory;
    float* row = memory.get<float>(d_);
    for (int64_t r = begin; r < end; r++) {
      norm.apply(h_ + r * d_, row);
      quantize(w, row, r - begin, a);
    }
  }

  // Columns of the last panel may lie beyond the hidden size.
  void add_inside(int64_t r, int64_t c, vf y) const {
    if (c < d_) add_to(h_ + r * d_ + c, y);
  }

  // Of layer i; after the last layer the final LayerNorm instead.
  template <class D>
  void project_qkv(size_t i, int64_t begin, int64_t end) const {
    if (i == e_.layers.size()) return finish(begin, end);
    static thread_local Scratch memory;
    const EncoderLayer& layer = e_.layers[i];
    const QuantizedRows a(memory, end - begin, layer.qkv.padded_depth);
    normalize(layer.attention_norm, layer.qkv, begin, end, a);
    auto* qkv = reinterpret_cast<typename D::Element*>(qkv_) + begin * 3 * d_;
    const int64_t width = 3 * d_;
    int8_product(*e_.kernel, layer.qkv, a.data, a.scales, end - begin, 0, layer.qkv.panels,
                 [&](int64_t r, int64_t c, vf y) {
                   if (c < width) D::put(qkv + r * width + c, y);
                 });
  }

  template <class D>
  void attention() const {
    const int64_t size = d_ / e_.heads, count = static_cast<int64_t>(sequences_.size()) * e_.heads;
    const int64_t parts = std::max<int64_t>(1, 2 * num_threads() / count);
    const auto* qkv = reinterpret_cast<const typename D::Element*>(qkv_);
    parallel_dynamic(count * parts, [&](int64_t task) {
      const Sequence& s = sequences_[task / parts / e_.heads];
      const int64_t head = task / parts % e_.heads, part = task % parts;
      const auto* q = qkv + s.first * 3 * d_ + head * 3 * size;
      // equal parts of whole strips
      const int64_t strips = (s.length + QUERY_ROWS - 1) / QUERY_ROWS;
      const int64_t begin = strips * part / parts * QUERY_ROWS;
      const int64_t end = std::min(s.length, strips * (part + 1) / parts * QUERY_ROWS);
      if (begin >= end) return;
      attend<D>({q, q + size, q + 2 * size, 3 * d_, s.length, size}, begin, end, context_ + s.first * d_ + head * size,
                d_);
    });
  }

  void project_output(const EncoderLayer& layer, int64_t begin, int64_t end) const {
    static thread_local Scratch memory;
    const QuantizedRows a(memory, end - begin, layer.output.padded_depth);
    for (int64_t r = begin; r < end; r++) quantize(layer.output, context_ + r * d_, r - begin, a);
    int8_product(*e_.kernel, layer.output, a.data, a.scales, end - begin, 0, layer.output.panels,
                 [&](int64_t r, int64_t c, vf y) { add_inside(begin + r, c, y); });
  }

  void gemm(const EncoderLayer& layer, int64_t begin, int64_t end) const {
    static thread_local Scratch memory, wide_memory;
    const int64_t rows = end - begin, width = layer.up.panels * PANEL;
    const QuantizedRows a(memory, rows, std::max(layer.up.padded_depth, layer.down.padded_depth));
    float* wide = wide_memory.get<float>(rows * width);
    normalize(layer.ffn_norm, layer.up, begin, end, a);
    int8_product(*e_.kernel, layer.up, a.data, a.scales, rows, 0, layer.up.panels,
                 [&](int64_t r, int64_t c, vf y) { store(wide + r * width + c, activate(layer.activation, y)); });
    for (int64_t r = 0; r < rows; r++) quantize(layer.down, wide + r * width, r, a);
    int8_product(*e_.kernel, layer.down, a.data, a.scales, rows, 0, layer.down.panels,
                 [&](int64_t r, int64_t c, vf y) { add_inside(begin + r, c, y); });
  }

  void make_room_for_reads() {
    static thread_local Scratch memory;
    int64_t reads = 0;
    for (const EncoderLayer& layer : e_.layers) reads = std::max(reads, layer.lookup.reads());
    reads_.offsets = memory.get<uint32_t>(rows_ * (reads + reads / 4 + 2) + 64);
    reads_.factors = reinterpret_cast<float*>(reads_.offsets + rows_ * reads);
    reads_.starts = reinterpret_cast<int32_t*>(reads_.factors + rows_);
    reads_.weights = reinterpret_cast<int8_t*>(reads_.starts + rows_);
  }

  // The rows [begin, end) as the hash of a layer's lookup wants them.
  Int8Projection::Rows normalized(const EncoderLayer& layer, int64_t begin, int64_t end, Scratch& memory) const {
    static thread_local Scratch float_memory;
    float* x = float_memory.get<float>((end - begin) * d_);
    for (int64_t r = begin; r < end; r++) layer.ffn_norm.apply(h_ + r * d_, x + (r - begin) * d_);
    return layer.lookup.projection.rows(x, end - begin, memory);
  }

  void hash(const EncoderLayer& layer, int64_t begin, int64_t end) const {
    static thread_local Scratch memory, z_memory;
    const Int8Projection& projection = layer.lookup.projection;
    const int64_t width = projection.width();
    float* z = z_memory.get<float>((end - begin) * width);
    projection.run(*e_.kernel, normalized(layer, begin, end, memory), 0, projection.parts(), z);
    for (int64_t r = begin; r < end; r++) put_reads(layer.lookup, z + (r - begin) * width, r, reads_);
  }

  // A thread takes a chunk of columns, so that its slice of the tables stays in its cache. The reads of a block of
  // rows, which every chunk passes over, stay in the last one.
  void look_up(const Int8Lookup& lookup) const {
    const int64_t chunks = lookup.chunks(), threads = num_threads(), most = lookup.tokens_at_a_time();
    for (int64_t first = 0; first < rows_; first += most) {
      const int64_t rows = std::min(most, rows_ - first);
      const int64_t parts = std::clamp<int64_t>((threads + chunks - 1) / chunks, 1, std::max<int64_t>(1, rows / 64));
      parallel_dynamic(chunks * parts, [&](int64_t task) {
        const int64_t chunk = task / parts, part = task % parts;
        add_chunk(lookup, reads_, chunk, chunk + threads, first + rows * part / parts,
                  first + rows * (part + 1) / parts, e_.plain_reads, h_, true);
      });
    }
  }

  void finish(int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; r++) e_.norm.apply(h_ + r * d_, out_ + source_[r] * d_);
  }

  const Encoder& e_;
  const Tokens& t_;
  const int64_t d_;
  int64_t rows_ = 0;
  std::vector<int64_t> source_, positions_;  // of each kept token among all; of each token
  std::vector<Sequence> sequences_;
  float *h_ = nullptr, *context_ = nullptr, *qkv_ = nullptr, *out_ = nullptr;
  Int8Reads reads_{};
};

}  // namespace

const char* Encoder::run(const Tokens& tokens, float* out) const {
  Run run(*this, tokens);
  if (const char* wrong = run.pack()) return wrong;
#if defined(LFFN_BF16_DOT)
  if (!exact_attention) {
    run.run<Bf16>(out);
    return nullptr;
  }
#endif
  run.run<Exact>(out);
  return nullptr;
}

void Encoder::language_head(const float* x, int64_t rows, float* logits) const {
  static thread_local Scratch memory, float_memory;
  const int64_t d = hidden, width = head.dense.panels * PANEL, vocabulary = head.decoder.columns;
  const int64_t depth = head.decoder.padded_depth, blocks = (rows + HEAD_BLOCK - 1) / HEAD_BLOCK;
  const QuantizedRows a(memory, blocks * HEAD_BLOCK, std::max(depth, head.dense.padded_depth));
  float* hidden_rows = float_memory.get<float>(blocks * HEAD_BLOCK * width);
  parallel_dynamic((rows + MOST_STRIP_ROWS - 1) / MOST_STRIP_ROWS, [&](int64_t strip) {
    const int64_t first = strip * MOST_STRIP_ROWS, here = std::min<int64_t>(MOST_STRIP_ROWS, rows - first);
    uint8_t* bytes = a.data + first * depth;  // depth of dense and decoder are both the hidden size
    for (int64_t r = 0; r < here; r++)
      a.scales[first + r] = quantize_row(x + (first + r) * d, d, depth, bytes + r * depth);
    float* to = hidden_rows + first * width;
    int8_product(*kernel, head.dense, bytes, a.scales + first, here, 0, head.dense.panels,
                 [&](int64_t r, int64_t c, vf y) { store(to + r * width + c, gelu(y)); });
    for (int64_t r = 0; r < here; r++) {
      head.norm.apply(to + r * width, to + r * width);
      a.scales[first + r] = quantize_row(to + r * width, d, depth, bytes + r * depth);
    }
  });
  const int64_t groups = (head.decoder.panels + HEAD_PANELS - 1) / HEAD_PANELS;
  parallel_dynamic(blocks * groups, [&](int64_t task) {
    const int64_t first = task / groups * HEAD_BLOCK, here = std::min(HEAD_BLOCK, rows - first);
    const int64_t begin = task % groups * HEAD_PANELS, end = std::min(head.decoder.panels, begin + HEAD_PANELS);
    int8_product(*kernel, head.decoder, a.data + first * depth, a.scales + first, here, begin, end,
                 [&](int64_t r, int64_t c, vf y) {
                   float* to = logits + (first + r) * vocabulary + c;
                   if (c + VL <= vocabulary) store(to, y);
                   else if (c < vocabulary) std::memcpy(to, &y, (vocabulary - c) * sizeof(float));
                 });
  });
}

int64_t Encoder::bytes() const {
  int64_t total = head.dense.bytes() + head.decoder.bytes();
  for (const EncoderLayer& l : layers)
    total += l.qkv.bytes() + l.output.bytes() + l.up.bytes() + l.down.bytes() + l.lookup.bytes();
  return total;
}

}  // namespace lookupffn
