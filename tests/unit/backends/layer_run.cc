// Random batches for backend tests, and attention by definition to compare them with.
#include "unit/backends/layer_run.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "core/convert.h"

namespace quire::test {
namespace {

std::vector<float> random_values(std::size_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

bool is_encoder(AttentionType type) { return type == AttentionType::kEncoder || type == AttentionType::kEncoderOnly; }

std::int32_t value_size(const ImplConfig& config) {
  return config.head_size_v == 0 ? config.head_size : config.head_size_v;
}

}  // namespace

ImplConfig default_config() {
  ImplConfig config;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_size = 16;
  config.scale = 0.25f;
  config.dtype = DType::kFloat32;
  config.runtime.backplane = Backplane::kReference;
  return config;
}

std::vector<Runtime> test_runtimes() {
  Runtime reference;
  reference.backplane = Backplane::kReference;
  std::vector<Runtime> runtimes = {reference, default_runtime().value()};
  if (cuda::device_info().ok()) runtimes.push_back({.backplane = Backplane::kCuda});
  return runtimes;
}

LayerRun::LayerRun(LayerSetup setup) : setup_(std::move(setup)), batch_copies_(setup_.config.runtime) {
  make_batch();
  make_values();
  status = make_layer();
  if (status.ok() && !is_encoder(setup_.config.attn_type)) status = fill_cache();
}

std::int32_t LayerRun::seq_len(std::size_t seq) const {
  return setup_.encoder_seq_lens.empty() ? seq_lens_[seq] : setup_.encoder_seq_lens[seq];
}

void LayerRun::make_batch() {
  const std::int32_t block_size = setup_.config.block_size;
  query_start_loc_ = {0};
  std::int32_t width = 1;
  std::int32_t keys = 0;
  for (const Sequence& sequence : setup_.sequences) {
    query_start_loc_.push_back(query_start_loc_.back() + sequence.query_len);
    seq_lens_.push_back(sequence.context_len + sequence.query_len);
  }
  for (std::size_t seq = 0; seq < seq_lens_.size(); ++seq) {
    width = std::max(width, (seq_len(seq) + block_size - 1) / block_size);
    key_start_.push_back(static_cast<std::size_t>(keys));
    keys += seq_len(seq);
  }
  // Blocks from the last to the first, block 0 unused.
  const auto num_seqs = static_cast<std::int32_t>(seq_lens_.size());
  block_table_.resize(static_cast<std::size_t>(num_seqs * width));
  std::iota(block_table_.rbegin(), block_table_.rend(), 1);
  for (std::int32_t seq = 0; seq < num_seqs; ++seq) {
    for (std::int32_t position = 0; position < seq_len(static_cast<std::size_t>(seq)); ++position) {
      const std::int32_t block = block_table_[static_cast<std::size_t>(seq * width + position / block_size)];
      all_slots_.push_back(block * block_size + position % block_size);
      if (position >= setup_.sequences[static_cast<std::size_t>(seq)].context_len) slots_.push_back(all_slots_.back());
    }
  }
  common.query_start_loc_cpu = query_start_loc_;
  common.seq_lens_cpu = seq_lens_;
  common.num_reqs = num_seqs;
  common.num_actual_tokens = query_start_loc_.back();
  for (const Sequence& sequence : setup_.sequences) {
    common.max_query_len = std::max(common.max_query_len, sequence.query_len);
    common.max_seq_len = std::max(common.max_seq_len, sequence.context_len + sequence.query_len);
  }
  common.block_table_tensor = make_tensor(block_table_.data(), DType::kInt32, {num_seqs, width}).value();
  if (setup_.encoder_seq_lens.empty()) {
    common.slot_mapping = make_tensor(slots_.data(), DType::kInt64, {static_cast<std::int64_t>(slots_.size())}).value();
  }
  common.encoder_seq_lens_cpu = setup_.encoder_seq_lens;
  common.causal = setup_.causal;
  common.trees = setup_.trees;
  for (const std::vector<MmRange>& ranges : setup_.mm_ranges) {
    mm_range_start_.push_back(static_cast<std::int32_t>(mm_ranges_.size()));
    mm_ranges_.insert(mm_ranges_.end(), ranges.begin(), ranges.end());
  }
  if (!setup_.mm_ranges.empty()) mm_range_start_.push_back(static_cast<std::int32_t>(mm_ranges_.size()));
  common.mm_ranges = mm_ranges_;
  common.mm_range_start = mm_range_start_;
}

void LayerRun::make_values() {
  std::mt19937_64 random(setup_.seed);
  const ImplConfig& config = setup_.config;
  const auto heads = static_cast<std::size_t>(config.num_heads);
  const auto kv_heads = static_cast<std::size_t>(config.num_kv_heads);
  const auto head_size = static_cast<std::size_t>(config.head_size);
  const auto keys = all_slots_.size();
  query_ = random_values(static_cast<std::size_t>(num_tokens()) * heads * head_size, random);
  keys_ = random_values(keys * kv_heads * head_size, random);
  values_ = random_values(keys * kv_heads * static_cast<std::size_t>(value_size(config)), random);
  for (std::vector<float>* values : {&query_, &keys_, &values_}) {
    for (std::size_t i = 0; i < values->size(); ++i) {
      store_from_float(values->data() + i, config.dtype, 0, (*values)[i]);  // what the dtype can hold
      (*values)[i] = load_as_float(values->data() + i, config.dtype, 0);
    }
  }
}

Status LayerRun::make_layer() {
  ImplConfig& config = setup_.config;
  QUIRE_ASSIGN_OR_RETURN(const AttentionBackend* backend, find_backend(setup_.backend));
  BuilderConfig building;
  building.num_heads = config.num_heads;
  building.num_kv_heads = config.num_kv_heads;
  building.head_size = config.head_size;
  building.head_size_v = config.head_size_v;
  building.block_size = config.block_size;
  building.num_blocks = static_cast<std::int64_t>(block_table_.size()) + 1;
  building.sliding_window = config.sliding_window;
  building.chunk = config.chunk;
  building.chunk_lookback = config.chunk_lookback;
  building.attn_type = config.attn_type;
  building.tree = setup_.tree;
  building.runtime = config.runtime;
  QUIRE_ASSIGN_OR_RETURN(impl, backend->make_impl(config));
  QUIRE_ASSIGN_OR_RETURN(builder, backend->make_builder(building));
  common.block_table_tensor = batch_copies_.place(common.block_table_tensor);
  common.slot_mapping = batch_copies_.place(common.slot_mapping);
  QUIRE_RETURN_IF_ERROR(batch_copies_.status());
  QUIRE_ASSIGN_OR_RETURN(metadata, setup_.draft_index ? builder->build_for_drafting(common, *setup_.draft_index)
                                                      : builder->build(0, common));
  return {};
}

// Scales in tensors of their own, where the setup asks for that.
void LayerRun::make_scale_caches(const KVCacheSpec& spec) {
  if (!is_per_token_head(spec.cache_dtype) || spec.scales != ScalePlacement::kSeparate) return;
  const bool paired = spec.format == KVCacheFormat::kDifferential;
  for (TensorView* scales : {&layer.kv_scales.k_scale_cache, &layer.kv_scales.v_scale_cache}) {
    const std::int64_t rows = spec.num_blocks * spec.block_size * spec.num_kv_heads;
    buffers_.emplace_back(static_cast<std::size_t>(rows) * sizeof(float), std::byte{0xff});
    float* data = reinterpret_cast<float*>(buffers_.back().data());
    const Result<TensorView> view =
        paired ? make_tensor(data, DType::kFloat32, {2, spec.num_blocks, spec.block_size, spec.num_kv_heads / 2})
               : make_tensor(data, DType::kFloat32, {spec.num_blocks, spec.block_size, spec.num_kv_heads});
    *scales = view.value();
  }
}

Status LayerRun::fill_cache() {
  const ImplConfig& config = setup_.config;
  QUIRE_ASSIGN_OR_RETURN(const AttentionBackend* backend, find_backend(setup_.backend));
  const KVCacheSpec spec{.format = backend->kv_cache_format(),
                         .layout = config.layout,
                         .cache_dtype = config.kv_cache_dtype,
                         .model_dtype = config.dtype,
                         .scales = config.scale_placement,
                         .num_blocks = static_cast<std::int64_t>(block_table_.size()) + 1,
                         .block_size = config.block_size,
                         .num_kv_heads = config.num_kv_heads,
                         .head_size = config.head_size,
                         .head_size_v = config.head_size_v};
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, kv_cache_bytes(spec));
  buffers_.emplace_back(static_cast<std::size_t>(bytes), std::byte{0xff});  // NaN where nothing is stored
  QUIRE_ASSIGN_OR_RETURN(args.kv_cache, view_kv_cache(spec, buffers_.back().data()));
  make_scale_caches(spec);
  const auto keys = static_cast<std::int64_t>(all_slots_.size());
  QUIRE_ASSIGN_OR_RETURN(const TensorView slots, make_tensor(all_slots_.data(), DType::kInt64, {keys}));
  const auto narrow = [&](const std::vector<float>& from, std::int32_t size) {
    buffers_.emplace_back(from.size() * static_cast<std::size_t>(dtype_bytes(config.dtype)));
    for (std::size_t i = 0; i < from.size(); ++i) {
      store_from_float(buffers_.back().data(), config.dtype, static_cast<std::int64_t>(i), from[i]);
    }
    return make_tensor(buffers_.back().data(), config.dtype, {keys, config.num_kv_heads, size}).value();
  };
  const TensorView key = narrow(keys_, config.head_size);
  const TensorView value = narrow(values_, value_size(config));
  // A layer that shares a cache stores nothing: its twin without sharing fills the cache.
  ImplConfig owner = config;
  owner.kv_sharing_target_layer_name.reset();
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<AttentionImpl> writer, backend->make_impl(owner));
  DeviceCopies copies(config.runtime);
  AttentionLayer placed = layer;
  placed.kv_scales.k_scale_cache = copies.place(layer.kv_scales.k_scale_cache);
  placed.kv_scales.v_scale_cache = copies.place(layer.kv_scales.v_scale_cache);
  QUIRE_RETURN_IF_ERROR(writer->do_kv_cache_update(placed, copies.place(key), copies.place(value),
                                                   copies.place(args.kv_cache), copies.place(slots)));
  return copies.fetch();
}

