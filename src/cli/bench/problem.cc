// Sets up benchmark batches: tensors, cache contents, block tables, metadata and the layer.
#include "cli/bench/problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/bench/random_data.h"
#include "cli/machine.h"
#include "core/checked.h"

namespace quire::cli {
namespace {

constexpr std::int64_t kPoolTokens = 2048;  // random keys and values that fill the cache over and over
constexpr std::int64_t kMaxCopies = 256;

// The slopes of the ALiBi paper: powers of 2^(-8 / num_heads).
std::vector<float> make_alibi_slopes(std::int32_t num_heads) {
  std::vector<float> slopes;
  for (std::int32_t head = 1; head <= num_heads; ++head) {
    slopes.push_back(static_cast<float>(std::exp2(-8.0 * head / num_heads)));
  }
  return slopes;
}

std::vector<float> make_random(RandomNormal& random, std::int32_t count, float size) {
  std::vector<float> out;
  for (std::int32_t i = 0; i < count; ++i) out.push_back(random.next() * size);
  return out;
}

// The first key that a query at `position` sees.
std::int64_t first_visible(const BenchConfig& config, std::int64_t position) {
  return config.sliding_window ? std::max<std::int64_t>(0, position - *config.sliding_window + 1) : 0;
}

}  // namespace

KVCacheSpec BenchProblem::spec() const {
  KVCacheSpec spec;
  spec.format = backend_->kv_cache_format();
  spec.layout = config_.layout;
  spec.cache_dtype = config_.kv_cache_dtype;
  spec.model_dtype = config_.dtype;
  spec.num_blocks = num_blocks_;
  spec.block_size = config_.block_size;
  spec.num_kv_heads = config_.num_kv_heads;
  spec.head_size = config_.head_size;
  spec.head_size_v = config_.head_size_v;
  return spec;
}

std::int64_t BenchProblem::blocks_of_batch() const {
  std::int64_t blocks = 0;
  for (const BatchRequest& request : batch_) blocks += ceil_div(request.seq_len, config_.block_size);
  return blocks;
}

ImplConfig BenchProblem::impl_config() const {
  ImplConfig impl;
  impl.num_heads = config_.num_heads;
  impl.head_size = config_.head_size;
  impl.head_size_v = config_.head_size_v;
  impl.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_size)));
  impl.num_kv_heads = config_.num_kv_heads;
  impl.alibi_slopes = alibi_slopes_;
  // With sinks a shift of a whole row shows, so the form that does not depend on the row is taken.
  impl.alibi = config_.sinks ? AlibiKind::kDistance : AlibiKind::kLinear;
  impl.sliding_window = config_.sliding_window;
  impl.kv_cache_dtype = config_.kv_cache_dtype;
  impl.logits_soft_cap = config_.logits_soft_cap;
  impl.sinks = sinks_;
  if (backend_->kv_cache_format() == KVCacheFormat::kDifferential) {
    DifferentialConfig& differential = impl.differential.emplace();
    const auto size = static_cast<std::size_t>(config_.head_size);
    const std::span<const float> lambdas = lambdas_;
    differential.layer_idx = 12;
    differential.lambda_q1 = lambdas.subspan(0, size);
    differential.lambda_k1 = lambdas.subspan(size, size);
    differential.lambda_q2 = lambdas.subspan(2 * size, size);
    differential.lambda_k2 = lambdas.subspan(3 * size, size);
    differential.subln_weight = subln_weight_;
  }
  impl.dtype = config_.dtype;
  impl.layout = config_.layout;
  impl.block_size = config_.block_size;
  impl.runtime = config_.runtime;
  return impl;
}

BuilderConfig BenchProblem::builder_config() const {
  BuilderConfig builder;
  builder.num_heads = config_.num_heads;
  builder.num_kv_heads = config_.num_kv_heads;
  builder.head_size = config_.head_size;
  builder.head_size_v = config_.head_size_v;
  builder.block_size = config_.block_size;
  builder.num_blocks = num_blocks_;
  builder.sliding_window = config_.sliding_window;
  builder.runtime = config_.runtime;
  return builder;
}

Result<std::unique_ptr<BenchProblem>> BenchProblem::create(const BenchConfig& config, std::vector<BatchRequest> batch) {
  std::unique_ptr<BenchProblem> problem(new BenchProblem(config, std::move(batch)));
  QUIRE_RETURN_IF_ERROR(problem->set_up());
  return problem;
}

