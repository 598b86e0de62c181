# `make run` starts a node with its app; `make test` runs every test. Each does all of its own set-up.

CARGO ?= cargo

.PHONY: run test bench setup-run setup-test

run: setup-run
	$(CARGO) run --release -p kith

test: setup-test
	$(CARGO) test --workspace
	$(MAKE) -C ffi test
	$(MAKE) -C mobile test

bench: setup-test
	$(CARGO) build --release -p kith -p kith-tests
	tests/bench/run.sh

setup-run:
	tests/setup.sh run

setup-test:
	tests/setup.sh test
