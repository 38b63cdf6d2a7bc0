#!/usr/bin/env bash
# Fails unless each given ISA object exports exactly one strong symbol and no weak one: a weak symbol (an inline function
# or a template of a shared header) could be the copy that the linker keeps, and then run on a processor without that ISA.
set -euo pipefail

bad=0
for object in "$@"; do
  symbols="$(nm --extern-only --defined-only --demangle "$object" | cut -d' ' -f2-)"
  strong="$(grep -c '^[ABCDGRST] ' <<<"$symbols" || true)"
  others="$(grep -v '^[ABCDGRST] ' <<<"$symbols" || true)"
  name="$(basename "$object")"
  if [[ "$strong" != 1 ]]; then
    echo "$name: wanted one strong symbol, got $strong:"
    grep '^[ABCDGRST] ' <<<"$symbols" | head -20 || true
    bad=1
  fi
  if [[ -n "$others" ]]; then
    echo "$name: wanted no weak symbol, got $(wc -l <<<"$others"):"
    head -20 <<<"$others"
    bad=1
  fi
done
echo "$# objects checked"
exit "$bad"
