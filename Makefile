# make demo: set up .venv, run an interchange on the bundled runs, and build its gallery page.
# make test: the tests, in another order each time. Both work on a fresh clone with Python 3.10+, make and a C compiler.
# make kernels: the tests that compute, with other kernels and numbers of threads.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
COMPUTE := $(addprefix tests/,tasks models/test_equilibrium.py models/test_products.py models/test_strips.py \
	training/estimators/test_feedback.py training/equilibrium/test_estimators.py training/audit/test_quantities.py \
	training/wall/test_conditions.py training/wall/test_evaluate.py training/wall/test_lean.py training/wall/test_optim.py \
	hooks/attach/test_cache.py hooks/flow/test_lens_strips.py hooks/gains/test_measure.py \
	hooks/interchange/test_single.py hooks/interchange/test_subspaces.py hooks/probes/test_fit.py)

.PHONY: demo test kernels setup check format clean

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

kernels: setup
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest $(COMPUTE) --numprocesses $(JOBS) --dist loadfile
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(COMPUTE)

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
