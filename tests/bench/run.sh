#!/usr/bin/env bash
# Installs Synapse into an environment of its own, once, and runs the benchmarks given as arguments (all without any): those of
# `kith-bench`, `simulation` and `gossip`.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e .bench-venv/installed ]; then
    python3 -m venv .bench-venv
    .bench-venv/bin/pip install --quiet --disable-pip-version-check --requirement bench/requirements.txt
    touch .bench-venv/installed
fi
export KITH_BENCH_SYNAPSE=$PWD/.bench-venv/bin/python
cargo run --quiet --release -p kith-tests --bin kith-bench -- "$@"

# The simulation tells its own speed, built as `make test` builds it.
if [ $# = 0 ] || [[ " $* " == *" simulation "* ]]; then
    printf '\n### The simulation, 10 nodes\n\n| measured | value |\n| --- | --- |\n'
    hours=$(cargo test --quiet -p kith-tests --test sim -- --first 1 --seeds 40 --nodes 10 |
        sed -n 's/ virtual hours a minute$//p')
    printf '| virtual hours a minute | %s |\n' "$hours"
fi
if [ $# = 0 ] || [[ " $* " == *" gossip "* ]]; then bench/gossip.sh; fi
