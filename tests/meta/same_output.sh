#!/usr/bin/env bash
# Fails where a generated document differs from what its command prints now: same_output.sh FILE COMMAND...
set -euo pipefail
diff -u "$1" <("${@:2}") || { echo "$1 is out of step; make it anew with: ${*:2} > $1"; exit 1; }
