# `make` lists the targets. Everything made stands in .venv and var.
PYTHON ?= python3
PORT ?= 8000
PG ?= 18

VENV := .venv
BIN := $(VENV)/bin
MANAGE := $(BIN)/python manage.py
# A database of its own for `make dev`, whatever .env and the environment name.
DEV := DATABASE_URL= AGENTMEM_DATA_DIR=var/dev
export AGENTMEM_POSTGRES_VERSION := $(PG)

.DEFAULT_GOAL := help
.PHONY: help run dev test test-full coverage lint lint-style lint-types lint-site bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PORT=$(PORT) PG=$(PG) (PostgreSQL 18 or 16) PYTHON=$(PYTHON)"

run: $(VENV)/runtime ## the console and the API on 127.0.0.1:PORT, with sample data
	@$(MANAGE) quickstart --port $(PORT)
	@$(MANAGE) serve --port $(PORT)

dev: $(VENV)/dev ## as `make run`, with data of its own in var/dev; restarts when a file changes
	@$(DEV) $(MANAGE) quickstart --port $(PORT)
	@$(DEV) AGENTMEM_DEBUG=1 $(MANAGE) serve --reload --port $(PORT)

test: $(VENV)/dev ## all tests but the long ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-full: $(VENV)/dev ## all tests, the long ones too
	$(BIN)/python -m pytest -n 2

coverage: $(VENV)/dev ## the tests of `make test`, and the branches that they miss
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: lint-style lint-types lint-site ## style, types, migrations, deployment settings, API schema

lint-style: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

lint-types: $(VENV)/dev
	$(BIN)/mypy

lint-site: $(VENV)/dev
	$(MANAGE) makemigrations --check --dry-run
	AGENTMEM_HTTPS=1 AGENTMEM_ALLOWED_HOSTS=agentmem.example \
		AGENTMEM_SECRET_KEY=$$($(BIN)/python -c "import secrets; print(secrets.token_urlsafe(50))") \
		$(MANAGE) check --deploy --fail-level WARNING
	$(MANAGE) spectacular --validate --fail-on-warn --file /dev/null

bench: $(VENV)/dev ## the benchmarks; their figures go to docs/performance.md
	$(BIN)/python -m tests.benchmarks --write

clean: ## stops the embedded PostgreSQL and removes the environment; the data in var stays
	-@test ! -x $(BIN)/python || $(MANAGE) database stop
	-@test ! -x $(BIN)/python || test ! -d var/dev || $(DEV) $(MANAGE) database stop
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "AgentMem needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module is missing. On Debian: apt install python3-venv"; exit 1; }

$(VENV)/runtime: requirements.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/dev: requirements-dev.txt requirements.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/runtime
