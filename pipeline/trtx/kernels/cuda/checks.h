// How operators on a GPU look at their tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels.h"

namespace trtx {

using at::Tensor;
using c10::cuda::CUDAGuard;

inline void check(const Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef shape) {
  TORCH_CHECK(
      tensor.is_cuda() && tensor.scalar_type() == type && tensor.sizes() == shape && tensor.is_contiguous(), "kernels: ",
      name, " is ", tensor.scalar_type(), " ", tensor.sizes(), tensor.is_contiguous() ? "" : " (not contiguous)",
      " and should be ", type, " ", shape);
}

inline const float* optional_scalar(const std::optional<Tensor>& tensor, const char* name) {
  if (!tensor) return nullptr;
  TORCH_CHECK(tensor->is_cuda() && tensor->scalar_type() == at::kFloat && tensor->numel() == 1, "kernels: ", name,
              " is no float32 scalar on the device");
  return tensor->const_data_ptr<float>();
}

// x as [M, K], rows one after another and aligned.
inline Tensor as_rows(const Tensor& x, at::ScalarType type) {
  TORCH_CHECK(x.is_cuda() && x.scalar_type() == type && x.dim() >= 1, "kernels: x is ", x.scalar_type(), " and should be ",
              type);
  return x.contiguous().view({-1, x.size(-1)});
}

inline Tensor finish(const Tensor& x, const Tensor& y) {
  auto shape = x.sizes().vec();
  shape.back() = y.size(1);
  return y.view(shape);
}

inline Tensor make_output(const Tensor& rows, const Tensor& weight) {
  return at::empty({rows.size(0), weight.size(0)}, rows.options().dtype(at::kBFloat16));
}

inline PoolNumber pool_number_of(const Tensor& pool) {
  switch (pool.scalar_type()) {
    case at::kBFloat16: return PoolNumber::bf16;
    case at::kByte: return PoolNumber::e4m3;
    case at::kChar: return PoolNumber::int8;
    default: TORCH_CHECK(false, "kernels: no pools of ", pool.scalar_type());
  }
}

// A float32 number for each of `size` channels, or null.
inline const float* optional_vector(const std::optional<Tensor>& tensor, const char* name, int64_t size) {
  if (!tensor) return nullptr;
  check(*tensor, name, at::kFloat, {size});
  return tensor->const_data_ptr<float>();
}

}  // namespace trtx
