// What operators ask of the device that they run on.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>

#include <map>
#include <mutex>

namespace trtx {

inline int count_processors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Zeros that kernels count in, and leave as zeros. Never freed: graphs hold their address. Calls that use them run one
// after another, on one stream.
inline void* zeros(size_t bytes) {
  constexpr size_t MOST = size_t(1) << 20;
  TORCH_CHECK(bytes <= MOST, "kernels: ", bytes, " bytes of counters are too many");
  static std::mutex mutex;
  static std::map<int, void*> made;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& found = made[c10::cuda::current_device()];
  if (found == nullptr) {
    C10_CUDA_CHECK(cudaMalloc(&found, MOST));
    C10_CUDA_CHECK(cudaMemset(found, 0, MOST));
  }
  return found;
}

}  // namespace trtx