Status BenchProblem::set_up() {
  QUIRE_ASSIGN_OR_RETURN(backend_, find_backend(config_.backend));
  RandomNormal random(config_.seed);
  if (config_.alibi) alibi_slopes_ = make_alibi_slopes(config_.num_heads);
  if (config_.sinks) sinks_ = make_random(random, config_.num_heads, 1.0f);
  lambdas_ = make_random(random, 4 * config_.head_size, 0.1f);
  subln_weight_.assign(2 * static_cast<std::size_t>(config_.head_size), 1.0f);
  QUIRE_RETURN_IF_ERROR(make_cache());
  QUIRE_ASSIGN_OR_RETURN(impl_, backend_->make_impl(impl_config()));
  QUIRE_ASSIGN_OR_RETURN(const auto builder, backend_->make_builder(builder_config()));
  QUIRE_RETURN_IF_ERROR(order_batch(*builder));
  count_work();
  QUIRE_RETURN_IF_ERROR(make_tensors());
  QUIRE_RETURN_IF_ERROR(fill_cache());
  return make_copies(*builder);
}

// Brings the requests into the order that the backend's builder asks for.
Status BenchProblem::order_batch(AttentionMetadataBuilder& builder) {
  std::vector<std::int32_t> scheduled;
  std::vector<std::int32_t> computed;
  for (const BatchRequest& request : batch_) {
    scheduled.push_back(request.query_len);
    computed.push_back(request.seq_len - request.query_len);
  }
  ReorderInput input;
  input.num_scheduled_tokens = scheduled;
  input.num_computed_tokens = computed;
  for (const auto& [a, b] : builder.reorder_batch(input)) {
    std::swap(batch_[static_cast<std::size_t>(a)], batch_[static_cast<std::size_t>(b)]);
  }
  return {};
}

void BenchProblem::count_work() {
  const bool differential = backend_->kv_cache_format() == KVCacheFormat::kDifferential;
  const double value_columns = config_.head_size_v * (differential ? 2.0 : 1.0);
  const double flops_of_pair = 2.0 * config_.num_heads * (config_.head_size + value_columns);
  double key_bytes = static_cast<double>(config_.num_kv_heads) * (config_.head_size + config_.head_size_v) *
                     static_cast<double>(dtype_bytes(kv_storage_dtype(config_.kv_cache_dtype, config_.dtype)));
  if (is_per_token_head(config_.kv_cache_dtype)) key_bytes += 8.0 * config_.num_kv_heads;
  const double row_bytes = static_cast<double>(config_.num_heads) * (config_.head_size + config_.head_size_v) *
                           static_cast<double>(dtype_bytes(config_.dtype));
  work_ = {};
  for (const BatchRequest& request : batch_) {
    const std::int64_t context = request.seq_len - request.query_len;
    for (std::int64_t row = 0; row < request.query_len; ++row) {
      const std::int64_t position = context + row;
      work_.flops += flops_of_pair * static_cast<double>(position + 1 - first_visible(config_, position));
    }
    work_.bytes += key_bytes * static_cast<double>(request.seq_len - first_visible(config_, context));
    work_.bytes += row_bytes * request.query_len;
  }
}

Status BenchProblem::make_cache() {
  const std::int64_t blocks = blocks_of_batch();
  num_blocks_ = blocks + 1;  // block 0 stays unused, as in a serving system
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t block_bytes, kv_block_bytes(spec()));
  const std::int64_t batch_bytes = std::max<std::int64_t>(block_bytes * blocks, 1);
  num_copies_ = std::clamp<std::int64_t>(config_.cold_bytes / batch_bytes + 1, 1, kMaxCopies);
  num_blocks_ = blocks * num_copies_ + 1;
  const std::int64_t wanted = block_bytes * num_blocks_;
  const std::int64_t available = read_machine().available_bytes;
  if (available > 0 && wanted > available / 10 * 8) {
    return resource_exhausted("the batch: want " + bytes_string(wanted) + " of keys and values, got " +
                              bytes_string(available) + " of memory");
  }
  cache_data_ = PageBuffer(static_cast<std::size_t>(wanted));
  if (cache_data_.data() == nullptr) return resource_exhausted("kv_cache: no memory for " + bytes_string(wanted));
  QUIRE_ASSIGN_OR_RETURN(cache_, view_kv_cache(spec(), cache_data_.data()));
  return {};
}

