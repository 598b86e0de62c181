#!/usr/bin/env bash
# Runs kith-net's own tests under virtual time: libp2p takes time from two small crates, futures-timer and web-time, which are
# replaced here by ones over tokio's clock; randomness comes from KITH_SEED, so that a run repeats. The replaced crates must not
# reach a product, so that the workspace for it is made here of the project's own one: the same crates, settings and locked
# versions, in a folder of its own. What does not depend on the two crates is built once for both.
#
#   tests/virtual/run.sh [FILTER] [ARGUMENTS OF THE TEST PROGRAM]...      e.g. `tests/virtual/run.sh dht::simulation --nocapture`
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
world=$CARGO_TARGET_DIR/virtual
mkdir -p "$world"
for part in core desktop ffi relay tests; do ln -sfn "$root/$part" "$world/$part"; done
cp "$root/Cargo.lock" "$world/Cargo.lock"
# libp2p's generic code is built with kith-net: a thousand servers want it optimised.
sed -e 's|^    "tests",$|    "tests",\n    "tests/virtual/random",|' -e 's|^kith-identity = { opt-level = 1 }$|&\nkith-net = { opt-level = 2 }|' \
    "$root/Cargo.toml" > "$world/Cargo.toml.new"
cat >> "$world/Cargo.toml.new" << 'END'

[patch.crates-io]
futures-timer = { path = "tests/virtual/futures-timer" }
web-time = { path = "tests/virtual/web-time" }
END
# An unchanged file keeps its time, so that cargo has nothing to do.
cmp -s "$world/Cargo.toml.new" "$world/Cargo.toml" || cp "$world/Cargo.toml.new" "$world/Cargo.toml"

cargo=${CARGO:-cargo}
cd "$world"
"$cargo" build --quiet -p kith-random
program=$("$cargo" test -p kith-net --lib --no-run --message-format json-render-diagnostics \
    | sed -nE 's/.*"executable":"([^"]*kith_net[^"]*)".*/\1/p' | tail -n 1)
KITH_VIRTUAL_TIME=1 LD_PRELOAD=$CARGO_TARGET_DIR/debug/libkith_random.so exec "$program" --test-threads 1 "$@"
