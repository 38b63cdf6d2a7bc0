// Runtime: names of backplanes and ISAs, and the choice of an ISA on this machine.
#include "quire/runtime.h"

#include <array>
#include <cstdlib>
#include <string>

#include "cpu/features.h"
#include "cpu/kernel_table.h"

namespace quire {
namespace {

constexpr std::array<std::string_view, 3> kBackplaneNames{"reference", "cpu", "cuda"};
constexpr std::array<std::string_view, 4> kIsaNames{"scalar", "avx2", "avx512", "avx512bf16"};

// The index of `name` in `names`, or an error that lists them.
template <std::size_t kCount>
Result<std::size_t> find_name(std::string_view what, const std::array<std::string_view, kCount>& names,
                              std::string_view name) {
  std::string known;
  for (std::size_t i = 0; i < kCount; ++i) {
    if (names[i] == name) return i;
    known += (known.empty() ? "" : ", ") + std::string(names[i]);
  }
  return invalid_argument(std::string(what) + ": want one of " + known + ", got '" + std::string(name) + "'");
}

}  // namespace

std::string_view backplane_name(Backplane backplane) { return kBackplaneNames[static_cast<std::size_t>(backplane)]; }

Result<Backplane> parse_backplane(std::string_view name) {
  QUIRE_ASSIGN_OR_RETURN(const std::size_t index, find_name("backplane", kBackplaneNames, name));
  return static_cast<Backplane>(index);
}

std::string_view isa_name(Isa isa) { return kIsaNames[static_cast<std::size_t>(isa)]; }

Result<Isa> parse_isa(std::string_view name) {
  QUIRE_ASSIGN_OR_RETURN(const std::size_t index, find_name("isa", kIsaNames, name));
  return static_cast<Isa>(index);
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    if (cpu::kernel_table(isa) != nullptr) found.push_back(isa);
  }
  return found;
}

Result<Isa> default_isa() {
  const std::vector<Isa> available = available_isas();
  const char* forced = std::getenv("QUIRE_ISA");
  if (forced == nullptr || *forced == '\0') return available.back();
  auto parsed = parse_isa(forced);
  if (!parsed.ok()) return invalid_argument("QUIRE_ISA: " + parsed.status().message());
  if (cpu::kernel_table(*parsed) == nullptr) {
    return unsupported("QUIRE_ISA: this processor or build has no " + std::string(isa_name(*parsed)) +
                       "; its fastest is " + std::string(isa_name(available.back())));
  }
  return *parsed;
}

Result<Runtime> default_runtime() {
  QUIRE_ASSIGN_OR_RETURN(const Isa isa, default_isa());
  return Runtime{.backplane = Backplane::kCpu, .isa = isa};
}

}  // namespace quire
