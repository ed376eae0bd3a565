// Products and the choice of tokens on a GPU: tensors checked and turned into tasks. Their schemas are declared in Python, in ops.py.
//
// Nothing here waits for the device or reads from it, so that every call can be captured into a graph.

#include <algorithm>

#include "checks.h"
#include "device.h"
#include "kernels.h"
#include "products.h"

namespace trtx {
namespace {

// Up to so many tokens the kernel for few is run for some after the others: reading a weight of 4 or 8 bits up to four times
// takes no longer than to write it as bf16 and read that.
constexpr int64_t MAX_TOKENS_IN_TURN = 4 * MAX_FEW_TOKENS;

// Whether the kernel for few tokens takes this product: it reads rows 64 bytes at a time.
bool is_few(const Tensor& rows, const Tensor& weight) {
  return rows.size(0) <= MAX_TOKENS_IN_TURN && weight.size(1) * weight.element_size() % 64 == 0;
}

// `group` is 0 for weights of 8 bits.
void multiply_few(const Tensor& rows, const Tensor& weight, const Tensor& scale, int64_t group, const Tensor& y) {
  for (int64_t start = 0; start < rows.size(0); start += MAX_FEW_TOKENS) {
    const int64_t count = std::min<int64_t>(MAX_FEW_TOKENS, rows.size(0) - start);
    auto task = make_few_task(
        rows.narrow(0, start, count), weight, y.narrow(0, start, count), group == 0 ? Weight::int8 : Weight::int4);
    task.scale = scale.const_data_ptr<float>();
    if (group != 0) task.Z = int(scale.size(1)), task.group_bytes = group / 2;
    run_few_tokens(task, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
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

Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kBFloat16);
  check(weight, "weight", at::kChar, {weight.size(0), rows.size(1)});
  check(scale, "scale", at::kFloat, {weight.size(0)});
  const Tensor y = make_output(rows, weight);
  if (rows.size(0) == 0) return finish(x, y);
  if (is_few(rows, weight)) multiply_few(rows, weight, scale, 0, y);
  else multiply_widened(rows, weight, scale, 0, y);
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
  if (is_few(rows, weight) && group % 128 == 0) multiply_few(rows, weight, scale, group, y);
  else multiply_widened(rows, weight, scale, int(group), y);
  return finish(x, y);
}

Tensor argmax(const Tensor& rows) {
  const CUDAGuard guard(rows.device());
  const bool is_bf16 = rows.scalar_type() == at::kBFloat16;
  check(rows, "rows", is_bf16 ? at::kBFloat16 : at::kFloat, {rows.size(0), rows.size(1)});
  const Tensor places = at::empty({rows.size(0)}, rows.options().dtype(at::kLong));
  const int count = int(rows.size(0));
  auto* best = static_cast<unsigned long long*>(zeros(sizeof(unsigned long long) * count));
  run_argmax(
      rows.const_data_ptr(), is_bf16, rows.size(1), count, best, places.mutable_data_ptr<int64_t>(),
      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return places;
}

}  // namespace
}  // namespace trtx

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CUDA, library) {
  using namespace trtx;
  library.impl("argmax", argmax);
  library.impl("linear_int8", linear_int8);
  library.impl("linear_int4", linear_int4);
  library.impl("linear_bf16", linear_bf16);
  library.impl("linear_e4m3", linear_e4m3);
}

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("current_level", [] { return std::string("cuda"); });
  library.impl("product_candidates", trtx::product_candidates);
  library.impl("use_products", trtx::use_products);
}
