# `make quickstart` and `make test` set up everything they need in .venv.
# Another interpreter: make PYTHON=/path/to/python3.12 quickstart

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help quickstart test slow lint format clean

BIN := .venv/bin
INSTALLED := .venv/installed
WORKERS ?= 2
PATHS := e3dsnn_jax svcca_jax experiments tests

help:
	@echo "make quickstart   install, train on embedded shapes, evaluate, analyse, report"
	@echo "make test         install, lint, check types, run the tests"
	@echo "make slow         the longer tests"
	@echo "make lint         ruff and basedpyright only"
	@echo "make format       rewrite the sources in the project's format"
	@echo "make clean        remove .venv and caches (runs/ stays)"

quickstart: $(INSTALLED)
	@$(BIN)/python -m experiments.quickstart

test: lint
	@$(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist loadfile

slow: $(INSTALLED)
	@$(BIN)/python -m pytest -q -m slow

lint: $(INSTALLED)
	@$(BIN)/ruff check -q $(PATHS)
	@$(BIN)/ruff format -q --check $(PATHS)
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	@$(BIN)/ruff check -q --fix $(PATHS)
	@$(BIN)/ruff format -q $(PATHS)

clean:
	@rm -rf .venv .pytest_cache .ruff_cache build dist
	@find $(PATHS) -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation starts again, and a changed
# pyproject.toml installs again. Where the interpreter lacks ensurepip (Debian without
# python3-venv), its own pip puts one into the new environment.
$(INSTALLED): pyproject.toml
	@set -euo pipefail; exec 1>&2; \
	good() { "$$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' \
	  >/dev/null 2>&1; }; \
	candidates="$(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)"; \
	python=""; \
	for candidate in $$candidates; do \
	  if good "$$candidate"; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Needs Python 3.11 or newer; none of these is: $$candidates." \
	    "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; \
	  exit 1; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making .venv with $$("$$python" --version)"; \
	  rm -rf .venv; \
	  if "$$python" -c 'import ensurepip' 2>/dev/null; then \
	    "$$python" -m venv .venv; \
	  else \
	    "$$python" -m venv --without-pip .venv; \
	    "$$python" -m pip --python $(BIN)/python install -q pip; \
	  fi; \
	fi; \
	echo "Installing into .venv (some minutes the first time)"; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'; \
	touch $@
