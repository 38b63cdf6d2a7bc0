/* The C99 API: backends, their caches, metadata builders and implementations behind opaque handles, with the meaning,
   shapes and errors of the C++ functions of the same names (quire/backend.h, metadata.h, kv_cache.h, ops.h, cuda.h).

   Every function returns a QuireStatus (0 is success); the message of the last error of the calling thread is
   quire_last_error(). Structs with a quire_*_init function are filled by it first, so that fields that a caller does
   not know of have their defaults. Handles that a function creates are destroyed by the caller; backends belong to the
   library. Pointers in structs are read during the call, except for tensors of a batch, which the metadata made from it
   goes on reading. Lists are written to an array of `capacity` elements as far as it goes, and `count` becomes how many
   there are.

   Only C++ has: backends of one's own, paged_attention and cascade_attention on bare arguments, what derives batches
   (local attention as virtual sequences, fast prefill), the block pool and the engine. */
#ifndef QUIRE_C_API_H
#define QUIRE_C_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum QuireStatus {
  QUIRE_OK = 0,
  QUIRE_INVALID_ARGUMENT,
  QUIRE_OUT_OF_RANGE,
  QUIRE_UNSUPPORTED,
  QUIRE_NOT_FOUND,
  QUIRE_DATA_LOSS,
  QUIRE_RESOURCE_EXHAUSTED,
  QUIRE_INTERNAL
} QuireStatus;

typedef enum QuireDType {
  QUIRE_FLOAT32 = 0,
  QUIRE_FLOAT16,
  QUIRE_BFLOAT16,
  QUIRE_FLOAT8_E4M3,
  QUIRE_FLOAT8_E5M2,
  QUIRE_INT8,
  QUIRE_UINT8,
  QUIRE_INT32,
  QUIRE_INT64
} QuireDType;

typedef enum QuireKVCacheDType {
  QUIRE_KV_AUTO = 0,
  QUIRE_KV_FLOAT32,
  QUIRE_KV_FLOAT16,
  QUIRE_KV_BFLOAT16,
  QUIRE_KV_FP8_E4M3,
  QUIRE_KV_FP8_E5M2,
  QUIRE_KV_INT8_PER_TOKEN_HEAD,
  QUIRE_KV_FP8_PER_TOKEN_HEAD
} QuireKVCacheDType;

typedef enum QuireLayout { QUIRE_NHD = 0, QUIRE_HND } QuireLayout;
typedef enum QuireAttentionType {
  QUIRE_DECODER = 0,
  QUIRE_ENCODER,
  QUIRE_ENCODER_ONLY,
  QUIRE_ENCODER_DECODER
} QuireAttentionType;
/* Where the scales of the per-token-head cache dtypes are: behind each vector, or in tensors of their own. */
typedef enum QuireScalePlacement { QUIRE_SCALES_INLINE = 0, QUIRE_SCALES_SEPARATE } QuireScalePlacement;
/* Linear: slope * (kv_pos - context_len); square root: slope * -sqrt(q_pos - kv_pos); distance: slope * -|q_pos -
 * kv_pos|. */
typedef enum QuireAlibi { QUIRE_ALIBI_NONE = 0, QUIRE_ALIBI_LINEAR, QUIRE_ALIBI_SQRT, QUIRE_ALIBI_DISTANCE } QuireAlibi;
typedef enum QuireRopeStyle { QUIRE_ROPE_NEOX = 0, QUIRE_ROPE_GPTJ } QuireRopeStyle;
typedef enum QuireCudagraphSupport {
  QUIRE_CUDAGRAPH_NEVER = 0,
  QUIRE_CUDAGRAPH_UNIFORM_SINGLE_TOKEN_DECODE,
  QUIRE_CUDAGRAPH_UNIFORM_BATCH,
  QUIRE_CUDAGRAPH_ALWAYS
} QuireCudagraphSupport;
/* How CUDA kernels cut a row's keys: evenly over the device, or so that a row has the same bits in any batch. */
typedef enum QuireKVSplits { QUIRE_SPLITS_BALANCED = 0, QUIRE_SPLITS_FIXED } QuireKVSplits;
typedef enum QuireBackplane { QUIRE_REFERENCE = 0, QUIRE_CPU, QUIRE_CUDA } QuireBackplane;
typedef enum QuireDeviceType { QUIRE_DEVICE_CPU = 1, QUIRE_DEVICE_CUDA = 2 } QuireDeviceType; /* as in DLPack */

