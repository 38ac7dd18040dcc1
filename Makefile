# `make` alone lists the targets. PYTHON=/path/to/python3 chooses another one for .venv.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# One more than there are cores, up to 8: tests wait about as long as they work, those of faults longer.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	test $$cores -lt 7 || cores=7; expr $$cores + 1)
FAULT_WORKERS ?= 4
MINUTES ?= 30

NO_PYTHON := Python 3.11 or later is needed, and none was found on PATH. \
	Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python; or make PYTHON=/path/to/python3

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long faults soak mutants bench check docs format lock clean

define set_up
@python="$(PYTHON)"; test -n "$$python" || { echo "$(NO_PYTHON)" >&2; exit 1; }; "$$python" tools/setup.py $(1)
endef

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the default install; nothing to do if that is done
	$(call set_up)

run: ## start the conserver on config.yml with its own server; the first time it gets the vCons of examples/
	$(call set_up)
	@exec $(BIN)/conserver run --examples examples

test: ## run the tests (in WORKERS= processes, one more than there are cores)
	$(call set_up,test)
	@$(BIN)/python -m pytest -n $(WORKERS)

test-long: ## run the tests that take minutes, too
	$(call set_up,test-long)
	@$(BIN)/python -m pytest -n $(WORKERS) -m "long or not long"

faults: ## kill, stop, cut off and starve everything, and prove that no vCon is lost
	$(call set_up,test)
	@$(BIN)/python -m pytest -n $(FAULT_WORKERS) -m "faults and not long"

soak: ## mix faults at random for MINUTES=30 and prove the promises (SEED= repeats one)
	$(call set_up,test)
	@$(BIN)/python -m tests.faults.nemesis --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

mutants: ## take each safety out in turn, and see a test fail (NAME="claim-after settle-held" for some)
	$(call set_up,test)
	@$(BIN)/python -m tests.mutants $(NAME)

bench: ## measure (FULL=1 for all of it, ONLY="latency noop" for some): a table, bench/results/*.json and SVG plots
	$(call set_up)
	@$(BIN)/python -m bench $(if $(FULL),--full) $(if $(ONLY),--only $(ONLY))

check: ## format, lint, types, and config.yml: look, but change nothing
	$(call set_up,test dev)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/conserver check config.yml

docs: ## write anew what docs/reference has from the code: endpoints, links, storages, options
	$(call set_up)
	@$(BIN)/python -m tools.api_reference
	@$(BIN)/python -m tools.component_reference

format: ## put all Python files into shape
	$(call set_up,test dev)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: ## write constraints.txt anew with the newest versions (needs Python 3.11, 3.12 and 3.13)
	@python="$(PYTHON)"; test -n "$$python" || { echo "$(NO_PYTHON)" >&2; exit 1; }; "$$python" tools/lock.py

clean: ## remove .venv, caches and what was built; data/ stays
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis *.egg-info
	@find . -name __pycache__ -not -path './data/*' -prune -exec rm -rf {} +
