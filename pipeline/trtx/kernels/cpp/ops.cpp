// The operators: tensors checked and turned into tasks. Their schemas are declared in Python, in ops.py.

#include <ATen/core/Tensor.h>
#include <ATen/ops/_int_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "dispatch.h"

using at::Tensor;
using trtx::Number;

namespace {

// Above so many tokens torch's matrix product of bfloat16 is as fast (measured on Zen 5).
constexpr int64_t MAX_OWN_TOKENS = 64;
// The same of int8.
constexpr int64_t MAX_OWN_W8A8_TOKENS = 128;

Number number_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Number::f32;
    case at::kBFloat16: return Number::bf16;
    case at::kFloat8_e4m3fn: return Number::e4m3;
    case at::kByte: return Number::e4m3;  // the bits of an fp8 pool
    case at::kChar: return Number::i8;
    default: TORCH_CHECK(false, "kernels: no such number format: ", tensor.scalar_type());
  }
}

void check(const Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef shape) {
  TORCH_CHECK(
      tensor.scalar_type() == type && tensor.sizes() == shape && tensor.is_contiguous(), "kernels: ", name, " is ",
      tensor.scalar_type(), " ", tensor.sizes(), tensor.is_contiguous() ? "" : " (not contiguous)", " and should be ", type,
      " ", shape);
}

const float* optional_floats(const std::optional<Tensor>& tensor, const char* name, at::IntArrayRef shape) {
  if (!tensor) return nullptr;
  check(*tensor, name, at::kFloat, shape);
  return tensor->const_data_ptr<float>();
}

// A float32 scalar, shaped [] or [1].
float read_scalar(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor) return 1;
  TORCH_CHECK(tensor->scalar_type() == at::kFloat && tensor->numel() == 1, "kernels: ", name, " is no float32 scalar");
  return *tensor->const_data_ptr<float>();
}

Tensor empty_output(const Tensor& x, int64_t num_rows) {
  auto shape = x.sizes().vec();
  shape.back() = num_rows;
  return at::empty(shape, x.options());
}

// What all linears share. `columns` of the weight are those of x, less where bytes hold two.
trtx::LinearTask make_task(const Tensor& x, const Tensor& y, const Tensor& weight, at::ScalarType type, int64_t per_byte) {
  TORCH_CHECK(x.dim() >= 1 && x.is_contiguous(), "kernels: x must be contiguous");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "kernels: x is ", x.scalar_type());
  const int64_t K = x.size(-1), N = weight.size(0);
  check(weight, "weight", type, {N, K / per_byte});
  trtx::LinearTask task{};
  task.number = number_of(x);
  task.x = x.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.weight_number = number_of(weight);
  task.weight = weight.const_data_ptr();
  task.M = K ? x.numel() / K : 0;
  task.N = N;
  task.K = K;
  return task;
}

Tensor run(const trtx::LinearTask& task, Tensor y) {
  if (task.M && task.N) trtx::current_level().linear(task);
  return y;
}

Tensor linear_bf16(const Tensor& x, const Tensor& weight) {
  const bool is_own = x.scalar_type() == at::kFloat || trtx::current_level().has_bf16_products;
  if (x.scalar_type() == at::kBFloat16 && (!is_own || x.numel() > MAX_OWN_TOKENS * x.size(-1))) return at::linear(x, weight);
  const Tensor y = empty_output(x, weight.size(0));
  return run(make_task(x, y, weight, at::kBFloat16, 1), y);
}

Tensor linear_scaled(const Tensor& x, const Tensor& weight, const Tensor& scale, at::ScalarType type) {
  const Tensor y = empty_output(x, weight.size(0));
  auto task = make_task(x, y, weight, type, 1);
  check(scale, "scale", at::kFloat, {task.N});
  task.scale = scale.const_data_ptr<float>();
  return run(task, y);
}

Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  return linear_scaled(x, weight, scale, at::kChar);
}

Tensor linear_fp8(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  return linear_scaled(x, weight, scale, at::kFloat8_e4m3fn);
}

Tensor linear_int4(
    const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& offset, int64_t group) {
  const Tensor y = empty_output(x, weight.size(0));
  auto task = make_task(x, y, weight, at::kByte, 2);
  TORCH_CHECK(group > 0 && group % 2 == 0 && task.K % group == 0, "kernels: groups of ", group, " of ", task.K, " columns");
  task.weight_number = Number::i4;
  task.group = group;
  check(scale, "scale", at::kFloat, {task.N, task.K / group});
  task.scale = scale.const_data_ptr<float>();
  task.offset = optional_floats(offset, "offset", {task.N, task.K / group});
  return run(task, y);
}

