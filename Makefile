# `make demo` and `make test` work alone, first, on a new clone; they need Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench studies docs venv clean

BIN := $(VENV)/bin
RUN := $(BIN)/python -m

# $(call install,EXTRA): the environment with the package and an extra, in a second when it is
# right already. What it was made from (the two files, this folder, the interpreter) is noted
# beside it, so a change in any of them installs again. torch goes first and pinned: left to
# itself, pip may bring several GB of GPU libraries.
define install
	key() { { cat pyproject.toml constraints.txt; pwd; $(BIN)/python -VV; } 2>&1 | cksum; }; \
	if [ "$$(cat $(VENV)/.$(1) 2>/dev/null)" != "$$(key)" ]; then \
	  command -v "$(PYTHON)" >/dev/null || { \
	    echo "$(PYTHON) was not found: apt install python3 python3-venv, or make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, $$("$(PYTHON)" -V 2>&1) was found: make PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	  "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make a virtual environment: apt install python3-venv" >&2; exit 2; }; \
	  echo "Installing into $(VENV) (a minute or two) ..."; \
	  "$(PYTHON)" -m venv $(VENV); \
	  pip() { $(RUN) pip install -q --no-input --disable-pip-version-check -c constraints.txt "$$@"; }; \
	  pip torch; \
	  pip -e '.[$(1)]'; \
	  key > $(VENV)/.$(1); \
	fi
endef

help:
	@echo "make demo     install what the main job needs, run it, print where its report is"
	@echo "make test     install what the tests need, run them (ARGS=... goes to pytest)"
	@echo "make lint     ruff, mypy, the order of the rooms"
	@echo "make format   let ruff rewrite the sources"
	@echo "make bench    ratios against peers, written to docs/benchmarks.md"
	@echo "make studies  every recipe in full, into runs/"
	@echo "make docs     the documentation, into site/"
	@echo "make clean    remove $(VENV), caches and builds; runs/ stays"

demo:
	@$(call install,recipes)
	@$(BIN)/eadem run mnist $(ARGS)

venv:
	@$(call install,dev)

test: venv
	@$(RUN) pytest $(ARGS)

lint: venv
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(BIN)/python -c 'from importlinter.cli import lint_imports_command as main; main()'

format: venv
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

bench: venv
	@$(RUN) benchmarks $(ARGS)

studies:
	@$(call install,recipes)
	@for name in $$($(BIN)/python -c 'from eadem.recipes import recipes; print(*recipes())'); do \
	  echo "== $$name"; $(BIN)/eadem run "$$name" $(ARGS); \
	done

docs:
	@$(call install,docs)
	@$(RUN) mkdocs build --strict $(ARGS)

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .benchmarks .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
