# `make demo` and `make test` work alone, first, on a new clone; they need Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# Processes that the tests start would each compile what they import.
unexport PYTHONDONTWRITEBYTECODE

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint format bench studies docs docs-studies venv clean

BIN := $(VENV)/bin
RUN := $(BIN)/python -m

# $(call install,EXTRA): the environment with the package and an extra, at once when it is
# right already. What it was made from (the two files, this folder, the interpreter) is noted
# beside it, so a change in any of them installs again. torch goes first and pinned: left to
# itself, pip may bring several GB of GPU libraries. Modules are compiled when first imported,
# which is sooner than all at once. `dev` contains `recipes`. Packages in data-EXTRA.txt are
# there for the files they ship and go in alone: what they ask for may contradict the rest.
define install
	key() { { cat pyproject.toml constraints.txt $(wildcard data-$(1).txt); pwd; $(BIN)/python -VV; } 2>&1 | cksum; }; \
	stop() { echo "$$1" >&2; exit 2; }; \
	pip() { $(RUN) pip install -qq --no-input --no-compile --disable-pip-version-check -c constraints.txt "$$@"; }; \
	if [ "$$(cat $(VENV)/.$(1) 2>/dev/null)" != "$$(key)" ]; then \
	  if ! $(RUN) pip --version >/dev/null 2>&1; then \
	    command -v "$(PYTHON)" >/dev/null \
	      || stop "$(PYTHON) was not found: apt install python3-venv, or make PYTHON=/path/to/python3.11"; \
	    "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	      || stop "Python 3.11 or newer is needed, not $$("$(PYTHON)" -V 2>&1): make PYTHON=/path/to/python3.11"; \
	    "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null \
	      || stop "$(PYTHON) cannot make a virtual environment: apt install python3-venv"; \
	    "$(PYTHON)" -m venv --clear $(VENV); \
	  fi; \
	  echo "Installing into $(VENV) (a minute or two) ..."; \
	  made=$$(key); \
	  pip torch; \
	  pip -e '.[$(1)]'; \
	  if [ -f data-$(1).txt ]; then pip --no-deps -r data-$(1).txt; fi; \
	  echo "$$made" > $(VENV)/.$(1); \
	  if [ $(1) = dev ]; then echo "$$made" > $(VENV)/.recipes; fi; \
	fi
endef

help:
	@echo "make demo     install what the main job needs, run it, print where its report is"
	@echo "make test     install what the tests need, run them (ARGS=... goes to pytest)"
	@echo "make lint     ruff, mypy, the order of the rooms"
	@echo "make format   let ruff rewrite the sources"
	@echo "make bench    ratios against peers, and what becomes of a tie, into docs/"
	@echo "make studies  every recipe in full, into runs/, and the long checks in studies/"
	@echo "make docs     the documentation, into site/"
	@echo "make docs-studies  into its pages, what the runs in runs/all-seed0 (or ARGS) claim and show"
	@echo "make clean    remove $(VENV), caches and builds; runs/ stays"

demo:
	@$(call install,recipes)
	@$(BIN)/eadem run mnist $(ARGS)

venv:
	@$(call install,dev)

test: venv
	@$(RUN) pytest -n auto --dist loadfile $(ARGS)

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
	@$(call install,studies)
	@$(BIN)/eadem run --all $(ARGS)
	@for file in studies/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs:
	@$(call install,docs)
	@$(RUN) mkdocs build --strict $(ARGS)

docs-studies: venv
	@$(BIN)/python docs/_runs.py $(or $(ARGS),runs/all-seed0)
	@$(BIN)/python docs/_figures.py $(or $(ARGS),runs/all-seed0)

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .benchmarks .import_linter_cache
	find src tests $(wildcard benchmarks) -name __pycache__ -prune -exec rm -rf {} +
