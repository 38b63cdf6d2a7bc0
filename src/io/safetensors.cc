// The safetensors reader: the checks between a hostile file and a tensor view.
#include "io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>

#include "core/checked.h"
#include "io/mapped_file.h"

namespace quire {
namespace {

constexpr std::int64_t kLengthBytes = 8;

std::uint64_t read_le64(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = (value << 8) | static_cast<std::uint64_t>(bytes[static_cast<std::size_t>(i)]);
  return value;
}

std::optional<DType> quire_dtype(std::string_view word) {
  static constexpr std::pair<std::string_view, DType> kWords[] = {
      {"F32", DType::kFloat32},        {"F16", DType::kFloat16},        {"BF16", DType::kBFloat16},
      {"F8_E4M3", DType::kFloat8E4M3}, {"F8_E5M2", DType::kFloat8E5M2}, {"I8", DType::kInt8},
      {"U8", DType::kUInt8},           {"I32", DType::kInt32},          {"I64", DType::kInt64}};
  for (const auto& [name, dtype] : kWords) {
    if (name == word) return dtype;
  }
  return std::nullopt;
}

std::string list_string(std::span<const std::int64_t> values) {
  std::string text = "[";
  for (std::int64_t value : values) text += (text.size() > 1 ? ", " : "") + std::to_string(value);
  return text + "]";
}

// One entry against itself and the size of the data; messages start with the tensor's name.
Status check_entry(const SafetensorsEntry& entry, std::int64_t data_bytes) {
  const std::int64_t element = safetensors_dtype_bytes(entry.dtype);
  if (element == 0) return data_loss(entry.name + ".dtype: unknown dtype \"" + entry.dtype + "\"");
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return data_loss(entry.name + ".data_offsets: want begin <= end <= " + std::to_string(data_bytes) + ", got " +
                     list_string(std::vector{entry.begin, entry.end}));
  }
  // Zeros are taken as ones for the overflow check, so that nobody's product of a shape can wrap on its way to zero.
  std::int64_t bytes = element;
  bool empty = false;
  for (const std::int64_t size : entry.shape) {
    const auto product = checked_mul(bytes, std::max<std::int64_t>(size, 1));
    if (!product) return data_loss(entry.name + ".shape: its size overflows: " + list_string(entry.shape));
    bytes = *product;
    empty = empty || size == 0;
  }
  if (empty) bytes = 0;
  if (bytes != entry.end - entry.begin) {
    return data_loss(entry.name + ".data_offsets: want " + std::to_string(bytes) + " bytes for " + entry.dtype + " " +
                     list_string(entry.shape) + ", got " + std::to_string(entry.end - entry.begin));
  }
  return {};
}

// The tensors must cover the data exactly: each begins where the one before it ends.
Status check_coverage(std::span<const SafetensorsEntry> entries, std::int64_t data_bytes) {
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& entry : entries) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  std::int64_t end = 0;
  for (const SafetensorsEntry* entry : order) {
    if (entry->begin != end) {
      return data_loss(entry->name + ".data_offsets: " + (entry->begin < end ? "overlaps" : "leaves a hole after") +
                       " the data before it: want begin " + std::to_string(end) + ", got " +
                       std::to_string(entry->begin));
    }
    end = entry->end;
  }
  if (end != data_bytes) {
    return data_loss("want data of " + std::to_string(end) + " bytes behind the header, got " +
                     std::to_string(data_bytes));
  }
  return {};
}

}  // namespace

struct SafetensorsFile::State {
  std::string path;
  std::optional<MappedFile> file;
  std::span<const std::byte> data;  // behind the header
  SafetensorsHeader header;
  std::mutex mutex;  // guards copies
  std::map<std::string, std::vector<std::byte>, std::less<>> copies;

  const SafetensorsEntry* find(std::string_view name) const {
    const auto at =
        std::lower_bound(header.entries.begin(), header.entries.end(), name,
                         [](const SafetensorsEntry& entry, std::string_view key) { return entry.name < key; });
    return at != header.entries.end() && at->name == name ? &*at : nullptr;
  }
  std::span<const std::byte> bytes_of(const SafetensorsEntry& entry) const {
    return data.subspan(static_cast<std::size_t>(entry.begin), static_cast<std::size_t>(entry.end - entry.begin));
  }
  Status missing(std::string_view name) const {
    return not_found(path + ": " + std::string(name) + ": no such tensor");
  }