Status BenchProblem::fill_cache() {
  const std::int64_t element = dtype_bytes(config_.dtype);
  const std::int64_t heads = config_.num_kv_heads;
  const PageBuffer key_data(static_cast<std::size_t>(kPoolTokens * heads * config_.head_size * element));
  const PageBuffer value_data(static_cast<std::size_t>(kPoolTokens * heads * config_.head_size_v * element));
  QUIRE_ASSIGN_OR_RETURN(const TensorView key,
                         make_tensor(key_data.data(), config_.dtype, {kPoolTokens, heads, config_.head_size}));
  QUIRE_ASSIGN_OR_RETURN(const TensorView value,
                         make_tensor(value_data.data(), config_.dtype, {kPoolTokens, heads, config_.head_size_v}));
  RandomNormal random(config_.seed + 1);
  random.fill(key);
  random.fill(value);
  std::vector<std::int64_t> slots(static_cast<std::size_t>(kPoolTokens));
  const std::int64_t num_slots = num_blocks_ * config_.block_size;
  for (std::int64_t first = 0; first < num_slots; first += kPoolTokens) {
    const std::int64_t count = std::min(kPoolTokens, num_slots - first);
    std::iota(slots.begin(), slots.end(), first);
    QUIRE_ASSIGN_OR_RETURN(const TensorView mapping, make_tensor(slots.data(), DType::kInt64, {count}));
    QUIRE_RETURN_IF_ERROR(impl_->do_kv_cache_update(layer_, key, value, cache_, mapping));
  }
  return {};
}

Status BenchProblem::make_tensors() {
  query_start_loc_ = {0};
  seq_lens_.clear();
  for (const BatchRequest& request : batch_) {
    query_start_loc_.push_back(query_start_loc_.back() + request.query_len);
    seq_lens_.push_back(request.seq_len);
  }
  const std::int64_t tokens = query_start_loc_.back();
  const std::int64_t element = dtype_bytes(config_.dtype);
  query_data_ = PageBuffer(static_cast<std::size_t>(tokens * config_.num_heads * config_.head_size * element));
  output_data_ = PageBuffer(static_cast<std::size_t>(tokens * config_.num_heads * config_.head_size_v * element));
  if (query_data_.data() == nullptr || output_data_.data() == nullptr) return resource_exhausted("query: no memory");
  QUIRE_ASSIGN_OR_RETURN(
      query_, make_tensor(query_data_.data(), config_.dtype, {tokens, config_.num_heads, config_.head_size}));
  QUIRE_ASSIGN_OR_RETURN(
      output_, make_tensor(output_data_.data(), config_.dtype, {tokens, config_.num_heads, config_.head_size_v}));
  RandomNormal random(config_.seed + 2);
  random.fill(query_);
  return {};
}

Status BenchProblem::make_copies(AttentionMetadataBuilder& builder) {
  std::int64_t width = 0;
  for (const BatchRequest& request : batch_) {
    width = std::max(width, ceil_div(request.seq_len, config_.block_size));
  }
  std::vector<std::int32_t> free_blocks(static_cast<std::size_t>(num_blocks_ - 1));
  std::iota(free_blocks.begin(), free_blocks.end(), 1);
  if (config_.block_order == BlockOrder::kShuffled) {
    std::mt19937_64 random(config_.seed);
    for (std::size_t i = free_blocks.size(); i > 1; --i) std::swap(free_blocks[i - 1], free_blocks[random() % i]);
  }
  auto next = free_blocks.begin();
  const auto num_reqs = static_cast<std::int32_t>(batch_.size());
  std::size_t workspace_bytes = 0;
  copies_.resize(static_cast<std::size_t>(num_copies_));
  for (Copy& copy : copies_) {
    copy.blocks.assign(static_cast<std::size_t>(num_reqs * width), 0);
    for (std::size_t seq = 0; seq < batch_.size(); ++seq) {
      const std::int64_t count = ceil_div(batch_[seq].seq_len, config_.block_size);
      std::copy_n(next, count, copy.blocks.begin() + static_cast<std::int64_t>(seq) * width);
      next += count;
    }
    QUIRE_ASSIGN_OR_RETURN(copy.block_table, make_tensor(copy.blocks.data(), DType::kInt32, {num_reqs, width}));
    CommonAttentionMetadata common;
    common.query_start_loc_cpu = query_start_loc_;
    common.seq_lens_cpu = seq_lens_;
    common.num_reqs = num_reqs;
    common.num_actual_tokens = query_start_loc_.back();
    for (const BatchRequest& request : batch_) {
      common.max_query_len = std::max(common.max_query_len, request.query_len);
      common.max_seq_len = std::max(common.max_seq_len, request.seq_len);
    }
    common.block_table_tensor = copy.block_table;
    QUIRE_ASSIGN_OR_RETURN(copy.metadata, builder.build(0, common));
    workspace_bytes = std::max(workspace_bytes, impl_->workspace_bytes(copy.metadata));
  }
  workspace_ = PageBuffer(workspace_bytes);
  if (workspace_.data() == nullptr) return resource_exhausted("workspace: no memory");
  return {};
}

Status BenchProblem::run() {
  last_ = next_;
  next_ = (next_ + 1) % copies_.size();
  ForwardArgs args;
  args.query = query_;
  args.kv_cache = cache_;
  args.metadata = &copies_[last_].metadata;
  args.output = output_;
  args.workspace = workspace_.bytes();
  return impl_->forward(layer_, args);
}

}  // namespace quire::cli
