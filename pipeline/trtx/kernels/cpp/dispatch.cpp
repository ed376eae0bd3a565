// Which of the library's levels run here: the best that the processor has, or the one that was asked for.

#include "dispatch.h"

#include <atomic>
#include <cstring>

namespace trtx {

#define TRTX_DECLARE(level)                                              \
  namespace level {                                                      \
  void linear(const LinearTask&);                                        \
  void w8a8(const W8a8Task&);                                            \
  void quantize(const W8a8Task&, int8_t*, float*);                       \
  void scale_sums(const W8a8Task&, const int32_t*, const float*);        \
  void attention(const AttentionTask&);                                  \
  }
#define TRTX_KERNELS(level) level::linear, level::w8a8, level::quantize, level::scale_sums, level::attention

TRTX_DECLARE(baseline)
#ifdef TRTX_HAS_AVX512_BF16
TRTX_DECLARE(avx512_bf16)
#endif

namespace {

bool always() { return true; }

#ifdef __x86_64__
bool has_avx512_bf16() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

// Best first.
const Level LEVELS[] = {
#ifdef TRTX_HAS_AVX512_BF16
    {"avx512_bf16", has_avx512_bf16, true, TRTX_KERNELS(avx512_bf16)},
#endif
    {"baseline", always, false, TRTX_KERNELS(baseline)},
};

std::atomic<const Level*> chosen{nullptr};

}  // namespace

const Level& current_level() {
  const Level* level = chosen.load(std::memory_order_acquire);
  if (level == nullptr) {
    for (const Level& candidate : LEVELS)
      if (level == nullptr && candidate.is_supported()) level = &candidate;
    chosen.store(level, std::memory_order_release);
  }
  return *level;
}

bool choose_level(const char* name) {
  for (const Level& candidate : LEVELS)
    if (std::strcmp(candidate.name, name) == 0 && candidate.is_supported()) {
      chosen.store(&candidate, std::memory_order_release);
      return true;
    }
  return false;
}

int num_levels() { return int(sizeof LEVELS / sizeof LEVELS[0]); }

const Level& level_at(int index) { return LEVELS[index]; }

}  // namespace trtx
