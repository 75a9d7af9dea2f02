# make demo: set up .venv, run an interchange on the bundled runs, and build its gallery page.
# make test: the tests. Both work on a fresh clone with Python 3.10+, make and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo test setup check format clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,remote]'
	touch $@

setup: $(VENV)/.ready

demo: setup
	$(BIN)/wallprobe eval c0 c1 p1 p5
	$(BIN)/wallprobe interchange --src p5 --dst c0 --layer 3
	$(BIN)/wallprobe interchange --src p5 --dst c0 --layer all
	$(BIN)/wallprobe gains c0
	$(BIN)/wallprobe attention c0
	$(BIN)/wallprobe gallery

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) gallery gallery.html gallery.zip results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
