# The virtual environment is made once, and again when the dependencies change.
VENV := .venv
PYTHON ?= python3
RUN := $(VENV)/bin
CODE := src recipe tests experiments benchmarks

.PHONY: demo test test-slow tables check docs format clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	$(RUN)/moongate demo

test: $(VENV)/ready
	$(RUN)/python -m pytest

test-slow: $(VENV)/ready
	$(RUN)/python -m pytest -m slow

# Measures whatever result of the paper's tables is missing, and writes docs/results/tables.md.
tables: $(VENV)/tables
	$(RUN)/python -m experiments

check: $(VENV)/ready
	$(RUN)/ruff check $(CODE)
	$(RUN)/ruff format --check $(CODE)
	$(RUN)/mypy
	$(RUN)/lint-imports --no-logo

# Builds the site into build/site; the pages open from the disk, without a server and without a network.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --quiet

format: $(VENV)/ready
	$(RUN)/ruff check --fix $(CODE)
	$(RUN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) demo

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Moongate needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/tables: $(VENV)/ready
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments]'
	touch $@
