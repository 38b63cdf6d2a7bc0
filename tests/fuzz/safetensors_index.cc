// Fuzz target: any text as model.safetensors.index.json, beside two small shards.
#include <array>

#include "fuzz/scratch.h"
#include "io/safetensors.h"
#include "models/checkpoint.h"

namespace {

const quire::fuzz::ScratchFolder& folder() {
  static const quire::fuzz::ScratchFolder scratch;
  static const bool ready = [] {
    static std::array<float, 2> values{1.0f, 2.0f};
    quire::TensorView view;
    view.data = values.data();
    view.dtype = quire::DType::kFloat32;
    view.rank = 1;
    view.shape = {2};
    view.strides = {1};
    const std::array<quire::NamedTensor, 2> first{{{"a", view}, {"b", view}}};
    const std::array<quire::NamedTensor, 1> second{{{"c", view}}};
    scratch.write("config.json", "{}");
    return quire::write_safetensors(scratch.path() + "/model-1.safetensors", first, {}).ok() &&
           quire::write_safetensors(scratch.path() + "/model-2.safetensors", second, {}).ok();
  }();
  if (!ready) std::abort();
  return scratch;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  folder().write("model.safetensors.index.json", quire::fuzz::text_of(data, size));
  const auto checkpoint = quire::Checkpoint::open(folder().path());
  if (!checkpoint.ok()) return 0;
  for (const char* name : {"a", "b", "c", "d"}) {
    const auto tensor = checkpoint->floats(name, {2});
    if (tensor.ok() && tensor->at(1) != 2.0f) std::abort();
  }
  return 0;
}
