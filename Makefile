# The developers' menu. `make demo` and `make test` need nothing but Python 3.11+ and, for compiling, g++.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.DEFAULT_GOAL := help

help: ## Show this menu
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch first and by its pinned version, so that no later package pulls another build of it.
$(VENV)/engine.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[engine]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/engine.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

compiler:
	@command -v g++ >/dev/null || { echo "installing g++ (AOTInductor compiles with it)"; \
	  apt-get update -q && apt-get install -y -q --no-install-recommends g++; }

install: $(VENV)/engine.stamp ## Create .venv with trtx and its engine packages

demo: compiler $(VENV)/engine.stamp ## Build the quickstart recipe on this machine
	$(BIN)/trtx apply recipes/quickstart.yaml

servers:
	@PYTHON=$(PYTHON) tests/install

test: compiler servers $(VENV)/dev.stamp ## Install what the tests need and run all of them
	$(BIN)/pytest

lint: $(VENV)/dev.stamp ## Formatting, lint, types and import laws
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/dev.stamp ## Format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: compiler $(VENV)/dev.stamp ## Time the control plane beside its peers
	$(BIN)/python benchmarks/control_plane.py

clean: ## Remove .venv and run records; the cache stays
	rm -rf $(VENV) .trtx out

.PHONY: help compiler servers install demo test lint format bench clean