/* A strided view; strides count elements. A null pointer to a tensor, or one whose data is null, is an absent one. */
typedef struct QuireTensor {
  void* data;
  int32_t device_type; /* QuireDeviceType */
  int32_t device_index;
  int32_t dtype; /* QuireDType */
  int32_t rank;
  int64_t shape[8];
  int64_t strides[8];
} QuireTensor;

typedef struct QuireRuntime {
  int32_t backplane;   /* QuireBackplane */
  int32_t isa;         /* 0 scalar, 1 avx2, 2 avx512, 3 avx512bf16 */
  int32_t num_threads; /* QUIRE_CPU; 0: as OpenMP decides */
  void* stream;        /* QUIRE_CUDA: the caller's cudaStream_t */
  int32_t splits;      /* QUIRE_CUDA: QuireKVSplits */
} QuireRuntime;

typedef struct QuireBackend QuireBackend;
typedef struct QuireTree QuireTree;
typedef struct QuireBuilder QuireBuilder;
typedef struct QuireMetadata QuireMetadata;
typedef struct QuireImpl QuireImpl;

/* What a layer is: its shapes, terms, cache and runtime. Used for caches, builders and implementations alike. */
typedef struct QuireLayerConfig {
  int32_t num_heads;              /* of queries */
  int32_t num_kv_heads;           /* divides num_heads; both streams' of differential attention */
  int32_t head_size;              /* of queries and keys */
  int32_t head_size_v;            /* of values; 0: head_size */
  int32_t dtype;                  /* QuireDType of queries, keys and values */
  int32_t kv_cache_dtype;         /* QuireKVCacheDType */
  int32_t scale_placement;        /* QuireScalePlacement */
  int32_t layout;                 /* QuireLayout */
  int32_t attn_type;              /* QuireAttentionType */
  int32_t block_size;             /* tokens a block */
  int64_t num_blocks;             /* of the cache; not read by layers, which see it in the cache's tensor */
  float scale;                    /* of logits */
  float logits_soft_cap;          /* 0: off */
  int32_t sliding_window;         /* positions that a query sees, its own included; 0: off */
  int32_t chunk;                  /* of chunked local attention; 0: off */
  int32_t chunk_lookback;         /* chunks before its own that a query sees too */
  const float* alibi_slopes;      /* [num_heads] or null */
  int32_t alibi;                  /* QuireAlibi, with alibi_slopes */
  const float* sinks;             /* [num_heads] or null */
  int32_t shares_kv_cache;        /* 1: another layer fills the cache */
  int32_t num_speculative_tokens; /* builders: decodes have up to this many tokens more */
  const QuireTree* tree;          /* TREE_ATTN builders: the tree of requests of its size, or null; copied */
  const float* lambda_q1;         /* differential attention, [head_size] each, else null */
  const float* lambda_k1;
  const float* lambda_q2;
  const float* lambda_k2;
  const float* subln_weight; /* [2 * head_size] */
  float subln_eps;
  int32_t layer_idx;         /* lambda_init = 0.8 - 0.6 * exp(-0.3 * layer_idx) */
  const double* lambda_init; /* instead of what follows from layer_idx, or null */
  /* What else is asked of a backend, 1 or 0; read by quire_validate and quire_select_backend alone. */
  int32_t use_mm_prefix;
  int32_t use_non_causal;
  int32_t use_batch_invariant;
  int32_t use_kv_connector;
  int32_t use_output_quant;
  int32_t use_mla;
  int32_t use_sparse;
  int32_t use_per_head_quant_scales;
  int32_t capability_major; /* compute capability to judge for; 0: that of the current device, if it runs on CUDA */
  int32_t capability_minor;
  QuireRuntime runtime;
} QuireLayerConfig;

