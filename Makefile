# `make demo` and `make test` set up everything by themselves; the other targets need no more than they do.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDS ?= 1
# processes that run tests, of one thread and up to 2 GB of memory each
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# two threads that spin while they wait cost tenfold on a busy machine
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup demo test test-device kernels test-fast faults faults-tenth gpu gpu-rehearse lint types check lock clean

help:
	@echo "make demo    train all four stages on real digits, print the table, draw the samples (SEEDS=3 for error bars)"
	@echo "make test    all tests, as CI does"
	@echo "make test-fast  without the slow and the distributed ones, under three minutes"
	@echo "make test-device  every stage on a GPU pretended in CPU memory, two minutes"
	@echo "make kernels  count the kernels of a step again, and write tests/device/kernels.json"
	@echo "make faults  inject kills, full disks, damaged and hostile files, and report every deviation; under an hour"
	@echo "make faults-tenth  a tenth of that, as CI does"
	@echo "make gpu     check in eight minutes that everything is right and fast on this machine's GPU (docs/gpu.md)"
	@echo "make gpu-rehearse  the same code on the CPU at tiny sizes, as CI does"
	@echo "make check   lint, types, tests, pretended GPU, rehearsal and a tenth of the faults, as CI does"
	@echo "make lock    pin the versions of requirements.txt again"

setup: $(VENV)/.ready

# uv is taken from PATH, or installed into the environment itself
$(VENV)/.ready: requirements.txt pyproject.toml
	@set -e; \
	if command -v uv >/dev/null; then UV=uv; uv venv --quiet --allow-existing --python $(PYTHON) $(VENV); \
	else $(PYTHON) -m venv $(VENV) || { echo "make: install uv, or Python's venv module, and try again" >&2; exit 1; }; \
	$(BIN)/python -m pip install --quiet uv; UV=$(BIN)/uv; fi; \
	$$UV pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt; \
	$$UV pip install --quiet --python $(BIN)/python --no-deps -e .; \
	touch $@

demo: setup
	$(BIN)/rcg pipeline digits --seeds $(SEEDS)

test: setup
	$(PYTEST)

test-device: setup
	$(PYTEST) -m device tests/device

kernels: setup
	$(BIN)/python -m pytest -m device tests/device/test_kernels.py --write-kernels

test-fast: setup
	$(PYTEST) -m "not slow and not distributed"

faults: setup
	$(BIN)/python -m tests.faults

faults-tenth: setup
	$(BIN)/python -m tests.faults --share 0.1

# CIFAR is the folder of CIFAR-10; without it the part that trains on it is left out
gpu: setup
	$(BIN)/rcg check-gpu --out runs/gpu $(if $(CIFAR),--images $(CIFAR))

gpu-rehearse: setup
	$(BIN)/rcg check-gpu --rehearse --out runs/gpu-rehearsal

lint: setup
	$(BIN)/ruff check src tests && $(BIN)/ruff format --check src tests

types: setup
	$(BIN)/basedpyright

check: lint types test test-device gpu-rehearse faults-tenth

lock:
	uv pip compile --universal --generate-hashes --no-header --upgrade --group dev pyproject.toml -o requirements.txt

clean:
	rm -rf $(VENV) runs build dist
