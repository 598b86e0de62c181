#!/usr/bin/env bash
# Installs what a fresh Debian machine with Rust and Node.js lacks for the goals named as arguments:
#   run   a C toolchain, for SQLite and the TLS libraries
#   test  also the client libraries and the Java tools that the suites play
# Does nothing where everything is there already.
set -euo pipefail
cd "$(dirname "$0")"
goal=${1:-run}

packages=()
need() { # command, package
    command -v "$1" > /dev/null || packages+=("$2")
}
need cc build-essential
need pkg-config pkg-config
if [ "$goal" = test ]; then
    need python3 python3
    PATH=$PATH:/usr/sbin:/sbin need ip iproute2
    PATH=$PATH:/usr/sbin:/sbin need nft nftables
    python3 -c 'import ensurepip, venv' 2> /dev/null || packages+=(python3-venv)
    need javac default-jdk-headless
    need mvn maven
fi
if [ ${#packages[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

if [ "$goal" = test ]; then
    # A router's program that opens ports (UPnP), for the lab alone: unpacked here, not installed on this machine. Without it
    # one test says that it is skipped.
    if [ ! -e .miniupnpd ] && (mkdir -p .miniupnpd.new && cd .miniupnpd.new && apt-get download -qq miniupnpd-nftables &&
        dpkg -x miniupnpd-nftables_*.deb .) 2> /dev/null; then
        mv .miniupnpd.new .miniupnpd
    fi
    if [ ! -e .venv/installed ] || [ interop/requirements.txt -nt .venv/installed ]; then
        python3 -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check --requirement interop/requirements.txt
        touch .venv/installed
    fi
    if [ ! -e interop/node_modules/.package-lock.json ] || [ interop/package-lock.json -nt interop/node_modules/.package-lock.json ]; then
        npm ci --prefix interop --silent --no-audit --no-fund
    fi
fi
