# `make demo`, `make test`, `make chaos`: each sets up all that it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
CHAOS_OUT ?= benchmarks/results/$(shell date +%Y-%m-%d)-chaos
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
NEWEST ?= $(shell for p in python3.14 python3.13 python3.12 $(wildcard $(foreach v,3.14 3.13 3.12,$(HOME)/.pyenv/versions/$(v)*/bin/python3)); do \
  "$$p" -c 'import sys, venv; print(sys.executable)' 2>/dev/null && break; done)

export PYTHONSAFEPATH := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := true
# Waiting threads give way instead of spinning: on a shared machine they would eat the others' time.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: docs schemas survey configurations demo test test-fast check lint types contracts pytest test-newest chaos bench clean help

help:
	@echo "make demo      all of it on the embedded model: extract, verify, localize, ablate, train, look"
	@echo "make test      lint, types, import contracts, all tests"
	@echo "make test-fast the tests that take no Ray, kill no process and are quick: for the inner loop"
	@echo "make chaos     the long form of the tests that kill, freeze, fill and flip; a table of it all"
	@echo "make survey    try every architecture of transformers and write docs/architectures.md"
	@echo "make schemas   write docs/json, the JSON schemas of the command line's output"
	@echo "make configurations  write docs/configurations.md, from transformers (minutes)"
	@echo "make docs      the documentation's site, in site/; fails on every warning"
	@echo "make bench     every benchmark, each a table"
	@echo "make clean     remove the environments and what the demo made"

# torch comes first: asked for by another package, it may bring gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	@rm -rf $(DEMO)
	@mkdir -p $(DEMO)
	@PATH="$(abspath $(BIN)):$$PATH" sh docs/demo.sh $(DEMO)

# Two at a time: mypy keeps one core busy, and many tests wait.
test: $(VENV)/.installed
	@$(MAKE) --no-print-directory --jobs=2 check pytest test-newest

check: lint types contracts

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile

# docs/json: the JSON schema of every --json output, from the models in jobs/run/reports.
schemas: $(VENV)/.installed
	$(BIN)/python -m actlas.jobs.run.reports.schemas docs/json

# docs/architectures.md: the survey itself is a test, of which `make test` runs a sample.
survey: $(VENV)/.installed
	ACTLAS_SURVEY=write $(BIN)/python -m pytest tests/pipeline/forward/test_architecture_survey.py --timeout=3600

# docs/configurations.md: which kinds of models are planned, and why the others are not.
configurations: $(VENV)/.installed
	PYTHONPATH=tests $(BIN)/python -W ignore -m support.configurations > docs/configurations.tmp
	mv docs/configurations.tmp docs/configurations.md

# The site needs packages that nothing else does, so it has an environment of its own.
$(VENV)-docs/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict
	@echo "open site/index.html"

types: $(VENV)/.installed
	$(BIN)/mypy

contracts: $(VENV)/.installed
	$(BIN)/lint-imports

# Many tests wait (for Ray, for signals, for deadlines), so three at a time keep two cores busy.
TESTS_AT_ONCE ?= 3
pytest: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile

# For the inner loop: no Ray, no killed processes, nothing that takes seconds of a processor.
test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray and not chaos and not slow" \
	  --ignore=tests/chaos --ignore=tests/benchmarks --ignore=tests/deploy \
	  --ignore=tests/compatibility

# The store's own tests need no torch: they run on the newest Python at hand, with the newest zarr.
ifeq ($(NEWEST),)
test-newest:
	@echo "no Python 3.12 or later is at hand: the store's tests ran on $(PYTHON) alone"
else
$(VENV)-newest/.installed: pyproject.toml
	$(NEWEST) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet 'zarr>=3.4' -e . \
	  beartype hypothesis jaxtyping pytest pytest-timeout pandas xarray tensorstore 'dask[array]'
	@touch $@

test-newest: $(VENV)-newest/.installed
	$(VENV)-newest/bin/python -m pytest tests/store tests/analysis/batches/test_sampler.py tests/analysis/test_dask_array.py
endif

# The short form is part of `make test`. ACTLAS_CHAOS_SEED=n gives another course of events; property
# tests draw other examples each time.
LONG_FORM := tests/chaos tests/jobs/scheduler/test_driver.py tests/store/verify/test_hostile_stores.py \
  tests/analysis/sae/test_hostile_saes.py
chaos: $(VENV)/.installed
	ACTLAS_CHAOS=long ACTLAS_CHAOS_OUT=$(CHAOS_OUT) $(BIN)/python -m pytest $(LONG_FORM) \
	  --hypothesis-profile=default --timeout=3600

bench: $(VENV)/.installed
	PYTHONSAFEPATH= $(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-docs site $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis
