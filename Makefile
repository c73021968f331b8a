PYTHON ?= python3
PY := .venv/bin/python
PYTEST_FLAGS ?=

.PHONY: env quickstart test unit lint bench

env:
	@bash run_scripts/setup_env.sh $(PYTHON)

quickstart: env
	@bash run_scripts/quickstart.sh

test: env
	$(PY) -m pytest $(PYTEST_FLAGS) tests

unit: env
	$(PY) -m pytest $(PYTEST_FLAGS) -m "not slow" tests

lint: env
	$(PY) -m ruff check .
	$(PY) -m pytest $(PYTEST_FLAGS) tests/test_imports.py

bench: env
	$(PY) tools/benchmark.py
