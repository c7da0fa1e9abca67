# Everything here needs only Python 3.11 or newer with `venv`. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt
DEMO ?= runs/demo

export JAX_PLATFORMS ?= cpu

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults test-compile lint types preflight bench reproduce docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.core  ## train CARoPE and a RoPE twin on real text (two minutes on 2 cores), compare, sample
	$(BIN)/python experiments/carope/demo.py --workdir $(DEMO)

test: $(VENV)/.test  ## the test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.test  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-faults: $(VENV)/.test  ## kill, damage and fuzz (half an hour on 2 cores); rewrites docs/faults.md
	$(BIN)/python -m pytest -m faults tests/faults

test-compile: $(VENV)/.preflight  ## ahead-of-time compilation for TPU pods; installs libtpu (500 MB)
	$(BIN)/python -m pytest -m compile

lint: $(VENV)/.test  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.types  ## mypy on the public surface; installs mypy
	$(BIN)/python -m mypy

preflight: $(VENV)/.preflight  ## compile every paper-scale configuration for its TPU slice (an hour), rewrite tpu/PREFLIGHT.md
	$(BIN)/python tpu/matrix.py --write --again

reproduce: $(VENV)/.report  ## every table at scale smoke (hours on a CPU, resumable), then REPRODUCTION.md; ONLY=lact/figure5
	$(BIN)/jaxlm reproduce --scale smoke $(if $(ONLY),--only $(ONLY))

docs: $(VENV)/.docs  ## the site in docs/_build/html; runs the notebooks (ten minutes the first time), a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.bench  ## a training step against PyTorch; installs torch
	$(BIN)/python bench/train_step.py

clean:  ## remove the environment and every cache; runs/ stays
	rm -rf $(VENV) build dist docs/_build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras, so that a second `make` installs nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxlm needs Python 3.11 or newer, this is " \
	  + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.preflight: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test,preflight]'
	@touch $@

$(VENV)/.report: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[report]'
	@touch $@

$(VENV)/.types: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[types]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[bench]'
	@touch $@
