// CaseSetup: the backend, metadata and layer that a case asks for, built through the public API.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cli/device_mirror.h"
#include "cli/replay/cache_image.h"
#include "cli/replay/replay_case.h"
#include "io/case_file.h"
#include "quire/backend.h"

namespace quire::cli {

struct CaseSetup {
  CaseSetup(const AttentionCase& attention_case, const Runtime& runtime) : file(attention_case), mirror(runtime) {}

  const AttentionCase& file;
  DeviceMirror mirror;  // of the file's tensors, and of what the replay adds
  const AttentionBackend* backend = nullptr;
  AttentionType attn_type = AttentionType::kDecoder;
  bool has_cache = false;
  KVCacheSpec file_spec;  // of the bytes in the file
  KVCacheSpec run_spec;   // of the cache that the case runs on
  std::optional<TokenTree> tree;
  std::vector<float> sinks;
  std::vector<MmRange> mm_ranges;
  std::vector<std::int32_t> mm_range_start;
  AttentionMetadata metadata;
  std::unique_ptr<AttentionImpl> impl;

  // The logical view of a cache tensor of the file, after a check that its dtype and shape are the backend's.
  Result<TensorView> view_file_cache(const TensorView& tensor, const char* name) const;
  KVScales tensor_scales() const;
  // The layer's scales, with the separate scale caches of `cache` if it has them.
  AttentionLayer layer(const CacheImage& cache) const;
};

// The setup refers to `file`, which must outlive it.
Result<std::unique_ptr<CaseSetup>> make_case_setup(const AttentionCase& file, const ReplayOptions& options);

}  // namespace quire::cli
