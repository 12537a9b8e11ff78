# Everything in one place: `make demo` and `make test` set up the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

# Byte code must be kept: without it each of Ray's processes compiles its imports anew.
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

# torch goes first: DeepSpeed's set-up imports it. Of the packages' byte code, what searches import is written: pip would
# compile seven times as many modules.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt torch setuptools
	$(BIN)/pip install -q --no-compile --no-build-isolation -c constraints.txt deepspeed
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m ray_unlearn.byte_code
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
