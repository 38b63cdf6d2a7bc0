// Engines over the fixtures and the shipped checkpoints, and runs of whole batches through them.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "quire/engine.h"

namespace quire::engine_test {

inline std::string source_path(const std::string& path) { return std::string(QUIRE_SOURCE_DIR) + "/" + path; }
inline std::string fixture(const std::string& name) { return source_path("tests/fixtures/" + name); }
inline std::string shipped(const std::string& name) { return source_path("models/shakespeare-" + name); }

// What became of one request.
struct Outcome {
  std::vector<std::int32_t> tokens;
  std::string text;
  FinishReason finish = FinishReason::kNone;
  std::map<std::int64_t, std::vector<float>> logits;  // by position
};

inline std::unique_ptr<Engine> make_engine(EngineOptions options) {
  Result<std::unique_ptr<Engine>> engine = Engine::create(std::move(options));
  EXPECT_TRUE(engine.ok()) << engine.status().to_string();
  return engine.ok() ? std::move(engine).value() : nullptr;
}

// Runs all requests together and returns their outcomes in order.
inline std::vector<Outcome> run_all(Engine& engine, std::vector<GenerateRequest> requests) {
  std::vector<Outcome> outcomes(requests.size());
  std::map<RequestId, std::size_t> index;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].on_logits = [&outcomes, i](std::int64_t position, std::span<const float> logits) {
      outcomes[i].logits[position].assign(logits.begin(), logits.end());
    };
    const Result<RequestId> id = engine.add(std::move(requests[i]));
    EXPECT_TRUE(id.ok()) << id.status().to_string();
    if (id.ok()) index[*id] = i;
  }
  while (engine.has_work()) {
    const Result<std::vector<RequestUpdate>> updates = engine.step();
    EXPECT_TRUE(updates.ok()) << updates.status().to_string();
    if (!updates.ok()) break;
    for (const RequestUpdate& update : *updates) {
      Outcome& outcome = outcomes[index.at(update.id)];
      outcome.tokens.insert(outcome.tokens.end(), update.tokens.begin(), update.tokens.end());
      outcome.text += update.text;
      if (update.finish != FinishReason::kNone) outcome.finish = update.finish;
    }
  }
  return outcomes;
}

inline Outcome run_one(Engine& engine, GenerateRequest request) {
  std::vector<GenerateRequest> requests;
  requests.push_back(std::move(request));
  return run_all(engine, std::move(requests)).front();
}

// A prompt of `length` tokens below `vocab`, different for each seed.
inline std::vector<std::int32_t> some_prompt(std::int32_t length, std::uint32_t seed, std::int32_t vocab) {
  std::vector<std::int32_t> out;
  std::uint32_t state = seed * 2654435761u + 12345u;
  for (std::int32_t i = 0; i < length; ++i) {
    state = state * 1664525u + 1013904223u;
    out.push_back(3 + static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(vocab - 3)));
  }
  return out;
}

inline GenerateRequest greedy_request(std::vector<std::int32_t> prompt, std::int32_t max_tokens) {
  GenerateRequest request{.prompt = std::move(prompt)};
  request.sampling.max_tokens = max_tokens;
  request.sampling.eos = EosRule::kIgnore;
  return request;
}

}  // namespace quire::engine_test
