// Products with a weight: which kernel, or which of cuBLASLt's algorithms, computes which shape is a record.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "kernels.h"

namespace trtx {

// What is the same in all products of few tokens.
FewTokensTask make_few_task(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& y, Weight number);

// y[M, N] = x[M, K] · weight[N, K]ᵀ · factor, both bf16 or both e4m3; y is bf16. A weight that `is_new`, written by a kernel
// on the same stream, is not read before that has ended, as those of a model are.
void run_product(
    const at::Tensor& x, const at::Tensor& weight, const float* factor, const at::Tensor& y, bool is_new = false);

// y[M, N / 2] = silu(gates) · ups of the product times scale[N], in bf16, or with y_scale in e4m3. False where that is done
// apart: of many tokens, or because it is faster.
bool run_gated_product(
    const at::Tensor& x, const at::Tensor& weight, const float* factor, const float* scale, const float* y_scale,
    const at::Tensor& y);

// Ways to compute a shape, each as a record: "KIND M N K WAY". The kind is bf16 or e4m3, with "-gated" for gated products.
// A way is "streamed R S" (streamed_product.cu), "few" (few_tokens.cu), or 128 hexadecimal digits, an algorithm of cuBLASLt,
// of which there are up to `count`; of a gated product "streamed R S" or "apart".
std::vector<std::string> product_candidates(const at::Tensor& x, const at::Tensor& weight, bool is_gated, int64_t count);

// Let shapes be computed as these records say, in this process. Those that are no records are an error.
void use_products(const std::vector<std::string>& records);

// Up to so many tokens one record is used: 8, 16, 32, … 128, 192, 256, 512, … ; a record names the largest.
int64_t round_tokens(int64_t num_tokens);

}  // namespace trtx