Tensor linear_w8a8(
    const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& input_scale,
    const std::optional<Tensor>& pre_quant_scale) {
  const Tensor y = empty_output(x, weight.size(0));
  const auto task = make_task(x, y, weight, at::kChar, 1);
  check(scale, "scale", at::kFloat, {task.N});
  if (input_scale) read_scalar(input_scale, "input_scale");
  const float* smoothing = optional_floats(pre_quant_scale, "pre_quant_scale", {task.K});
  if (task.M == 0 || task.N == 0) return y;
  const auto& level = trtx::current_level();
  const trtx::W8a8Task product{
      task.number, task.x, task.y, weight.const_data_ptr<int8_t>(), scale.const_data_ptr<float>(),
      input_scale ? input_scale->const_data_ptr<float>() : nullptr, smoothing, task.M, task.N, task.K};
  // torch's product of one column is wrong (2.13).
  if (task.M <= MAX_OWN_W8A8_TOKENS || task.K < 2) {
    level.w8a8(product);
    return y;
  }
  const Tensor rounded = at::empty({task.M, task.K}, weight.options());
  const Tensor scales = at::empty({task.M}, scale.options());
  level.quantize(product, rounded.mutable_data_ptr<int8_t>(), scales.mutable_data_ptr<float>());
  const Tensor sums = at::_int_mm(rounded, weight.t());
  level.scale_sums(product, sums.const_data_ptr<int32_t>(), scales.const_data_ptr<float>());
  return y;
}

// Every slot that the kernel will read must be one of the pool: a wrong table must not read foreign memory.
void check_batch(const trtx::AttentionTask& task, int64_t M, int64_t num_blocks) {
  TORCH_CHECK(task.query_starts[0] == 0 && task.query_starts[task.B] == M, "kernels: query_starts do not cover the tokens");
  for (int64_t b = 0; b < task.B; ++b) {
    const int64_t tokens = task.query_starts[b + 1] - task.query_starts[b], length = task.context_lens[b];
    TORCH_CHECK(tokens >= 0 && length >= 0 && length <= task.W * task.S, "kernels: sequence ", b, " has ", tokens,
                " tokens, a context of ", length, " and a table for ", task.W * task.S);
    if (tokens == 0) continue;
    const int64_t seen = task.window > 0 ? length - tokens + 1 - task.window : 0;
    for (int64_t w = (seen > 0 ? seen : 0) / task.S; w < (length + task.S - 1) / task.S; ++w) {
      const int32_t block = task.block_tables[b * task.W + w];
      TORCH_CHECK(block >= 0 && block < num_blocks, "kernels: there is no block ", block, " in a pool of ", num_blocks);
    }
  }
}

Tensor paged_attention(
    const Tensor& q, const Tensor& k_pool, const Tensor& v_pool, const Tensor& block_tables, const Tensor& query_starts,
    const Tensor& context_lens, double scale, int64_t window, double softcap, const std::optional<Tensor>& k_scale,
    const std::optional<Tensor>& v_scale) {
  TORCH_CHECK(q.dim() == 3 && k_pool.dim() == 4 && block_tables.dim() == 2, "kernels: q is [M, H, D], pools [P, S, G, D]");
  TORCH_CHECK(q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16, "kernels: q is ", q.scalar_type());
  const Tensor input = q.contiguous();
  const Tensor y = at::empty(q.sizes(), q.options());
  trtx::AttentionTask task{};
  task.number = number_of(q);
  task.q = input.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.pool_number = number_of(k_pool);
  task.k_pool = k_pool.const_data_ptr();
  task.v_pool = v_pool.const_data_ptr();
  task.B = block_tables.size(0), task.W = block_tables.size(1), task.S = k_pool.size(1);
  task.H = q.size(1), task.G = k_pool.size(2), task.D = q.size(2);
  check(k_pool, "k_pool", k_pool.scalar_type(), {k_pool.size(0), task.S, task.G, task.D});
  check(v_pool, "v_pool", k_pool.scalar_type(), k_pool.sizes());
  check(block_tables, "block_tables", at::kInt, {task.B, task.W});
  check(query_starts, "query_starts", at::kInt, {task.B + 1});
  check(context_lens, "context_lens", at::kInt, {task.B});
  TORCH_CHECK(task.G > 0 && task.H % task.G == 0, "kernels: ", task.H, " heads and ", task.G, " key-value heads");
  task.block_tables = block_tables.const_data_ptr<int32_t>();
  task.query_starts = query_starts.const_data_ptr<int32_t>();
  task.context_lens = context_lens.const_data_ptr<int32_t>();
  task.scale = float(scale), task.softcap = float(softcap), task.window = window;
  task.k_scale = read_scalar(k_scale, "k_scale"), task.v_scale = read_scalar(v_scale, "v_scale");
  check_batch(task, q.size(0), k_pool.size(0));
  trtx::current_level().attention(task);
  return y;
}

std::string current_level() { return trtx::current_level().name; }

void choose_level(const std::string& name) {
  TORCH_CHECK(trtx::choose_level(name.c_str()), "kernels: this library and processor have no level ", name);
}

std::vector<std::string> supported_levels() {
  std::vector<std::string> names;
  for (int i = 0; i < trtx::num_levels(); ++i)
    if (trtx::level_at(i).is_supported()) names.emplace_back(trtx::level_at(i).name);
  return names;
}

}  // namespace

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CPU, library) {
  library.impl("paged_attention", paged_attention);
  library.impl("linear_bf16", linear_bf16);
  library.impl("linear_int8", linear_int8);
  library.impl("linear_int4", linear_int4);
  library.impl("linear_fp8", linear_fp8);
  library.impl("linear_w8a8", linear_w8a8);
}

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("current_level", current_level);
  library.impl("choose_level", choose_level);
  library.impl("supported_levels", supported_levels);
}