/* Positions [start, end] of one request, absolute and inclusive, that see each other; start >= end means nothing. */
typedef struct QuireMmRange {
  int32_t start;
  int32_t end;
} QuireMmRange;

/* A batch. Arrays are on the host, tensors where attention runs. */
typedef struct QuireBatch {
  int32_t num_reqs;
  const int32_t* query_start_loc;            /* [num_reqs + 1], from 0 to the number of tokens */
  const int32_t* seq_lens;                   /* [num_reqs] */
  const QuireTensor* query_start_loc_device; /* int32 [num_reqs + 1] or null: the builder copies the host's */
  const QuireTensor* seq_lens_device;        /* int32 [num_reqs] or null; CUDA graphs want both */
  int32_t max_query_len;                     /* at least the longest; 0: the longest */
  int32_t max_seq_len;                       /* the same of seq_lens */
  const int32_t* encoder_seq_lens;           /* [num_reqs], cross attention, else null */
  const QuireTensor* block_table;            /* int32 [num_reqs, blocks] */
  const QuireTensor* slot_mapping;           /* int64 [tokens] */
  int32_t not_causal;                        /* 1: every query sees every key */
  const uint8_t* causal_per_seq;             /* [num_reqs] 1 or 0, or null; overrides not_causal */
  const uint8_t* is_prefilling;              /* [num_reqs] 1 or 0, or null: judged by lengths */
  const QuireMmRange* mm_ranges;             /* [mm_range_start[num_reqs]] or null */
  const int32_t* mm_range_start;             /* [num_reqs + 1] first range of each request, or null */
  const QuireTree* const* trees; /* [num_reqs], null for a request without one; null: the layer's own tree */
  int32_t common_prefix_len;     /* keys that all requests share, or 0; read by quire_build alone */
} QuireBatch;

/* The layer's scales at run time. */
typedef struct QuireScales {
  float q_scale; /* of fp8 queries */
  float k_scale; /* of per-tensor fp8 caches */
  float v_scale;
  /* With QUIRE_SCALES_SEPARATE: float32 [blocks, block_size, num_kv_heads], of a differential cache
     [2, blocks, block_size, num_kv_heads / 2], any strides; else null. */
  const QuireTensor* k_scale_cache;
  const QuireTensor* v_scale_cache;
} QuireScales;

/* New keys and values that are stored after the rotation of queries and keys, in place. */
typedef struct QuireRopeUpdate {
  const QuireTensor* query;         /* [tokens or more, num_heads, head_size], rotated in place, or null */
  const QuireTensor* key;           /* [tokens, num_kv_heads, head_size], rotated in place where it is stored */
  const QuireTensor* value;         /* [tokens, num_kv_heads, head_size_v] */
  const QuireTensor* positions;     /* int64 or int32 [tokens] */
  const QuireTensor* cos_sin_cache; /* [max_position, rotary_dim], float32 or key's dtype: cosines, then sines */
  int32_t style;                    /* QuireRopeStyle */
  const QuireTensor* kv_cache;
  const QuireTensor* slot_mapping; /* int64 [tokens or fewer] */
} QuireRopeUpdate;

typedef struct QuireForward {
  const QuireTensor* query;              /* [tokens, num_heads, head_size], the layer's dtype or float8_e4m3 */
  const QuireTensor* key;                /* [tokens, num_kv_heads, head_size], encoder attention only */
  const QuireTensor* value;              /* [tokens, num_kv_heads, head_size_v], encoder attention only */
  const QuireTensor* kv_cache;           /* as quire_view_kv_cache makes it; null for encoder attention */
  const QuireTensor* output;             /* [tokens, num_heads, head_size_v], the layer's dtype or float32 */
  const QuireTensor* output_block_scale; /* float8_e4m3 outputs: float32, a scale for each 128 of a token */
  const QuireTensor* lse;                /* float32 [num_heads, tokens] or null */
  float output_scale;                    /* output is float8_e4m3 with this one scale; 0: none */
  void* workspace;                       /* aligned to 64, where the layer runs */
  size_t workspace_bytes;                /* at least what quire_workspace_bytes says */
} QuireForward;