Status LayerRun::forward() {
  QUIRE_RETURN_IF_ERROR(status);
  const ImplConfig& config = setup_.config;
  const auto put = [&](const std::vector<float>& from, std::int64_t tokens, std::int32_t heads, std::int32_t size) {
    buffers_.emplace_back(from.size() * static_cast<std::size_t>(dtype_bytes(config.dtype)) + 1);
    for (std::size_t i = 0; i < from.size(); ++i) {
      store_from_float(buffers_.back().data(), config.dtype, static_cast<std::int64_t>(i), from[i]);
    }
    return make_tensor(buffers_.back().data(), config.dtype, {tokens, heads, size}).value();
  };
  if (args.query.empty()) args.query = put(query_, num_tokens(), config.num_heads, config.head_size);
  if (is_encoder(config.attn_type)) {
    args.key = put(keys_, num_tokens(), config.num_kv_heads, config.head_size);
    args.value = put(values_, num_tokens(), config.num_kv_heads, value_size(config));
  }
  output.assign(static_cast<std::size_t>(num_tokens() * config.num_heads * value_size(config)), 99.0f);
  lse.assign(static_cast<std::size_t>(num_tokens() * config.num_heads), 99.0f);
  if (args.output.empty()) {
    args.output =
        make_tensor(output.data(), DType::kFloat32, {num_tokens(), config.num_heads, value_size(config)}).value();
  }
  args.lse = make_tensor(lse.data(), DType::kFloat32, {config.num_heads, num_tokens()}).value();
  args.metadata = &metadata;
  const OutputScales scales = args.output_block_scale.empty() ? OutputScales::kNoneOrOne : OutputScales::kBlocks;
  DeviceCopies copies(config.runtime);
  ForwardArgs placed = args;
  AttentionLayer placed_layer = layer;
  for (TensorView* tensor :
       {&placed.query, &placed.key, &placed.value, &placed.kv_cache, &placed.output, &placed.output_block_scale,
        &placed.lse, &placed_layer.kv_scales.k_scale_cache, &placed_layer.kv_scales.v_scale_cache}) {
    *tensor = copies.place(*tensor);
  }
  placed.workspace = copies.scratch(impl->workspace_bytes(metadata, scales));
  QUIRE_RETURN_IF_ERROR(impl->forward(placed_layer, placed));
  return copies.fetch();
}

