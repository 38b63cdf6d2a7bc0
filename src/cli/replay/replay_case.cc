// Replaying a case: configuration, cache update, attention, judgement.
#include "cli/replay/replay_case.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "cli/replay/cache_image.h"
#include "cli/replay/case_setup.h"
#include "core/convert.h"

namespace quire::cli {
namespace {

// Stores what the new tokens should leave in an unquantised cache. In a quantised one the slots' rows are taken from
// `got`: only the oracle's cache could judge them.
void apply_expected_update(const AttentionCase& file, const CacheImage& got, CacheImage& want) {
  const std::int64_t count = std::min(file.slot_mapping.size(0), file.key.size(0));
  for (std::int64_t token = 0; token < count; ++token) {
    const std::int64_t slot = file.slot_mapping.as<const std::int64_t>()[token];
    if (slot < 0) continue;
    for (const CachePart part : {CachePart::kKey, CachePart::kValue}) {
      const TensorView& rows = part == CachePart::kKey ? file.key : file.value;
      for (std::int32_t head = 0; head < file.config.num_kv_heads; ++head) {
        const CacheRow to = want.row({part, slot, head});
        const CacheRow from = is_quantized(want.spec().cache_dtype)
                                  ? got.row({part, slot, head})
                                  : CacheRow{.data = select(select(rows, 0, token), 0, head).as<std::byte>()};
        std::memcpy(to.data, from.data, static_cast<std::size_t>(to.bytes));
        if (to.scale != nullptr) std::memcpy(to.scale, from.scale, sizeof(float));
      }
    }
  }
}

// Judges the cache after the update: against the oracle's where the file has it, else against what an update may do.
Status judge_cache(const CaseSetup& setup, CacheImage& cache, ReplayVerdict& verdict) {
  const AttentionCase& file = setup.file;
  QUIRE_ASSIGN_OR_RETURN(CacheImage want, CacheImage::create(cache.spec(), cache.scales()));
  if (file.kv_cache_after) {
    QUIRE_ASSIGN_OR_RETURN(const TensorView after, setup.view_file_cache(file.kv_cache_after, "kv_cache_after"));
    want.copy_from(setup.file_spec, after);
  } else {
    QUIRE_ASSIGN_OR_RETURN(const TensorView before, setup.view_file_cache(file.kv_cache, "kv_cache"));
    want.copy_from(setup.file_spec, before);
    if (file.slot_mapping && file.key) apply_expected_update(file, cache, want);
  }
  const std::string exact = first_cache_difference(want, cache, 0);
  verdict.cache = exact.empty() ? "ok" : "+-1";
  if (!exact.empty()) {
    const std::string loose = first_cache_difference(want, cache, 1);
    if (!loose.empty()) return internal_error("kv_cache: " + loose);
  }
  // Attention is judged on the oracle's cache, so that a byte rounded differently is not held against it.
  if (file.kv_cache_after) cache.copy_from(want);
  if (!cache.guards_intact()) return internal_error("kv_cache: bytes outside of it were written");
  return {};
}

Status judge_output(const AttentionCase& file, const TensorView& output, ReplayVerdict& verdict) {
  const std::int64_t row = output.stride(0);
  const std::int64_t judged = file.config.num_actual_tokens * row;
  for (std::int64_t i = 0; i < judged; ++i) {
    const double want = load_as_float(file.output.data, file.output.dtype, i);
    const double got = load_as_float(output.data, output.dtype, i);
    const double error = std::fabs(got - want);
    if (error == 0.0) continue;
    const double ratio = error / (file.atol + file.rtol * std::fabs(want));
    verdict.max_error = std::isnan(error) ? HUGE_VAL : std::fmax(verdict.max_error, error);
    verdict.worst = std::isnan(ratio) ? HUGE_VAL : std::fmax(verdict.worst, ratio);
  }
  if (verdict.worst > 1.0) {
    return internal_error("output: largest error is " + std::to_string(verdict.worst) + " times the limit");
  }
  const auto* bytes = output.as<const std::byte>();
  const std::int64_t element = dtype_bytes(output.dtype);
  for (std::int64_t i = judged * element; i < output.num_elements() * element; ++i) {
    if (bytes[i] != GuardedBuffer::kPattern) return internal_error("output: a padding row was written");
  }
  return {};
}

Status send(CaseSetup& setup, CacheImage& cache) {
  for (const auto& memory : cache.memory()) QUIRE_RETURN_IF_ERROR(setup.mirror.send(memory));
  return {};
}

Status fetch(CaseSetup& setup, CacheImage& cache) {
  for (const auto& memory : cache.memory()) QUIRE_RETURN_IF_ERROR(setup.mirror.fetch(memory));
  return {};
}

Status update_cache(CaseSetup& setup, CacheImage& cache) {
  const AttentionCase& file = setup.file;
  const DeviceMirror& mirror = setup.mirror;
  if (!file.key || !file.slot_mapping) return {};
  QUIRE_RETURN_IF_ERROR(setup.impl->do_kv_cache_update(setup.layer(cache), mirror.at(file.key), mirror.at(file.value),
                                                       mirror.at(cache.view()), mirror.at(file.slot_mapping)));
  return fetch(setup, cache);
}

Status run_forward(CaseSetup& setup, CacheImage* cache, ReplayVerdict& verdict) {
  const AttentionCase& file = setup.file;
  DeviceMirror& mirror = setup.mirror;
  const DType dtype = file.output_scale ? DType::kFloat8E4M3 : file.query.dtype;
  GuardedBuffer output(static_cast<std::size_t>(file.output.num_elements() * dtype_bytes(dtype)));
  GuardedBuffer workspace(setup.impl->workspace_bytes(setup.metadata));
  if (!output.ok() || !workspace.ok()) return resource_exhausted("output, workspace: no memory");
  QUIRE_RETURN_IF_ERROR(mirror.add(output.whole()));
  QUIRE_RETURN_IF_ERROR(mirror.add(workspace.whole()));
  QUIRE_ASSIGN_OR_RETURN(
      const TensorView rows,
      make_tensor(output.data(), dtype, {file.query.size(0), file.query.size(1), file.config.head_size_v}));
  ForwardArgs args;
  args.query = mirror.at(file.query);
  args.key = mirror.at(file.key);
  args.value = mirror.at(file.value);
  if (cache != nullptr) args.kv_cache = mirror.at(cache->view());
  args.metadata = &setup.metadata;
  args.output = mirror.at(rows);
  if (file.output_scale) args.output_scale = *file.output_scale.as<const float>();
  args.workspace = mirror.at(workspace.bytes());
  QUIRE_RETURN_IF_ERROR(setup.impl->forward(cache == nullptr ? AttentionLayer{} : setup.layer(*cache), args));
  QUIRE_RETURN_IF_ERROR(mirror.fetch(output.whole()));
  QUIRE_RETURN_IF_ERROR(mirror.fetch(workspace.whole()));
  QUIRE_RETURN_IF_ERROR(judge_output(file, rows, verdict));
  if (!output.guards_intact()) return internal_error("output: bytes outside of it were written");
  if (!workspace.guards_intact()) return internal_error("workspace: bytes outside of it were written");
  return {};
}

Status replay(const AttentionCase& file, const ReplayOptions& options, ReplayVerdict& verdict) {
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<CaseSetup> setup, make_case_setup(file, options));
  if (!setup->has_cache) {
    verdict.cache = "-";
    return run_forward(*setup, nullptr, verdict);
  }
  QUIRE_ASSIGN_OR_RETURN(CacheImage cache, CacheImage::create(setup->run_spec, setup->tensor_scales()));
  QUIRE_ASSIGN_OR_RETURN(const TensorView before, setup->view_file_cache(file.kv_cache, "kv_cache"));
  cache.copy_from(setup->file_spec, before);
  for (const auto& memory : cache.memory()) QUIRE_RETURN_IF_ERROR(setup->mirror.add(memory));
  QUIRE_RETURN_IF_ERROR(update_cache(*setup, cache));
  QUIRE_RETURN_IF_ERROR(judge_cache(*setup, cache, verdict));
  QUIRE_RETURN_IF_ERROR(send(*setup, cache));  // judging may have put the oracle's rows into it
  QUIRE_ASSIGN_OR_RETURN(CacheImage untouched, CacheImage::create(cache.spec(), cache.scales()));
  untouched.copy_from(cache);
  QUIRE_RETURN_IF_ERROR(run_forward(*setup, &cache, verdict));
  QUIRE_RETURN_IF_ERROR(fetch(*setup, cache));
  const std::string difference = first_cache_difference(untouched, cache, 0);
  if (!difference.empty() || !cache.guards_intact()) return internal_error("kv_cache: forward wrote " + difference);
  return {};
}

}  // namespace

ReplayVerdict replay_case(const AttentionCase& attention_case, const ReplayOptions& options) {
  ReplayVerdict verdict;
  const Status status = replay(attention_case, options, verdict);
  verdict.passed = status.ok();
  verdict.complaint = status.message();
  return verdict;
}

}  // namespace quire::cli
