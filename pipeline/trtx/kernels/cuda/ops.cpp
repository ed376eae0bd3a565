// The operators on a GPU: tensors checked and turned into tasks. Their schemas are declared in Python, in ops.py.
//
// Nothing here waits for the device or reads from it, so that every call can be captured into a graph.

#include <map>
#include <mutex>

#include "checks.h"
#include "kernels.h"
#include "products.h"

namespace trtx {
namespace {

int count_processors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Zeros that kernels count in, and leave as zeros. Never freed: graphs hold their address. Calls that use them run one
// after another, on one stream.
void* zeros(size_t bytes) {
  constexpr size_t MOST = size_t(1) << 20;
  TORCH_CHECK(bytes <= MOST, "kernels: ", bytes, " bytes of counters are too many");
  static std::mutex mutex;
  static std::map<int, void*> made;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& found = made[c10::cuda::current_device()];
  if (found == nullptr) {
    C10_CUDA_CHECK(cudaMalloc(&found, MOST));
    C10_CUDA_CHECK(cudaMemset(found, 0, MOST));
  }
  return found;
}

// Whether the kernel for few tokens takes this product: it reads rows 64 bytes at a time.
bool is_few(const Tensor& rows, const Tensor& weight) {
  return rows.size(0) <= MAX_FEW_TOKENS && weight.size(1) * weight.element_size() % 64 == 0;
}

// With a weight that is widened first, whole: for many tokens, whose product takes longer than that.
void multiply_widened(const Tensor& rows, const Tensor& weight, const Tensor& scale, int group, const Tensor& y) {
  const Tensor wide = at::empty({weight.size(0), rows.size(1)}, rows.options());
  run_widen(
      weight.const_data_ptr(), scale.const_data_ptr<float>(), wide.mutable_data_ptr(), int(weight.size(0)),
      int(rows.size(1)), group, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  run_product(rows, wide, nullptr, y, /*is_new=*/true);
}

Tensor linear_bf16(const Tensor& x, const Tensor& weight) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kBFloat16);
  check(weight, "weight", at::kBFloat16, {weight.size(0), rows.size(1)});
  const Tensor y = make_output(rows, weight);
  if (rows.size(0) > 0) run_product(rows, weight, nullptr, y);
  return finish(x, y);
}

Tensor linear_e4m3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& factor) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kFloat8_e4m3fn);
  check(weight, "weight", at::kFloat8_e4m3fn, {weight.size(0), rows.size(1)});
  const Tensor y = make_output(rows, weight);
  if (rows.size(0) > 0) run_product(rows, weight, optional_scalar(factor, "factor"), y);
  return finish(x, y);
}

