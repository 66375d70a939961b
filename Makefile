# `make train` and `make test` work from a bare clone with Python 3.11 or newer; .venv is made at first use.
PYTHON ?= python3
VENV := .venv
ARGS ?= ffn=lookup

.PHONY: train test lint clean

train: $(VENV)/.runtime
	$(VENV)/bin/python train.py $(ARGS)

test: lint
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0] + "; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/.development: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement requirements-dev.txt
	@touch $@