/* A layer's cache for the operations that move its blocks. */
typedef struct QuireKVCache {
  const QuireBackend* backend;
  const QuireLayerConfig* config; /* the cache's shapes, dtypes, scale placement and layout */
  const QuireTensor* kv_cache;
  const QuireScales* scales; /* its separate scale tensors, or null */
} QuireKVCache;

/* Ids of blocks, or slots (block * block_size + offset) of tokens. */
typedef struct QuireBlockPair {
  int64_t source;
  int64_t destination;
} QuireBlockPair;
typedef struct QuireSlotPair {
  int64_t source;
  int64_t destination;
} QuireSlotPair;

/* One layer of a buffer that holds several, in the layered stride order. */
typedef struct QuireLayeredCache {
  void* data;
  int32_t num_layers;
  int32_t layer;
} QuireLayeredCache;

/* One level of drafting a tree: the rows that are run again and where their keys go. */
typedef struct QuireDraftLevel {
  const QuireTree* tree; /* in breadth-first order */
  int32_t level;         /* from 0; its metadata is quire_build_for_drafting's with draft_index level + 1 */
  int32_t num_reqs;
  const int64_t* root_positions;  /* [num_reqs] position of each request's last accepted token */
  const QuireTensor* block_table; /* int32 [num_reqs, blocks] on the host */
  int32_t max_model_len;          /* a request whose tree would end beyond gets seq_len 1, positions 0 and slots -1 */
  /* Written: */
  int32_t* query_start_loc; /* [num_reqs + 1] */
  int32_t* seq_lens;        /* [num_reqs] */
  int64_t* positions;       /* [num_reqs * query_len] rotary positions */
  int64_t* slot_mapping;    /* [num_reqs * query_len] */
  size_t capacity;          /* rows of positions and slot_mapping; num_reqs times all drafts is always enough */
  int32_t query_len;        /* rows a request: all drafts so far */
  int32_t num_new_drafts;   /* the last of them, which are this level's */
  int32_t max_seq_len;
} QuireDraftLevel;

/* What the order of a batch follows from. */
typedef struct QuireReorder {
  int32_t num_reqs;
  const int32_t* num_scheduled_tokens; /* [num_reqs] */
  const int32_t* num_computed_tokens;  /* [num_reqs] */
} QuireReorder;
/* Two requests of a batch that trade places. */
typedef struct QuireSwap {
  int32_t first;
  int32_t second;
} QuireSwap;

/* What a builder found in a batch. */
typedef struct QuireMetadataInfo {
  int32_t num_reqs;
  int32_t num_actual_tokens;
  int32_t max_query_len;
  int32_t max_seq_len;
  int32_t num_decodes; /* requests */
  int32_t num_prefills;
  int32_t num_decode_tokens;
  int32_t num_prefill_tokens;
  int32_t prefills_first; /* 1: prefills stand before decodes */
} QuireMetadataInfo;

/* Two attention results over disjoint keys of the same queries. */
typedef struct QuireMergeStates {
  const QuireTensor* prefix_output; /* [tokens, num_heads, head_size_v] float32, float16 or bfloat16 */
  const QuireTensor* prefix_lse;    /* float32 [num_heads, tokens] */
  const QuireTensor* suffix_output;
  const QuireTensor* suffix_lse;
  const QuireTensor* output;     /* the inputs' dtype, or float8_e4m3 with output_scale */
  const QuireTensor* output_lse; /* float32 [num_heads, tokens] or null */
  float output_scale;
  int64_t prefill_tokens_with_context; /* tokens from here on take the suffix as it is; -1: all merge */
} QuireMergeStates;

/* One row of a backend's capability table. */
typedef struct QuireCapability {
  const char* name;
  const char* value;
} QuireCapability;

typedef struct QuireDeviceInfo {
  char name[256];
  int32_t major; /* compute capability */
  int32_t minor;
  int32_t multiprocessors;
  int64_t memory_bytes;
} QuireDeviceInfo;

