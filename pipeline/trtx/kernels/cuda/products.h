// Products of many tokens with a weight, by cuBLASLt: which of its algorithms computes which shape is a record.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace trtx {

// y[M, N] = x[M, K] · weight[N, K]ᵀ · factor, both bf16 or both e4m3; y is bf16.
void run_product(const at::Tensor& x, const at::Tensor& weight, const float* factor, const at::Tensor& y);

// Algorithms for a shape, best first by cuBLASLt's own guess, each as a record: "bf16 M N K <128 hexadecimal digits>".
std::vector<std::string> product_candidates(const at::Tensor& x, const at::Tensor& weight, int64_t count);

// Let shapes be computed as these records say, in this process. Those that cuBLASLt does not take are an error.
void use_products(const std::vector<std::string>& records);

// Up to so many tokens one record is used: 16, 32, … 128, 192, 256, 512, … ; a record names the largest.
int64_t round_tokens(int64_t num_tokens);

}  // namespace trtx
