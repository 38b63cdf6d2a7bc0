// The reader of attention case files: metadata into a struct, tensors into checked views.
#include "io/case_file.h"

#include <cmath>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "io/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::json;

// Takes typed values out of a JSON object and remembers which keys were asked for, so that unknown ones are seen.
class Fields {
 public:
  Fields(std::string where, Json object) : where_(std::move(where)), object_(std::move(object)) {}

  template <class T>
  Status optional(const std::string& key, T& out) {
    known_.insert(key);
    const auto at = object_.find(key);
    if (at == object_.end() || at->is_null()) return {};
    return read(key, *at, out);
  }
  template <class T>
  Status optional(const std::string& key, std::optional<T>& out) {
    T value{};
    QUIRE_RETURN_IF_ERROR(optional(key, value));
    if (object_.contains(key) && !object_[key].is_null()) out = std::move(value);
    return {};
  }
  template <class T>
  Status required(const std::string& key, T& out) {
    if (!object_.contains(key)) return data_loss(where_ + "." + key + ": missing");
    return optional(key, out);
  }
  Status no_others() const {
    for (const auto& item : object_.items()) {
      if (!known_.contains(item.key())) return data_loss(where_ + "." + item.key() + ": unknown key");
    }
    return {};
  }

 private:
  Status wrong(const std::string& key, const char* wanted, const Json& got) const {
    return data_loss(where_ + "." + key + ": want " + wanted + ", got " +
                     got.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80));
  }
  Status read(const std::string& key, const Json& from, std::int32_t& out) const {
    const bool fits = from.is_number_integer() && from >= 0 && from <= std::numeric_limits<std::int32_t>::max();
    if (!fits) return wrong(key, "an integer in [0, 2^31)", from);
    out = from.get<std::int32_t>();
    return {};
  }
  Status read(const std::string& key, const Json& from, double& out) const {
    if (!from.is_number() || !std::isfinite(from.get<double>())) return wrong(key, "a finite number", from);
    out = from.get<double>();
    return {};
  }
  Status read(const std::string& key, const Json& from, bool& out) const {
    if (!from.is_boolean()) return wrong(key, "true or false", from);
    out = from.get<bool>();
    return {};
  }
  Status read(const std::string& key, const Json& from, std::string& out) const {
    if (!from.is_string()) return wrong(key, "a string", from);
    out = from.get<std::string>();
    return {};
  }
  Status read(const std::string& key, const Json& from, std::vector<TreePath>& out) const {
    if (!from.is_array()) return wrong(key, "an array of paths", from);
    for (const Json& path : from) {
      if (!path.is_array()) return wrong(key, "an array of paths", from);
      TreePath& added = out.emplace_back();
      for (const Json& step : path) QUIRE_RETURN_IF_ERROR(read(key, step, added.emplace_back()));
    }
    return {};
  }

  std::string where_;
  Json object_;
  std::set<std::string> known_;
};

// The JSON object in metadata key `key`. Nothing of a case nests deeper than three levels.
Result<Fields> parse_fields(const SafetensorsFile& file, const std::string& key) {
  constexpr int kMaxDepth = 3;
  const auto at = file.metadata().find(key);
  if (at == file.metadata().end()) return data_loss("__metadata__." + key + ": missing");
  Result<Json> object = parse_json(at->second, kMaxDepth);
  if (!object.ok() || !object->is_object()) {
    return data_loss("__metadata__." + key + ": want a JSON object of at most " + std::to_string(kMaxDepth) +
                     " levels");
  }
  return Fields(key, std::move(object).value());
}

