/* The C API from end to end: keys are rotated and stored in one call, and five draft tokens attend once as a chain of a
   token tree and once as plain causal rows of a second request, which must give the same output. */
#include <math.h>
#include <quire/c_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { kHeads = 4, kKvHeads = 2, kHeadSize = 16, kBlockSize = 16, kBlocks = 8, kTokens = 5, kRows = 2 * kTokens };

static float query[kRows * kHeads * kHeadSize], key[kRows * kKvHeads * kHeadSize], value[kRows * kKvHeads * kHeadSize];
static float output[kRows * kHeads * kHeadSize], angles[64 * kHeadSize];

static void check(int status) {
  if (status == QUIRE_OK) return;
  fprintf(stderr, "quire: %s\n", quire_last_error());
  exit(1);
}

static QuireTensor tensor_of(void* data, int32_t dtype, int64_t rows, int64_t heads, int64_t size) {
  const int64_t shape[3] = {rows, heads, size};
  QuireTensor tensor;
  check(quire_tensor_init(&tensor, data, dtype, shape, size > 0 ? 3 : heads > 0 ? 2 : 1));
  return tensor;
}

/* The same rows for both requests. */
static void fill(float* rows, int size) {
  for (int i = 0; i < kTokens * size; ++i)
    rows[i] = rows[kTokens * size + i] = (float)(i * 7919 % 1000) / 500.0f - 1.0f;
}

static void fill_inputs(void) {
  fill(query, kHeads * kHeadSize);
  fill(key, kKvHeads * kHeadSize);
  fill(value, kKvHeads * kHeadSize);
  for (int i = 0; i < 64 * kHeadSize; ++i) {
    const int pair = i % (kHeadSize / 2);
    const double angle = i / kHeadSize / pow(10000.0, 2.0 * pair / kHeadSize);
    angles[i] = (float)(i % kHeadSize < kHeadSize / 2 ? cos(angle) : sin(angle));
  }
}

static void make_layer(QuireLayerConfig* layer, const QuireBackend** backend) {
  check(quire_layer_config_init(layer));
  layer->num_heads = kHeads;
  layer->num_kv_heads = kKvHeads;
  layer->head_size = kHeadSize;
  layer->dtype = QUIRE_FLOAT32;
  layer->scale = 0.25f;
  layer->num_blocks = kBlocks;
  layer->num_speculative_tokens = kTokens - 1;
  check(quire_select_backend(layer, "TREE_ATTN", backend));
}

static void rotate_and_store(const QuireImpl* impl, const QuireTensor* cache, const QuireTensor* slot_mapping) {
  int64_t positions[kRows];
  for (int i = 0; i < kRows; ++i) positions[i] = i % kTokens;
  const QuireTensor queries = tensor_of(query, QUIRE_FLOAT32, kRows, kHeads, kHeadSize);
  const QuireTensor keys = tensor_of(key, QUIRE_FLOAT32, kRows, kKvHeads, kHeadSize);
  const QuireTensor values = tensor_of(value, QUIRE_FLOAT32, kRows, kKvHeads, kHeadSize);
  const QuireTensor where = tensor_of(positions, QUIRE_INT64, kRows, 0, 0);
  const QuireTensor cos_sin = tensor_of(angles, QUIRE_FLOAT32, 64, kHeadSize, 0);
  QuireRopeUpdate update;
  check(quire_rope_update_init(&update));
  update.query = &queries;
  update.key = &keys;
  update.value = &values;
  update.positions = &where;
  update.cos_sin_cache = &cos_sin;
  update.kv_cache = cache;
  update.slot_mapping = slot_mapping;
  check(quire_rope_and_kv_cache_update(impl, NULL, &update));
}

static void attend(const QuireImpl* impl, const QuireMetadata* metadata, const QuireTensor* cache) {
  const QuireTensor queries = tensor_of(query, QUIRE_FLOAT32, kRows, kHeads, kHeadSize);
  const QuireTensor outputs = tensor_of(output, QUIRE_FLOAT32, kRows, kHeads, kHeadSize);
  QuireForward args;
  check(quire_forward_init(&args));
  args.query = &queries;
  args.kv_cache = cache;
  args.output = &outputs;
  check(quire_workspace_bytes(impl, metadata, 0, &args.workspace_bytes));
  void* scratch = malloc(args.workspace_bytes + 64);
  args.workspace = (char*)scratch + (64 - (uintptr_t)scratch % 64) % 64;
  check(quire_forward(impl, NULL, metadata, &args));
  free(scratch);
}

/* Whether both requests got the same output. */
static int is_same(void) {
  const int half = kTokens * kHeads * kHeadSize;
  double worst = 0.0, largest = 0.0;
  for (int i = 0; i < half; ++i) {
    worst = fmax(worst, fabs(output[i] - output[half + i]));
    largest = fmax(largest, fabs(output[i]));
  }
  printf("a chain as a tree and as rows: largest output %.2f, largest difference %.2e\n", largest, worst);
  return largest > 0.0 && worst < 1e-6;
}

int main(void) {
  QuireLayerConfig layer;
  const QuireBackend* backend;
  make_layer(&layer, &backend);
  int64_t bytes;
  QuireTensor cache;
  check(quire_kv_cache_bytes(backend, &layer, &bytes));
  void* memory = calloc(1, (size_t)bytes);
  check(quire_view_kv_cache(backend, &layer, memory, &cache));

  /* Request 0 has a tree, a root and four nodes in a row; request 1 has none. Their keys are in blocks 3 and 5. */
  QuireTree* chain;
  check(quire_tree_chain(kTokens - 1, &chain));
  const QuireTree* trees[2] = {chain, NULL};
  const int32_t starts[3] = {0, kTokens, kRows}, lengths[2] = {kTokens, kTokens};
  int32_t blocks[2] = {3, 5};
  int64_t slots[kRows];
  const QuireTensor table = tensor_of(blocks, QUIRE_INT32, 2, 1, 0);
  const QuireTensor slot_mapping = tensor_of(slots, QUIRE_INT64, kRows, 0, 0);
  QuireBatch batch;
  check(quire_batch_init(&batch));
  batch.num_reqs = 2;
  batch.query_start_loc = starts;
  batch.seq_lens = lengths;
  batch.block_table = &table;
  batch.trees = trees;
  check(quire_compute_slot_mapping(&layer, &batch, slots, kRows));
  batch.slot_mapping = &slot_mapping;

  QuireBuilder* builder;
  QuireMetadata* metadata;
  QuireImpl* impl;
  check(quire_builder_create(backend, &layer, &builder));
  check(quire_build(builder, &batch, &metadata));
  check(quire_impl_create(backend, &layer, &impl));
  fill_inputs();
  rotate_and_store(impl, &cache, &slot_mapping);
  attend(impl, metadata, &cache);

  quire_impl_destroy(impl);
  quire_metadata_destroy(metadata);
  quire_builder_destroy(builder);
  quire_tree_destroy(chain);
  free(memory);
  return is_same() ? 0 : 1;
}
