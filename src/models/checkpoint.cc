// Implements Checkpoint.
#include "models/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "core/convert.h"

namespace quire {
namespace {

std::string shape_text(std::initializer_list<std::int64_t> shape) {
  std::string out = "[";
  for (const std::int64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

bool has_shape(const TensorView& tensor, std::initializer_list<std::int64_t> shape) {
  if (static_cast<std::size_t>(tensor.rank) != shape.size()) return false;
  return std::equal(shape.begin(), shape.end(), tensor.shape.begin());
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const std::string& folder) {
  const std::filesystem::path path(folder);
  QUIRE_ASSIGN_OR_RETURN(HfConfig config, HfConfig::open((path / "config.json").string()));
  Checkpoint checkpoint(folder, std::move(config));
  if (checkpoint.config_.has("quantization_config")) {
    return unsupported(checkpoint.config_.path() +
                       ": key 'quantization_config': want weights in float32, float16 or bfloat16, got quantised ones");
  }
  std::error_code error;
  const std::filesystem::path index = path / "model.safetensors.index.json";
  const std::filesystem::path single = path / "model.safetensors";
  if (!std::filesystem::exists(single, error) && std::filesystem::exists(index, error)) {
    QUIRE_RETURN_IF_ERROR(checkpoint.open_index(index.string()));
  } else {
    QUIRE_RETURN_IF_ERROR(checkpoint.add_file(single.string()));
  }
  return checkpoint;
}

Status Checkpoint::open_index(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const HfConfig index, HfConfig::open(path));
  QUIRE_ASSIGN_OR_RETURN(const HfConfig map, index.object("weight_map"));
  std::set<std::string> shards;
  std::vector<std::pair<std::string, std::string>> wanted;
  for (const std::string& name : map.keys()) {
    QUIRE_ASSIGN_OR_RETURN(std::string shard, map.text(name));
    if (shard.empty() || shard.find('/') != std::string::npos || shard.find('\\') != std::string::npos) {
      return data_loss(path + ": key 'weight_map." + name + "': want the name of a file beside it, got '" + shard +
                       "'");
    }
    shards.insert(shard);
    wanted.emplace_back(name, std::move(shard));
  }
  for (const std::string& shard : shards)
    QUIRE_RETURN_IF_ERROR(add_file((std::filesystem::path(folder_) / shard).string()));
  for (const auto& [name, shard] : wanted) {
    const auto found = tensors_.find(name);
    const std::string file = (std::filesystem::path(folder_) / shard).string();
    if (found == tensors_.end() || found->second->path() != file) {
      return data_loss(file + ": want tensor '" + name + "', which " + path + " places there, got none");
    }
  }
  return {};
}

Status Checkpoint::add_file(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(SafetensorsFile opened, SafetensorsFile::open(path));
  auto file = std::make_unique<SafetensorsFile>(std::move(opened));
  for (const std::string& name : file->names()) {
    if (!tensors_.emplace(name, file.get()).second) {
      return data_loss(path + ": tensor '" + name + "' is in another file too");
    }
  }
  files_.push_back(std::move(file));
  return {};
}

Result<std::string> Checkpoint::architecture() const {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> names, config_.texts("architectures"));
  if (names.size() != 1) {
    return data_loss(config_.path() + ": key 'architectures': want one name, got " + std::to_string(names.size()));
  }
  return names.front();
}

Result<DType> Checkpoint::dtype() const {
  for (const std::string_view key : {"dtype", "torch_dtype"}) {
    if (!config_.has(key)) continue;
    QUIRE_ASSIGN_OR_RETURN(const std::string name, config_.text(key));
    const Result<DType> dtype = parse_dtype(name);
    if (!dtype.ok() || !is_activation(*dtype)) {
      return data_loss(config_.path() + ": key '" + std::string(key) + "': want float32, float16 or bfloat16, got " +
                       name);
    }
    return *dtype;
  }
  std::int64_t largest = -1;
  DType dtype = DType::kFloat32;
  for (const auto& [name, file] : tensors_) {
    const Result<TensorView> tensor = file->tensor(name);
    if (!tensor.ok() || !is_activation(tensor->dtype) || tensor->num_elements() <= largest) continue;
    largest = tensor->num_elements();
    dtype = tensor->dtype;
  }
  return dtype;
}

std::string Checkpoint::resolve(std::string_view name) const {
  if (tensors_.contains(name)) return std::string(name);
  for (const char* prefix : {"model.", "transformer.", "bert."}) {
    std::string full = prefix + std::string(name);
    if (tensors_.contains(full)) return full;
  }
  return {};
}

bool Checkpoint::contains(std::string_view name) const { return !resolve(name).empty(); }

Result<TensorView> Checkpoint::tensor(std::string_view name, std::initializer_list<std::int64_t> shape) const {
  const std::string full = resolve(name);
  if (full.empty()) {
    const std::string place = files_.size() == 1 ? files_.front()->path() : folder_;
    return not_found(place + ": want tensor '" + std::string(name) + "' " + shape_text(shape) + ", got none");
  }
  const SafetensorsFile& file = *tensors_.find(full)->second;
  QUIRE_ASSIGN_OR_RETURN(const TensorView tensor, file.tensor(full));
  if (!has_shape(tensor, shape)) {
    return data_loss(file.path() + ": tensor '" + full + "': want " + shape_text(shape) + ", got " +
                     shape_string(tensor));
  }
  if (!is_activation(tensor.dtype)) {
    return unsupported(file.path() + ": tensor '" + full + "': want float32, float16 or bfloat16, got " +
                       std::string(dtype_name(tensor.dtype)));
  }
  used_.insert(full);
  return tensor;
}

Result<std::vector<float>> Checkpoint::floats(std::string_view name, std::initializer_list<std::int64_t> shape) const {
  QUIRE_ASSIGN_OR_RETURN(const TensorView view, tensor(name, shape));
  std::vector<float> out(static_cast<std::size_t>(view.num_elements()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = load_as_float(view.data, view.dtype, static_cast<std::int64_t>(i));
  }
  return out;
}

Status Checkpoint::check_all_used(std::span<const std::string_view> ignored) const {
  for (const auto& [name, file] : tensors_) {
    if (used_.contains(name)) continue;
    const auto ends = [&name = name](std::string_view ending) { return name.ends_with(ending); };
    if (name.ends_with("rotary_emb.inv_freq") || std::any_of(ignored.begin(), ignored.end(), ends)) continue;
    return unsupported(file->path() + ": tensor '" + name + "': want only tensors that " + config_.path() +
                       " asks for, got one without a place in the model");
  }
  return {};
}

}  // namespace quire
