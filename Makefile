# Each target does all the set-up it needs; a second run installs nothing.
.DEFAULT_GOAL := help
.PHONY: help install demo slurm-demo test pytest lint types soak clean
.ONESHELL:
.SHELLFLAGS := -ec
.DELETE_ON_ERROR:

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip install -qq --no-input --constraint constraints.txt
PYTHON := python3.11 python3.12 python3.13 python3.14 python3

# A virtual environment knows its own path: a tree that was moved or copied gets a new one.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

help:
	@echo "make demo     train a small model on this machine's Python library, stop, resume, sample"
	@echo "make slurm-demo  a real Slurm on this machine: two nodes, preempted, requeued, finished"
	@echo "make test     ruff, mypy, import-linter, pytest: all that CI checks"
	@echo "make lint     ruff and import-linter;  make types: mypy;  make pytest ARGS='tests/data -k order'"
	@echo "make soak     KILLS=100 kills each, ELASTIC_EXAMPLES=50 cuts, every state to every topology"
	@echo "make install  only the set-up in $(VENV);  PYTHON=/path/to/python chooses the interpreter"
	@echo "make clean    remove $(VENV) and every cache; runs/ stays"

install: $(STAMP)
	@:

# Torch first: DeepSpeed looks for it while it installs itself. A killed install leaves no stamp behind.
$(STAMP): pyproject.toml constraints.txt
	@began=$$(date +%s)
	python=; no_venv=
	for each in $(PYTHON); do
	  "$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
	  if "$$each" -c 'import ensurepip, venv' 2>/dev/null; then python=$$each; break; fi
	  no_venv=$$each
	done
	if [ -z "$$python" ] && [ -n "$$no_venv" ]; then
	  echo "$$no_venv cannot make virtual environments; install its venv module (Debian: apt install python3-venv)" >&2
	  exit 2
	elif [ -z "$$python" ]; then
	  echo "no Python 3.11 or newer among: $(PYTHON); install one, or say make PYTHON=/path/to/python" >&2
	  exit 2
	fi
	if [ "$$(cat $@ 2>/dev/null)" != "$(CURDIR)" ]; then
	  echo "umbel: making $(VENV) with $$("$$python" --version)"
	  "$$python" -m venv --clear $(VENV)
	fi
	rm -f $@
	echo "umbel: installing torch, the largest part (some minutes the first time)"
	$(PIP) torch
	echo "umbel: installing umbel and the other libraries, at the versions of constraints.txt"
	$(PIP) --editable '.[dev]'
	echo "$(CURDIR)" > $@
	echo "umbel: installed in $$(($$(date +%s) - began)) s"

demo: $(STAMP)
	@$(BIN)/umbel demo $(ARGS)

slurm-demo: $(STAMP)
	@$(BIN)/python slurm/demo.py $(ARGS)

# Every check runs even when one before it failed; what failed is said at the end.
test: $(STAMP)
	@failed=; summary=
	check() {
	  name=$$1; shift; began=$$(date +%s); result=ok
	  echo "umbel: $$name"
	  "$$@" || { result=FAILED; failed="$$failed $$name"; }
	  summary="$$summary$$(printf '  %-7s %-7s %4d s' "$$name" "$$result" "$$(($$(date +%s) - began))")\n"
	}
	check ruff   $(BIN)/ruff check --quiet .
	check format $(BIN)/ruff format --check --quiet .
	check floors $(BIN)/lint-imports --no-logo
	check mypy   $(BIN)/mypy
	check pytest $(BIN)/python -m pytest $(ARGS)
	printf "umbel: summary\n$$summary"
	if [ -n "$$failed" ]; then echo "umbel: failed:$$failed" >&2; exit 1; fi

pytest: $(STAMP)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)
	@$(BIN)/mypy

KILLS ?= 100
ELASTIC_EXAMPLES ?= 50
HOSTILE_EXAMPLES ?= 20000
soak: $(STAMP)
	@KILLS=$(KILLS) ELASTIC_EXAMPLES=$(ELASTIC_EXAMPLES) STATE_MATRIX=whole \
	  HOSTILE_EXAMPLES=$(HOSTILE_EXAMPLES) $(BIN)/python -m pytest \
	  tests/end_to_end/test_kill.py tests/data/test_elastic.py tests/checkpoint/test_crash.py \
	  tests/checkpoint/test_hostile.py tests/train/test_state.py $(ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
