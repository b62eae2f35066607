# Targets for people and for .ci/run. Each installs what it needs (scripts/setup) and is quick when it is there already.

GO      ?= go
BINARY  := bin/sanctuary
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# hashicorpmetrics: raft and memberlist report to hashicorp/go-metrics, so that the binary links one metrics library, not two.
TAGS    := hashicorpmetrics
# loopdev: tests on block devices, where they can be had: as root, with the kernel's loop driver. Decided here, so that no test passes
# without having run.
TEST_TAGS := $(TAGS)$(shell test "$$(id -u)" = 0 -a -w /dev/loop-control && echo ,loopdev)
# git refuses to speak of a clone that another user owns, and Go then refuses to build: the binary does without its commit.
export GOFLAGS := $(GOFLAGS) -buildvcs=$(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)

# A test that hangs must not hang the machine.
TEST_TIMEOUT ?= 30m
# Packages for test and vet, those that take longest first; narrow them while you work: make test PACKAGES=./blockstore/...
PACKAGES     ?= ./replication ./node ./...
DEMO_FLAGS   ?=
PROVE_KILLS  ?= 200
PROVE_SEED   ?=
PROVE_TESTS  ?=
PROVE_SKIP   ?=
PROVE_TIMEOUT?= 2h
BENCH_RUNS   ?= 3
BENCH_SECONDS?= 5
BENCH_REPORT ?=
BENCH_TABLES ?=
BENCH_STORE_MIB ?=
FUZZ_SECONDS ?= 20
# Which rules, by their build tags without mutant_; empty is all.
MUTANTS      ?=
# Seeds of sim, and the first of them; seeds for each of the mutants.
SIM_SEEDS    ?= 2000
SIM_FIRST    ?= 1
MUTANT_SEEDS ?= 200
# Which tests of test-guest; empty is all.
GUEST_TESTS  ?=

.DEFAULT_GOAL := help
.PHONY: help build demo test unit crashes e2e test-guest lint bench conformance prove sim mutants simmutants fuzz proto clean FORCE

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(BINARY) ## bin/sanctuary, one static binary

# Go's own build cache decides what is old; FORCE asks it every time.
$(BINARY): FORCE
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/sanctuary

demo: build ## two data nodes and a witness on loopback, with a LUN; Ctrl-C ends it (DEMO_FLAGS='--drill')
	$(BINARY) demo $(DEMO_FLAGS)

test: ## everything that must pass before a change goes in: vet, all tests with the race detector, initiators from outside
	scripts/setup test
	$(GO) vet -tags $(TEST_TAGS) $(PACKAGES)
	$(MAKE) --no-print-directory unit crashes e2e

unit: ## vet-less quick part of test: Go tests with the race detector
	$(GO) test -race -tags $(TEST_TAGS) -timeout $(TEST_TIMEOUT) $(PACKAGES)

# With the race detector they are a sample: it makes everything ten times slower, and there is little in them that could race.
crashes: ## every crash and fault of the blockstore's tests, every state of rule W's model, the map of 1 TiB
	SANCTUARY_SCALE_GIB=1024 $(GO) test -tags $(TEST_TAGS) -timeout $(TEST_TIMEOUT) ./blockstore ./replication/witness

test-guest: build ## the kernel's initiator and dm-multipath in a QEMU guest, and a guest that boots from a LUN (GUEST_TESTS='CHAP|Sg')
	scripts/setup guest
	SANCTUARY_GUEST=1 $(GO) test -count=1 -v -tags $(TAGS) -timeout $(TEST_TIMEOUT) -run '$(GUEST_TESTS)' ./scripts/guest

e2e: build ## initiators no one here wrote, against a running cluster of bin/sanctuary
	scripts/setup test
	SANCTUARY_E2E=1 $(GO) test -count=1 -tags $(TAGS) -timeout $(TEST_TIMEOUT) ./scripts/interop
	$(GO) run -tags $(TAGS) ./scripts/conformance -report ''

lint: ## gofumpt, vet, staticcheck, shellcheck, generated files up to date, and the architecture's own test
	scripts/setup lint proto
	scripts/lint

bench: build ## side by side with tgt under fio, and the blockstore with its medium: docs/BENCHMARKS.md (BENCH_RUNS, BENCH_SECONDS, BENCH_TABLES)
	scripts/setup bench $(if $(findstring drbd,$(BENCH_TABLES)),guest)
	BENCH_REPORT=$(BENCH_REPORT) BENCH_TABLES=$(BENCH_TABLES) BENCH_STORE_MIB=$(BENCH_STORE_MIB) BENCH_RUNS=$(BENCH_RUNS) BENCH_SECONDS=$(BENCH_SECONDS) $(GO) run -tags $(TAGS) ./scripts/bench

conformance: build ## iscsi-test-cu suite by suite, also while the LUN is moved, beside tgt: docs/CONFORMANCE.md; fails unless every test passes or is a skip that is named
	scripts/setup test
	$(GO) run -tags $(TAGS) ./scripts/conformance

prove: build ## fault campaigns: PROVE_KILLS owners killed under load, and what else takes longer than a test may
	scripts/setup prove guest
	PROVE_KILLS=$(PROVE_KILLS) PROVE_SEED=$(PROVE_SEED) PROVE_TIMEOUT=$(PROVE_TIMEOUT) PROVE_TESTS='$(PROVE_TESTS)' PROVE_SKIP='$(PROVE_SKIP)' TAGS=$(TAGS) scripts/campaigns

mutants: ## the rules of replication taken away one at a time: each must be missed by its tests (MUTANTS='w f')
	MUTANTS='$(MUTANTS)' TAGS=$(TAGS) scripts/mutants

sim: ## whole clusters on simulated disks and networks, SIM_SEEDS of them from SIM_FIRST on; a seed that failed is printed
	SIM_SEEDS=$(SIM_SEEDS) SIM_FIRST=$(SIM_FIRST) TAGS=$(TAGS) scripts/sim

simmutants: ## one rule after the other taken out of the product: sim must notice each (MUTANT_SEEDS)
	TAGS=$(TAGS) $(GO) run -tags $(TAGS) ./scripts/simmutants -seeds $(MUTANT_SEEDS)

fuzz: ## every fuzz target: those of target for FUZZ_SECONDS, the others a third of it
	FUZZ_SECONDS=$(FUZZ_SECONDS) TAGS=$(TAGS) scripts/fuzz

proto: ## generate Go from proto/*.proto
	scripts/setup proto
	scripts/generate

clean: ## remove what was built; tools and fio in .cache stay (rm -r .cache takes them too)
	rm -rf bin
	find . -path ./.git -prune -o -path ./.cache -prune -o -name '*.test' -type f -exec rm -f {} +
