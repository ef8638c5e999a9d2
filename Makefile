# The commands of the README. Each installs what it needs and is missing; see .ci/setup.

export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

CARGO ?= cargo
# where `make validate` finds the public traces and published runs
DATA ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos lint validate bench kafka

help: ## these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

setup: ## install what building and testing need and is missing
	@.ci/setup test

demo: ## watch a simulated cloud: no broker, no configuration
	@.ci/setup build
	$(CARGO) run --release --locked -- demo

test: ## all tests, those on a real Kafka included
	@.ci/setup test
	$(CARGO) test --locked

chaos: ## faults on a real Kafka for minutes: CHAOS_EVENTS=, CHAOS_SECONDS=, CHAOS_SEED=
	@.ci/setup test
	CHAOS_EVENTS=$${CHAOS_EVENTS:-3000000} CHAOS_SECONDS=$${CHAOS_SECONDS:-600} \
		$(CARGO) test --release --locked --test chaos -- --nocapture

lint: ## formatting and lints, as .ci/run checks them
	@.ci/setup build
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

validate: ## DATA=DIR: public traces and published runs against plain sums
	@.ci/setup build
	$(CARGO) run --release --locked --quiet -- validate --data $(DATA)

bench: ## benchmarks; figures hold for this machine and day only
	@.ci/setup test
	$(CARGO) bench --locked

kafka: ## a Kafka of the tests' own version on loopback, until interrupted
	@.ci/setup test
	tests/support/kafka/start.sh