Tensor attend(
    const Tensor& q, const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const std::optional<Tensor>& k_scale,
    const std::optional<Tensor>& v_scale, const std::optional<Tensor>& y_scale) {
  const CUDAGuard guard(q.device());
  TORCH_CHECK(q.dim() == 3 && k_pool.dim() == 4 && block_tables.dim() == 2, "kernels: q is [M, H, D], pools [P, S, G, D]");
  const Tensor input = q.contiguous();
  const Tensor y = at::empty(q.sizes(), q.options().dtype(y_scale ? at::kFloat8_e4m3fn : at::kBFloat16));
  AttentionTask task{};
  task.B = int(block_tables.size(0)), task.W = int(block_tables.size(1)), task.S = int(k_pool.size(1));
  task.M = int(q.size(0)), task.H = int(q.size(1)), task.G = int(k_pool.size(2)), task.D = int(q.size(2));
  TORCH_CHECK(task.G > 0 && task.H % task.G == 0 && has_attention(task.D, task.H / task.G), "kernels: no attention of ",
              task.H, " heads of ", task.D, " channels and ", task.G, " key-value heads on this device");
  check(input, "q", at::kBFloat16, q.sizes());
  check(k_pool, "k_pool", k_pool.scalar_type(), {k_pool.size(0), task.S, task.G, task.D});
  check(v_pool, "v_pool", k_pool.scalar_type(), k_pool.sizes());
  check(block_tables, "block_tables", at::kInt, {task.B, task.W});
  check(query_starts, "query_starts", at::kInt, {task.B + 1});
  check(context_lens, "context_lens", at::kInt, {task.B});
  task.pool_number = pool_number_of(k_pool);
  task.q = input.const_data_ptr(), task.y = y.mutable_data_ptr();
  task.k_pool = k_pool.const_data_ptr(), task.v_pool = v_pool.const_data_ptr();
  task.block_tables = block_tables.const_data_ptr<int32_t>();
  task.query_starts = query_starts.const_data_ptr<int32_t>();
  task.context_lens = context_lens.const_data_ptr<int32_t>();
  task.k_scale = optional_scalar(k_scale, "k_scale"), task.v_scale = optional_scalar(v_scale, "v_scale");
  task.y_scale = optional_scalar(y_scale, "y_scale");
  task.scale = float(scale), task.softcap = float(softcap), task.window = int(window);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  if (task.M == 0) return y;
  if (task.M != task.B) {
    run_prompt_attention(task, stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return y;
  }
  // Few sequences leave most of the device idle unless their contexts are shared out.
  const int blocks = task.B * task.G, processors = count_processors();
  task.splits = std::max(1, std::min({2 * processors / blocks, (task.W * task.S + 255) / 256, 32}));
  Tensor partials;
  if (task.splits > 1) {
    partials = at::empty({task.B, task.H, task.splits, task.D + 4}, q.options().dtype(at::kFloat));
    task.partials = partials.mutable_data_ptr<float>();
    task.counters = static_cast<int32_t*>(zeros(sizeof(int32_t) * task.B * task.H));
  }
  run_decode_attention(task, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

Tensor paged_attention(
    const Tensor& q, const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const std::optional<Tensor>& k_scale,
    const std::optional<Tensor>& v_scale) {
  return attend(
      q, k_pool, v_pool, block_tables, query_starts, context_lens, scale, window, softcap, k_scale, v_scale, std::nullopt);
}

Tensor paged_attention_e4m3(
    const Tensor& q, const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const std::optional<Tensor>& k_scale,
    const std::optional<Tensor>& v_scale, const Tensor& y_scale) {
  return attend(
      q, k_pool, v_pool, block_tables, query_starts, context_lens, scale, window, softcap, k_scale, v_scale, y_scale);
}

Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kBFloat16);
  check(weight, "weight", at::kChar, {weight.size(0), rows.size(1)});
  check(scale, "scale", at::kFloat, {weight.size(0)});
  const Tensor y = make_output(rows, weight);
  if (rows.size(0) == 0) return finish(x, y);
  if (is_few(rows, weight)) {
    auto task = make_few_task(rows, weight, y, Weight::int8);
    task.scale = scale.const_data_ptr<float>();
    run_few_tokens(task, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return finish(x, y);
  }
  multiply_widened(rows, weight, scale, 0, y);
  return finish(x, y);
}

Tensor linear_int4(
    const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& offset, int64_t group) {
  const CUDAGuard guard(x.device());
  TORCH_CHECK(!offset, "kernels: groups with zero points are not computed on this device");
  const Tensor rows = as_rows(x, at::kBFloat16);
  TORCH_CHECK(group % 4 == 0 && rows.size(1) % group == 0, "kernels: groups of ", group, " of ", rows.size(1), " columns");
  check(weight, "weight", at::kByte, {weight.size(0), rows.size(1) / 2});
  check(scale, "scale", at::kFloat, {weight.size(0), rows.size(1) / group});
  const Tensor y = make_output(rows, weight);
  if (rows.size(0) == 0) return finish(x, y);
  if (is_few(rows, weight) && group % 128 == 0) {
    auto task = make_few_task(rows, weight, y, Weight::int4);
    task.scale = scale.const_data_ptr<float>();
    task.Z = int(scale.size(1)), task.group_bytes = group / 2;
    run_few_tokens(task, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return finish(x, y);
  }
  multiply_widened(rows, weight, scale, int(group), y);
  return finish(x, y);
}

Tensor argmax(const Tensor& rows) {
  const CUDAGuard guard(rows.device());
  check(rows, "rows", at::kFloat, {rows.size(0), rows.size(1)});
  const Tensor places = at::empty({rows.size(0)}, rows.options().dtype(at::kLong));
  const int count = int(rows.size(0));
  auto* best = static_cast<unsigned long long*>(zeros(sizeof(unsigned long long) * count));
  run_argmax(
      rows.const_data_ptr<float>(), rows.size(1), count, best, places.mutable_data_ptr<int64_t>(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return places;
}

}  // namespace
}  // namespace trtx

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CUDA, library) {
  using namespace trtx;
  library.impl("argmax", argmax);
  library.impl("paged_attention_e4m3", paged_attention_e4m3);
  library.impl("linear_int8", linear_int8);
  library.impl("linear_int4", linear_int4);
  library.impl("paged_attention", paged_attention);
  library.impl("linear_bf16", linear_bf16);
  library.impl("linear_e4m3", linear_e4m3);
}

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("current_level", [] { return std::string("cuda"); });
  library.impl("product_candidates", trtx::product_candidates);
  library.impl("use_products", trtx::use_products);
}
