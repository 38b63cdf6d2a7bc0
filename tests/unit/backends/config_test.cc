// Configurations that implementations and builders refuse, and tensors and metadata that forward refuses.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "unit/backends/layer_run.h"

namespace quire::test {
namespace {

void expect_reason(const Status& status, std::string_view text) {
  EXPECT_FALSE(status.ok()) << text;
  EXPECT_NE(status.message().find(text), std::string::npos) << "want: " << text << "\ngot:  " << status.to_string();
}

Status impl_status(std::string_view backend, const std::function<void(ImplConfig&)>& change) {
  ImplConfig config = default_config();
  change(config);
  return (*find_backend(backend))->make_impl(config).status();
}

TEST(ImplConfigErrors, OfAllBackends) {
  static const std::vector<float> kThree(3), kBad = {0, 0, NAN, 0};
  const std::vector<std::pair<std::string_view, std::function<void(ImplConfig&)>>> cases = {
      {"num_heads: want > 0", [](ImplConfig& c) { c.num_heads = 0; }},
      {"num_heads: want a multiple of num_kv_heads 2, got 5", [](ImplConfig& c) { c.num_heads = 5; }},
      {"num_kv_heads: want > 0", [](ImplConfig& c) { c.num_kv_heads = -1; }},
      {"head_size: want at least 8", [](ImplConfig& c) { c.head_size = 7; }},
      {"block_size: want > 0", [](ImplConfig& c) { c.block_size = 0; }},
      {"scale: want a finite number", [](ImplConfig& c) { c.scale = NAN; }},
      {"logits_soft_cap: want a finite number >= 0", [](ImplConfig& c) { c.logits_soft_cap = -1.0f; }},
      {"alibi_slopes: want 4 values, got 3", [](ImplConfig& c) { c.alibi_slopes = kThree; }},
      {"alibi_slopes[2]: want a number", [](ImplConfig& c) { c.alibi_slopes = kBad; }},
      {"sinks: want 4 values, got 3", [](ImplConfig& c) { c.sinks = kThree; }},
      {"sliding_window: want >= 1, got 0", [](ImplConfig& c) { c.sliding_window = 0; }},
      {"chunk: want >= 0", [](ImplConfig& c) { c.chunk = -1; }},
      {"dtype: want float32, float16 or bfloat16, got int8", [](ImplConfig& c) { c.dtype = DType::kInt8; }},
  };
  for (const auto& [text, change] : cases) {
    for (const std::string_view name :
         {"TREE_ATTN", "XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV", "DIFFERENTIAL_FLASH_ATTN"}) {
      expect_reason(impl_status(name, change), text);
    }
  }
}

TEST(ImplConfigErrors, CudaWhereThereIsNone) {
  if (cuda::device_info().ok()) GTEST_SKIP() << "this machine has a CUDA device";
  const Status status = impl_status("TRITON_ATTN", [](ImplConfig& c) { c.runtime.backplane = Backplane::kCuda; });
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  expect_reason(status, "CUDA");
  BuilderConfig builder;
  builder.num_heads = builder.num_kv_heads = 4;
  builder.head_size = 16;
  builder.runtime.backplane = Backplane::kCuda;
  expect_reason(find_backend("XFORMERS").value()->make_builder(builder).status(), "CUDA");
}

TEST(ImplConfigErrors, WhatABackendLacks) {
  static const std::vector<float> kFour(4);
  const auto encoder = [](ImplConfig& c) { c.attn_type = AttentionType::kEncoder; };
  for (const std::string_view name : {"TREE_ATTN", "XFORMERS", "TRITON_ATTN_DIFFKV", "DIFFERENTIAL_FLASH_ATTN"}) {
    expect_reason(impl_status(name, encoder), "attn_type: encoder is not supported by " + std::string(name));
  }
  expect_reason(impl_status("XFORMERS", [](ImplConfig& c) { c.sinks = kFour; }), "sinks: not supported by XFORMERS");
  expect_reason(impl_status("TRITON_ATTN", [](ImplConfig& c) { c.differential = DifferentialConfig{}; }),
                "differential: not supported by TRITON_ATTN");
  expect_reason(impl_status("TREE_ATTN",
                            [](ImplConfig& c) {
                              c.alibi_slopes = kFour;
                              c.alibi = AlibiKind::kSqrt;
                            }),
                "square-root ALiBi: not supported by TREE_ATTN");
  expect_reason(impl_status("TRITON_ATTN", [](ImplConfig& c) { c.head_size_v = 24; }),
                "head_size_v: want head_size 16");
  expect_reason(impl_status("TRITON_ATTN",
                            [](ImplConfig& c) {
                              c.attn_type = AttentionType::kEncoder;
                              c.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
                            }),
                "kv_cache_dtype: encoder attention has no cache");
  expect_reason(impl_status("TRITON_ATTN",
                            [](ImplConfig& c) {
                              c.attn_type = AttentionType::kEncoderDecoder;
                              c.sliding_window = 8;
                            }),
                "cross attention has no distance");
}

TEST(ImplConfigErrors, DifferentialWeights) {
  static const std::vector<float> kRow(16), kNorm(32);
  const auto status = [](const std::function<void(ImplConfig&)>& change) {
    return impl_status("DIFFERENTIAL_FLASH_ATTN", [&](ImplConfig& c) {
      c.differential = DifferentialConfig{};
      c.differential->lambda_q1 = c.differential->lambda_k1 = kRow;
      c.differential->lambda_q2 = c.differential->lambda_k2 = kRow;
      c.differential->subln_weight = kNorm;
      change(c);
    });
  };
  EXPECT_TRUE(status([](ImplConfig&) {}).ok());
  expect_reason(status([](ImplConfig& c) { c.differential.reset(); }), "differential: want the lambdas");
  expect_reason(status([](ImplConfig& c) { c.differential->lambda_k2 = {}; }),
                "differential.lambda_k2: want 16 values");
  expect_reason(status([](ImplConfig& c) { c.differential->subln_weight = kRow; }), "subln_weight: want 32 values");
  expect_reason(status([](ImplConfig& c) { c.differential->subln_eps = 0.0f; }), "subln_eps: want > 0");
  expect_reason(status([](ImplConfig& c) { c.differential->layer_idx = -1; }), "layer_idx: want >= 0");
  expect_reason(status([](ImplConfig& c) {
                  c.num_heads = 3;
                  c.num_kv_heads = 1;
                }),
                "num_kv_heads: want an even number, got 1");
}

TEST(ForwardErrors, TensorsAreNamed) {
  const std::vector<std::pair<std::string_view, std::function<void(LayerRun&)>>> cases = {
      {"query", [](LayerRun& run) { run.args.query = {}; }},
      {"query.shape", [](LayerRun& run) { run.args.query.shape[1] = 3; }},
      {"query.shape: want at least 39 tokens", [](LayerRun& run) { run.args.query.shape[0] = 38; }},
      {"query.dtype", [](LayerRun& run) { run.args.query.dtype = DType::kFloat16; }},
      {"query.device", [](LayerRun& run) { run.args.query.device.type = DeviceType::kCuda; }},
      {"output.dtype", [](LayerRun& run) { run.args.output_scale = 1.0f; }},
      {"output.dtype", [](LayerRun& run) { run.args.output.dtype = DType::kFloat8E4M3; }},
      {"output.shape", [](LayerRun& run) { run.args.output.shape[0] = 38; }},
      {"output", [](LayerRun& run) { run.args.output.strides[2] = 2; }},
      {"lse.shape", [](LayerRun& run) { run.args.lse.shape[0] = 3; }},
      {"output_block_scale.shape",
       [](LayerRun& run) {
         run.args.output.dtype = DType::kFloat8E4M3;
         run.args.output_block_scale = run.args.lse;
       }},
      {"kv_cache: want the cache", [](LayerRun& run) { run.args.kv_cache = {}; }},
      {"kv_cache.shape", [](LayerRun& run) { run.args.kv_cache.shape[3] = 1; }},
      {"kv_cache.dtype", [](LayerRun& run) { run.args.kv_cache.dtype = DType::kFloat16; }},
      {"args.kv.block_table", [](LayerRun& run) { run.args.kv_cache.shape[0] = 4; }},
      {"metadata.block_size: want 16, got 32", [](LayerRun& run) { run.metadata.block_size = 32; }},
      {"metadata.block_table", [](LayerRun& run) { run.metadata.block_table = {}; }},
  };
  for (const auto& [text, change] : cases) {
    LayerRun run(LayerSetup{});
    ASSERT_TRUE(run.forward().ok());
    std::fill(run.output.begin(), run.output.end(), 99.0f);
    change(run);
    expect_reason(run.impl->forward(run.layer, run.args), text);
    for (const float value : run.output) ASSERT_EQ(value, 99.0f) << text;
  }
}

TEST(ForwardErrors, WorkspaceTooSmall) {
  LayerSetup setup;
  setup.config.runtime = test_runtimes().back();
  LayerRun run(setup);
  ASSERT_TRUE(run.forward().ok());
  run.args.workspace = {};
  const Status status = run.impl->forward(run.layer, run.args);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  expect_reason(status, "workspace: want ");
}

TEST(ForwardErrors, PlansOfNarrowerLayersAreRefused) {
  LayerSetup narrow;
  narrow.config.sliding_window = 8;
  LayerRun windowed(narrow);
  LayerRun open(LayerSetup{});
  ASSERT_TRUE(windowed.forward().ok());
  ASSERT_TRUE(open.forward().ok());
  open.args.metadata = &windowed.metadata;
  expect_reason(open.impl->forward(open.layer, open.args), "metadata.plan: want a plan for keys as far");
  windowed.args.metadata = &open.metadata;  // a wider plan is only slower
  const std::vector<float> before = windowed.output;
  ASSERT_TRUE(windowed.impl->forward(windowed.layer, windowed.args).ok());
  EXPECT_EQ(windowed.output, before);
  narrow.config.attn_type = AttentionType::kEncoder;
  LayerRun encoder(narrow);
  ASSERT_TRUE(encoder.forward().ok());
  encoder.args.metadata = &open.metadata;
  expect_reason(encoder.impl->forward(encoder.layer, encoder.args), "metadata.causal: want false");
}

TEST(CacheUpdate, ErrorsAndEncoders) {
  LayerRun run(LayerSetup{});
  expect_reason(run.impl->do_kv_cache_update(run.layer, {}, {}, {}, {}), "kv_cache: want the cache");
  LayerSetup setup;
  setup.config.attn_type = AttentionType::kEncoderOnly;
  LayerRun encoder(setup);
  EXPECT_TRUE(encoder.impl->do_kv_cache_update(encoder.layer, {}, {}, {}, {}).ok());
  expect_reason(encoder.impl->do_rope_and_kv_cache_update(encoder.layer, {}, {}, {}, {}, {}), "encoder attention");
}

TEST(CacheUpdate, FusedRotationEqualsTheStoreAfterIt) {
  const std::int32_t tokens = 5;
  std::vector<float> angles(64 * 16);
  for (std::size_t i = 0; i < angles.size(); ++i) {
    const double angle = static_cast<double>(i / 16) / std::pow(10.0, static_cast<double>(i % 8));
    angles[i] = static_cast<float>(i % 16 < 8 ? std::cos(angle) : std::sin(angle));
  }
  std::vector<std::int64_t> positions = {0, 1, 2, 3, 4}, slots = {16, 17, 18, 19, 20};
  std::vector<float> query(tokens * 4 * 16, 1.0f), key(tokens * 2 * 16, 0.5f), shared_query = query;
  const auto rows = [&](std::vector<float>& from, std::int64_t heads) {
    return make_tensor(from.data(), DType::kFloat32, {tokens, heads, 16}).value();
  };
  RopeArgs rope{.query = rows(query, 4),
                .positions = make_tensor(positions.data(), DType::kInt64, {tokens}).value(),
                .cos_sin_cache = make_tensor(angles.data(), DType::kFloat32, {64, 16}).value()};
  const TensorView slot_mapping = make_tensor(slots.data(), DType::kInt64, {tokens}).value();
  LayerRun run(LayerSetup{});
  const TensorView keys = rows(key, 2);
  Status status = run.impl->do_rope_and_kv_cache_update(run.layer, rope, keys, keys, run.args.kv_cache, slot_mapping);
  ASSERT_TRUE(status.ok()) << status.to_string();
  const float* stored = run.args.kv_cache.as<float>() + run.args.kv_cache.stride(0) + 2 * run.args.kv_cache.stride(2);
  for (std::size_t d = 0; d < 16; ++d) EXPECT_EQ(stored[d], key[2 * 2 * 16 + d]);
  EXPECT_NE(key[2 * 2 * 16], 0.5f);

  LayerSetup sharing;
  sharing.config.kv_sharing_target_layer_name = "layers.0";
  LayerRun shared(sharing);
  rope.query = rows(shared_query, 4);
  status = shared.impl->do_rope_and_kv_cache_update(shared.layer, rope, {}, {}, shared.args.kv_cache, {});
  ASSERT_TRUE(status.ok()) << status.to_string();
  EXPECT_EQ(shared_query, query);
}

}  // namespace
}  // namespace quire::test
