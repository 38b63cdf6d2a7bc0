// Tests of the safetensors reader and writer: round trips, and every way a file can lie.
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

namespace quire {
namespace {

using Bytes = std::vector<std::byte>;

Bytes file_of(std::string_view header, std::size_t data_bytes, std::uint64_t length) {
  Bytes out(8 + header.size() + data_bytes, std::byte{7});
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<std::byte>(length >> (8 * i));
  std::memcpy(out.data() + 8, header.data(), header.size());
  return out;
}

Bytes file_of(std::string_view header, std::size_t data_bytes) { return file_of(header, data_bytes, header.size()); }

// Reads a copy of exactly these bytes, so that a sanitizer sees the first byte beyond them.
Status read_status(const Bytes& bytes) {
  const auto exact = std::make_unique<std::byte[]>(bytes.size());
  if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
  auto file = SafetensorsFile::from_bytes({exact.get(), bytes.size()}, "t.safetensors");
  if (!file.ok()) return file.status();
  for (const std::string& name : file->names()) {
    if (const auto tensor = file->tensor(name); !tensor.ok()) return tensor.status();
  }
  return {};
}

void expect_data_loss(const Bytes& bytes, const std::string& part) {
  const Status status = read_status(bytes);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.to_string();
  EXPECT_NE(status.message().find("t.safetensors"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find(part), std::string::npos) << status.message() << " lacks: " << part;
}

TEST(Safetensors, RoundTripOfEveryDtype) {
  std::vector<std::vector<std::byte>> data;
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    data.emplace_back(static_cast<std::size_t>(6 * dtype_bytes(dtype)), static_cast<std::byte>(i + 1));
    tensors.push_back({"t" + std::to_string(i), *make_tensor(data.back().data(), dtype, {2, 3})});
  }
  const auto bytes = serialize_safetensors(tensors, {{"format", "x"}, {"quote", "a\"b"}});
  ASSERT_TRUE(bytes.ok()) << bytes.status().message();
  auto file = SafetensorsFile::from_bytes(*bytes, "t");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->metadata().at("quote"), "a\"b");
  ASSERT_EQ(file->names().size(), static_cast<std::size_t>(kNumDTypes));
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto view = file->tensor("t" + std::to_string(i));
    ASSERT_TRUE(view.ok()) << view.status().message();
    EXPECT_EQ(view->dtype, static_cast<DType>(i));
    EXPECT_EQ(shape_string(*view), "[2, 3]");
    EXPECT_TRUE(view->is_contiguous());
    EXPECT_EQ(
        std::memcmp(view->data, data[static_cast<std::size_t>(i)].data(), data[static_cast<std::size_t>(i)].size()), 0);
  }
}

TEST(Safetensors, ScalarsAndEmptyTensors) {
  float one = 1.5f;
  const std::vector<NamedTensor> tensors = {{"scalar", *make_tensor(&one, DType::kFloat32, {})},
                                            {"none", *make_tensor(nullptr, DType::kFloat16, {4, 0, 2})}};
  const auto bytes = serialize_safetensors(tensors, {});
  ASSERT_TRUE(bytes.ok());
  auto file = SafetensorsFile::from_bytes(*bytes, "t");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensor("scalar")->rank, 0);
  EXPECT_EQ(*file->tensor("scalar")->as<float>(), 1.5f);
  EXPECT_EQ(file->tensor("none")->num_elements(), 0);
  EXPECT_EQ(file->tensor("other").status().code(), StatusCode::kNotFound);
}

TEST(Safetensors, ReadsFromDisk) {
  const std::string path = (std::filesystem::path(testing::TempDir()) / "quire_disk.safetensors").string();
  std::int32_t values[3] = {1, -2, 3};
  const std::vector<NamedTensor> tensors = {{"v", *make_tensor(values, DType::kInt32, {3})}};
  ASSERT_TRUE(write_safetensors(path, tensors, {}).ok());
  auto opened = SafetensorsFile::open(path);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto view = opened->tensor("v");
  const SafetensorsFile moved = std::move(opened).value();
  EXPECT_EQ(view->as<std::int32_t>()[1], -2);  // moving keeps views
  std::filesystem::remove(path);
}

TEST(Safetensors, FilesThatCannotBeOpened) {
  EXPECT_EQ(SafetensorsFile::open("/nowhere/x.safetensors").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::open(testing::TempDir()).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(write_safetensors("/nowhere/x.safetensors", {}, {}).code(), StatusCode::kNotFound);
}

TEST(Safetensors, UnalignedTensorsAreCopied) {
  // One byte first, so that the F32 behind it is off by one.
  const Bytes bytes = file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                              5);
  auto file = SafetensorsFile::from_bytes(bytes, "t");
  ASSERT_TRUE(file.ok()) << file.status().message();
  const auto view = file->tensor("b");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(view->data) % 4, 0u);
  EXPECT_EQ(std::memcmp(view->data, "\7\7\7\7", 4), 0);
  EXPECT_EQ(file->tensor("b")->data, view->data);
}

