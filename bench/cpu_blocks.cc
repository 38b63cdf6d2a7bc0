// Micro benchmarks of the pieces under CPU attention: exp2, packing, the matrix product. Everything fits the first two
// cache levels; `of_peak` is the share of the multiply-adds that the same process measured.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "cpu/ceilings.h"
#include "cpu/kernel_table.h"

namespace quire::cpu {
namespace {

constexpr std::int32_t kHeadSize = 128;

const Ceilings& ceilings() {
  static const auto kFound = measure_ceilings(1);
  static const Ceilings kNone;
  return kFound.ok() ? *kFound : kNone;
}

void run_exp2(benchmark::State& state, const KernelTable* kernels) {
  std::vector<float> in(4096, -3.7f);
  std::vector<float> out(4096);
  for (auto step : state) {
    kernels->exp2(in.data(), out.data(), 4096);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetItemsProcessed(state.iterations() * 4096);
}

struct PackCase {
  const KernelTable* kernels = nullptr;
  Compute compute = Compute::kFloat32;
  DType storage = DType::kFloat32;
  bool is_keys = true;
};

void run_pack(benchmark::State& state, const PackCase& what) {
  const std::int64_t row_bytes = kHeadSize * dtype_bytes(what.storage);
  std::vector<std::byte> data(static_cast<std::size_t>(kTileKeys * row_bytes));
  std::vector<float> out(static_cast<std::size_t>(kTileKeys * kHeadSize));
  TileRows rows{.begin = 0, .end = kTileKeys};
  for (std::int32_t key = 0; key < kTileKeys; ++key) rows.row[key] = data.data() + key * row_bytes;
  PackTask task{.storage = what.storage, .compute = what.compute, .size = kHeadSize, .rows = &rows};
  task.out = out.data();
  task.out_stride = kHeadSize;
  for (auto step : state) {
    (what.is_keys ? what.kernels->pack_keys : what.kernels->pack_values)(task);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetBytesProcessed(state.iterations() * kTileKeys * row_bytes);
}

void run_gemm(benchmark::State& state, const KernelTable* kernels, Compute compute) {
  const auto rows = static_cast<std::int32_t>(state.range(0));
  const std::int32_t steps = compute == Compute::kFloat32 ? kHeadSize : kHeadSize / 2;
  std::vector<float> a(static_cast<std::size_t>(rows * steps));
  std::vector<float> b(static_cast<std::size_t>(steps * kTileKeys));
  std::vector<float> out(static_cast<std::size_t>(rows * kTileKeys));
  for (auto step : state) {
    kernels->gemm({.compute = compute,
                   .a = a.data(),
                   .a_stride = steps,
                   .b = b.data(),
                   .b_stride = kTileKeys,
                   .out = out.data(),
                   .out_stride = kTileKeys,
                   .rows = rows,
                   .steps = steps,
                   .columns = kTileKeys});
    benchmark::DoNotOptimize(out.data());
  }
  const double flops = 2.0 * rows * kHeadSize * kTileKeys;
  const Rate& peak = compute == Compute::kFloat32 ? ceilings().fma_one : ceilings().bf16_one;
  state.counters["flops"] = benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] =
      benchmark::Counter(flops / (peak.best * 1e9), benchmark::Counter::kIsIterationInvariantRate);
}

int register_all() {
  for (Isa isa : available_isas()) {
    const KernelTable* kernels = kernel_table(isa);
    const std::string name(isa_name(isa));
    benchmark::RegisterBenchmark(("exp2/" + name).c_str(), run_exp2, kernels);
    for (Compute compute : {Compute::kFloat32, Compute::kBFloat16}) {
      const bool is_f32 = compute == Compute::kFloat32;
      if (!is_f32 && !kernels->has_bf16) continue;
      const std::string form = name + (is_f32 ? "/f32" : "/bf16");
      benchmark::RegisterBenchmark(("gemm/" + form).c_str(), run_gemm, kernels, compute)->Arg(4)->Arg(128);
      for (DType storage : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kInt8}) {
        if (!is_f32 && (storage == DType::kFloat32 || storage == DType::kFloat16)) continue;
        const std::string of = form + "/" + std::string(dtype_name(storage));
        benchmark::RegisterBenchmark(("pack_keys/" + of).c_str(), run_pack, PackCase{kernels, compute, storage, true});
        benchmark::RegisterBenchmark(("pack_values/" + of).c_str(), run_pack,
                                     PackCase{kernels, compute, storage, false});
      }
    }
  }
  return 0;
}

const int kRegistered = register_all();

}  // namespace
}  // namespace quire::cpu
