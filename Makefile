# The commands of the README. Each installs what it needs and is missing; see .ci/setup.

export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

CARGO ?= cargo
# where `make validate` finds the public traces and published runs
DATA ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos chaos-plants lint deny fuzz validate bench bench-stages bench-peers kafka

help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## install what building and testing need and is missing
	@.ci/setup test

demo: ## watch a simulated cloud: no broker, no configuration
	@.ci/setup build
	$(CARGO) run --release --locked -- demo

test: ## all tests, those on a real Kafka included
	@.ci/setup test
	$(CARGO) test --locked

chaos: ## faults on a real Kafka for minutes: CHAOS_SEED=, CHAOS_EVENTS=, CHAOS_SECONDS=
	@.ci/setup test
	CHAOS_EVENTS=$${CHAOS_EVENTS:-3000000} CHAOS_SECONDS=$${CHAOS_SECONDS:-300} \
		CHAOS_FAULTS=$${CHAOS_FAULTS:-all} \
		$(CARGO) test --release --locked --test chaos -- --nocapture --test-threads=1
	$(CARGO) test --release --locked --test faults -- --test-threads=2

chaos-plants: ## mistakes planted into a copy of the sources: the chaos test must fail on each
	@.ci/setup test
	tests/chaos/plants.sh

lint: ## formatting and lints, as .ci/run checks them
	@.ci/setup build
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@$(MAKE) --no-print-directory deny

deny: ## licences, bans and sources of what is compiled in; advisories where their list can be had
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	    echo "deny: skipped, cargo-deny is missing: cargo install --locked cargo-deny"; \
	else \
	    $(CARGO) deny --locked check --hide-inclusion-graph licenses bans sources || exit 1; \
	    if timeout 60 $(CARGO) deny --locked fetch db >/dev/null 2>&1; then \
	        $(CARGO) deny --locked check --disable-fetch advisories; \
	    else \
	        echo "deny: advisories skipped, their list cannot be fetched from here"; \
	    fi; \
	fi

TARGET ?= json
SECONDS ?= 60
fuzz: ## TARGET=json SECONDS=60: one fuzzer of tests/fuzz; needs cargo-fuzz and a nightly compiler
	@cp Cargo.lock tests/fuzz/Cargo.lock
	@mkdir -p target/fuzz/corpus/$(TARGET)
	$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz -s none $(TARGET) \
	    target/fuzz/corpus/$(TARGET) tests/fuzz/corpus/$(TARGET) -- \
	    -max_total_time=$(SECONDS) -max_len=4096

validate: ## DATA=DIR: public traces and published runs against plain sums
	@.ci/setup build
	$(CARGO) run --release --locked --quiet -- validate --data $(DATA)

BENCH ?=
bench: ## a backlog beside a bare consumer, on a real Kafka; BENCH='--latency', '--memory', '--rounds 2 --events 1000000'
	@.ci/setup test
	$(CARGO) bench --locked --bench end_to_end -- $(BENCH)

bench-stages: ## criterion: decode, METER, ACCOUNT, restore, on one core without Kafka
	@.ci/setup build
	$(CARGO) bench --locked --bench decode --bench meter --bench account --bench restore

bench-peers: ## the same task in Kafka Streams and Flink, results compared; minutes a round
	@.ci/setup test
	for peer in streams flink; do \
	    mvn -q -B -f benches/peers/$$peer.xml compile dependency:copy-dependencies \
	        -DoutputDirectory=$(CURDIR)/target/peers/$$peer/libs || exit 1; \
	done
	$(CARGO) bench --locked --bench end_to_end -- --peers $(BENCH)

kafka: ## a Kafka of the tests' own version on loopback, until interrupted
	@.ci/setup test
	tests/support/kafka/start.sh
