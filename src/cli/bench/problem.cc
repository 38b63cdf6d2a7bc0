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

std::vector<float> random_floats(RandomNormal& random, std::int32_t count, float size) {
  std::vector<float> out;
  for (std::int32_t i = 0; i < count; ++i) out.push_back(random.next() * size);
  return out;
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
  return blocks - static_cast<std::int64_t>(batch_.size() - 1) * shared_blocks();
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
  builder.tree = tree_;
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
  if (config_.tree_nodes > 0) {
    std::vector<std::int32_t> parents;
    for (std::int32_t node = 1; node < config_.tree_nodes; ++node) parents.push_back((node - 1) / 2);
    QUIRE_ASSIGN_OR_RETURN(tree_, TokenTree::from_parents(parents));
  }
  QUIRE_RETURN_IF_ERROR(check_common_prefix());
  RandomNormal random(config_.seed);
  if (config_.alibi) alibi_slopes_ = make_alibi_slopes(config_.num_heads);
  if (config_.sinks) sinks_ = random_floats(random, config_.num_heads, 1.0f);
  lambdas_ = random_floats(random, 4 * config_.head_size, 0.1f);
  subln_weight_.assign(2 * static_cast<std::size_t>(config_.head_size), 1.0f);
  QUIRE_RETURN_IF_ERROR(make_cache());
  QUIRE_ASSIGN_OR_RETURN(impl_, backend_->make_impl(impl_config()));
  QUIRE_ASSIGN_OR_RETURN(const auto builder, backend_->make_builder(builder_config()));
  QUIRE_RETURN_IF_ERROR(order_batch(*builder));
  is_update() ? count_update() : count_work();
  QUIRE_RETURN_IF_ERROR(make_tensors());
  if (is_update()) QUIRE_RETURN_IF_ERROR(make_update());
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

Status BenchProblem::make_cache() {
  const std::int64_t blocks = blocks_of_batch();
  num_blocks_ = blocks + 1;  // block 0 stays unused, as in a serving system
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t block_bytes, kv_block_bytes(spec()));
  const std::int64_t batch_bytes = std::max<std::int64_t>(block_bytes * blocks, 1);
  num_copies_ = std::clamp<std::int64_t>(config_.cold_bytes / batch_bytes + 1, 1, kMaxCopies);
  num_blocks_ = blocks * num_copies_ + 1;
  const std::int64_t wanted = block_bytes * num_blocks_;
  std::int64_t available = read_machine().available_bytes;
  if (config_.runtime.backplane == Backplane::kCuda) {
    QUIRE_ASSIGN_OR_RETURN(const cuda::DeviceInfo device, cuda::device_info());
    available = device.memory_bytes;
  }
  if (available > 0 && wanted > available / 10 * 8) {
    return resource_exhausted("the batch: want " + bytes_string(wanted) + " of keys and values, got " +
                              bytes_string(available) + " of memory");
  }
  QUIRE_ASSIGN_OR_RETURN(cache_data_, BenchBuffer::allocate(static_cast<std::size_t>(wanted), config_.runtime));
  QUIRE_ASSIGN_OR_RETURN(cache_, view_kv_cache(spec(), cache_data_.data(), cache_data_.device()));
  return {};
}

Status BenchProblem::fill_cache() {
  const std::int64_t heads = config_.num_kv_heads;
  BenchBuffer key_data;
  BenchBuffer value_data;
  QUIRE_ASSIGN_OR_RETURN(const TensorView key,
                         make_random(key_data, {kPoolTokens, heads, config_.head_size}, config_.seed + 1));
  QUIRE_ASSIGN_OR_RETURN(const TensorView value,
                         make_random(value_data, {kPoolTokens, heads, config_.head_size_v}, config_.seed + 3));
  std::vector<std::int64_t> slots(static_cast<std::size_t>(kPoolTokens));
  const std::size_t slot_bytes = slots.size() * sizeof(std::int64_t);
  QUIRE_ASSIGN_OR_RETURN(BenchBuffer slot_data, BenchBuffer::allocate(slot_bytes, config_.runtime));
  const std::int64_t num_slots = num_blocks_ * config_.block_size;
  for (std::int64_t first = 0; first < num_slots; first += kPoolTokens) {
    const std::int64_t count = std::min(kPoolTokens, num_slots - first);
    std::iota(slots.begin(), slots.end(), first);
    QUIRE_RETURN_IF_ERROR(slot_data.write(slots.data(), slot_bytes));
    QUIRE_ASSIGN_OR_RETURN(const TensorView mapping,
                           make_tensor(slot_data.data(), DType::kInt64, {count}, slot_data.device()));
    QUIRE_RETURN_IF_ERROR(impl_->do_kv_cache_update(layer_, key, value, cache_, mapping));
  }
  return config_.runtime.backplane == Backplane::kCuda ? cuda::check(config_.runtime.stream) : Status();
}

