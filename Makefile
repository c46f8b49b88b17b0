# crisp: `make run` serves, `make test` checks everything. Both install what they need on Debian and Ubuntu.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVE ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-guest setup setup-test lint types unit unit-api unit-cgroup-v2 unit-alone unit-rest stubs bench soak churn fuzz mutants clean lock packages

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

# Where cgroup v1 holds controllers, what depends on the mode runs once more without it: no networks, trees, clocks and records.
ANY_MODE = $(wildcard tests/kernel/test_network_*.py) $(addprefix tests/kernel/test_,trees.py removal.py sockets.py modes.py spares.py \
	streaming_vanished.py) $(addprefix tests/faults/test_,cni_leaks.py clock.py \
	database.py image_failpoints.py nri_kills.py) $(addprefix tests/api/test_,images.py network.py daemon_security.py support_bundle.py \
	command.py command_astray.py build_command.py build_inside.py run_ends.py docker_names.py using.py nri_life.py nri_events.py)

# Without a daemon.
ALONE = tests/unit tests/images tests/fuzz

unit: # two at once; what begins first takes longest
	$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target unit-api unit-cgroup-v2 unit-alone unit-rest

unit-api:
	$(BIN)/pytest tests/api

unit-cgroup-v2:
	$(BIN)/pytest --cgroup-v2 tests/api tests/kernel tests/faults $(addprefix --ignore=,$(ANY_MODE))

unit-alone:
	$(BIN)/pytest $(ALONE)

unit-rest:
	$(BIN)/pytest $(addprefix --ignore=,$(ALONE) tests/api)

GUEST ?=

test-guest: ## chosen tests in a guest with systemd and pure cgroup v2, run by GUEST=program (docs/conformance.md)
	@[ -n "$(GUEST)" ] || { echo "GUEST= is to name a program, see docs/conformance.md" >&2; exit 1; }
	$(GUEST) $(CURDIR) $(CURDIR)/tests/guest/run.sh

stubs: ## regenerate the gRPC stubs
	$(BIN)/python -m proto.generate

bench: setup-test ## measure beside containerd and print a table
	$(BIN)/python -m tests.bench

SOAK ?= 600

soak: setup-test ## random calls and faults against a model of the CRI for SOAK=600 seconds, then every fault test
	CRISP_SOAK_SECONDS=$(SOAK) CRISP_CNI_KILLS=100 CRISP_LIVES=2000 $(BIN)/pytest --timeout=0 tests/model tests/faults \
		tests/api/test_event_stream.py
	CRISP_SOAK_SECONDS=$(SOAK) $(BIN)/pytest --cgroup-v2 tests/model tests/churn
	CRISP_UNPACKINGS=5000 $(BIN)/pytest --timeout=0 tests/images/test_unpack_property.py

PODS ?= 2000

churn: setup-test ## PODS=2000 come and go, 8 at once; a table of what they have left
	$(BIN)/python -m tests.churn --pods $(PODS)

SECONDS ?= 60

fuzz: setup-test ## fuzz every codec and parser, SECONDS=60 each
	$(BIN)/pip install --quiet --root-user-action=ignore atheris==3.0.0
	$(BIN)/python -m tests.fuzz $(SECONDS)

MUTANTS ?= 100
SEED ?= 1

mutants: setup-test ## make MUTANTS=100 places of the code wrong, chosen by SEED=1, and count how many a test notices
	$(BIN)/python -m tests.mutants --count $(MUTANTS) --seed $(SEED)

# A release of uv that is itself pinned; UPGRADE=--upgrade takes the newest versions that pyproject.toml allows.
UV_VERSION := 0.13.9
LOCK = build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(UPGRADE)

lock: ## pin the dependencies with their hashes, after a change of pyproject.toml
	@[ -x build/uv/bin/uv ] || { $(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv==$(UV_VERSION); }
	$(LOCK) --extra tracing pyproject.toml --output-file requirements/run.txt
	$(LOCK) --group pyproject.toml:build --output-file requirements/build.txt
	$(LOCK) --extra tracing --extra dev --group pyproject.toml:build pyproject.toml \
		--constraints requirements/run.txt --constraints requirements/build.txt --output-file requirements/test.txt

# Debian's own Python: the package is for the version that builds it, and says so in its dependencies.
DEB_PYTHON ?= /usr/bin/python3
# The same commit gives the same bytes.
EPOCH = $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)

DIST ?= dist

packages: setup-test ## build the wheel, the source distribution and the Debian package into dist/
	rm -rf $(DIST)
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python -m hatchling build --directory $(DIST)
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python manifests/command_pages.py $(DIST)/pages
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python manifests/debian/build.py --python $(DEB_PYTHON) --dist $(DIST)
	rm -rf $(DIST)/pages

clean: ## remove what the above made in this directory
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