TEST(Safetensors, DtypesOfTheFormatThatQuireLacks) {
  const Bytes bytes = file_of(R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", 8);
  auto file = SafetensorsFile::from_bytes(bytes, "t");
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensor("a").status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(file->raw("a")->size(), 8u);
}

TEST(Safetensors, Lengths) {
  expect_data_loss({}, "at least 8 bytes");
  expect_data_loss(Bytes(7), "at least 8 bytes");
  expect_data_loss(file_of("{}", 0, 3), "header length");
  expect_data_loss(file_of("{}", 0, ~0ull), "header length");
  expect_data_loss(file_of("{}", 0, 1ull << 63), "header length");
  expect_data_loss(file_of("{}", 0, 0), "start with '{'");
  expect_data_loss(file_of(" {}", 0), "start with '{'");
  expect_data_loss(file_of("{}", 4), "want data of 0 bytes");
  EXPECT_TRUE(read_status(file_of("{}", 0)).ok());
  EXPECT_TRUE(read_status(file_of("{}      ", 0)).ok());
}

TEST(Safetensors, HeaderAboveTheCapIsRefused) {
  const Bytes bytes(static_cast<std::size_t>(kMaxSafetensorsHeaderBytes) + 100, std::byte{' '});
  Bytes file = bytes;
  const std::uint64_t length = static_cast<std::uint64_t>(kMaxSafetensorsHeaderBytes) + 1;
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(length >> (8 * i));
  expect_data_loss(file, "at most 100000000");
}

struct BadHeader {
  const char* header;
  std::size_t data_bytes;
  const char* part;
};

TEST(Safetensors, BadHeaders) {
  const BadHeader cases[] = {
      {R"({"a")", 0, "malformed JSON"},
      {R"({} x)", 0, "malformed JSON"},
      {R"({"a":1})", 0, "a: want an object, got 1"},
      {R"({"a":[]})", 0, "a: want an object"},
      {R"({"a":{}})", 0, "a.dtype: missing"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "a.data_offsets: missing"},
      {R"({"a":{"dtype":3,"shape":[1],"data_offsets":[0,4]}})", 4, "a.dtype: want a string"},
      {R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 4, "a.dtype: unknown dtype \"F31\""},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4, "a.shape: want an array"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "a.shape: want an integer >= 0, got -1"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "a.shape: want an integer"},
      {R"({"a":{"dtype":"F32","shape":[1e99],"data_offsets":[0,4]}})", 4, "a.shape: want an integer"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "a.shape: want an integer"},
      {R"({"a":{"dtype":"F32","shape":[null],"data_offsets":[0,4]}})", 4, "got null"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4, "below 2^63"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,4]}})", 4, "a.shape"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,4]}})", 4, "overflows"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4,0],"data_offsets":[0,0]}})", 0, "overflows"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "want 8 bytes for F32 [2], got 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "begin <= end"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}})", 4, "begin <= end <= 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "want 2 numbers, got 3"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[9223372036854775804,9223372036854775807]}})", 4, "<= 4"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "b.data_offsets: overlaps"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
       3, "leaves a hole"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "leaves a hole"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "want data of 1 bytes"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "a: given twice"},
      {R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1, "a.dtype: given twice"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":1}})", 1, "a.extra"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__.k: want a string, got 1"},
      {R"({"__metadata__":{"k":{"l":"m"}}})", 0, "__metadata__.k: want a string"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "__metadata__.k: given twice"},
      {R"({"__metadata__":[]})", 0, "__metadata__: want an object"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "given twice"},
      {"{\"\xff\":{}}", 0, "malformed JSON"},
  };
  for (const BadHeader& bad : cases) {
    SCOPED_TRACE(bad.header);
    expect_data_loss(file_of(bad.header, bad.data_bytes), bad.part);
  }
}

TEST(Safetensors, DeepNestingIsRefusedEarly) {
  std::string deep = "{\"a\":";
  for (int i = 0; i < 1'000'000; ++i) deep += '[';
  expect_data_loss(file_of(deep, 0), "a: want an object, got an array");
}

TEST(Safetensors, TooManyDimensions) {
  const Bytes bytes = file_of(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1);
  EXPECT_EQ(read_status(bytes).code(), StatusCode::kUnsupported);
}

Bytes good_file() {
  float data[6] = {1, 2, 3, 4, 5, 6};
  std::int64_t more[2] = {7, 8};
  const std::vector<NamedTensor> tensors = {{"alpha", *make_tensor(data, DType::kFloat32, {2, 3})},
                                            {"beta", *make_tensor(more, DType::kInt64, {2})}};
  return *serialize_safetensors(tensors, {{"format", "test"}});
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const Bytes good = good_file();
  ASSERT_TRUE(read_status(good).ok());
  for (std::size_t size = 0; size < good.size(); ++size) {
    const Bytes cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(read_status(cut).code(), StatusCode::kDataLoss) << size;
  }
  Bytes longer = good;
  longer.push_back(std::byte{0});
  EXPECT_EQ(read_status(longer).code(), StatusCode::kDataLoss);
}

TEST(Safetensors, RandomDamageNeverCrashes) {
  const Bytes good = good_file();
  std::mt19937 random(1);
  int errors = 0;
  for (int round = 0; round < 20'000; ++round) {
    Bytes bad = good;
    for (int i = 0; i < 1 + round % 4; ++i) bad[random() % bad.size()] = static_cast<std::byte>(random());
    errors += read_status(bad).ok() ? 0 : 1;
  }
  EXPECT_GT(errors, 10'000);
}

TEST(SafetensorsWriter, RefusesWhatItCannotWrite) {
  float data[6] = {};
  const TensorView whole = *make_tensor(data, DType::kFloat32, {2, 3});
  EXPECT_EQ(serialize_safetensors(std::vector<NamedTensor>{{"a", whole}, {"a", whole}}, {}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(serialize_safetensors(std::vector<NamedTensor>{{"__metadata__", whole}}, {}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(serialize_safetensors(std::vector<NamedTensor>{{"a", slice(whole, 1, 0, 2)}}, {}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(serialize_safetensors(std::vector<NamedTensor>{{"a", *make_tensor(nullptr, DType::kInt8, {1})}}, {})
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
