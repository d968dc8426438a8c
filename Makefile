# `make demo` and `make test` work on a bare checkout, given Python 3.11, git and make.

PYTHON ?= python3
UV_VERSION := 0.13.8

VENV := .venv
BIN := $(VENV)/bin
# A file's tests stay together: most files share one store, backend or sidecar. Four, for many of them wait for something.
# Hundreds of processes are started, and none is to compile everything again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder
# Backends and clients from npm, in front of which Gatekeeper is tested (docs/recipes).
NPM := .recipes/node/.installed .recipes/directus/.installed
SYNC := $(BIN)/uv sync --quiet --frozen --inexact --extra embedded

# uv is to use the interpreter of $(VENV), whatever is active around it, and the certificates that pip uses too: behind
# an inspecting proxy the authorities that uv ships do not do.
unexport VIRTUAL_ENV
export UV_PROJECT_ENVIRONMENT := $(VENV)
export UV_PYTHON := $(CURDIR)/$(BIN)/python
export UV_PYTHON_DOWNLOADS := never
export UV_SYSTEM_CERTS := 1

.PHONY: help demo test check fast check-pythons lint format bench bench-store bench-soak clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      try it: a sample backend with Gatekeeper in front of it"
	@echo "make test      everything that must hold before a change goes in"
	@echo "make check     the fast part of it"
	@echo "make lint      only the static part of it"
	@echo "make check-pythons  the fast tests on every installed Python from 3.11 on"
	@echo "make format    rewrite the sources as the formatter wants them"
	@echo "make bench     measure it beside other gateways (bench/README.md)"
	@echo "make clean     remove what these commands have made"

demo: $(VENV)/.installed
	@exec $(BIN)/gatekeeper demo

test: lint $(NPM)
	$(PYTEST)

check: lint fast

# The part of `check` that depends on the interpreter: `make fast VENV=.venvs/3.13 PYTHON=python3.13` takes another one.
fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" --hypothesis-profile=quick

check-pythons:
	@.ci/check-pythons

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# PEERS and WORK choose some of what `python -m bench --list` names; ROUNDS, SECONDS and MINUTES how long.
BENCH = $(BIN)/python -m bench
bench: $(VENV)/.installed-dev
	$(BENCH) $(if $(PEERS),--peers "$(PEERS)") $(if $(WORK),--work "$(WORK)") \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

bench-store: $(VENV)/.installed-dev
	$(BENCH) store $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

bench-soak: $(VENV)/.installed-dev
	$(BENCH) soak $(if $(MINUTES),--minutes $(MINUTES))

clean:
	rm -rf bench/.work $(VENV) .venvs .recipes dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .grimp_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each step leaves a stamp, so that a second call does nothing. The syncs are inexact: one never takes away what the
# other, or somebody by hand, has put there.
$(VENV)/.uv-$(UV_VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Gatekeeper needs Python 3.11 or newer, and \`$(PYTHON)\` is none:" \
	    "name one with \`make PYTHON=python3.11 …\`" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "\`$(PYTHON)\` lacks the modules venv and ensurepip: on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(VENV)/.installed: pyproject.toml uv.lock | $(VENV)/.uv-$(UV_VERSION)
	$(SYNC) --no-dev
	@touch $@

$(VENV)/.installed-dev: pyproject.toml uv.lock | $(VENV)/.uv-$(UV_VERSION)
	$(SYNC)
	@touch $@ $(VENV)/.installed

# Without npm, or without a registry, the tests that need the packages are skipped, and fail in CI (tests/machine.py).
# No package may run a script of its own.
.recipes/directus/.installed: $(wildcard tests/recipes/directus/*/*)
.recipes/%/.installed: tests/recipes/%/package.json tests/recipes/%/package-lock.json
	@rm -rf $(@D) && mkdir -p .recipes && cp -r tests/recipes/$* $(@D)
	@if ! command -v npm >/dev/null; then echo "no npm: the recipes for $* are not tested"; \
	elif (cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then touch $@; \
	else echo "npm ci failed: the recipes for $* are not tested" >&2; rm -rf $(@D)/node_modules; fi