Result<TensorView> BenchProblem::make_random(BenchBuffer& data, std::initializer_list<std::int64_t> shape,
                                             std::uint64_t seed) const {
  QUIRE_ASSIGN_OR_RETURN(TensorView view, make_tensor(nullptr, config_.dtype, shape));
  const auto bytes = static_cast<std::size_t>(view.num_elements() * dtype_bytes(config_.dtype));
  const PageBuffer host(bytes);
  if (host.data() == nullptr) return resource_exhausted("memory: want " + std::to_string(bytes) + " bytes");
  view.data = host.data();
  RandomNormal(seed).fill(view);
  QUIRE_ASSIGN_OR_RETURN(data, BenchBuffer::allocate(bytes, config_.runtime));
  QUIRE_RETURN_IF_ERROR(data.write(host.data(), bytes));
  view.data = data.data();
  view.device = data.device();
  return view;
}

Status BenchProblem::make_tensors() {
  query_start_loc_ = {0};
  seq_lens_.clear();
  for (const BatchRequest& request : batch_) {
    query_start_loc_.push_back(query_start_loc_.back() + request.query_len);
    seq_lens_.push_back(request.seq_len);
  }
  const std::int64_t tokens = query_start_loc_.back();
  QUIRE_ASSIGN_OR_RETURN(query_,
                         make_random(query_data_, {tokens, config_.num_heads, config_.head_size}, config_.seed + 2));
  const std::int64_t row_bytes = std::int64_t{config_.num_heads} * config_.head_size_v * dtype_bytes(config_.dtype);
  QUIRE_ASSIGN_OR_RETURN(output_data_,
                         BenchBuffer::allocate(static_cast<std::size_t>(tokens * row_bytes), config_.runtime));
  QUIRE_ASSIGN_OR_RETURN(output_, make_tensor(output_data_.data(), config_.dtype,
                                              {tokens, config_.num_heads, config_.head_size_v}, output_data_.device()));
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
  auto next = free_blocks.cbegin();
  std::size_t workspace_bytes = 0;
  copies_.resize(static_cast<std::size_t>(num_copies_));
  for (Copy& copy : copies_) {
    place_blocks(copy, width, next);
    QUIRE_RETURN_IF_ERROR(make_copy(builder, copy, width));
    if (config_.op == BenchOp::kCascade) {
      QUIRE_RETURN_IF_ERROR(make_cascade(copy, workspace_bytes));
    } else if (is_update()) {
      QUIRE_RETURN_IF_ERROR(make_slots(copy, width));
    } else {
      workspace_bytes = std::max(workspace_bytes, impl_->workspace_bytes(copy.metadata));
    }
  }
  QUIRE_ASSIGN_OR_RETURN(workspace_, BenchBuffer::allocate(workspace_bytes, config_.runtime));
  return {};
}

// Takes the blocks of every request from `next` on; those of the common prefix are the first request's.
void BenchProblem::place_blocks(Copy& copy, std::int64_t width, std::vector<std::int32_t>::const_iterator& next) const {
  copy.blocks.assign(batch_.size() * static_cast<std::size_t>(width), 0);
  for (std::size_t seq = 0; seq < batch_.size(); ++seq) {
    const auto row = copy.blocks.begin() + static_cast<std::int64_t>(seq) * width;
    const std::int64_t shared = seq == 0 ? 0 : shared_blocks();
    const std::int64_t own = ceil_div(batch_[seq].seq_len, config_.block_size) - shared;
    std::copy_n(copy.blocks.begin(), shared, row);
    std::copy_n(next, own, row + shared);
    next += own;
  }
}

Status BenchProblem::make_copy(AttentionMetadataBuilder& builder, Copy& copy, std::int64_t width) {
  const auto num_reqs = static_cast<std::int32_t>(batch_.size());
  const std::size_t bytes = copy.blocks.size() * sizeof(std::int32_t);
  QUIRE_ASSIGN_OR_RETURN(copy.table_data, BenchBuffer::allocate(bytes, config_.runtime));
  QUIRE_RETURN_IF_ERROR(copy.table_data.write(copy.blocks.data(), bytes));
  QUIRE_ASSIGN_OR_RETURN(copy.block_table, make_tensor(copy.table_data.data(), DType::kInt32, {num_reqs, width},
                                                       copy.table_data.device()));
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
  return {};
}

Status BenchProblem::run() {
  last_ = next_;
  next_ = (next_ + 1) % copies_.size();
  const Copy& copy = copies_[last_];
  switch (config_.op) {
    case BenchOp::kCacheUpdate:
      return impl_->do_kv_cache_update(layer_, key_, value_, cache_, copy.slots);
    case BenchOp::kRopeCacheUpdate:
      return impl_->do_rope_and_kv_cache_update(layer_, rope_, key_, value_, cache_, copy.slots);
    case BenchOp::kCascade: {
      QUIRE_ASSIGN_OR_RETURN(const AttentionArgs args, attention_args(copy));
      return cascade_attention(args, copy.cascade, config_.runtime, workspace_.bytes());
    }
    case BenchOp::kAttention:
      break;
  }
  ForwardArgs args;
  args.query = query_;
  args.kv_cache = cache_;
  args.metadata = &copy.metadata;
  args.output = output_;
  args.workspace = workspace_.bytes();
  return impl_->forward(layer_, args);
}

}  // namespace quire::cli
