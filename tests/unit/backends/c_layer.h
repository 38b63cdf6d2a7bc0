// A LayerRun once more through the C API: the same batch and tensors as C structs, for comparison bit by bit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "quire/c_api.h"
#include "unit/backends/layer_run.h"

namespace quire::test {

QuireTensor to_c(const TensorView& view);
// 4 query heads, 2 KV heads, head size 16, float32, on the CPU.
QuireLayerConfig small_layer();
// Expects a status and a part of quire_last_error().
void expect_error(int status, int code, const std::string& message);

struct CDestroy {
  void operator()(QuireTree* tree) const { quire_tree_destroy(tree); }
  void operator()(QuireBuilder* builder) const { quire_builder_destroy(builder); }
  void operator()(QuireMetadata* metadata) const { quire_metadata_destroy(metadata); }
  void operator()(QuireImpl* impl) const { quire_impl_destroy(impl); }
};
template <class Handle>
using COwned = std::unique_ptr<Handle, CDestroy>;

// The layer and batch of a run, which must outlive it. Structs may be changed before their use.
class CLayer {
 public:
  explicit CLayer(const LayerRun& run);

  QuireLayerConfig config;
  QuireBatch batch;
  const QuireBackend* backend = nullptr;
  COwned<QuireBuilder> builder;
  COwned<QuireMetadata> metadata;
  COwned<QuireImpl> impl;
  std::vector<float> output, lse;

  // Makes the handles; then attends to what LayerRun::forward has left in the run's args. QuireStatus.
  int make();
  int forward();

 private:
  const LayerRun& run_;
  QuireTensor block_table_, slot_mapping_;
  double lambda_init_ = 0.0;
  std::vector<QuireMmRange> ranges_;
  std::vector<COwned<QuireTree>> trees_;
  std::vector<const QuireTree*> tree_pointers_;
};

}  // namespace quire::test
