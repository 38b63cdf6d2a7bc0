// The capability table: every predicate of a backend in words, one row each; documents are generated from it.
#include <array>
#include <string>

#include "quire/backend.h"

namespace quire {
namespace {

template <class Values, class Name>
std::string list(const Values& values, const Name& name) {
  std::string out;
  for (const auto& value : values) out += (out.empty() ? "" : ", ") + std::string(name(value));
  return out;
}

std::string yes_no(const bool value) { return value ? "yes" : "no"; }

std::string attention_types(const AttentionBackend& backend) {
  std::string out;
  for (const AttentionType type : {AttentionType::kDecoder, AttentionType::kEncoder, AttentionType::kEncoderOnly,
                                   AttentionType::kEncoderDecoder}) {
    if (backend.supports_attn_type(type)) out += (out.empty() ? "" : ", ") + std::string(attention_type_name(type));
  }
  return out;
}

std::string backplanes(const AttentionBackend& backend) {
  std::string out;
  for (const Backplane backplane : {Backplane::kReference, Backplane::kCpu, Backplane::kCuda}) {
    if (backend.supports_backplane(backplane))
      out += (out.empty() ? "" : ", ") + std::string(backplane_name(backplane));
  }
  return out;
}

// Probed rather than stated: the smallest sizes, and whether values may be wider than keys.
std::string head_sizes(const AttentionBackend& backend) {
  for (std::int32_t size = 1; size <= 256; ++size) {
    if (!backend.supports_head_size(size, size)) continue;
    return "any >= " + std::to_string(size);
  }
  return "none up to 256";
}

std::string value_sizes(const AttentionBackend& backend) {
  return backend.supports_head_size(192, 128) && backend.supports_head_size(128, 192) ? "any >= 8" : "as head_size";
}

std::string_view shape_text(KVCacheFormat format) {
  switch (format) {
    case KVCacheFormat::kKVFirst:
      return "[2, blocks, block_size, kv_heads, head_size]";
    case KVCacheFormat::kBlockFirst:
      return "[blocks, 2, block_size, kv_heads, head_size]";
    case KVCacheFormat::kPackedKV:
      return "[blocks, block_size, kv_heads, head_size + head_size_v]";
    case KVCacheFormat::kDifferential:
      return "[2 streams, 2, blocks, block_size, kv_heads / 2, head_size]";
  }
  return "";
}

// "0, 1, 3, 2, 4", or "none" where the logical shape has no such order.
std::string order_text(const AttentionBackend& backend, KVCacheLayout layout, const bool layers) {
  const Result<std::vector<int>> order = backend.kv_cache_stride_order(layout, layers);
  if (!order.ok()) return "none";
  return list(*order, [](int dim) { return std::to_string(dim); });
}

std::string_view cudagraph_text(CudagraphSupport support) {
  switch (support) {
    case CudagraphSupport::kNever:
      return "never";
    case CudagraphSupport::kUniformSingleTokenDecode:
      return "uniform single-token decode";
    case CudagraphSupport::kUniformBatch:
      return "uniform batch";
    case CudagraphSupport::kAlways:
      return "always";
  }
  return "";
}

// The lowest capability that is supported, of those that exist.
std::string compute_capability(const AttentionBackend& backend) {
  constexpr std::array<ComputeCapability, 11> kKnown = {
      {{6, 0}, {6, 1}, {7, 0}, {7, 5}, {8, 0}, {8, 6}, {8, 9}, {9, 0}, {10, 0}, {10, 3}, {12, 0}}};
  for (const ComputeCapability capability : kKnown) {
    if (!backend.supports_compute_capability(capability)) continue;
    return ">= " + std::to_string(capability.major) + "." + std::to_string(capability.minor);
  }
  return "none";
}

std::string notes_text(const AttentionBackend& backend) {
  std::string out;
  for (const std::string_view note : backend.notes()) out += (out.empty() ? "" : " ") + std::string(note);
  return out;
}

void add_cache_rows(const AttentionBackend& backend, std::vector<Capability>& rows) {
  rows.push_back({"kv cache shape", std::string(shape_text(backend.kv_cache_format()))});
  rows.push_back({"stride order NHD", order_text(backend, KVCacheLayout::kNHD, false)});
  rows.push_back({"stride order NHD with layers", order_text(backend, KVCacheLayout::kNHD, true)});
  rows.push_back({"stride order HND", order_text(backend, KVCacheLayout::kHND, false)});
  rows.push_back({"stride order HND with layers", order_text(backend, KVCacheLayout::kHND, true)});
}

}  // namespace

std::vector<Capability> capability_table(const AttentionBackend& backend) {
  std::vector<Capability> rows = {
      {"summary", std::string(backend.summary())},
      {"dtypes", list(backend.supported_dtypes(), dtype_name)},
      {"kv cache dtypes", list(backend.supported_kv_cache_dtypes(), kv_cache_dtype_name)},
      {"head_size", head_sizes(backend)},
      {"head_size_v", value_sizes(backend)},
      {"block_size", "multiples of " + std::to_string(backend.block_size_multiple())},
  };
  add_cache_rows(backend, rows);
  const std::vector<Capability> more = {
      {"attention types", attention_types(backend)},
      {"features", list(backend.features(), [](std::string_view feature) { return feature; })},
      {"non-causal", yes_no(backend.supports_non_causal())},
      {"attention sinks", yes_no(backend.supports_sink())},
      {"mm-prefix", yes_no(backend.supports_mm_prefix())},
      {"square-root ALiBi", yes_no(backend.supports_alibi_sqrt())},
      {"fp8 output", yes_no(backend.supports_output_quant())},
      {"batch invariance", yes_no(backend.supports_batch_invariance())},
      {"KV connector", yes_no(backend.supports_kv_connector())},
      {"batch order", std::string(backend.batch_order())},
      {"CUDA graphs", std::string(cudagraph_text(backend.cudagraph_support()))},
      {"compute capability", compute_capability(backend)},
      {"backplanes", backplanes(backend)},
      {"chosen automatically", yes_no(backend.is_automatic())},
      {"notes", notes_text(backend)},
  };
  rows.insert(rows.end(), more.begin(), more.end());
  return rows;
}

}  // namespace quire
