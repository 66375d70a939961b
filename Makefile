# Works from a bare clone with Python 3.11 or newer; .venv is made at first use.
PYTHON ?= python3
VENV := .venv
ARGS ?= ffn=lookup
PYTEST = $(VENV)/bin/python -m pytest -n logical --maxprocesses 8
CXX_SOURCES = $(shell find lookupffn -name '*.cpp' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help train test quick lint format results hooks clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

train: $(VENV)/.runtime  ## pretrain: ARGS="ffn=gemm model=mini" (default: ffn=lookup)
	$(VENV)/bin/python train.py $(ARGS)

test: lint  ## lint and every test, on all cores
	$(PYTEST)

quick: lint  ## lint and the tests that take no more than seconds
	$(PYTEST) -m "not slow"

lint: $(VENV)/.development  ## ruff, clang-format and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(VENV)/bin/mypy

format: $(VENV)/.development  ## lay out Python and C++
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_SOURCES)

results: $(VENV)/.runtime  ## draw the tables and plots of results/ anew from its runs
	$(VENV)/bin/python scripts/draw_results.py

hooks: $(VENV)/.development  ## install the pre-commit hooks
	$(VENV)/bin/pre-commit install

clean:  ## remove .venv
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0] + "; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt requirements.lock | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt --constraint requirements.lock
	@touch $@

$(VENV)/.development: requirements-dev.txt requirements.txt requirements.lock | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement requirements-dev.txt --constraint requirements.lock
	@touch $@
