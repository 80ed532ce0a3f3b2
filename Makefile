# Everything runs in .venv, which is made when it is missing. Needs Python >= 3.11, gcc/g++ and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SCRIPTS := $(wildcard slurm/*.sh slurm/*.sbatch tests/cluster/*.sh tests/gpu/*.sh tests/support/*.sh .ci/run)

# Much of a test is waiting for processes: one worker more than there are cores.
WORKERS ?= $(shell expr $$(nproc) + 1)
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help install quickstart test test-fast check format recipes clean
help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

install: $(VENV)/.installed  ## the virtual environment with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

quickstart: install  ## data -> shards -> ZeRO-2 training -> export -> answers, on two CPU processes, in minutes
	$(BIN)/python -m tests.benchmarks.quickstart

test: install  ## all tests; those that need root, SLURM, a GPU or real data skip with a reason
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: install  ## what to wait for before a commit
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not cluster and not launch'

check: install  ## linter, formatter, types, every shipped YAML and JSON, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vermin --quiet --no-tips --violations --target=3.6- slurm
	$(BIN)/python -m tests.support.parse_files
	for script in $(SCRIPTS); do bash -n $$script || exit 1; done
	$(BIN)/shellcheck $(SCRIPTS)

format: install  ## let ruff format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

recipes: install  ## the memory pages in the head comments of configs/train, written again
	$(BIN)/python -m tests.support.recipe_pages

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
