// Attention on a GPU, alone and after the rotation of what a product left: see ops.py.

#include <algorithm>

#include "checks.h"
#include "device.h"
#include "kernels.h"

namespace trtx {
namespace {

using Optional = std::optional<Tensor>;

// The pools and the tables of a step's sequences, for M tokens of H heads.
AttentionTask make_attention(
    int64_t M, int64_t H, const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const Optional& k_scale, const Optional& v_scale) {
  TORCH_CHECK(k_pool.dim() == 4 && block_tables.dim() == 2, "kernels: pools are [P, S, G, D], tables [B, W]");
  AttentionTask task{};
  task.B = int(block_tables.size(0)), task.W = int(block_tables.size(1)), task.S = int(k_pool.size(1));
  task.M = int(M), task.H = int(H), task.G = int(k_pool.size(2)), task.D = int(k_pool.size(3));
  TORCH_CHECK(task.G > 0 && task.H > 0 && task.H % task.G == 0 && has_attention(task.D, task.H / task.G),
              "kernels: no attention of ", task.H, " heads of ", task.D, " channels and ", task.G,
              " key-value heads on this device");
  check(k_pool, "k_pool", k_pool.scalar_type(), k_pool.sizes());
  check(v_pool, "v_pool", k_pool.scalar_type(), k_pool.sizes());
  check(block_tables, "block_tables", at::kInt, {task.B, task.W});
  check(query_starts, "query_starts", at::kInt, {task.B + 1});
  check(context_lens, "context_lens", at::kInt, {task.B});
  task.pool_number = pool_number_of(k_pool);
  task.k_pool = k_pool.const_data_ptr(), task.v_pool = v_pool.const_data_ptr();
  task.block_tables = block_tables.const_data_ptr<int32_t>();
  task.query_starts = query_starts.const_data_ptr<int32_t>();
  task.context_lens = context_lens.const_data_ptr<int32_t>();
  task.k_scale = optional_scalar(k_scale, "k_scale"), task.v_scale = optional_scalar(v_scale, "v_scale");
  task.scale = float(scale), task.softcap = float(softcap), task.window = int(window);
  return task;
}

void attend(AttentionTask& task, at::TensorOptions options) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  if (task.M != task.B) {
    run_prompt_attention(task, stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return;
  }
  // Few sequences leave most of the device idle unless their contexts are shared out.
  const int blocks = task.B * task.G, processors = count_processors();
  task.splits = std::max(1, std::min({2 * processors / blocks, (task.W * task.S + 255) / 256, 32}));
  Tensor partials;
  if (task.splits > 1) {
    partials = at::empty({task.B, task.H, task.splits, task.D + 4}, options.dtype(at::kFloat));
    task.partials = partials.mutable_data_ptr<float>();
    task.counters = static_cast<int32_t*>(zeros(sizeof(int32_t) * task.B * task.H));
  }
  run_decode_attention(task, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor paged_attention(
    const Tensor& q, const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const Optional& k_scale,
    const Optional& v_scale) {
  const CUDAGuard guard(q.device());
  TORCH_CHECK(q.dim() == 3 && q.size(2) == k_pool.size(-1), "kernels: q is [M, H, D]");
  const Tensor input = q.contiguous(), y = at::empty(q.sizes(), q.options());
  auto task = make_attention(
      q.size(0), q.size(1), k_pool, v_pool, block_tables, query_starts, context_lens, scale, window, softcap, k_scale, v_scale);
  check(input, "q", at::kBFloat16, q.sizes());
  task.q = input.const_data_ptr(), task.y = y.mutable_data_ptr();
  if (task.M > 0) attend(task, q.options());
  return y;
}

RotateTask make_rotation(
    const AttentionTask& attention, const Tensor& rows, const Optional& scale, const Tensor& cos, const Tensor& sin,
    const Tensor& slots, const Tensor& q, const Tensor& k_pool, const Tensor& v_pool) {
  RotateTask task{};
  task.M = attention.M, task.H = attention.H, task.G = attention.G, task.D = attention.D, task.pairs = int(cos.size(-1));
  const int64_t width = int64_t(task.H + 2 * task.G) * task.D;
  TORCH_CHECK(task.D % 8 == 0 && task.pairs % 8 == 0 && 2 * task.pairs <= task.D, "kernels: no rotation of ", task.pairs,
              " pairs in heads of ", task.D, " channels");
  check(rows, "qkv", at::kBFloat16, {task.M, width});
  check(cos, "cos", at::kFloat, cos.sizes());
  check(sin, "sin", at::kFloat, cos.sizes());
  TORCH_CHECK(cos.numel() == int64_t(task.M) * task.pairs, "kernels: a cosine for every token and pair");
  check(slots, "slots", at::kLong, {task.M});
  task.qkv = rows.const_data_ptr(), task.scale = optional_vector(scale, "scale", width);
  task.cos = cos.const_data_ptr<float>(), task.sin = sin.const_data_ptr<float>(), task.slots = slots.const_data_ptr<int64_t>();
  task.q = q.mutable_data_ptr(), task.k_pool = k_pool.mutable_data_ptr(), task.v_pool = v_pool.mutable_data_ptr();
  task.pool_number = attention.pool_number, task.k_scale = attention.k_scale, task.v_scale = attention.v_scale;
  TORCH_CHECK(task.pool_number == PoolNumber::bf16 || (task.k_scale && task.v_scale), "kernels: pools of 8 bits have scales");
  return task;
}

// The pools are written to, which the schema does not say: see ops.py.
Tensor rotate_and_attend(
    const Tensor& qkv, const Optional& qkv_scale, const Tensor& cos, const Tensor& sin, const Tensor& slots,
    const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const Optional& k_scale, const Optional& v_scale,
    const Optional& y_scale) {
  const CUDAGuard guard(qkv.device());
  const Tensor rows = as_rows(qkv, at::kBFloat16);
  auto task = make_attention(
      rows.size(0), rows.size(1) / k_pool.size(-1) - 2 * k_pool.size(2), k_pool, v_pool, block_tables, query_starts,
      context_lens, scale, window, softcap, k_scale, v_scale);
  const Tensor q = at::empty({task.M, task.H, task.D}, qkv.options());
  const Tensor y = at::empty(q.sizes(), qkv.options().dtype(y_scale ? at::kFloat8_e4m3fn : at::kBFloat16));
  const auto rotation = make_rotation(task, rows, qkv_scale, cos, sin, slots, q, k_pool, v_pool);
  task.q = q.const_data_ptr(), task.y = y.mutable_data_ptr(), task.y_scale = optional_scalar(y_scale, "y_scale");
  if (task.M == 0) return y;
  run_rotate(rotation, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  attend(task, qkv.options());
  return y;
}

}  // namespace
}  // namespace trtx

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CUDA, library) {
  library.impl("paged_attention", trtx::paged_attention);
  library.impl("rotate_and_attend", trtx::rotate_and_attend);
}