bool LayerRun::is_visible(std::size_t seq, std::int32_t row, std::int32_t key) const {
  const ImplConfig& config = setup_.config;
  if (!setup_.encoder_seq_lens.empty()) return true;
  const std::int32_t context = setup_.sequences[seq].context_len;
  const std::int32_t q_pos = context + row;
  if (!setup_.mm_ranges.empty()) {
    for (const MmRange& range : setup_.mm_ranges[seq]) {
      const auto inside = [&](std::int32_t position) { return position >= range.start && position <= range.end; };
      if (range.start < range.end && inside(q_pos) && inside(key)) return true;
    }
  }
  const bool encoder = is_encoder(config.attn_type);
  if (!encoder && setup_.causal && key > q_pos) return false;
  if (config.sliding_window && std::abs(q_pos - key) >= *config.sliding_window) return false;
  if (config.chunk > 0 && q_pos / config.chunk - key / config.chunk > config.chunk_lookback) return false;
  const std::int32_t query_len = setup_.sequences[seq].query_len;
  const TokenTree* tree = nullptr;
  if (!setup_.trees.empty()) {
    tree = setup_.trees[seq];
  } else if (setup_.tree && !setup_.draft_index && setup_.tree->size() == query_len) {
    tree = &*setup_.tree;
  } else if (setup_.tree && setup_.draft_index.value_or(0) > 0) {
    tree = &*setup_.tree;
  }
  if (tree == nullptr || key < context) return true;
  const std::int32_t shift = setup_.draft_index ? 1 : 0;
  std::int32_t node = row + shift;
  while (node > key - context + shift) node = tree->parent(node);
  return node == key - context + shift;
}

