// torch's own threads, through its stable interface: no second OpenMP runtime, torch.set_num_threads holds.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace lookupffn {

// f(task) for every task below count; one thread takes a contiguous range of tasks.
template <class F>
inline void parallel_tasks(int64_t count, const F& f) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) f(task);
  });
}

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

}  // namespace lookupffn
