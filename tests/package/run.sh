#!/usr/bin/env bash
# Configures, builds and runs the outside project against an install tree: run.sh find_package|pkg_config PREFIX WORK VERSION.
# The compiler comes in CXX.
set -euo pipefail

mode="$1" prefix="$2" work="$3" version="$4"
source="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
library="$(dirname "$(find "$prefix" -name 'libquire.*' | head -1)")"
rm -rf "$work"
mkdir -p "$work"

case "$mode" in
  find_package)
    cmake -S "$source" -B "$work" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_CXX_COMPILER="$CXX"
    cmake --build "$work"
    ;;
  pkg_config)
    export PKG_CONFIG_PATH="$library/pkgconfig"
    read -ra flags <<<"$(pkg-config --cflags --libs --static quire)"
    [[ "$(pkg-config --modversion quire)" == "$version" ]]
    "$CXX" -std=c++20 "$source/uses_quire.cc" "${flags[@]}" -o "$work/uses_quire"
    ;;
  *)
    echo "unknown mode '$mode': wanted find_package or pkg_config"
    exit 1
    ;;
esac
LD_LIBRARY_PATH="$library" "$work/uses_quire" "$version"
