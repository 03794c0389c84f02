# Two commands on a fresh machine with Python 3.11+:   make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint format clean

demo: .venv/.installed  ## the main job on the embedded tiny pair: minutes, on a CPU
	$(BIN)/tutelage demo

test: lint  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: lint  ## lint, types and the quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/unit tests/contracts tests/test_imports.py

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build src/*.egg-info
