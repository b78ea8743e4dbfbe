# Every target does its own set-up: .venv in this folder, from requirements/*.txt.
# PYTHON names the Python to build it from.

PYTHON ?= python3
SHELL := /bin/bash
RUN := .venv/bin/python
PIN = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links

.PHONY: help demo test check acceptance faults simulate bench format clean pins need-python set-up-run set-up-dev set-up-bench
.DEFAULT_GOAL := help

help:  ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1#\2/p' $(MAKEFILE_LIST) | \
		while IFS='#' read -r target what; do printf '%-16s %s\n' "$$target" "$$what"; done

demo: set-up-run  ## two devices, one relay that cannot read: ARGS="--entries N --json"
	@$(RUN) -m demo $(ARGS)

test: set-up-dev  ## the tests
	@PYTHONHASHSEED=$${PYTHONHASHSEED:-0} $(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

check: set-up-dev  ## format, lint, types, import boundaries, house rules
	@.venv/bin/ruff format --check --quiet . || { echo 'Some files are not formatted: run `make format`.' >&2; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --no-error-summary
	@.venv/bin/lint-imports --no-cache --no-logo
	@$(RUN) -m pytest -q tests/house

acceptance: set-up-dev  ## the long proofs: ONLY=name for one, SHORT=1 for the form that CI runs
	@$(RUN) -m tests.acceptance $(if $(ONLY),--only $(ONLY)) $(if $(SHORT),--short)

faults: set-up-dev  ## kill -9 of relays, Postgres and devices in turn, under load: SHORT=1 for the form that CI runs
	@$(RUN) -m tests.acceptance --only faults $(if $(SHORT),--short)

simulate: set-up-dev  ## devices and relays under seeded chance: SEEDS=n, SEED=k replays one, BUGS=1 plants bugs
	@$(RUN) -m tests.simulation $(if $(BUGS),--bugs) $(if $(SEED),--seed $(SEED)) \
		$(if $(SEEDS),--seeds $(SEEDS))

bench: set-up-bench  ## figures, beside others: ONLY=name for one, SHORT=1 to see that all of it runs
	@$(RUN) -m bench $(if $(ONLY),--only $(ONLY)) $(if $(SHORT),--short)

format: set-up-dev  ## format the code, and repair what can be repaired
	@.venv/bin/ruff check --quiet --fix . ; .venv/bin/ruff format .

pins: set-up-dev  ## pin the newest versions allowed (requirements/*.txt)
	@$(PIN) requirements/uv.in -o requirements/uv.txt
	@$(PIN) protocol/pyproject.toml relay/pyproject.toml client/pyproject.toml --extra embedded \
		--no-emit-package sealwire-protocol -o requirements/run.txt
	@$(PIN) requirements/dev.in -o requirements/dev.txt
	@$(PIN) requirements/bench.in -o requirements/bench.txt

clean:  ## remove everything that was made here
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

need-python:
	@command -v $(PYTHON) >/dev/null || { \
		echo 'There is no $(PYTHON) here: install Python 3.11 or newer, or name one with `make PYTHON=...`.' >&2; exit 1; }

set-up-run: need-python
	@$(PYTHON) requirements/install.py run

set-up-dev: need-python
	@$(PYTHON) requirements/install.py dev

set-up-bench: need-python
	@$(PYTHON) requirements/install.py bench
