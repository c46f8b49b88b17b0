# crisp: `make run` serves, `make test` checks everything. Both install what they need on Debian and Ubuntu.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE ?=

.DEFAULT_GOAL := help
.PHONY: help run test setup setup-test lint types unit stubs bench clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

run: setup ## install what is missing and serve CRI on unix:///run/crisp/crisp.sock
	exec $(BIN)/crisp serve $(SERVE)

test: setup-test lint types unit ## format, lint, types, tidy and every test

setup: ## what `make run` needs
	@PYTHON=$(PYTHON) ./install-dependencies run

setup-test: ## what `make test` needs
	@PYTHON=$(PYTHON) ./install-dependencies test

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

unit:
	$(BIN)/pytest

stubs: ## regenerate the gRPC stubs
	$(BIN)/python -m proto.generate

bench: setup-test ## measure beside containerd and print a table
	$(BIN)/python -m tests.bench

clean: ## remove what the above made in this directory
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
