// The operators of a mixture of experts. Included after ops.cpp, whose functions it uses; schemas are in ops.py.
//
// Legend: M tokens, X experts, k experts of a token, R = M·k rows sorted by expert.

#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <tuple>
#include <vector>

namespace {

// With more rows than this, torch's product of one expert's rows in its own dtype is as fast.
constexpr int64_t MAX_OWN_ROWS = MAX_OWN_TOKENS;

// The rows of every expert that has any. `starts` must cut all rows of x, so that no wrong number reads foreign memory.
std::vector<trtx::Share> read_shares(const Tensor& starts, int64_t num_experts, int64_t num_rows) {
  check(starts, "starts", at::kInt, {num_experts + 1});
  const int32_t* at = starts.const_data_ptr<int32_t>();
  TORCH_CHECK(at[0] == 0 && at[num_experts] == num_rows, "kernels: starts do not cover the rows");
  std::vector<trtx::Share> shares;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    TORCH_CHECK(at[expert] <= at[expert + 1], "kernels: starts are not in order");
    if (at[expert] < at[expert + 1]) shares.push_back({expert, at[expert], at[expert + 1] - at[expert]});
  }
  return shares;
}

// What all grouped linears share. `columns` of the weight are those of x, less where bytes hold two.
trtx::LinearTask make_grouped_task(
    const Tensor& x, const Tensor& y, const Tensor& weight, at::ScalarType type, int64_t per_byte,
    const std::vector<trtx::Share>& shares) {
  const int64_t N = weight.size(1);
  check(weight, "weight", type, {weight.size(0), N, x.size(1) / per_byte});
  trtx::LinearTask task{};
  task.number = number_of(x);
  task.x = x.const_data_ptr();
  task.y = y.mutable_data_ptr();
  task.weight_number = number_of(weight);
  task.weight = weight.const_data_ptr();
  task.M = x.size(0), task.N = N, task.K = x.size(1);
  task.shares = shares.data(), task.num_shares = int64_t(shares.size());
  return task;
}

void check_grouped(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "kernels: x must be contiguous [R, K]");
  TORCH_CHECK(weight.dim() == 3, "kernels: weight is ", weight.sizes(), " and should have a matrix for every expert");
}

Tensor run_grouped(const trtx::LinearTask& task, Tensor y) {
  if (task.num_shares && task.N) trtx::current_level().linear(task);
  return y;
}

Tensor grouped_linear(const Tensor& x, const Tensor& weight, const Tensor& starts) {
  check_grouped(x, weight);
  TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "kernels: x is ", x.scalar_type(), ", weight ", weight.scalar_type());
  const bool is_own = x.scalar_type() == at::kFloat || (x.scalar_type() == at::kBFloat16 && trtx::current_level().has_bf16_products);
  const Tensor y = empty_output(x, weight.size(1));
  std::vector<trtx::Share> own;
  for (const trtx::Share& share : read_shares(starts, weight.size(0), x.size(0))) {
    if (is_own && share.count <= MAX_OWN_ROWS) {
      own.push_back(share);
      continue;
    }
    Tensor rows = y.narrow(0, share.first, share.count);
    at::mm_out(rows, x.narrow(0, share.first, share.count), weight.select(0, share.matrix).t());
  }
  return own.empty() ? y : run_grouped(make_grouped_task(x, y, weight, x.scalar_type(), 1, own), y);
}

Tensor grouped_linear_scaled(
    const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& starts, at::ScalarType type) {
  check_grouped(x, weight);
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "kernels: x is ", x.scalar_type());
  const Tensor y = empty_output(x, weight.size(1));
  const auto shares = read_shares(starts, weight.size(0), x.size(0));
  auto task = make_grouped_task(x, y, weight, type, 1, shares);
  check(scale, "scale", at::kFloat, {weight.size(0), task.N});
  task.scale = scale.const_data_ptr<float>();
  return run_grouped(task, y);
}

Tensor grouped_linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& starts) {
  return grouped_linear_scaled(x, weight, scale, starts, at::kChar);
}

Tensor grouped_linear_fp8(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& starts) {
  return grouped_linear_scaled(x, weight, scale, starts, at::kFloat8_e4m3fn);
}

