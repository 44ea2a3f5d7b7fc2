# Two commands do all on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints-cpu.txt

.PHONY: demo docs test test-all lint unit heavy campaign reproduce-smoke clean

demo: $(VENV)/.installed
	$(BIN)/uge demo demo-out/photos --overwrite

test: lint unit reproduce-smoke

# Also what is heavy: real clusters and servers.
test-all: test heavy

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread per process: test workers that share cores are faster so.
unit: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

heavy: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m heavy

# Kills, bad input, flipped bytes, two commands at once: at most an hour on two cores; make campaign SEED=7 follows other chances.
SEED ?= 0
campaign: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m campaign -s tests/campaign
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaign/run.py --seed $(SEED)

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version); try make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml constraints-cpu.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/bin/pip pyproject.toml constraints-cpu.txt
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed

# Every table and figure of the paper on a handful of images: shows that all of them run.
reproduce-smoke: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/uge reproduce all --scale smoke --overwrite --workers 2 --quiet

# The site of the docs, in build/site: every link and every reference must resolve.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out reproduce-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
