/* The C99 API: backends, their caches, metadata builders and implementations behind opaque handles.

   Every function returns a QuireStatus (0 is success); the message of the last error of the calling thread is
   quire_last_error(). Structs that describe something are filled by their quire_*_init function first, so that fields
   that a caller does not know of have their defaults. Handles that a function creates are destroyed by the caller;
   backends belong to the library. Pointers in structs are read during the call, except for tensors of a batch, which
   the metadata made from it goes on reading. */
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
  int32_t backplane; /* QuireBackplane */
  int32_t isa;       /* 0 scalar, 1 avx2, 2 avx512, 3 avx512bf16 */
  int32_t num_threads;
  void* stream;
} QuireRuntime;

/* What a layer is: its shapes, terms, cache and runtime. Used for caches, builders and implementations alike. */
typedef struct QuireLayerConfig {
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t head_size_v; /* 0: head_size */
  int32_t dtype;       /* QuireDType of queries, keys and values */
  int32_t kv_cache_dtype;
  int32_t layout;
  int32_t attn_type;
  int32_t block_size;
  int64_t num_blocks;
  float scale;
  float logits_soft_cap;  /* 0: off */
  int32_t sliding_window; /* 0: off */
  int32_t chunk;          /* 0: off */
  int32_t chunk_lookback;
  const float* alibi_slopes; /* [num_heads] or null */
  int32_t use_alibi_sqrt;
  const float* sinks;             /* [num_heads] or null */
  int32_t shares_kv_cache;        /* 1: another layer fills the cache */
  int32_t num_speculative_tokens; /* builders */
  const char* tree;               /* TREE_ATTN builders: "[(0,), (1,), (0, 0)]" or null */
  const float* lambda_q1;         /* differential attention, [head_size] each, else null */
  const float* lambda_k1;
  const float* lambda_q2;
  const float* lambda_k2;
  const float* subln_weight; /* [2 * head_size] */
  float subln_eps;
  int32_t layer_idx;
  QuireRuntime runtime;
} QuireLayerConfig;

/* A batch; arrays are on the host. */
typedef struct QuireBatch {
  int32_t num_reqs;
  const int32_t* query_start_loc;  /* [num_reqs + 1] */
  const int32_t* seq_lens;         /* [num_reqs] */
  const int32_t* encoder_seq_lens; /* [num_reqs], cross attention, else null */
  const QuireTensor* block_table;  /* int32 [num_reqs, blocks] */
  const QuireTensor* slot_mapping; /* int64 [tokens] */
  int32_t not_causal;
} QuireBatch;

/* The layer's scales at run time. */
typedef struct QuireScales {
  float q_scale;
  float k_scale;
  float v_scale;
} QuireScales;

typedef struct QuireForward {
  const QuireTensor* query;
  const QuireTensor* key;   /* encoder attention only */
  const QuireTensor* value; /* encoder attention only */
  const QuireTensor* kv_cache;
  const QuireTensor* output;
  const QuireTensor* output_block_scale; /* or null */
  const QuireTensor* lse;                /* or null */
  float output_scale;                    /* 0: none */
  void* workspace;
  size_t workspace_bytes;
} QuireForward;

typedef struct QuireBackend QuireBackend;
typedef struct QuireBuilder QuireBuilder;
typedef struct QuireMetadata QuireMetadata;
typedef struct QuireImpl QuireImpl;

/* "major.minor.patch". */
const char* quire_version(void);
/* The message of this thread's last error; empty after a success. Valid until the thread's next call. */
const char* quire_last_error(void);

/* The best runtime of this machine; QUIRE_ISA is honoured. */
int quire_default_runtime(QuireRuntime* runtime);
/* A row-major tensor on the CPU. */
int quire_tensor_init(QuireTensor* tensor, void* data, int32_t dtype, const int64_t* shape, int32_t rank);

/* Writes up to `capacity` backends and how many there are. */
int quire_backends(const QuireBackend** backends, size_t capacity, size_t* count);
int quire_find_backend(const char* name, const QuireBackend** backend);
/* Null for null. Valid until the thread's next call of it. */
const char* quire_backend_name(const QuireBackend* backend);

/* Defaults: decoder, bfloat16, cache as the model, NHD, blocks of 16, scale 1, no terms, the default runtime. */
int quire_layer_config_init(QuireLayerConfig* config);
/* QUIRE_UNSUPPORTED with every reason in quire_last_error() if the backend cannot run such a layer. */
int quire_validate(const QuireBackend* backend, const QuireLayerConfig* config);
/* The backend that `name` names or, for null, the first that can run the layer. */
int quire_select_backend(const QuireLayerConfig* config, const char* name, const QuireBackend** backend);

/* Bytes of one layer's cache, and its logical view over `data`, which holds that many, aligned to 4. */
int quire_kv_cache_bytes(const QuireBackend* backend, const QuireLayerConfig* config, int64_t* bytes);
int quire_view_kv_cache(const QuireBackend* backend, const QuireLayerConfig* config, void* data, QuireTensor* cache);

int quire_builder_create(const QuireBackend* backend, const QuireLayerConfig* config, QuireBuilder** builder);
void quire_builder_destroy(QuireBuilder* builder);
int quire_build(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata);
int quire_build_for_drafting(QuireBuilder* builder, const QuireBatch* batch, int32_t draft_index,
                             QuireMetadata** metadata);
int quire_build_for_cudagraph_capture(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata);
/* Puts another batch's trees, ranges and flags where a graph that was captured with `captured` reads them. */
int quire_update_for_cudagraph_replay(QuireBuilder* builder, const QuireMetadata* captured, const QuireBatch* batch);
void quire_metadata_destroy(QuireMetadata* metadata);

int quire_impl_create(const QuireBackend* backend, const QuireLayerConfig* config, QuireImpl** impl);
void quire_impl_destroy(QuireImpl* impl);
/* All scales 1. */
int quire_scales_init(QuireScales* scales);
int quire_kv_cache_update(const QuireImpl* impl, const QuireScales* scales, const QuireTensor* key,
                          const QuireTensor* value, const QuireTensor* kv_cache, const QuireTensor* slot_mapping);
/* block_scales: 1 if outputs have a scale for each 128 elements. */
int quire_workspace_bytes(const QuireImpl* impl, const QuireMetadata* metadata, int32_t block_scales, size_t* bytes);
int quire_forward_init(QuireForward* args);
/* metadata null: a profiling run, the output becomes 0. */
int quire_forward(const QuireImpl* impl, const QuireScales* scales, const QuireMetadata* metadata,
                  const QuireForward* args);

#ifdef __cplusplus
}
#endif

#endif /* QUIRE_C_API_H */
