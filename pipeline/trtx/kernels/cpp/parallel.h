// Threads and scratch memory. Threads are torch's own (at::parallel_for, through torch's stable C interface).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

extern "C" int32_t torch_parallel_for(
    int64_t begin, int64_t end, int64_t grain, void (*function)(int64_t, int64_t, void*), void* context);
extern "C" int32_t torch_get_num_threads(uint32_t* count);

namespace {

inline int64_t num_threads() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count < 1 ? 1 : count;
}

// Call `function(item)` for every item below `count`. Threads take the next item when they are done with one, so that a
// thread that has to wait for a processor delays nobody by more than one item.
template <class Function>
void for_each(int64_t count, const Function& function) {
  struct Context {
    const Function& function;
    std::atomic<int64_t> next;
    int64_t count;
  } context{function, {0}, count};
  const int64_t threads = num_threads() < count ? num_threads() : count;
  auto work = [](int64_t begin, int64_t end, void* raw) {
    auto& mine = *static_cast<Context*>(raw);
    for (; begin < end; ++begin)
      for (int64_t item; (item = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.count;) mine.function(item);
  };
  if (threads <= 1) work(0, 1, &context);
  else torch_parallel_for(0, threads, 1, work, &context);
}

// Memory of one thread that grows and stays: a call touches no new pages. One buffer per `slot`.
template <int slot>
void* scratch(int64_t bytes) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = (bytes + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(64, buffer.size);
    if (buffer.data == nullptr) std::abort();
  }
  return buffer.data;
}

}  // namespace
