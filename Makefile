# Everything in one place: `make demo` and `make test` set up the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# Packages are installed without byte code, and each module is compiled when it is first used, so it must be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-all lint clean

demo: $(STAMP)  ## search SimNPO, NPO and GA on the miniature benchmark and write the report
	$(BIN)/ray_unlearn tune --benchmark wmdp --scale mini --methods simnpo,npo,ga --trials 8

test: $(STAMP)  ## the default tests
	$(BIN)/pytest

test-slow: $(STAMP)  ## whole searches on a real Ray cluster, as far as continuous integration has the time
	$(BIN)/pytest -m "slow and not slowest"

test-all: $(STAMP)  ## all tests, whole searches on a real Ray cluster included
	$(BIN)/pytest -m "slow or not slow"

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch goes first: DeepSpeed's set-up imports it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt torch setuptools
	$(BIN)/pip install -q --no-compile --no-build-isolation -c constraints.txt deepspeed
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
