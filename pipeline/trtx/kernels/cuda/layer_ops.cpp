// Operators of a layer that are several steps in one kernel: see ops.py.

#include "checks.h"
#include "kernels.h"
#include "products.h"

namespace trtx {
namespace {

at::TensorOptions result_options(const Tensor& like, const std::optional<Tensor>& y_scale) {
  return like.options().dtype(y_scale ? at::kFloat8_e4m3fn : at::kBFloat16);
}

NormTask make_norm(
    const Tensor& rows, const Tensor& weight, double epsilon, bool plus_one, const std::optional<Tensor>& y_scale,
    const Tensor& y) {
  NormTask task{};
  task.M = int(rows.size(0)), task.E = int(rows.size(1));
  TORCH_CHECK(task.E % 8 == 0 && task.E <= MAX_NORM_CHANNELS, "kernels: no norm of ", task.E, " channels");
  check(weight, "weight", at::kBFloat16, {task.E});
  task.x = rows.const_data_ptr(), task.weight = weight.const_data_ptr(), task.y = y.mutable_data_ptr();
  task.y_scale = optional_scalar(y_scale, "y_scale");
  task.epsilon = float(epsilon), task.is_plus_one = plus_one;
  return task;
}

Tensor rms_norm(
    const Tensor& x, const Tensor& weight, double epsilon, bool plus_one, const std::optional<Tensor>& y_scale) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kBFloat16), y = at::empty(x.sizes(), result_options(x, y_scale));
  if (rows.size(0) == 0) return y;
  run_norm(make_norm(rows, weight, epsilon, plus_one, y_scale, y), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

std::tuple<Tensor, Tensor> add_rms_norm(
    const Tensor& x, const Tensor& addend, const std::optional<Tensor>& addend_scale, const Tensor& weight, double epsilon,
    bool plus_one, const std::optional<Tensor>& y_scale) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kBFloat16), more = as_rows(addend, at::kBFloat16);
  check(more, "addend", at::kBFloat16, rows.sizes());
  const Tensor sum = at::empty(x.sizes(), x.options()), y = at::empty(x.sizes(), result_options(x, y_scale));
  if (rows.size(0) == 0) return {sum, y};
  auto task = make_norm(rows, weight, epsilon, plus_one, y_scale, y);
  task.addend = more.const_data_ptr(), task.sum = sum.mutable_data_ptr();
  task.addend_scale = optional_vector(addend_scale, "addend_scale", task.E);
  run_norm(task, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {sum, y};
}

Tensor gated_linear(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& factor, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& y_scale) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, weight.scalar_type());
  check(weight, "weight", weight.scalar_type(), {weight.size(0), rows.size(1)});
  TORCH_CHECK(weight.size(0) % 16 == 0, "kernels: no gated product of ", weight.size(0), " rows");
  const Tensor y = at::empty({rows.size(0), weight.size(0) / 2}, result_options(rows, y_scale));
  if (rows.size(0) == 0) return finish(x, y);
  const float* scales = optional_vector(scale, "scale", weight.size(0));
  const float *scalar = optional_scalar(factor, "factor"), *y_scalar = optional_scalar(y_scale, "y_scale");
  if (run_gated_product(rows, weight, scalar, scales, y_scalar, y)) return finish(x, y);
  const Tensor both = make_output(rows, weight);
  run_product(rows, weight, scalar, both);
  GateTask task{};
  task.x = both.const_data_ptr(), task.scale = scales, task.y = y.mutable_data_ptr(), task.y_scale = y_scalar;
  task.M = rows.size(0), task.F = int(weight.size(0) / 2);
  run_gate(task, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return finish(x, y);
}

Tensor gate(const Tensor& x, const std::optional<Tensor>& y_scale) {
  const CUDAGuard guard(x.device());
  const Tensor rows = as_rows(x, at::kBFloat16);
  TORCH_CHECK(rows.size(1) % 16 == 0, "kernels: no gates of ", rows.size(1), " channels");
  const Tensor y = at::empty({rows.size(0), rows.size(1) / 2}, result_options(rows, y_scale));
  if (rows.size(0) == 0) return finish(x, y);
  GateTask task{};
  task.x = rows.const_data_ptr(), task.y = y.mutable_data_ptr(), task.y_scale = optional_scalar(y_scale, "y_scale");
  task.M = rows.size(0), task.F = int(rows.size(1) / 2);
  run_gate(task, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return finish(x, y);
}

}  // namespace
}  // namespace trtx

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CUDA, library) {
  using namespace trtx;
  library.impl("rms_norm", rms_norm);
  library.impl("add_rms_norm", add_rms_norm);
  library.impl("gated_linear", gated_linear);
  library.impl("gate", trtx::gate);
}
