#!/usr/bin/env bash
# How fast, and in how many copies, a message reaches everybody who follows a topic: among simulated nodes on wires of 50 ms and
# under virtual time (KITH_TOPIC_NODES of them, 1,000 if it is not set), and among whole nodes on loopback (KITH_ROOM_NODES,
# 100), built as `make test` builds them. One row for each message; a message of a warm-up need not reach all.
set -euo pipefail
export KITH_TOPIC_NODES=${KITH_TOPIC_NODES:-1000} KITH_ROOM_NODES=${KITH_ROOM_NODES:-100}

printf '\n### A topic of %s nodes, simulated, 50 ms between any two\n\n' "$KITH_TOPIC_NODES"
printf '| followers | reached | p50 | p95 | last | copies from the sender | copies for each receiver |\n'
printf '| --- | --- | --- | --- | --- | --- | --- |\n'
span='([0-9.]+[mµ]?s)'
virtual/run.sh topics::simulation --nocapture |
    sed -nE "s/^test [^ ]+ \.\.\. //; s/^(.*): ([0-9]+ of [0-9]+), p50 ([^,]+), p95 ([^,]+), last ([^;]+); ([0-9]+) copies from the sender, ([0-9.inf]+) for each receiver$/| \1 | \2 | \3 | \4 | \5 | \6 | \7 |/p"

printf '\n### A room of %s whole nodes on loopback\n\n' "$KITH_ROOM_NODES"
printf '| nodes | copies from each sender | p50 | p95 |\n| --- | --- | --- | --- |\n'
cargo test --quiet -p kith-node --lib topic_tests -- --nocapture |
    sed -nE "s/^\.+//; s/^([0-9]+) nodes: copies \[(.*)\], p50 $span, p95 $span$/| \1 | \2 | \3 | \4 |/p"