  // Splits the bytes into header and data, and checks all of it; messages lack the path.
  Status load(std::span<const std::byte> bytes) {
    const auto size = static_cast<std::int64_t>(bytes.size());
    if (size < kLengthBytes) return data_loss("want at least 8 bytes, got " + std::to_string(size));
    const std::uint64_t length = read_le64(bytes);
    const std::int64_t limit = std::min(size - kLengthBytes, kMaxSafetensorsHeaderBytes);
    if (length > static_cast<std::uint64_t>(limit)) {
      return data_loss("header length: want at most " + std::to_string(limit) + " bytes (file of " +
                       std::to_string(size) + "), got " + std::to_string(length));
    }
    const auto header_bytes = static_cast<std::size_t>(length);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes);
    if (!text.starts_with('{')) return data_loss("header: want it to start with '{'");
    QUIRE_ASSIGN_OR_RETURN(header, parse_safetensors_header(text));
    data = bytes.subspan(static_cast<std::size_t>(kLengthBytes) + header_bytes);
    const auto data_bytes = static_cast<std::int64_t>(data.size());
    for (const SafetensorsEntry& entry : header.entries) QUIRE_RETURN_IF_ERROR(check_entry(entry, data_bytes));
    QUIRE_RETURN_IF_ERROR(check_coverage(header.entries, data_bytes));
    std::sort(header.entries.begin(), header.entries.end(),
              [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name < b.name; });
    return {};
  }
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  QUIRE_ASSIGN_OR_RETURN(SafetensorsFile out, from_bytes(file.bytes(), path));
  out.state_->file.emplace(std::move(file));
  return out;
}

Result<SafetensorsFile> SafetensorsFile::from_bytes(std::span<const std::byte> bytes, std::string name) {
  auto state = std::make_unique<State>();
  state->path = std::move(name);
  if (const Status status = state->load(bytes); !status.ok()) {
    return Status(status.code(), state->path + ": " + status.message());
  }
  return SafetensorsFile(std::move(state));
}

const std::string& SafetensorsFile::path() const { return state_->path; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return state_->header.metadata; }
std::span<const SafetensorsEntry> SafetensorsFile::entries() const { return state_->header.entries; }
bool SafetensorsFile::contains(std::string_view name) const { return state_->find(name) != nullptr; }

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> out;
  out.reserve(entries().size());
  for (const SafetensorsEntry& entry : entries()) out.push_back(entry.name);
  return out;
}

Result<std::span<const std::byte>> SafetensorsFile::raw(std::string_view name) const {
  const SafetensorsEntry* entry = state_->find(name);
  if (entry == nullptr) return state_->missing(name);
  return state_->bytes_of(*entry);
}

Result<TensorView> SafetensorsFile::tensor(std::string_view name) const {
  const SafetensorsEntry* entry = state_->find(name);
  if (entry == nullptr) return state_->missing(name);
  const std::optional<DType> dtype = quire_dtype(entry->dtype);
  const std::string where = state_->path + ": " + entry->name;
  if (!dtype) return unsupported(where + ".dtype: " + entry->dtype + " is none of quire's dtypes");
  if (entry->shape.size() > static_cast<std::size_t>(kMaxRank)) {
    return unsupported(where + ".shape: want at most " + std::to_string(kMaxRank) + " dimensions, got " +
                       std::to_string(entry->shape.size()));
  }
  std::span<const std::byte> bytes = state_->bytes_of(*entry);
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % static_cast<std::uintptr_t>(dtype_bytes(*dtype)) != 0) {
    const std::lock_guard lock(state_->mutex);
    auto [copy, fresh] = state_->copies.try_emplace(entry->name);
    if (fresh) copy->second.assign(bytes.begin(), bytes.end());
    bytes = copy->second;
  }
  TensorView view;
  view.data = const_cast<std::byte*>(bytes.data());
  view.dtype = *dtype;
  view.rank = static_cast<std::int32_t>(entry->shape.size());
  std::int64_t stride = 1;
  for (std::size_t dim = entry->shape.size(); dim-- > 0;) {
    view.shape[dim] = entry->shape[dim];
    view.strides[dim] = stride;
    stride *= std::max<std::int64_t>(entry->shape[dim], 1);
  }
  return view;
}

}  // namespace quire
