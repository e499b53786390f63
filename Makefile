# Two commands are all a newcomer needs: `make demo` and `make test`. Everything runs in .venv.
#
#   PYTHON=python3.12 make demo     another interpreter (3.11 or newer for the pinned versions)
#   make test ARGS="-k dpo -x"      options for pytest
#   make demo ARGS="--seed 1"       options for `prefopt demo`

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --no-compile -c constraints.txt
# Stamps: what is installed already.
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
ARGS ?=
# Where Python may not keep what it compiled, each process that a test starts compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE
# Each test process gets one thread: two processes of one thread beat one process of two.
# nproc would take OMP_NUM_THREADS for the number of processors.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs wheel clean

help:
	@echo "make demo       align a small model on the embedded data, from a clean clone, in minutes"
	@echo "make test       run the tests that take seconds each"
	@echo "make test-slow  run the tests that take longer"
	@echo "make lint       ruff format --check, ruff check, mypy --strict"
	@echo "make format     rewrite the sources as ruff formats them"
	@echo "make docs       rewrite README's table of losses; build docs/_build/html, warnings are errors"
	@echo "make wheel      build and check dist/*.whl and dist/*.tar.gz"
	@echo "make clean      remove .venv and everything that was built"

# What prefopt itself needs comes first, so that the demo need not wait for the tools of the tests.
$(RUN): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else \
	    f"constraints.txt pins versions that need Python 3.11 or newer; {sys.executable} is " \
	    f"{v[0]}.{v[1]}. Name another one: PYTHON=python3.12 make ...")'
	@echo "== Making $(VENV): about 1.3 GB, a minute or a few, once"
	$(PYTHON) -m venv $(VENV)
	@# torch alone first, at the pinned version, so that no other requirement can choose its build.
	@# Without byte-compiling: what is imported is compiled then, most of what is installed never is.
	$(PIP) torch
	$(PIP) -e ".[all]"
	@touch $@

$(DEV): $(RUN)
	@echo "== Adding the tools of tests, lint and docs to $(VENV)"
	$(PIP) -e ".[dev]"
	@touch $@

.venv: $(DEV)

demo: $(RUN)
	$(BIN)/python -m prefopt demo $(ARGS)

test: $(DEV)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(DEV)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
	    -m "slow and not gpu" $(ARGS)

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV)
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

wheel: $(DEV)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) docs/_build docs/losses docs/_pictures demo_output build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