/* "major.minor.patch". */
const char* quire_version(void);
/* The message of this thread's last error; empty after a success. Valid until the thread's next call. */
const char* quire_last_error(void);

/* The best runtime of this machine; QUIRE_ISA is honoured. */
int quire_default_runtime(QuireRuntime* runtime);
/* A row-major tensor on the CPU; for memory of a device set device_type and device_index afterwards. */
int quire_tensor_init(QuireTensor* tensor, void* data, int32_t dtype, const int64_t* shape, int32_t rank);

/* The registered backends, and one by its name. */
int quire_backends(const QuireBackend** backends, size_t capacity, size_t* count);
int quire_find_backend(const char* name, const QuireBackend** backend);
/* Null for null. Valid until the thread's next call of it. */
const char* quire_backend_name(const QuireBackend* backend);
/* What `quire backends` shows. The texts are valid until the thread's next call of it. */
int quire_capabilities(const QuireBackend* backend, QuireCapability* rows, size_t capacity, size_t* count);
/* The wanted size of blocks if the backend takes it, else the smallest that it takes. */
int quire_preferred_block_size(const QuireBackend* backend, int32_t wanted, int32_t* block_size);
int quire_cudagraph_support(const QuireBackend* backend, int32_t* support); /* QuireCudagraphSupport */

/* Defaults: decoder, bfloat16, cache as the model, inline scales, NHD, blocks of 16, scale 1, linear ALiBi where there
   are slopes, no other terms, the default runtime. */
int quire_layer_config_init(QuireLayerConfig* config);
/* QUIRE_UNSUPPORTED with every reason in quire_last_error() if the backend cannot run such a layer. */
int quire_validate(const QuireBackend* backend, const QuireLayerConfig* config);
/* The backend that `name` names or, for null, the first that can run the layer. */
int quire_select_backend(const QuireLayerConfig* config, const char* name, const QuireBackend** backend);

/* Bytes of one layer's cache and of one block of it. */
int quire_kv_cache_bytes(const QuireBackend* backend, const QuireLayerConfig* config, int64_t* bytes);
int quire_kv_block_bytes(const QuireBackend* backend, const QuireLayerConfig* config, int64_t* bytes);
/* The cache's logical view over `data`, which holds its bytes (those of all layers), aligned to 4. The views are on the
   CPU; for memory of a device set device_type and device_index afterwards. */
int quire_view_kv_cache(const QuireBackend* backend, const QuireLayerConfig* config, void* data, QuireTensor* cache);
int quire_view_layered_kv_cache(const QuireBackend* backend, const QuireLayerConfig* config,
                                const QuireLayeredCache* layers, QuireTensor* cache);
/* `runtime` says on which backplane, and for CUDA on which stream, these run. A cache that is new wants its scales
   reset. */
int quire_reset_kv_scales(const QuireKVCache* cache, const QuireRuntime* runtime);
int quire_swap_blocks(const QuireKVCache* source, const QuireKVCache* destination, const QuireBlockPair* pairs,
                      size_t num_pairs, const QuireRuntime* runtime);
int quire_copy_blocks(const QuireKVCache* caches, size_t num_caches, const QuireBlockPair* pairs, size_t num_pairs,
                      const QuireRuntime* runtime);
int quire_move_tokens(const QuireKVCache* caches, size_t num_caches, const QuireSlotPair* pairs, size_t num_pairs,
                      const QuireRuntime* runtime);

/* Trees of draft tokens: from "[(0,), (1,), (0, 0)]", from the parents of nodes 1 to `count` (node 0 is the root), or
   `length` nodes in a row behind the root. */
int quire_tree_parse(const char* text, QuireTree** tree);
int quire_tree_from_parents(const int32_t* parents, size_t count, QuireTree** tree);
int quire_tree_chain(int32_t length, QuireTree** tree);
void quire_tree_destroy(QuireTree* tree);
/* The parents of nodes 1, 2, ..., and the depths of all nodes: node i's rotary position is the root's + depths[i]. */
int quire_tree_parents(const QuireTree* tree, int32_t* parents, size_t capacity, size_t* count);
int quire_tree_depths(const QuireTree* tree, int32_t* depths, size_t capacity, size_t* count);
/* Block size and count are the config's. QUIRE_RESOURCE_EXHAUSTED names the rows that there is no room for. */
int quire_make_draft_level(const QuireLayerConfig* config, QuireDraftLevel* level);

