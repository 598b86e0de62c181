#!/usr/bin/env bash
# Runs the benchmarks given as arguments (all without any): those of `kith-bench`, and those that tell their figures themselves, which
# stand at the end here. Installs Synapse into an environment of its own, once, for `client`. What fails ends nothing else: it
# is named at the end, and makes the whole fail.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()
wanted() { # part
    [ ${#parts[@]} = 0 ] || [[ " ${parts[*]} " == *" $1 "* ]]
}
parts=("$@")

install_synapse() {
    [ -e .bench-venv/installed ] && return
    python3 -m venv .bench-venv &&
        .bench-venv/bin/pip install --quiet --disable-pip-version-check --requirement bench/requirements.txt &&
        touch .bench-venv/installed
}
if wanted client; then
    if install_synapse; then
        export KITH_BENCH_SYNAPSE=$PWD/.bench-venv/bin/python
    else
        echo 'Synapse could not be installed: the client API is measured without it.' >&2
        failed+=(synapse)
    fi
fi

# Together, or what they depend on would be built once for each.
programs=${CARGO_TARGET_DIR:-$PWD/../target}/release
cargo build --quiet --release -p kith -p kith-relay -p kith-tests || exit 1
KITH_PROGRAMS=$programs "$programs/kith-bench" "$@" || failed+=(kith-bench)

# The DHT, in a network of its own where the system permits that, so that bytes can be counted.
if wanted dht; then
    printf '\n### The DHT over QUIC, one process, loopback\n\n'
    own_network=()
    unshare -rn true 2> /dev/null && own_network=(unshare -rn sh -c 'ip link set lo up; exec "$0" "$@"')
    if ! cargo build --quiet --release -p kith-net --example dht ||
        ! "${own_network[@]}" "$programs/examples/dht" 24 10 phone; then
        failed+=(dht)
    fi
fi

# The simulation tells its own speed, built as `make test` builds it.
if wanted simulation; then
    printf '\n### The simulation, 10 nodes\n\n| measured | value |\n| --- | --- |\n'
    if hours=$(cargo test --quiet -p kith-tests --test sim -- --first 1 --seeds 40 --nodes 10 |
        sed -n 's/ virtual hours a minute$//p') && [ -n "$hours" ]; then
        printf '| virtual hours a minute | %s |\n' "$hours"
    else
        echo '| not measured: it failed | |'
        failed+=(simulation)
    fi
fi

if wanted gossip; then bench/gossip.sh || failed+=(gossip); fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
