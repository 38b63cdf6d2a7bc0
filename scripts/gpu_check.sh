#!/usr/bin/env bash
# Builds quire for this machine's GPU, runs its gpu tests (also under compute-sanitizer), and prints the table of
# docs/performance.md: gpu_check.sh [BENCH_FILTER]. QUIRE_PROPERTY_CASES sets the generated cases of each kind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly build="build/gpu"
readonly architectures="${QUIRE_CUDA_ARCHITECTURES:-90a-real}"
jobs="$(nproc)"

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUIRE_CUDA=ON -DQUIRE_BUILD_ENGINE=OFF \
  -DQUIRE_BUILD_CLI=OFF -DQUIRE_BUILD_BENCH=OFF -DQUIRE_CUDA_ARCHITECTURES="$architectures"
cmake --build "$build" -j "$jobs" --target quire quire_gpu_tests

arch="${architectures%%;*}"
arch="${arch%-real}"
compile=(nvcc -std=c++20 -O3 -Xcompiler -fopenmp -gencode="arch=compute_$arch,code=sm_$arch" -Isrc -Iinclude)
"${compile[@]}" tests/gpu/bench/gpu_bench.cu "$build/libquire.a" -o "$build/gpu_bench"
"${compile[@]}" tests/gpu/golden/replay_on_device.cu src/cli/replay/*.cc "$build/libquire.a" -o "$build/replay_on_device"

"$build/replay_on_device" tests/golden/cases/*.safetensors

# The generated cases in eight processes, everything else in one.
tests="$build/tests/quire_gpu_tests"
export OMP_NUM_THREADS=2
pids=()
"$tests" --gtest_filter='-*GpuProperty*' --gtest_brief=1 & pids+=($!)
for shard in 0 1 2 3 4 5 6 7; do
  "$tests" --gtest_filter="*GpuProperty*/$shard" --gtest_brief=1 & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    QUIRE_PROPERTY_CASES="${QUIRE_SANITIZER_CASES:-24}" compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests" \
      --gtest_filter='GpuCache.StoresHead*:GpuCache.Reports*:GpuGuard.Rows*:*GpuProperty*' --gtest_brief=1
  done
fi

"$build/gpu_bench" "${1:-}"