// The definition: softmax over the visible keys, one row at a time.
void LayerRun::attend(const Row& at, double* out) const {
  const ImplConfig& config = setup_.config;
  const std::int32_t token = query_start_loc_[at.seq] + at.row;
  const float* query = query_.data() + (token * config.num_heads + at.q_head) * config.head_size;
  const std::int32_t context = setup_.sequences[at.seq].context_len;
  const auto head = static_cast<std::size_t>(at.q_head);
  double sum = config.sinks.empty() ? 0.0 : std::exp(static_cast<double>(config.sinks[head]));
  std::fill(out, out + value_size(config), 0.0);
  for (std::int32_t key = 0; key < seq_len(at.seq); ++key) {
    if (!is_visible(at.seq, at.row, key)) continue;
    const auto stored = static_cast<std::int64_t>(key_start_[at.seq]) + key;
    const float* k = keys_.data() + (stored * config.num_kv_heads + at.key_head) * config.head_size;
    double s = 0.0;
    for (std::int32_t d = 0; d < config.head_size; ++d) s += static_cast<double>(query[d]) * k[d];
    s *= config.scale;
    if (config.logits_soft_cap) s = *config.logits_soft_cap * std::tanh(s / *config.logits_soft_cap);
    if (!config.alibi_slopes.empty()) {
      const double slope = config.alibi_slopes[head];
      const bool root = config.alibi == AlibiKind::kSqrt;
      s += root ? slope * -std::sqrt(std::max(context + at.row - key, 0)) : slope * (key - context);
    }
    const double weight = std::exp(s);
    sum += weight;
    const float* v = values_.data() + (stored * config.num_kv_heads + at.value_head) * value_size(config);
    for (std::int32_t d = 0; d < value_size(config); ++d) out[d] += weight * v[d];
  }
  for (std::int32_t d = 0; sum > 0.0 && d < value_size(config); ++d) out[d] /= sum;
}

