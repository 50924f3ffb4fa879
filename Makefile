# make demo: a sentence becomes a video.  make test: the tests.  Both set everything up first.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell $(name) -V 2>/dev/null),$(name))))
BIN := .venv/bin
READY := .venv/.ready
PROMPT ?= a red circle moves to the right
OUT ?= demo.mp4

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench mutants fuzz gpu clean

help:  ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY)  ## make .venv with lumos and everything it needs, at the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "lumos needs Python 3.11 to 3.13, got $$($(PYTHON) -V 2>&1); name one with make PYTHON=..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,train,serve,evaluate]'
	@touch $@

demo: setup  ## turn a sentence into a video on the CPU: PROMPT="..." OUT=demo.mp4
	$(BIN)/lumos generate "$(PROMPT)" --out $(OUT) --force
	@echo "the video is $(abspath $(OUT))"

test: setup  ## run the tests (all that need no GPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n 2 --dist worksteal

check: setup  ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: setup  ## seconds and memory of the weights in the package on this machine (benchmarks/ holds the others)
	$(BIN)/lumos bench

mutants: setup  ## put small faults into the code and list those that no test notices
	nice $(BIN)/python -m research.mutants

fuzz: setup  ## read 10,000 damaged files of every kind; each must be read or refused in words
	$(BIN)/python -m research.fuzz

gpu: setup  ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

clean:  ## remove the environment and caches
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
