# Everything lives in .venv; a second call installs nothing again.
PYTHON ?= python3
BIN := .venv/bin
SUITE := suites/quick.toml

.PHONY: demo test lint install clean

demo: .venv/.installed
	$(BIN)/effbench run $(SUITE) --results effbench-results

# Tests that start workers, or time anything, have the machine to themselves; all others share it.
ALONE := tests/benchmarks tests/cli tests/end_to_end tests/estimate tests/launch tests/parallel tests/tools

test: .venv/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n 2 $(ALONE:%=--ignore=%)
	OMP_NUM_THREADS=1 $(BIN)/pytest $(ALONE)

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "effbench needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quantization]'
	@touch $@

.venv/.installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ .venv/.installed

clean:
	rm -rf .venv build *.egg-info
