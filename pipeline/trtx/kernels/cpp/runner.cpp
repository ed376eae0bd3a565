// Runs compiled programs without Python's global lock: torch releases it around every operator, so that other threads go
// on while a program computes, and a second caller of the same program waits without holding anything the first one needs.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <unordered_map>

namespace {

using torch::inductor::AOTIModelPackageLoader;

#ifdef TRTX_CUDA
// A program that is captured into a graph must not wait for events of its own.
constexpr bool SINGLE_THREADED = true;
#else
constexpr bool SINGLE_THREADED = false;
#endif

struct LoadedProgram {
  LoadedProgram(const std::string& folder, const std::string& name) : loader(folder, name, SINGLE_THREADED, 1, -1) {}
  AOTIModelPackageLoader loader;
  std::mutex one_at_a_time;
};

std::mutex programs_mutex;
std::unordered_map<int64_t, std::shared_ptr<LoadedProgram>> programs;
int64_t next_handle = 1;

std::shared_ptr<LoadedProgram> find(int64_t handle) {
  const std::lock_guard<std::mutex> lock(programs_mutex);
  const auto found = programs.find(handle);
  TORCH_CHECK(found != programs.end(), "kernels: there is no program ", handle);
  return found->second;
}

int64_t load_program(const std::string& folder, const std::string& name) {
  auto program = std::make_shared<LoadedProgram>(folder, name);
  const std::lock_guard<std::mutex> lock(programs_mutex);
  programs[next_handle] = std::move(program);
  return next_handle++;
}

std::vector<std::string> constant_names(int64_t handle) { return find(handle)->loader.get_constant_fqns(); }

// The program keeps pointers into the tensors, no copies: they must live as long as it does.
void set_constants(int64_t handle, const std::vector<std::string>& names, const std::vector<at::Tensor>& values) {
  TORCH_CHECK(names.size() == values.size(), "kernels: ", names.size(), " names and ", values.size(), " constants");
  const auto program = find(handle);
  const std::lock_guard<std::mutex> lock(program->one_at_a_time);
  std::unordered_map<std::string, at::Tensor> constants;
  for (size_t i = 0; i < names.size(); ++i) constants[names[i]] = values[i];
  program->loader.load_constants(constants, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
}

std::vector<at::Tensor> run_program(int64_t handle, const std::vector<at::Tensor>& inputs) {
  const auto program = find(handle);
  const std::lock_guard<std::mutex> lock(program->one_at_a_time);
  return program->loader.run(inputs);
}

void unload_program(int64_t handle) {
  const auto program = find(handle);  // ends here, or with the last call that still runs
  const std::lock_guard<std::mutex> lock(programs_mutex);
  programs.erase(handle);
}

}  // namespace

TORCH_LIBRARY_IMPL(TRTX_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("load_program", load_program);
  library.impl("constant_names", constant_names);
  library.impl("set_constants", set_constants);
  library.impl("run_program", run_program);
  library.impl("unload_program", unload_program);
}
