# The virtual environment is made once, and again when the dependencies change.
VENV := .venv
PYTHON ?= python3
RUN := $(VENV)/bin

.PHONY: demo test test-slow check format clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	$(RUN)/moongate demo

test: $(VENV)/ready
	$(RUN)/python -m pytest

test-slow: $(VENV)/ready
	$(RUN)/python -m pytest -m slow

check: $(VENV)/ready
	$(RUN)/ruff check src tests
	$(RUN)/ruff format --check src tests
	$(RUN)/mypy

format: $(VENV)/ready
	$(RUN)/ruff check --fix src tests
	$(RUN)/ruff format src tests

clean:
	rm -rf $(VENV) demo

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Moongate needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