Status read_config(const SafetensorsFile& file, CaseConfig& out) {
  QUIRE_ASSIGN_OR_RETURN(Fields fields, parse_fields(file, "config"));
  QUIRE_RETURN_IF_ERROR(fields.required("num_heads", out.num_heads));
  QUIRE_RETURN_IF_ERROR(fields.required("num_kv_heads", out.num_kv_heads));
  QUIRE_RETURN_IF_ERROR(fields.required("head_size", out.head_size));
  out.head_size_v = out.head_size;
  QUIRE_RETURN_IF_ERROR(fields.optional("head_size_v", out.head_size_v));
  QUIRE_RETURN_IF_ERROR(fields.required("scale", out.scale));
  QUIRE_RETURN_IF_ERROR(fields.optional("sliding_window", out.sliding_window));
  QUIRE_RETURN_IF_ERROR(fields.optional("logits_soft_cap", out.logits_soft_cap));
  QUIRE_RETURN_IF_ERROR(fields.optional("kv_cache_dtype", out.kv_cache_dtype));
  QUIRE_RETURN_IF_ERROR(fields.optional("block_size", out.block_size));
  QUIRE_RETURN_IF_ERROR(fields.required("attn_type", out.attn_type));
  QUIRE_RETURN_IF_ERROR(fields.optional("use_alibi_sqrt", out.use_alibi_sqrt));
  QUIRE_RETURN_IF_ERROR(fields.optional("kv_cache_layout", out.kv_cache_layout));
  QUIRE_RETURN_IF_ERROR(fields.required("num_actual_tokens", out.num_actual_tokens));
  QUIRE_RETURN_IF_ERROR(fields.optional("num_blocks", out.num_blocks));
  QUIRE_RETURN_IF_ERROR(fields.optional("tree_choices", out.tree_choices));
  QUIRE_RETURN_IF_ERROR(fields.optional("draft_query_len", out.draft_query_len));
  QUIRE_RETURN_IF_ERROR(fields.optional("lambda_init", out.lambda_init));
  QUIRE_RETURN_IF_ERROR(fields.optional("subln_eps", out.subln_eps));
  QUIRE_RETURN_IF_ERROR(fields.optional("kv_sharing", out.kv_sharing));
  return fields.no_others();
}

Status read_metadata(AttentionCase& out) {
  const auto& metadata = out.file.metadata();
  const auto text = [&metadata](const std::string& key) -> Result<std::string> {
    const auto at = metadata.find(key);
    if (at == metadata.end()) return data_loss("__metadata__." + key + ": missing");
    return at->second;
  };
  QUIRE_ASSIGN_OR_RETURN(const std::string format, text("format"));
  if (format != "attention-case/1") {
    return data_loss("__metadata__.format: want \"attention-case/1\", got \"" + format + "\"");
  }
  QUIRE_ASSIGN_OR_RETURN(out.name, text("name"));
  QUIRE_ASSIGN_OR_RETURN(out.backend, text("backend"));
  QUIRE_ASSIGN_OR_RETURN(out.oracle, text("oracle"));
  QUIRE_RETURN_IF_ERROR(read_config(out.file, out.config));
  QUIRE_ASSIGN_OR_RETURN(Fields tolerance, parse_fields(out.file, "tolerance"));
  QUIRE_RETURN_IF_ERROR(tolerance.required("atol", out.atol));
  QUIRE_RETURN_IF_ERROR(tolerance.required("rtol", out.rtol));
  if (out.atol < 0 || out.rtol < 0) return data_loss("tolerance: want atol and rtol >= 0");
  return tolerance.no_others();
}

enum class Presence { kRequired, kOptional };

struct Wanted {
  const char* name;
  TensorView* view;
  Presence presence;
  std::initializer_list<DType> dtypes;
  std::initializer_list<std::int64_t> shape;
};

Status take_tensor(const SafetensorsFile& file, const Wanted& want) {
  if (!file.contains(want.name)) {
    if (want.presence == Presence::kOptional) return {};
    return data_loss(std::string(want.name) + ": missing tensor");
  }
  QUIRE_ASSIGN_OR_RETURN(*want.view, file.tensor(want.name));
  if (const Status status = check_tensor(*want.view, {want.name, want.dtypes, want.shape}); !status.ok()) {
    return data_loss(status.message());
  }
  return {};
}

Status take_cache(const SafetensorsFile& file, const char* name, TensorView& out) {
  if (!file.contains(name)) return {};
  QUIRE_ASSIGN_OR_RETURN(out, file.tensor(name));
  return {};
}

