#!/usr/bin/env bash
# Installs Synapse into an environment of its own, once, and runs the benchmarks given as arguments (all without any).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e .bench-venv/installed ]; then
    python3 -m venv .bench-venv
    .bench-venv/bin/pip install --quiet --disable-pip-version-check --requirement bench/requirements.txt
    touch .bench-venv/installed
fi
export KITH_BENCH_SYNAPSE=$PWD/.bench-venv/bin/python
cargo run --quiet --release -p kith-tests --bin kith-bench -- "$@"
