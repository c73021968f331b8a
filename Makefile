PYTHON ?= python3
PY := .venv/bin/python
WORKERS ?= 2
PYTEST_FLAGS ?=
# two processes of one thread each are quicker than one of two threads: few tests compute enough to share it out
TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_FLAGS)

.PHONY: env quickstart test unit lint bench

env:
	@bash run_scripts/setup_env.sh $(PYTHON)

quickstart: env
	@bash run_scripts/quickstart.sh

test: env
	$(TESTS) tests

unit: env
	$(TESTS) -m "not slow" tests

lint: env
	$(PY) -m ruff check .
	$(PY) -m pytest $(PYTEST_FLAGS) tests/test_imports.py

bench: env
	$(PY) tools/benchmark.py
