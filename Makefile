# Two commands do everything on a machine that has Python >= 3.11: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Bytecode is written even where the environment forbids it: importing torch uncompiled takes 15 s at every start.
unexport PYTHONDONTWRITEBYTECODE

# GPUs often come with a torch of their own: with no .venv, PYTHON is taken as it is.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: demo test processes slow gpu lint format examples accuracy benchmark docs clean

# --no-compile: Python compiles what is imported when it is imported, which is faster than compiling every file.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile torch
	$(INSTALL) --no-compile -e '.[test]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp
	$(INSTALL) --no-compile -e '.[docs]'
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/python -m examples.demo --out out

test: $(VENV)/run.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow and not cuda"

# Those that start Python, with as many threads as OMP_NUM_THREADS says; one after the other, since threads of two would wait for cores.
processes: $(VENV)/run.stamp
	$(BIN)/python -m pytest -m "processes and not slow and not cuda"

slow: $(VENV)/run.stamp
	$(BIN)/python -m pytest -m slow

gpu:
	$(GPU_PYTHON) -m tests.gpu --out out/gpu

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

examples: $(VENV)/run.stamp
	$(BIN)/python -m examples --quick --out out/examples

accuracy: $(VENV)/run.stamp
	$(BIN)/python -m tests.accuracy

benchmark: $(VENV)/run.stamp
	mkdir -p out
	$(BIN)/python -m tests.benchmarks --json out/benchmarks.json

# The site, in out/site. QUICK=1 shows the tutorials without running them. One thread: theirs are small sums.
docs: $(VENV)/docs.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going $(if $(QUICK),-D plot_gallery=0) docs out/site

clean:
	rm -rf $(VENV) docs/reference docs/tutorials out build dist *.egg-info
