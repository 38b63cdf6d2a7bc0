// Checkpoint: a Hugging Face model folder, its configuration and its memory-mapped tensors by name.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/hf_config.h"
#include "io/safetensors.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

class Checkpoint {
 public:
  // Opens config.json and model.safetensors, or the shards that model.safetensors.index.json lists. Errors name the
  // file: missing, malformed, a tensor that the index places in a file that lacks it, quantised weights.
  static Result<Checkpoint> open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const HfConfig& config() const { return config_; }
  // The only entry of config.json's "architectures".
  Result<std::string> architecture() const;
  // The dtype that config.json names ("dtype" or "torch_dtype"), else that of the largest tensor.
  Result<DType> dtype() const;

  // Names are tried as they are and with "model.", "transformer." or "bert." in front, as the classes around a bare
  // model store them.
  bool contains(std::string_view name) const;
  // The tensor of exactly this shape, float32, float16 or bfloat16. Errors name file and tensor.
  Result<TensorView> tensor(std::string_view name, std::initializer_list<std::int64_t> shape) const;
  // The same as float32 values.
  Result<std::vector<float>> floats(std::string_view name, std::initializer_list<std::int64_t> shape) const;
  // An error names the first tensor that nobody asked for, unless its name ends in one of `ignored`: a tensor that is
  // left out changes the result.
  Status check_all_used(std::span<const std::string_view> ignored = {}) const;

 private:
  Checkpoint(std::string folder, HfConfig config) : folder_(std::move(folder)), config_(std::move(config)) {}
  Status open_index(const std::string& path);
  Status add_file(const std::string& path);
  // The stored name that `name` stands for; empty when there is none.
  std::string resolve(std::string_view name) const;

  std::string folder_;
  HfConfig config_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*, std::less<>> tensors_;
  mutable std::set<std::string, std::less<>> used_;
};

}  // namespace quire
