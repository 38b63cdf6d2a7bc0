// forward and the cache update of a step must not allocate; every operator new of this program is counted.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "unit/backends/layer_run.h"

namespace {

std::atomic<long> allocations{0};

[[maybe_unused]] void* counted_or_null(std::size_t bytes) noexcept {
  ++allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}

[[maybe_unused]] void* counted(std::size_t bytes) {
  if (void* memory = counted_or_null(bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace

// ThreadSanitizer's runtime defines these itself, so there nothing is counted.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define QUIRE_TEST_COUNTS_NOTHING
#endif
#endif
#if !defined(QUIRE_TEST_COUNTS_NOTHING)
void* operator new(std::size_t bytes) { return counted(bytes); }
void* operator new[](std::size_t bytes) { return counted(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return counted_or_null(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return counted_or_null(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
#endif

namespace quire::test {
namespace {

TEST(NoAllocation, ForwardOnTheCpu) {
#if defined(QUIRE_TEST_COUNTS_NOTHING)
  GTEST_SKIP() << "ThreadSanitizer brings its own operator new";
#endif
  for (const std::string_view name : {"TREE_ATTN", "XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV"}) {
    for (const KVCacheDType dtype : {KVCacheDType::kAuto, KVCacheDType::kFp8E4M3, KVCacheDType::kInt8PerTokenHead}) {
      LayerSetup setup{.backend = name};
      setup.config.runtime = test_runtimes().back();
      setup.config.kv_cache_dtype = dtype;
      LayerRun run(setup);
      ASSERT_TRUE(run.forward().ok());
      std::vector<std::byte> workspace(run.impl->workspace_bytes(run.metadata));
      run.args.workspace = workspace;
      const long before = allocations;
      const bool ok = run.impl->forward(run.layer, run.args).ok();
      EXPECT_EQ(allocations - before, 0) << name;
      EXPECT_TRUE(ok);
    }
  }
}

}  // namespace
}  // namespace quire::test
