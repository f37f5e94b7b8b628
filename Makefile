# The two commands of the README, and what developers use beside them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test lint format bench clean

run: $(READY)  ## the built-in default, from nothing to a report
	$(BIN)/python train.py $(ARGS)

test: $(READY)  ## all tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the training step beside TRL's and padded pairs
	$(BIN)/python benchmarks/train_step.py $(ARGS)

# Installed once, and again when the dependencies change.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: selfcontrast needs Python 3.11 or newer: make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:  ## everything that was made, the store included
	rm -rf $(VENV) outputs multirun store .pytest_cache .ruff_cache .mypy_cache .hypothesis
