// What the parity tests share: fixtures and the comparison of logits with those that transformers gave.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "io/safetensors.h"
#include "models/checkpoint.h"
#include "models/model.h"
#include "quire/runtime.h"

namespace quire::parity {

inline constexpr float kTolerance = 2e-4f;  // of the logits' scale
inline constexpr std::int32_t kBlockSize = 16;
inline constexpr std::int32_t kLengths[] = {1, 7, 33, 65};

inline std::string fixture(const std::string& name) {
  return std::string(QUIRE_SOURCE_DIR) + "/tests/fixtures/" + name;
}

inline SafetensorsFile open_file(const std::string& path) {
  Result<SafetensorsFile> file = SafetensorsFile::open(path);
  EXPECT_TRUE(file.ok()) << file.status().to_string();
  return std::move(file).value();
}

inline std::vector<std::int32_t> ids_of(const SafetensorsFile& file, const std::string& name) {
  const Result<TensorView> view = file.tensor(name);
  EXPECT_TRUE(view.ok()) << view.status().to_string();
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < view->num_elements(); ++i) {
    out.push_back(static_cast<std::int32_t>(view->as<std::int64_t>()[i]));
  }
  return out;
}

inline std::span<const float> floats_of(const SafetensorsFile& file, const std::string& name) {
  const Result<TensorView> view = file.tensor(name);
  EXPECT_TRUE(view.ok()) << view.status().to_string();
  return {view->as<float>(), static_cast<std::size_t>(view->num_elements())};
}

// Max abs error over the largest absolute wanted value.
inline float relative_error(std::span<const float> got, std::span<const float> want) {
  EXPECT_EQ(got.size(), want.size());
  float scale = 0.0f;
  float error = 0.0f;
  for (std::size_t i = 0; i < want.size(); ++i) {
    scale = std::max(scale, std::abs(want[i]));
    error = std::isnan(got[i]) ? INFINITY : std::max(error, std::abs(got[i] - want[i]));
  }
  return error / scale;
}

// Blocks 1, 2, ... in an order that is not the natural one.
inline std::vector<BlockId> some_blocks(std::int32_t tokens) {
  std::vector<BlockId> blocks;
  for (std::int32_t i = 0; i * kBlockSize < tokens; ++i) blocks.push_back(i % 2 == 0 ? 40 - i : 2 + i);
  return blocks;
}

inline Result<std::unique_ptr<ModelRunner>> load_runner(const std::string& folder, ModelOptions options) {
  QUIRE_ASSIGN_OR_RETURN(options.runtime, default_runtime());
  QUIRE_ASSIGN_OR_RETURN(Checkpoint opened, Checkpoint::open(folder));
  options.block_size = kBlockSize;
  options.max_tokens = 128;
  options.max_outputs = 128;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<DecoderModel> model,
                         load_decoder(std::make_shared<const Checkpoint>(std::move(opened)), options));
  auto runner = std::make_unique<ModelRunner>(std::move(model));
  QUIRE_RETURN_IF_ERROR(runner->model().attention().allocate(48));
  return runner;
}

// Feeds `tokens` in chunks behind `context_len` tokens and returns the logits of all of them.
inline Result<std::vector<float>> run_chunks(ModelRunner& runner, std::span<const std::int32_t> tokens,
                                             std::int32_t context_len, std::int32_t chunk) {
  std::vector<float> out;
  const std::vector<BlockId> blocks = some_blocks(128);
  for (std::size_t begin = 0; begin < tokens.size(); begin += static_cast<std::size_t>(chunk)) {
    const std::size_t count = std::min(tokens.size() - begin, static_cast<std::size_t>(chunk));
    const SequenceRows rows{.tokens = tokens.subspan(begin, count),
                            .context_len = context_len + static_cast<std::int32_t>(begin),
                            .blocks = blocks};
    QUIRE_RETURN_IF_ERROR(runner.run({&rows, 1}));
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<const float> row = runner.logits(0, static_cast<std::int32_t>(i));
      out.insert(out.end(), row.begin(), row.end());
    }
  }
  return out;
}

}  // namespace quire::parity
