# `make setup` makes .venv with everything; `make quickstart` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
# What an installation is made of, beside the Python that it finds in place: the CPU kernels are compiled then.
INSTALLED := pyproject.toml hatch_build.py $(wildcard harness/models/kernels/*.cpp harness/models/kernels/*.h)

.PHONY: setup quickstart test test-all check clean

setup: $(STAMP)

$(STAMP): $(INSTALLED)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP)
	@$(BIN)/harness search quickstart --report --export knee

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Two test processes of one thread each: as many as the smallest machine has cores.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

test-all: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m 'slow or not slow'

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
