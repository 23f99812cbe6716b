# `make demo` and `make test` set everything up by themselves; both may be run again.
# Runs on GNU Make 3.81. Another environment: make demo VENV=path (one that exists is used as it is
# when it can import subnet). Another Python: make demo PYTHON=python3.12.

VENV   ?= .venv
PYTHON ?= python3
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip --disable-pip-version-check
DEMO   ?= demo
# Two workers on two cores: libraries that start threads of their own would wait for each other.
ONE_THREAD = OMP_NUM_THREADS=1

.PHONY: help demo test test-all test-wheel check format bench clean

help:
	@echo "make demo        set up, train the demo checkpoint, analyse it, say where the report is"
	@echo "make test        set up, run the fast tests (minutes)"
	@echo "make test-all    the slow proofs as well"
	@echo "make test-wheel  build the wheel, install it elsewhere, run the demo from it"
	@echo "make check       format, lint, types, imports"
	@echo "make bench       the benchmarks, at a size that takes minutes"

# The stamp is written last; an environment that could not be completed is removed if it is ours.
$(VENV)/.subnet: pyproject.toml constraints.txt
	@$(BIN)/python -c 'import subnet_cli' 2>/dev/null && test "$(VENV)" != .venv && touch $@ || $(MAKE) --no-print-directory environment EXTRAS= STAMP=$@
$(VENV)/.subnet-dev: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory environment EXTRAS='[test,dev]' STAMP=$@
$(VENV)/.subnet-all: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory environment EXTRAS='[test,test-all,dev]' STAMP=$@

.PHONY: environment
environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "subnet needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make environments; install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV) && touch $(VENV)/.made-here; }
	@echo "installing (a few minutes the first time)"
	@$(PIP) install --quiet --constraint constraints.txt --editable '.$(EXTRAS)' || \
	  { test ! -e $(VENV)/.made-here || rm -rf $(VENV); echo "the installation failed (see above); nothing was left behind"; exit 1; }
	@touch $(STAMP)

demo: $(VENV)/.subnet
	$(BIN)/subnet demo $(DEMO) --overwrite

test: $(VENV)/.subnet-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(VENV)/.subnet-all
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile

test-wheel: $(VENV)/.subnet-dev
	$(BIN)/python tests/wheel.py

check: $(VENV)/.subnet-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.subnet-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.subnet-dev
	$(BIN)/python benchmarks/overlap.py

clean:
	rm -rf .venv demo demo-analysis dist build