Tensor grouped_linear_int4(
    const Tensor& x, const Tensor& weight, const Tensor& scale, const std::optional<Tensor>& offset, const Tensor& starts,
    int64_t group) {
  check_grouped(x, weight);
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "kernels: x is ", x.scalar_type());
  const Tensor y = empty_output(x, weight.size(1));
  const auto shares = read_shares(starts, weight.size(0), x.size(0));
  auto task = make_grouped_task(x, y, weight, at::kByte, 2, shares);
  TORCH_CHECK(group > 0 && group % 2 == 0 && task.K % group == 0, "kernels: groups of ", group, " of ", task.K, " columns");
  task.weight_number = Number::i4;
  task.group = group;
  const std::vector<int64_t> shape{weight.size(0), task.N, task.K / group};
  check(scale, "scale", at::kFloat, shape);
  task.scale = scale.const_data_ptr<float>();
  task.offset = optional_floats(offset, "offset", shape);
  return run_grouped(task, y);
}

// The `count` largest of some numbers, largest first and the first of equals first. NaN counts as largest, as in torch.
void find_largest(const float* numbers, int64_t total, int64_t count, int64_t* indices) {
  const auto is_larger = [](float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); };
  int64_t found = 0;
  for (int64_t i = 0; i < total; ++i) {
    int64_t at = found;
    while (at > 0 && is_larger(numbers[i], numbers[indices[at - 1]])) --at;
    if (at == count) continue;
    if (found < count) ++found;
    for (int64_t j = found - 1; j > at; --j) indices[j] = indices[j - 1];
    indices[at] = i;
  }
}

// One token's experts and their shares, of its logits in `numbers`, which become exponentials.
void route_token(float* numbers, int64_t num_experts, int64_t per_token, bool normalize, float* shares, int64_t* experts) {
  find_largest(numbers, num_experts, per_token, experts);
  const float most = numbers[experts[0]];
  float sum = 0;
  for (int64_t i = 0; i < num_experts; ++i) sum += numbers[i] = std::exp(numbers[i] - most);
  float kept = 0;
  for (int64_t j = 0; j < per_token; ++j) kept += shares[j] = numbers[experts[j]] / sum;
  if (normalize)
    for (int64_t j = 0; j < per_token; ++j) shares[j] /= kept;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> route_experts(const Tensor& logits, int64_t per_token, bool normalize) {
  TORCH_CHECK(logits.dim() == 2, "kernels: logits are ", logits.sizes(), " and should be [M, X]");
  const int64_t M = logits.size(0), X = logits.size(1), R = M * per_token;
  TORCH_CHECK(per_token >= 1 && per_token <= X, "kernels: ", per_token, " of ", X, " experts");
  // A copy: it is worked on in place.
  Tensor numbers = at::empty({M, X}, logits.options().dtype(at::kFloat));
  numbers.copy_(logits);
  const auto integers = logits.options().dtype(at::kLong);
  const Tensor shares = at::empty({M, per_token}, numbers.options());
  const Tensor slots = at::empty({R}, integers), places = at::empty({R}, integers);
  const Tensor starts = at::zeros({X + 1}, logits.options().dtype(at::kInt));
  const Tensor sorted = at::empty({R}, integers);
  std::vector<int64_t> experts(R);
  for (int64_t m = 0; m < M; ++m)
    route_token(
        numbers.mutable_data_ptr<float>() + m * X, X, per_token, normalize, shares.mutable_data_ptr<float>() + m * per_token,
        experts.data() + m * per_token);
  int32_t* start = starts.mutable_data_ptr<int32_t>();
  for (const int64_t expert : experts) ++start[expert + 1];
  for (int64_t expert = 0; expert < X; ++expert) start[expert + 1] += start[expert];
  std::vector<int64_t> next(start, start + X);
  for (int64_t slot = 0; slot < R; ++slot) {
    const int64_t place = next[experts[slot]]++;
    slots.mutable_data_ptr<int64_t>()[place] = slot;
    places.mutable_data_ptr<int64_t>()[slot] = place;
    sorted.mutable_data_ptr<int64_t>()[place] = experts[slot];
  }
  return {shares, slots, places, sorted, starts};
}

}  // namespace

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CPU, experts) {
  experts.impl("route_experts", route_experts);
  experts.impl("grouped_linear", grouped_linear);
  experts.impl("grouped_linear_int8", grouped_linear_int8);
  experts.impl("grouped_linear_int4", grouped_linear_int4);
  experts.impl("grouped_linear_fp8", grouped_linear_fp8);
}
