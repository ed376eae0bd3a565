#include "products.h"

#include <c10/cuda/CUDAStream.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <cublasLt.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>

namespace trtx {
namespace {

constexpr size_t WORKSPACE_BYTES = size_t(64) << 20;

void check(cublasStatus_t status, const char* what) {
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "kernels: cuBLASLt: ", what, ": ", cublasLtGetStatusString(status));
}

cublasLtHandle_t handle() {
  static cublasLtHandle_t made = [] {
    cublasLtHandle_t fresh = nullptr;
    check(cublasLtCreate(&fresh), "create");
    return fresh;
  }();
  return made;
}

// One for every device, never freed: graphs hold its address.
void* workspace() {
  static std::mutex mutex;
  static std::map<int, void*> made;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& found = made[c10::cuda::current_device()];
  if (found == nullptr) C10_CUDA_CHECK(cudaMalloc(&found, WORKSPACE_BYTES));
  return found;
}

// kind (0 bf16, 1 e4m3), tokens as rounded, rows, columns
using Shape = std::tuple<int, int64_t, int64_t, int64_t>;

std::mutex algorithms_mutex;
std::map<Shape, cublasLtMatmulAlgo_t> algorithms;

// Descriptors of one product; column-major, so that the weight comes first: yᵀ[N, M] = weight[K, N]ᵀ · xᵀ[K, M].
struct Product {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;

  Product(bool is_e4m3, int64_t M, int64_t N, int64_t K, const float* factor) {
    const cudaDataType_t type = is_e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    check(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (is_e4m3) {
      const int8_t fast = 1;
      set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast);
      if (factor) set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, factor);
    }
    check(cublasLtMatrixLayoutCreate(&weight, type, K, N, K), "layout");
    check(cublasLtMatrixLayoutCreate(&x, type, K, M, K), "layout");
    check(cublasLtMatrixLayoutCreate(&y, CUDA_R_16BF, N, M, N), "layout");
  }
  ~Product() {
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(weight);
    cublasLtMatmulDescDestroy(operation);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  template <typename T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    check(cublasLtMatmulDescSetAttribute(operation, name, &value, sizeof(value)), "attribute");
  }

  std::vector<cublasLtMatmulAlgo_t> guess(int count) const {
    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "preference");
    const size_t bytes = WORKSPACE_BYTES;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    std::vector<cublasLtMatmulHeuristicResult_t> found(count);
    int number = 0;
    const auto status =
        cublasLtMatmulAlgoGetHeuristic(handle(), operation, weight, x, y, y, preference, count, found.data(), &number);
    cublasLtMatmulPreferenceDestroy(preference);
    check(status, "no algorithm for this product");
    std::vector<cublasLtMatmulAlgo_t> result;
    for (int i = 0; i < number; ++i)
      if (found[i].state == CUBLAS_STATUS_SUCCESS) result.push_back(found[i].algo);
    TORCH_CHECK(!result.empty(), "kernels: cuBLASLt has no algorithm for this product");
    return result;
  }
};

bool is_e4m3(const at::Tensor& x) { return x.scalar_type() == at::kFloat8_e4m3fn; }

Shape shape_of(const at::Tensor& x, const at::Tensor& weight) {
  return {is_e4m3(x), round_tokens(x.size(0)), weight.size(0), weight.size(1)};
}

cublasLtMatmulAlgo_t find_algorithm(const Shape& shape, const Product& product) {
  const std::lock_guard<std::mutex> lock(algorithms_mutex);
  const auto found = algorithms.find(shape);
  if (found != algorithms.end()) return found->second;
  return algorithms[shape] = product.guess(1).front();
}

std::string write_record(const Shape& shape, const cublasLtMatmulAlgo_t& algorithm) {
  std::ostringstream text;
  text << (std::get<0>(shape) ? "e4m3 " : "bf16 ") << std::get<1>(shape) << ' ' << std::get<2>(shape) << ' '
       << std::get<3>(shape) << ' ';
  for (const uint64_t word : algorithm.data) {
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016" PRIx64, word);
    text << digits;
  }
  return text.str();
}

}  // namespace

int64_t round_tokens(int64_t num_tokens) {
  if (num_tokens <= 128) return std::max<int64_t>(16, (num_tokens + 15) / 16 * 16);
  for (int64_t size = 128;; size *= 2) {
    if (num_tokens <= size + size / 2) return size + size / 2;
    if (num_tokens <= 2 * size) return 2 * size;
  }
}

void run_product(const at::Tensor& x, const at::Tensor& weight, const float* factor, const at::Tensor& y) {
  const Product product(is_e4m3(x), x.size(0), weight.size(0), weight.size(1), factor);
  const auto algorithm = find_algorithm(shape_of(x, weight), product);
  const float one = 1, zero = 0;
  check(cublasLtMatmul(
            handle(), product.operation, &one, weight.const_data_ptr(), product.weight, x.const_data_ptr(), product.x, &zero,
            y.const_data_ptr(), product.y, y.mutable_data_ptr(), product.y, &algorithm, workspace(), WORKSPACE_BYTES,
            c10::cuda::getCurrentCUDAStream()),
        "product");
}

std::vector<std::string> product_candidates(const at::Tensor& x, const at::Tensor& weight, int64_t count) {
  const Product product(is_e4m3(x), x.size(0), weight.size(0), weight.size(1), nullptr);
  std::vector<std::string> records;
  for (const auto& algorithm : product.guess(int(count))) records.push_back(write_record(shape_of(x, weight), algorithm));
  return records;
}

void use_products(const std::vector<std::string>& records) {
  const std::lock_guard<std::mutex> lock(algorithms_mutex);
  for (const auto& record : records) {
    std::istringstream text(record);
    std::string kind, digits;
    int64_t M = 0, N = 0, K = 0;
    text >> kind >> M >> N >> K >> digits;
    cublasLtMatmulAlgo_t algorithm{};
    constexpr size_t words = sizeof(algorithm.data) / sizeof(algorithm.data[0]);
    TORCH_CHECK(digits.size() == words * 16 && (kind == "bf16" || kind == "e4m3"), "kernels: no record: ", record);
    for (size_t i = 0; i < words; ++i) algorithm.data[i] = std::stoull(digits.substr(i * 16, 16), nullptr, 16);
    algorithms[{kind == "e4m3", M, N, K}] = algorithm;
  }
}

}  // namespace trtx
