#!/usr/bin/env bash
# Runs a "go build" that takes minutes, and shows its progress: build.sh WHAT GO-BUILD-ARGUMENTS…
# GO is the go command. Progress is printed to standard error; the compiler's output only if the build fails.
set -euo pipefail

what=$1; shift
every=15 # seconds between two lines of progress

output=$(mktemp); trap 'rm -f "$output"' EXIT
SECONDS=0
elapsed() { printf '%dm%02ds' $((SECONDS / 60)) $((SECONDS % 60)); }

echo "Building $what from source; this happens once …" >&2
"${GO:-go}" build -v "$@" >"$output" 2>&1 & build=$!
trap 'kill $build 2>/dev/null || true; rm -f "$output"' EXIT
next=$every
while kill -0 $build 2>/dev/null; do
  sleep 1
  if [ $SECONDS -ge $next ]; then
    next=$((next + every))
    echo "  $what: $(elapsed), $(wc -l <"$output") packages compiled, last $(tail -n 1 "$output")" >&2
  fi
done
if ! wait $build; then
  cat "$output" >&2
  exit 1
fi
echo "Built $what in $(elapsed)." >&2