Status read_tensors(AttentionCase& out) {
  const CaseConfig& config = out.config;
  const auto activation = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  const auto f32 = {DType::kFloat32};
  const auto i32 = {DType::kInt32};
  const std::int64_t d = config.head_size;
  const std::int64_t heads = config.num_heads;
  const Wanted first[] = {{"query", &out.query, Presence::kRequired, activation, {kAny, heads, d}},
                          {"seq_lens", &out.seq_lens, Presence::kRequired, i32, {kAny}}};
  for (const Wanted& want : first) QUIRE_RETURN_IF_ERROR(take_tensor(out.file, want));
  const std::int64_t tokens = out.query.size(0);
  const std::int64_t seqs = out.seq_lens.size(0);
  if (config.num_actual_tokens > tokens) {
    return data_loss("config.num_actual_tokens: want at most " + std::to_string(tokens) + " (rows of query), got " +
                     std::to_string(config.num_actual_tokens));
  }
  const bool decoder = config.attn_type == "decoder" || config.attn_type == "encoder_decoder";
  const Presence paged = decoder ? Presence::kRequired : Presence::kOptional;
  const Presence fresh = config.kv_sharing ? Presence::kOptional : Presence::kRequired;
  const Presence store = decoder && !config.kv_sharing ? Presence::kRequired : Presence::kOptional;
  const Presence diff = out.backend == "DIFFERENTIAL_FLASH_ATTN" ? Presence::kRequired : Presence::kOptional;
  const Wanted rest[] = {
      {"key", &out.key, fresh, {out.query.dtype}, {kAny, config.num_kv_heads, d}},
      {"value", &out.value, fresh, {out.query.dtype}, {kAny, config.num_kv_heads, config.head_size_v}},
      {"block_table", &out.block_table, paged, i32, {seqs, kAny}},
      {"query_start_loc", &out.query_start_loc, Presence::kRequired, i32, {seqs + 1}},
      {"slot_mapping", &out.slot_mapping, store, {DType::kInt64}, {kAny}},
      {"alibi_slopes", &out.alibi_slopes, Presence::kOptional, f32, {heads}},
      {"sinks", &out.sinks, Presence::kOptional, activation, {heads}},
      {"mm_prefix_range", &out.mm_prefix_range, Presence::kOptional, i32, {seqs, kAny, 2}},
      {"k_scale", &out.k_scale, Presence::kOptional, f32, {1}},
      {"v_scale", &out.v_scale, Presence::kOptional, f32, {1}},
      {"output_scale", &out.output_scale, Presence::kOptional, f32, {1}},
      {"lambda_q1", &out.lambda_q1, diff, f32, {d}},
      {"lambda_k1", &out.lambda_k1, diff, f32, {d}},
      {"lambda_q2", &out.lambda_q2, diff, f32, {d}},
      {"lambda_k2", &out.lambda_k2, diff, f32, {d}},
      {"subln_weight", &out.subln_weight, diff, f32, {2 * d}},
      {"output",
       &out.output,
       Presence::kRequired,
       {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3},
       {tokens, heads, config.head_size_v}},
  };
  std::set<std::string> known = {"query", "seq_lens", "kv_cache", "kv_cache_after"};
  for (const Wanted& want : rest) {
    QUIRE_RETURN_IF_ERROR(take_tensor(out.file, want));
    known.insert(want.name);
  }
  for (const SafetensorsEntry& entry : out.file.entries()) {
    if (!known.contains(entry.name)) return data_loss(entry.name + ": unknown tensor");
  }
  QUIRE_RETURN_IF_ERROR(take_cache(out.file, "kv_cache", out.kv_cache));
  QUIRE_RETURN_IF_ERROR(take_cache(out.file, "kv_cache_after", out.kv_cache_after));
  if (decoder && out.kv_cache.empty()) return data_loss("kv_cache: missing tensor");
  return {};
}

}  // namespace

Result<AttentionCase> parse_attention_case(SafetensorsFile file) {
  AttentionCase out(std::move(file));
  Status status = read_metadata(out);
  if (status.ok()) status = read_tensors(out);
  if (!status.ok()) return data_loss(out.file.path() + ": " + status.message());
  return out;
}

Result<AttentionCase> read_attention_case(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(path));
  return parse_attention_case(std::move(file));
}

}  // namespace quire
