# `make demo` and `make test` set up everything by themselves; the other targets need no more than they do.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1
# two threads that spin while they wait cost tenfold on a busy machine
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test lint types check lock clean

help:
	@echo "make demo    train all four stages on real digits, print the table, draw the samples (SEEDS=3 for error bars)"
	@echo "make test    the test suite"
	@echo "make check   lint, types and tests, as CI does"
	@echo "make lock    pin the versions of requirements.txt again"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt pyproject.toml
	@command -v uv >/dev/null || $(PYTHON) -m uv --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv \
		|| $(PYTHON) -m pip install --quiet --user --break-system-packages uv
	@UV=$$(command -v uv || echo "$(PYTHON) -m uv"); \
	$$UV venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	$$UV pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt && \
	$$UV pip install --quiet --python $(BIN)/python --no-deps -e . && touch $@

demo: setup
	$(BIN)/rcg pipeline digits --seeds $(SEEDS)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check src tests && $(BIN)/ruff format --check src tests

types: setup
	$(BIN)/basedpyright

check: lint types test

lock:
	uv pip compile --universal --generate-hashes --no-header --group dev pyproject.toml -o requirements.txt

clean:
	rm -rf $(VENV) runs build dist
