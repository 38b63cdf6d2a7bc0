#!/usr/bin/env bash
# Builds quire for this machine's GPU, replays the golden cases on it, runs its gpu tests, both under compute-sanitizer
# too, and prints the tables of docs/performance.md: gpu_check.sh [build|test|sanitize|bench|peers]... (default: all but
# the last). peers times our kernels and, where python3 has PyTorch, cuDNN and FlashAttention in the same minutes.
# QUIRE_PROPERTY_CASES sets the generated cases of each kind, QUIRE_BENCH_FILTER the rows of the kernels' table.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly build="build/gpu"
readonly architectures="${QUIRE_CUDA_ARCHITECTURES:-90a-real}"
readonly cases="tests/golden/cases"
readonly tests="$build/tests/quire_gpu_tests"
readonly quire="$build/quire"
jobs="$(nproc)"

say() { printf '== %s (%s s)\n' "$*" "$SECONDS"; }

build_all() {
  say "build"
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUIRE_CUDA=ON -DQUIRE_BUILD_ENGINE=OFF \
    -DQUIRE_BUILD_BENCH=OFF -DQUIRE_BUILD_EXAMPLES=OFF -DQUIRE_CUDA_ARCHITECTURES="$architectures" >"$build.log" 2>&1 ||
    { cat "$build.log"; return 1; }
  cmake --build "$build" -j "$jobs" --target quire_command quire_gpu_tests quire_gpu_bench >"$build.log" 2>&1 ||
    { grep -A 20 -m 3 'FAILED\|error' "$build.log"; return 1; }
}

# The golden cases as they are, in head-major pages, and with scales in tensors of their own; then the tests, the
# generated cases in eight processes and everything else in one.
test_all() {
  local pids=() pid shard status=0
  say "golden cases: quire replay --device cuda"
  "$quire" replay --device cuda "$cases" | tee "$build/replay.log" | grep FAILED || true
  tail -n 1 "$build/replay.log"
  "$quire" replay --device cuda "$cases" --layout HND | tail -n 1
  "$quire" replay --device cuda "$cases"/*pth*.safetensors --separate-scales | tail -n 1
  grep -q ' 0 failed' "$build/replay.log" || status=1
  say "gpu tests"
  export OMP_NUM_THREADS=2
  "$tests" --gtest_filter='-*GpuProperty*' --gtest_brief=1 & pids+=($!)
  for shard in 0 1 2 3 4 5 6 7; do
    "$tests" --gtest_filter="*GpuProperty*/$shard" --gtest_brief=1 & pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=1; done
  return "$status"
}

# memcheck and initcheck see all golden cases; racecheck, which is many times slower, those of QUIRE_RACE_CASES. The
# tests that run under all three are the guards', the cache's and a sample of the generated ones.
sanitize_all() {
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer here"; return 0; }
  local tool status=0
  for tool in memcheck initcheck racecheck; do
    say "compute-sanitizer --tool $tool"
    local selected=("$cases")
    # shellcheck disable=SC2206  # a pattern of case files
    [[ "$tool" != racecheck ]] || selected=($cases/${QUIRE_RACE_CASES:-*}.safetensors)
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$quire" replay --device cuda "${selected[@]}" \
      >"$build/$tool.log" 2>&1 || status=1
    grep ' passed, \|ERROR SUMMARY\|RACECHECK SUMMARY' "$build/$tool.log" || tail -n 5 "$build/$tool.log"
    local filter='GpuCache.StoresHead*:GpuCache.Reports*:GpuCache.Rotates*:GpuCache.Moves*:GpuMoves.*:GpuGuard.Rows*'
    filter+=':*GpuHostile*/TRITON_ATTN:GpuLayers.Faults*:*GpuProperty*'
    QUIRE_PROPERTY_CASES="${QUIRE_SANITIZER_CASES:-24}" compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests" \
      --gtest_filter="$filter" \
      --gtest_brief=1 >"$build/$tool.tests.log" 2>&1 || status=1
    grep 'PASSED\|FAILED\|ERROR SUMMARY\|RACECHECK SUMMARY' "$build/$tool.tests.log" ||
      tail -n 5 "$build/$tool.tests.log"
  done
  return "$status"
}

bench_all() {
  say "quire bench --device cuda"
  local common=(--device cuda --format markdown)
  "$quire" bench q1s8k 16q1s8k 64q1s8k q8k "${common[@]}" --refcheck
  "$quire" bench 64q1s8k "${common[@]}" --no-ceilings --kv-cache-dtype auto,fp8_e4m3,int8_per_token_head
  "$quire" bench q8k q256 "${common[@]}" --op cache-update --kv-cache-dtype auto,fp8_e4m3,int8_per_token_head
  "$quire" bench q8k q256 "${common[@]}" --no-ceilings --op rope-cache-update \
    --kv-cache-dtype auto,fp8_e4m3,int8_per_token_head
  "$quire" bench 64q1s8704 "${common[@]}" --no-ceilings
  "$quire" bench 64q1s8704 "${common[@]}" --no-ceilings --common-prefix 8192
  "$quire" bench 64q1s8704 "${common[@]}" --no-ceilings --common-prefix 8192 --op cascade --refcheck
  say "the kernels' table"
  "$build/quire_gpu_bench" "${QUIRE_BENCH_FILTER:-}"
}

peers_all() {
  say "the kernels' table"
  "$build/quire_gpu_bench" "${QUIRE_BENCH_FILTER:-}"
  say "PyTorch on the same shapes"
  python3 -c 'import torch' 2>/dev/null || { echo "no PyTorch here"; return 0; }
  python3 scripts/gpu_peers.py "${QUIRE_BENCH_FILTER:-}"
}

steps=("$@")
((${#steps[@]})) || steps=(build test sanitize bench)
mkdir -p "$build"
for step in "${steps[@]}"; do
  case "$step" in
    build | test | sanitize | bench | peers) "${step}_all" ;;
    *) echo "gpu_check.sh: unknown step '$step': wanted build, test, sanitize, bench or peers" >&2; exit 2 ;;
  esac
done
say "done"
