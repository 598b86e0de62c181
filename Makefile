# `make run` starts a node with its app; `make test` runs every test. Each does all of its own set-up.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.PHONY: run test bench fuzz sim sim-dht setup-run setup-test

run: setup-run
	$(CARGO) run --release -p kith

# The integration tests of `kith` and `kith-relay` have cargo build both programs before any test runs.
test: setup-test
	KITH_PROGRAMS=$(TARGET)/debug $(CARGO) test --workspace
	$(MAKE) -C ffi test
	$(MAKE) -C mobile test

bench: setup-test
	tests/bench/run.sh

# The simulation over more seeds than `make test` runs: SEEDS of them from FIRST on, with NODES nodes each. With SEED, that one
# alone and its trace on standard error.
FIRST ?= 1
SEEDS ?= 200
NODES ?= 10
VARIANT ?= ordinary
sim:
	$(CARGO) test -p kith-tests --test sim -- $(if $(SEED),--seed $(SEED) --trace,--first $(FIRST) --seeds $(SEEDS)) --nodes $(NODES) --variant $(VARIANT)

# The DHT with SERVERS servers under virtual time: libp2p with its clock replaced, built for that. SYBILS choose PeerIds next to the
# addresses of each person in ten.
SERVERS ?= 1000
SYBILS ?= 0
sim-dht:
	KITH_DHT_SERVERS=$(SERVERS) KITH_DHT_SYBILS=$(SYBILS) tests/virtual/run.sh dht::simulation --nocapture

# Fuzzes each parser that strangers reach for SECONDS seconds. Needs `cargo install cargo-fuzz`. Without a sanitizer: no
# crate of ours has unsafe code, and what is looked for are panics, endless loops and memory without bounds.
SECONDS ?= 60
FUZZ_TARGETS := ticket hello key_document record topic pdu transaction federation_bodies event_graph resolution reconciliation compact
fuzz:
	for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none --fuzz-dir tests/fuzz $$target -- \
			-max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024 || exit 1; \
	done

setup-run:
	tests/setup.sh run

setup-test:
	tests/setup.sh test
