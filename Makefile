# Everything lives in .venv; a second call installs nothing again.
PYTHON ?= python3
BIN := .venv/bin
SUITE := suites/quick.toml

.PHONY: demo boards test test-long test-slurm slurm test-site chromium lint clean

demo: .venv/.installed
	$(BIN)/effbench run $(SUITE) --results effbench-results

# What the repository shows of the records in results/: the boards, the page, and the README's table and plot.
boards: .venv/.installed-test
	$(BIN)/effbench publish results --to results --format markdown --format claims-markdown --format pareto-markdown --format html
	$(BIN)/effbench publish results/*/quick --to docs/quick --format plots --readme README.md --readme-plot quality-prefill-speed

# Tests that start workers of their own, or time anything, have the machine to themselves; all others share it.
ALONE := tests/benchmarks tests/cli/test_calibrate.py tests/cli/test_profile.py tests/end_to_end tests/launch/test_conditions.py \
	tests/parallel/test_communication.py tests/tools/test_over_libraries.py tests/tools/test_tools.py

test: .venv/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n 2 -m "not long" $(ALONE:%=--ignore=%) --ignore=tests/slurm --ignore=tests/site
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not long" $(ALONE)

# What generates and compiles real code, and estimates the largest published shapes: some minutes of computing for a few tests.
test-long: .venv/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m long --timeout=1200

# On a Slurm of its own, which a fixture starts; only root may start one.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo -n)

test-slurm: .venv/.installed-test slurm
	$(AS_ROOT) env OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 $(BIN)/pytest -p no:cacheprovider tests/slurm

# Installed with apt where it is not there yet; fails, saying why, where that cannot be.
slurm:
	@$(AS_ROOT) true || { echo "A Slurm can be installed and started by root alone"; exit 1; }
	@command -v sbatch > /dev/null && ls /usr/sbin/munged /usr/sbin/slurmctld /usr/sbin/slurmd > /dev/null 2>&1 || { \
		command -v apt-get > /dev/null || { echo "Slurm is not installed, and there is no apt-get to install it with"; exit 1; }; \
		$(AS_ROOT) apt-get update -qq; \
		$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -qq --yes --no-install-recommends munge slurmctld slurmd slurm-client; \
	}

# The page of leaderboards in a real browser.
test-site: .venv/.installed-test chromium
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/site

# As above, where no Chromium is on the PATH.
chromium:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		$(AS_ROOT) true || { echo "Chromium can be installed by root alone"; exit 1; }; \
		command -v apt-get > /dev/null || { echo "Chromium is not installed, and there is no apt-get to install it with"; exit 1; }; \
		$(AS_ROOT) apt-get update -qq; \
		$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium; \
	}

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "effbench needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plots,quantization]'
	@touch $@

.venv/.installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ .venv/.installed

clean:
	rm -rf .venv build *.egg-info