// Differential attention of a pair of heads: four attentions, the difference, the norm.
void LayerRun::attend_pair(Row at, std::int32_t pair, double* out) const {
  const ImplConfig& config = setup_.config;
  const DifferentialConfig& own = *config.differential;
  const std::int32_t kv_pair = pair / (config.num_heads / config.num_kv_heads);
  const auto size = static_cast<std::size_t>(config.head_size);
  std::vector<double> streams[2];
  for (std::int32_t stream = 0; stream < 2; ++stream) {
    streams[stream].resize(2 * size);
    at.q_head = 2 * pair + stream;
    at.key_head = 2 * kv_pair + stream;
    for (std::int32_t half = 0; half < 2; ++half) {
      at.value_head = 2 * kv_pair + half;
      attend(at, streams[stream].data() + static_cast<std::size_t>(half) * size);
    }
  }
  const auto exp_dot = [](std::span<const float> a, std::span<const float> b) {
    return std::exp(std::inner_product(a.begin(), a.end(), b.begin(), 0.0));
  };
  const double init = own.lambda_init.value_or(0.8 - 0.6 * std::exp(-0.3 * own.layer_idx));
  const double lambda = exp_dot(own.lambda_q1, own.lambda_k1) - exp_dot(own.lambda_q2, own.lambda_k2) + init;
  double squares = 0.0;
  for (std::size_t d = 0; d < 2 * size; ++d) {
    out[d] = streams[0][d] - lambda * streams[1][d];
    squares += out[d] * out[d];
  }
  const double norm = 1.0 / std::sqrt(squares / static_cast<double>(2 * size) + static_cast<double>(own.subln_eps));
  for (std::size_t d = 0; d < 2 * size; ++d) out[d] *= norm * own.subln_weight[d] * (1.0 - init);
}

std::vector<double> LayerRun::dense() const {
  const ImplConfig& config = setup_.config;
  std::vector<double> out(output.size());
  const std::int32_t step = config.differential ? 2 : 1;
  for (std::size_t seq = 0; seq < setup_.sequences.size(); ++seq) {
    for (std::int32_t row = 0; row < setup_.sequences[seq].query_len; ++row) {
      for (std::int32_t head = 0; head < config.num_heads; head += step) {
        const std::int32_t token = query_start_loc_[seq] + row;
        const std::int32_t kv_head = head / (config.num_heads / config.num_kv_heads);
        double* to = out.data() + (token * config.num_heads + head) * value_size(config);
        const Row at{.seq = seq, .row = row, .q_head = head, .key_head = kv_head, .value_head = kv_head};
        if (config.differential) {
          attend_pair(at, head / 2, to);
        } else {
          attend(at, to);
        }
      }
    }
  }
  return out;
}

double worst_difference(const std::vector<float>& got, const std::vector<double>& want) {
  double worst = got.size() == want.size() ? 0.0 : INFINITY;
  for (std::size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
    const double difference = std::abs(got[i] - want[i]);
    worst = difference <= worst ? worst : difference;  // a NaN stays
    if (std::isnan(difference)) return INFINITY;
  }
  return worst;
}

double worst_difference(const std::vector<float>& got, const std::vector<float>& want) {
  return worst_difference(got, std::vector<double>(want.begin(), want.end()));
}

}  // namespace quire::test
