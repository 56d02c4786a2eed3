# Every target does its own set-up: a virtual environment in the checkout, nothing global.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.synced

.PHONY: help setup demo check test test-real crash simulate soak calibrate bench bench-analyzers bench-peers bench-scale bench-backlog schemas clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the virtual environment with everything that development needs

# uv installs the locked versions; it is itself installed from the package index into the same environment.
$(STAMP): pyproject.toml uv.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --quiet --locked --inexact --python $(BIN)/python --all-groups --extra postgres --extra lab
	@touch $@

demo: $(STAMP) ## a whole rollout on an embedded world, in under two minutes
	@$(BIN)/serinus demo

check: $(STAMP) ## format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP) ## everything that needs only Python
	$(BIN)/python -m pytest

test-real: $(STAMP) ## a real Kafka, API server, Prometheus, PostgreSQL, TensorFlow, KServe, Triton (brings the parts itself)
	$(BIN)/python -m tests.real.parts
	$(BIN)/python -m pytest -m real --timeout 900 tests

POINTS ?= 1000
SEED ?= 1
DATABASE ?= sqlite
crash: $(STAMP) ## kill -9 at POINTS=1000 seeded points under load, SEED=1, DATABASE=sqlite or postgresql
	$(BIN)/python -m tests.real.parts
	$(BIN)/python -m tests.real.crashes --points $(POINTS) --seed $(SEED) --database $(DATABASE)

SEEDS ?= 300
JOBS ?= 1
simulate: $(STAMP) ## SEEDS=n simulated worlds full of faults, invariants checked after every step (JOBS=n processes)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --jobs $(JOBS)

calibrate: $(STAMP) ## the long seeded runs of the statistics
	$(BIN)/python -m tests.calibration

bench: $(STAMP) ## event to weight, start to ready, memory; prints ratios measured in one run
	$(BIN)/python -m tests.benchmarks.event_to_weight

bench-analyzers: $(STAMP) ## rollout-windows a second of the statistics, and bytes a rollout
	$(BIN)/python -m tests.benchmarks.analyzers_throughput

bench-peers: $(STAMP) ## Serinus beside other tools on the same streams; writes TABLE.md and peers.png
	$(BIN)/python -m tests.benchmarks.peers

bench-scale: $(STAMP) ## ten thousand rollouts on one replica: cost a window, lag, memory (BENCH="--database postgres ...")
	$(BIN)/python -m tests.benchmarks.scale $(BENCH)

bench-backlog: $(STAMP) ## 100,000 events that wait on the topic, by mix: events a second, CPU, memory, the API's delay
	$(BIN)/python -m tests.benchmarks.backlog

soak: $(STAMP) ## the whole service for an hour with parts failing; fails when memory grows (MINUTES=60)
	$(BIN)/python -m tests.benchmarks.soak --minutes $(or $(MINUTES),60)

schemas: $(STAMP) ## write config/schemas anew
	$(BIN)/python -m service.cli.schemas

clean: ## everything that was made here
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