int quire_builder_create(const QuireBackend* backend, const QuireLayerConfig* config, QuireBuilder** builder);
void quire_builder_destroy(QuireBuilder* builder);
/* Requests of at most this many tokens count as decodes; 0: the backend does not split. */
int quire_reorder_batch_threshold(const QuireBuilder* builder, int32_t* threshold);
/* The swaps, in order, that bring a batch into the order that the builder expects. */
int quire_reorder_batch(const QuireBuilder* builder, const QuireReorder* batch, QuireSwap* swaps, size_t capacity,
                        size_t* count);
/* No requests, arrays or tensors; causal. */
int quire_batch_init(QuireBatch* batch);
/* The slots of the new tokens from the block table, which is on the host; slots behind them become -1. */
int quire_compute_slot_mapping(const QuireLayerConfig* config, const QuireBatch* batch, int64_t* slots,
                               size_t num_slots);
int quire_build(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata);
int quire_build_for_drafting(QuireBuilder* builder, const QuireBatch* batch, int32_t draft_index,
                             QuireMetadata** metadata);
int quire_build_for_cudagraph_capture(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata);
/* Puts another batch's trees, ranges and flags where a graph that was captured with `captured` reads them. */
int quire_update_for_cudagraph_replay(QuireBuilder* builder, const QuireMetadata* captured, const QuireBatch* batch);
void quire_metadata_destroy(QuireMetadata* metadata);
int quire_metadata_info(const QuireMetadata* metadata, QuireMetadataInfo* info);
/* The part of the batch as metadata of its own, null if there is none; it belongs to `metadata` and ends with it. */
int quire_prefill_metadata(const QuireMetadata* metadata, const QuireMetadata** part);
int quire_decode_metadata(const QuireMetadata* metadata, const QuireMetadata** part);

int quire_impl_create(const QuireBackend* backend, const QuireLayerConfig* config, QuireImpl** impl);
void quire_impl_destroy(QuireImpl* impl);
/* All scales 1, no scale tensors. Functions take null for these. */
int quire_scales_init(QuireScales* scales);
int quire_kv_cache_update(const QuireImpl* impl, const QuireScales* scales, const QuireTensor* key,
                          const QuireTensor* value, const QuireTensor* kv_cache, const QuireTensor* slot_mapping);
/* Neox style, no tensors. */
int quire_rope_update_init(QuireRopeUpdate* args);
/* The same after rotating, on CUDA in one launch. A layer that shares another's cache has its queries rotated only, and
   needs neither keys, values nor slots. */
int quire_rope_and_kv_cache_update(const QuireImpl* impl, const QuireScales* scales, const QuireRopeUpdate* args);
/* block_scales: 1 if outputs have a scale for each 128 elements. */
int quire_workspace_bytes(const QuireImpl* impl, const QuireMetadata* metadata, int32_t block_scales, size_t* bytes);
int quire_forward_init(QuireForward* args);
/* metadata null: a profiling run, the output becomes 0. */
int quire_forward(const QuireImpl* impl, const QuireScales* scales, const QuireMetadata* metadata,
                  const QuireForward* args);

/* All tokens merge, no scale. */
int quire_merge_states_init(QuireMergeStates* args);
int quire_merge_attn_states(const QuireMergeStates* args, const QuireRuntime* runtime);

/* 1 if this build has the CUDA kernels, else 0 (not a status). */
int quire_cuda_is_compiled(void);
/* The current device. */
int quire_cuda_device_info(QuireDeviceInfo* info);
/* Waits for the stream, a cudaStream_t, and returns the first fault that a kernel found in metadata on the device. */
int quire_cuda_check(void* stream);

#ifdef __cplusplus
}
#endif

#endif /* QUIRE_C_API_H */
