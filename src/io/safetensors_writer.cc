// The safetensors writer.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/checked.h"
#include "io/safetensors.h"
#include "io/whole_file.h"

namespace quire {
namespace {

const char* format_word(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "F32";
    case DType::kFloat16:
      return "F16";
    case DType::kBFloat16:
      return "BF16";
    case DType::kFloat8E4M3:
      return "F8_E4M3";
    case DType::kFloat8E5M2:
      return "F8_E5M2";
    case DType::kInt8:
      return "I8";
    case DType::kUInt8:
      return "U8";
    case DType::kInt32:
      return "I32";
    case DType::kInt64:
      return "I64";
  }
  return "";
}

std::int64_t tensor_bytes(const TensorView& tensor) { return tensor.num_elements() * dtype_bytes(tensor.dtype); }

Status check_writable(std::span<const NamedTensor> tensors) {
  std::set<std::string> names = {"__metadata__"};
  for (const NamedTensor& item : tensors) {
    if (!names.insert(item.name).second) return invalid_argument(item.name + ": name is taken");
    if (item.tensor.device.type != DeviceType::kCpu) {
      return invalid_argument(item.name + ".device: want cpu, got " + device_name(item.tensor.device));
    }
    if (item.tensor.num_elements() > 0 && !item.tensor.is_contiguous())
      return invalid_argument(item.name + ".strides: want a contiguous tensor");
    if (item.tensor.data == nullptr && item.tensor.num_elements() > 0) {
      return invalid_argument(item.name + ": want data, got a null pointer");
    }
  }
  return {};
}

std::string header_text(std::span<const NamedTensor* const> order, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t offset = 0;
  for (const NamedTensor* item : order) {
    const std::int64_t end = offset + tensor_bytes(item->tensor);
    const std::vector<std::int64_t> shape(item->tensor.shape.begin(), item->tensor.shape.begin() + item->tensor.rank);
    header[item->name] = {{"dtype", format_word(item->tensor.dtype)},
                          {"shape", shape},
                          {"data_offsets", std::vector<std::int64_t>{offset, end}}};
    offset = end;
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize(static_cast<std::size_t>(round_up(static_cast<std::int64_t>(text.size()), 8)), ' ');
  return text;
}

}  // namespace

Result<std::vector<std::byte>> serialize_safetensors(std::span<const NamedTensor> tensors,
                                                     const std::map<std::string, std::string>& metadata) {
  QUIRE_RETURN_IF_ERROR(check_writable(tensors));
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& item : tensors) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return dtype_bytes(a->tensor.dtype) > dtype_bytes(b->tensor.dtype);
  });
  try {
    const std::string text = header_text(order, metadata);
    std::vector<std::byte> out(8 + text.size());
    for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<std::byte>(text.size() >> (8 * i));
    std::memcpy(out.data() + 8, text.data(), text.size());
    for (const NamedTensor* item : order) {
      const auto* data = item->tensor.as<const std::byte>();
      out.insert(out.end(), data, data + tensor_bytes(item->tensor));
    }
    return out;
  } catch (const std::exception& error) {
    return resource_exhausted(std::string("safetensors: ") + error.what());
  }
}

Status write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, serialize_safetensors(tensors, metadata));
  return write_whole_file(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace quire
