# The virtual environment is made once, and again when the dependencies change.
VENV := .venv
PYTHON ?= python3
RUN := $(VENV)/bin

.PHONY: demo fuzz test test-slow test-shapes tables check docs package format clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready
	$(RUN)/moongate demo

# A process of one thread for each core: half the time of one process that uses all cores.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/ready
	$(RUN)/python -m pytest -m slow

# Runs the tests with all annotations of the package checked at run time, shapes of tensors among them.
test-shapes: $(VENV)/ready
	$(RUN)/python -m pytest --jaxtyping-packages=moongate,runtime_types.checked \
		--deselect tests/test_errors.py::test_a_warning_names_the_line_that_called_the_library \
		--deselect tests/fuzz/test_sample.py

# Reads 10,000 seeded changed files, which takes an hour; a run that was stopped goes on (build/fuzz.jsonl).
fuzz: $(VENV)/ready
	PYTHONPATH=tests:. $(RUN)/python -m fuzz --cases 10000

# Measures the records of the paper's tables that are missing, and writes docs/results/tables.md.
tables: $(VENV)/tables
	$(RUN)/python -m experiments

check: $(VENV)/ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-logo
	$(MAKE) docs
	$(MAKE) package

# Builds the site into build/site; the pages open from the disk, without a server and without a network.
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --quiet

# Builds the source archive and the wheel into build/dist, and checks their metadata.
package: $(VENV)/ready
	rm -rf build/dist && mkdir -p build
	$(RUN)/python -m build --no-isolation --outdir build/dist >build/package.log || { cat build/package.log; exit 1; }
	$(RUN)/twine check --strict build/dist/*

format: $(VENV)/ready
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

clean:
	rm -rf $(VENV) build demo

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Moongate needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,evaluation]'
	touch $@

$(VENV)/tables: $(VENV)/ready
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[experiments]'
	touch $@
