# Set-up and daily work. A fresh machine needs Python 3.11 or later, make and git.
#
#   make tour                          make test
#   make tour PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"     # torch for CPU only
#   make test PYTHON=python3.12 VENV=.venv-312                                      # another Python, another place

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=
WORKERS ?= 2
OLDEST ?= 5.0.0
OLD_VENV ?= .venv-oldest

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads that spin while they wait starve as soon as anything else runs: docs/LOG.md, "OpenMP waits".
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help tour test lint test-slow test-network test-oldest docs install

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' Makefile | awk -F: '{printf "  make %-13s%s\n", $$1, $$2}'
	@echo "  Variables:   PYTHON=$(PYTHON) VENV=$(VENV) PIP_ARGS=\"$(PIP_ARGS)\" WORKERS=$(WORKERS) ARGS (flags for the tour or for pytest)"

tour: $(STAMP)  ## Set up and run the main job: `dragoman tour`.
	$(BIN)/dragoman tour $(ARGS)

test: lint  ## Set up, check style and types, run the tests.
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not network" $(ARGS)

lint: $(STAMP)  ## ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(STAMP)  ## Tests that take minutes.
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "slow and not network" $(ARGS)

test-network: $(STAMP)  ## Tests that fetch packages.
	$(BIN)/python -m pytest -m network $(ARGS)

test-oldest: $(OLD_VENV)/.installed  ## All its architectures, and a diagnosis, with the oldest transformers.
	HF_HUB_OFFLINE=1 $(OLD_VENV)/bin/python -m pytest tests/test_architectures.py tests/commands/test_diagnose.py $(ARGS)

docs: $(STAMP)  ## Generate docs/cli.md from the commands, docs/architectures.md from transformers, methods in docs/methods.md.
	$(BIN)/python -m dragoman.cli docs > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md
	$(BIN)/python -m tests.architectures > docs/architectures.md.new
	mv docs/architectures.md.new docs/architectures.md
	$(BIN)/python -m tests.methods.contract

install: $(STAMP)  ## Set up only.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.11; name another one: make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $@

# What the pinned versions of these need or bring belongs to the newest transformers.
$(OLD_VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(OLD_VENV)
	@grep -vE '^(transformers|tokenizers|huggingface-hub)==' constraints.txt > $(OLD_VENV)/constraints.txt
	$(OLD_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c $(OLD_VENV)/constraints.txt \
	  transformers==$(OLDEST) -e '.[test]'
	@touch $@
