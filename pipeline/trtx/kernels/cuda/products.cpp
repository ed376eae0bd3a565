#include "products.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>
#include <variant>

#include "checks.h"
#include "kernels.h"

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

// kind (an index of KINDS), tokens as rounded, rows, columns
using Shape = std::tuple<int, int64_t, int64_t, int64_t>;
const std::array<std::string, 4> KINDS = {"bf16", "e4m3", "bf16-gated", "e4m3-gated"};

struct Streamed {
  int R, S;
};
struct Few {};
struct Apart {};
using Way = std::variant<Streamed, Few, Apart, cublasLtMatmulAlgo_t>;

std::mutex ways_mutex;
std::map<Shape, Way> ways;

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

Shape shape_of(const at::Tensor& x, const at::Tensor& weight, bool is_gated) {
  return {is_e4m3(x) + 2 * is_gated, round_tokens(x.size(0)), weight.size(0), weight.size(1)};
}

bool is_aligned(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// What the copy engine and the stores of four columns take.
bool can_stream(const at::Tensor& x, const at::Tensor& weight) {
  return x.size(0) <= MAX_STREAMED_TOKENS && weight.size(1) * weight.element_size() % 16 == 0 && weight.size(0) % 8 == 0 &&
         is_aligned(x) && is_aligned(weight);
}

// The kernel for few tokens reads rows 64 bytes at a time.
bool can_be_few(const at::Tensor& x, const at::Tensor& weight) {
  return x.size(0) <= MAX_FEW_TOKENS && weight.size(1) * weight.element_size() % 64 == 0;
}

int count_tiles(const at::Tensor& weight, int R) { return int((weight.size(0) + R - 1) / R); }

// Two blocks for every multiprocessor of the largest devices, as far as a cluster goes.
Streamed guess_streamed(const at::Tensor& weight) {
  constexpr int BLOCKS = 264;
  return {128, std::clamp(BLOCKS / count_tiles(weight, 128), 1, 8)};
}

Way find_way(const at::Tensor& x, const at::Tensor& weight, bool is_gated) {
  const Shape shape = shape_of(x, weight, is_gated);
  const std::lock_guard<std::mutex> lock(ways_mutex);
  const auto found = ways.find(shape);
  if (found != ways.end()) return found->second;
  if (can_stream(x, weight)) return ways[shape] = guess_streamed(weight);
  if (can_be_few(x, weight)) return ways[shape] = Few{};
  return ways[shape] = Product(is_e4m3(x), x.size(0), weight.size(0), weight.size(1), nullptr).guess(1).front();
}

void run(const Streamed& way, const at::Tensor& x, const at::Tensor& weight, StreamedTask task) {
  TORCH_CHECK(can_stream(x, weight), "kernels: a record names a product of this shape as streamed, which it cannot be");
  task.x = x.const_data_ptr(), task.weight = weight.const_data_ptr(), task.is_e4m3 = is_e4m3(x);
  task.M = int(x.size(0)), task.N = int(weight.size(0)), task.K = int(weight.size(1));
  task.R = way.R, task.S = way.S;
  TORCH_CHECK(run_streamed_product(task, c10::cuda::getCurrentCUDAStream()), "kernels: this device takes no streamed product: ",
              cudaGetErrorString(cudaGetLastError()));
}

void run(const Few&, const at::Tensor& x, const at::Tensor& weight, const float* factor, const at::Tensor& y, bool is_new) {
  TORCH_CHECK(can_be_few(x, weight), "kernels: a record names a product of this shape as one of few tokens, which it is not");
  auto task = make_few_task(x, weight, y, is_e4m3(x) ? Weight::e4m3 : Weight::bf16);
  task.factor = factor, task.is_new = is_new;
  run_few_tokens(task, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void run(const cublasLtMatmulAlgo_t& algorithm, const at::Tensor& x, const at::Tensor& weight, const float* factor,
         const at::Tensor& y) {
  const Product product(is_e4m3(x), x.size(0), weight.size(0), weight.size(1), factor);
  const float one = 1, zero = 0;
  check(cublasLtMatmul(
            handle(), product.operation, &one, weight.const_data_ptr(), product.weight, x.const_data_ptr(), product.x, &zero,
            y.const_data_ptr(), product.y, y.mutable_data_ptr(), product.y, &algorithm, workspace(), WORKSPACE_BYTES,
            c10::cuda::getCurrentCUDAStream()),
        "product");
}

std::string write_way(const Way& way) {
  if (const auto* streamed = std::get_if<Streamed>(&way))
    return "streamed " + std::to_string(streamed->R) + " " + std::to_string(streamed->S);
  if (std::holds_alternative<Few>(way)) return "few";
  if (std::holds_alternative<Apart>(way)) return "apart";
  std::string text;
  for (const uint64_t word : std::get<cublasLtMatmulAlgo_t>(way).data) {
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016" PRIx64, word);
    text += digits;
  }
  return text;
}

Way read_way(std::istringstream& text, const std::string& record) {
  std::string name;
  text >> name;
  if (name == "few") return Few{};
  if (name == "apart") return Apart{};
  if (name == "streamed") {
    Streamed way{};
    text >> way.R >> way.S;
    TORCH_CHECK((way.R == 128 || way.R == 256) && way.S >= 1 && way.S <= 8, "kernels: no record: ", record);
    return way;
  }
  cublasLtMatmulAlgo_t algorithm{};
  constexpr size_t words = sizeof(algorithm.data) / sizeof(algorithm.data[0]);
  TORCH_CHECK(name.size() == words * 16 && name.find_first_not_of("0123456789abcdef") == std::string::npos,
              "kernels: no record: ", record);
  for (size_t i = 0; i < words; ++i) algorithm.data[i] = std::stoull(name.substr(i * 16, 16), nullptr, 16);
  return algorithm;
}

}  // namespace

FewTokensTask make_few_task(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& y, Weight number) {
  FewTokensTask task{};
  task.weight_number = number;
  task.x = rows.const_data_ptr(), task.weight = weight.const_data_ptr(), task.y = y.mutable_data_ptr();
  task.M = int(rows.size(0)), task.N = int(weight.size(0)), task.Z = 1;
  task.x_bytes = rows.size(1) * rows.element_size();
  task.row_bytes = weight.size(1) * weight.element_size();
  return task;
}

int64_t round_tokens(int64_t num_tokens) {
  if (num_tokens <= MAX_FEW_TOKENS) return MAX_FEW_TOKENS;
  if (num_tokens <= 128) return (num_tokens + 15) / 16 * 16;
  for (int64_t size = 128;; size *= 2) {
    if (num_tokens <= size + size / 2) return size + size / 2;
    if (num_tokens <= 2 * size) return 2 * size;
  }
}

void run_product(const at::Tensor& x, const at::Tensor& weight, const float* factor, const at::Tensor& y, bool is_new) {
  const Way way = find_way(x, weight, false);
  if (const auto* streamed = std::get_if<Streamed>(&way)) {
    StreamedTask task{};
    task.y = y.mutable_data_ptr(), task.factor = factor, task.is_new = is_new;
    return run(*streamed, x, weight, task);
  }
  if (const auto* few = std::get_if<Few>(&way)) return run(*few, x, weight, factor, y, is_new);
  const auto* algorithm = std::get_if<cublasLtMatmulAlgo_t>(&way);
  TORCH_CHECK(algorithm, "kernels: a record names a product of this shape as a gated one");
  run(*algorithm, x, weight, factor, y);
}

bool run_gated_product(
    const at::Tensor& x, const at::Tensor& weight, const float* factor, const float* scale, const float* y_scale,
    const at::Tensor& y) {
  if (!can_stream(x, weight)) return false;
  const Way way = find_way(x, weight, true);
  if (std::holds_alternative<Apart>(way)) return false;
  const auto* streamed = std::get_if<Streamed>(&way);
  TORCH_CHECK(streamed, "kernels: a record names a gated product of this shape as one that is not streamed");
  StreamedTask task{};
  task.y = y.mutable_data_ptr(), task.factor = factor, task.scale = scale, task.y_scale = y_scale, task.is_gated = true;
  run(*streamed, x, weight, task);
  return true;
}

std::vector<std::string> product_candidates(const at::Tensor& x, const at::Tensor& weight, bool is_gated, int64_t count) {
  const Shape shape = shape_of(x, weight, is_gated);
  std::vector<Way> found;
  if (can_stream(x, weight)) {
    found.push_back(guess_streamed(weight));
    // Fewer blocks leave multiprocessors idle; of more some begin when others end.
    constexpr int FEWEST = 64, MOST = 600;
    for (const int R : {128, 256})
      for (int S = 1; S <= 8; ++S)
        if (const int blocks = count_tiles(weight, R) * S; blocks >= FEWEST && (blocks <= MOST || S == 1))
          found.push_back(Streamed{R, S});
  }
  if (is_gated) {
    found.push_back(Apart{});
  } else {
    if (can_be_few(x, weight)) found.push_back(Few{});
    const Product product(is_e4m3(x), x.size(0), weight.size(0), weight.size(1), nullptr);
    for (const auto& algorithm : product.guess(int(count))) found.push_back(algorithm);
  }
  std::ostringstream start;
  start << KINDS[std::get<0>(shape)] << ' ' << std::get<1>(shape) << ' ' << std::get<2>(shape) << ' ' << std::get<3>(shape);
  std::vector<std::string> records;
  for (const Way& way : found) records.push_back(start.str() + ' ' + write_way(way));
  return records;
}

void use_products(const std::vector<std::string>& records) {
  const std::lock_guard<std::mutex> lock(ways_mutex);
  for (const auto& record : records) {
    std::istringstream text(record);
    std::string kind;
    int64_t M = 0, N = 0, K = 0;
    text >> kind >> M >> N >> K;
    const auto place = std::find(KINDS.begin(), KINDS.end(), kind);
    TORCH_CHECK(text && place != KINDS.end(), "kernels: no record: ", record);
    ways[{int(place - KINDS.begin()), M, N, K}] = read_way(text, record);
  }
}

}  // namespace trtx
