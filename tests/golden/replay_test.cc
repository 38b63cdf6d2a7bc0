// Replays every golden case on the reference and on each instruction set, in the case's layout and in others.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "cli/replay/replay_case.h"
#include "cli/runtime_options.h"
#include "cpu/kernel_table.h"
#include "io/case_file.h"

namespace quire::cli {
namespace {

constexpr std::size_t kNumCases = 63;

struct Place {
  const char* name;
  Backplane backplane;
  Isa isa;
};

constexpr Place kPlaces[] = {{"reference", Backplane::kReference, Isa::kScalar},
                             {"scalar", Backplane::kCpu, Isa::kScalar},
                             {"avx2", Backplane::kCpu, Isa::kAvx2},
                             {"avx512", Backplane::kCpu, Isa::kAvx512},
                             {"avx512bf16", Backplane::kCpu, Isa::kAvx512Bf16}};

std::vector<std::string> case_files() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(QUIRE_CASES_DIR)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

class GoldenCases : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    options_.runtime.backplane = GetParam().backplane;
    options_.runtime.isa = GetParam().isa;
    if (GetParam().backplane != Backplane::kCpu) return;
    const std::vector<Isa> available = available_isas();
    if (std::find(available.begin(), available.end(), GetParam().isa) == available.end()) {
      GTEST_SKIP() << "this machine cannot run " << GetParam().name;
    }
    // That really this ISA runs: its kernels are there, and are no other ISA's.
    ASSERT_NE(cpu::kernel_table(GetParam().isa), nullptr);
    for (const Isa other : available) {
      if (other == GetParam().isa) continue;
      EXPECT_NE(cpu::kernel_table(GetParam().isa)->attend, cpu::kernel_table(other)->attend);
    }
  }

  void replay_all() const {
    const std::vector<std::string> files = case_files();
    ASSERT_EQ(files.size(), kNumCases);
    for (const std::string& file : files) {
      const auto read = read_attention_case(file);
      ASSERT_TRUE(read.ok()) << read.status().message();
      const ReplayVerdict verdict = replay_case(*read, options_);
      EXPECT_TRUE(verdict.passed) << read->name << ": " << verdict.complaint;
    }
  }

  ReplayOptions options_;
};

TEST_P(GoldenCases, AsTheyAre) { replay_all(); }

TEST_P(GoldenCases, HeadsBeforeTokens) {
  options_.layout = KVCacheLayout::kHND;
  replay_all();
}

TEST_P(GoldenCases, TokensBeforeHeads) {
  options_.layout = KVCacheLayout::kNHD;
  replay_all();
}

TEST_P(GoldenCases, SeparateScales) {
  options_.scales = ScalePlacement::kSeparate;
  replay_all();
}

TEST_P(GoldenCases, OneThread) {
  options_.runtime.num_threads = 1;
  replay_all();
}

INSTANTIATE_TEST_SUITE_P(Everywhere, GoldenCases, testing::ValuesIn(kPlaces),
                         [](const auto& place) { return std::string(place.param.name); });

// A case whose answer, cache or batch was changed must fail: otherwise the tests above would prove nothing.
class DamagedCase : public testing::Test {
 protected:
  // Replays the case with the named tensor's bytes changed by `change`, on the reference.
  static ReplayVerdict replay_changed(const std::string& name, const std::string& tensor, std::size_t index) {
    auto file = SafetensorsFile::open(std::string(QUIRE_CASES_DIR) + "/" + name + ".safetensors");
    EXPECT_TRUE(file.ok());
    std::vector<std::vector<std::byte>> data;
    std::vector<NamedTensor> tensors;
    for (const std::string& key : file->names()) {
      const auto raw = *file->raw(key);
      data.emplace_back(raw.begin(), raw.end());
      if (key == tensor) data.back()[index] ^= std::byte{0x5a};
      tensors.push_back({key, *file->tensor(key)});
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].tensor.data = data[i].data();
    const auto bytes = serialize_safetensors(tensors, file->metadata());
    auto changed = SafetensorsFile::from_bytes(*bytes, "changed");
    const auto read = parse_attention_case(std::move(changed).value());
    EXPECT_TRUE(read.ok()) << read.status().message();
    ReplayOptions options;
    options.runtime.backplane = Backplane::kReference;
    return replay_case(*read, options);
  }
};

TEST_F(DamagedCase, WrongAnswer) {
  const ReplayVerdict verdict = replay_changed("triton_mixed_f32", "output", 3);
  EXPECT_FALSE(verdict.passed);
  EXPECT_NE(verdict.complaint.find("output"), std::string::npos) << verdict.complaint;
}

TEST_F(DamagedCase, WrongCacheAfterwards) {
  const ReplayVerdict verdict = replay_changed("triton_fp8_kv", "kv_cache_after", 5000);
  EXPECT_FALSE(verdict.passed);
  EXPECT_NE(verdict.complaint.find("kv_cache"), std::string::npos) << verdict.complaint;
}

TEST_F(DamagedCase, WrongSlot) {
  const ReplayVerdict verdict = replay_changed("triton_mixed_bf16", "slot_mapping", 6);
  EXPECT_FALSE(verdict.passed);
  EXPECT_FALSE(verdict.complaint.empty());
}

TEST_F(DamagedCase, WrongBlock) {
  const ReplayVerdict verdict = replay_changed("triton_mixed_bf16", "block_table", 2);
  EXPECT_FALSE(verdict.passed);
  EXPECT_NE(verdict.complaint.find("block"), std::string::npos) << verdict.complaint;
}

}  // namespace
}  // namespace quire::cli
