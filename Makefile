# Commands of the project; `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Any Python 3.11 to 3.13; 3.13 last of the named ones, because MLServer (extra `serving`) has no release for it.
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3.12 python3.11 python3.13 python3)
# A workload: synthetic, twitter, or a CSV or Parquet file (docs/traces.md). Empty: the one in params.yaml.
TRACE ?=
export TRACE
# A local copy of the Twitter trace, which then need not be fetched.
TWITTER_TRACE ?= $(OPD_TWITTER_TRACE)

VENV := .venv
READY := $(VENV)/.ready
BOOK := .cache/docs
TWITTER := data/twitter_workload.tbz2

# Stages call `python` and `jupyter` from the environment of this clone.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# One thread a process: results do not depend on the number of cores, and latencies are those of one core.
export OMP_NUM_THREADS ?= 1
# Compiled kernels are cached between processes.
export NUMBA_CACHE_DIR ?= $(CURDIR)/.cache/numba
export OPD_TWITTER_TRACE := $(TWITTER_TRACE)
# Trainings and evaluations go to the Ray cluster at RAY_ADDRESS (docs/ray.md). What measures this machine stays on it.
live live-study bench: export RAY_ADDRESS :=

.PHONY: help repro study agent live live-study bench test lint docs lab clean

help: ## list the commands
	@echo "Commands (each creates $(VENV) when it is missing or out of date):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: TRACE=synthetic|twitter|FILE  TWITTER_TRACE=FILE  PYTHON=python3.12  RAY_ADDRESS=HOST:PORT|local"

repro: $(READY) $(if $(filter twitter,$(TRACE)),twitter) ## run the paper's study (dvc repro); TRACE= is checked and written to params.yaml first
	$(if $(TRACE),@python -m opd.workload.check_trace "$$TRACE" --params params.yaml --write)
	dvc repro

study: $(READY) twitter ## run the full study on the Twitter trace: hours, restartable
	dvc repro study/dvc.yaml

agent: $(READY) $(if $(TWITTER_TRACE),twitter) ## train the one agent for every pipeline from nothing: up to three hours, restartable
	dvc repro agent/dvc.yaml
	@echo "figures and comparison: reports/agent; to ship the agent: cp models/agent/agent.npz opd/agent/agent.npz"

live: $(READY) ## serve the OCR pipeline on this machine, under load and policies: about 50 minutes
	dvc repro live/dvc.yaml

live-study: $(READY) twitter ## run the paper's experiments on pipelines that are served, replicas emulated: hours, restartable
	dvc repro live/study/dvc.yaml

bench: $(READY) ## compare simulator, training and decisions with their peers: about 15 minutes
	dvc repro benchmarks/dvc.yaml

test: lint ## check style and types, then run the tests; SLOW=1 adds those that take long
	pytest -n 3 --dist loadscope --no-loadscope-reorder $(if $(SLOW),-m "not cluster")

lint: $(READY) ## check style and types
	ruff check .
	ruff format --check .
	mypy opd

docs: $(READY) ## build the documentation as a book, with its links checked and its samples run
	python -m sphinx -b html -j auto -W --keep-going -q -c docs . $(BOOK)
	pytest -q -m 'not cluster' tests/docs/test_doc_samples.py
	@echo "the book: $(BOOK)/index.html"

lab: $(READY) ## open the notebooks in JupyterLab
	jupyter lab notebooks

clean: ## delete the environment and the caches, keep data and results
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The raw trace, from the user's file, or DVC's cache, or upstream. A user's file is put into the cache, like a download by
# DVC, after its hash is checked.
.PHONY: twitter
twitter: $(READY)
ifneq ($(TWITTER_TRACE),)
	@md5=$$(sed -n 's/^- md5: //p' $(TWITTER).dvc); \
	found=$$(python -c 'import hashlib, sys; print(hashlib.md5(open(sys.argv[1], "rb").read()).hexdigest())' \
		"$(TWITTER_TRACE)") || { echo "error: cannot read TWITTER_TRACE=$(TWITTER_TRACE)"; exit 1; }; \
	if [ "$$found" != "$$md5" ]; then echo "error: $(TWITTER_TRACE) is not the trace of the study: its md5 is" \
		"$$found, expected $$md5; for a trace of your own use: make repro TRACE=FILE"; exit 1; fi; \
	object="$$(dvc cache dir)/files/md5/$${md5:0:2}/$${md5:2}"; \
	mkdir -p "$$(dirname "$$object")"; test -e "$$object" || cp "$(TWITTER_TRACE)" "$$object"
endif
	@dvc checkout -q $(TWITTER).dvc 2>/dev/null || dvc update $(TWITTER).dvc || { echo "error: no Twitter trace here" \
		"and none fetched; with the file at hand, add TWITTER_TRACE=/path/to/workload.tbz2"; exit 1; }

# An existing environment with a supported Python is updated; otherwise one is created with the first supported Python.
$(READY): pyproject.toml constraints.txt
	@fits() { "$$1" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }; \
	if ! fits $(VENV)/bin/python; then \
		python= ; for candidate in $(PYTHONS); do if fits "$$candidate"; then python="$$candidate"; break; fi; done; \
		if [ -z "$$python" ]; then echo "error: none of [$(PYTHONS)] is a Python 3.11, 3.12 or 3.13 with ensurepip" \
			"(Debian: package python3-venv); install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; fi; \
		echo "[1/2] creating $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV); \
	fi
# Without --no-compile, much of the time goes into modules that are never imported.
	@echo "[2/2] installing the pinned packages into $(VENV) (once; some minutes and gigabytes)"
	@quiet=-qq; if [ -t 1 ]; then quiet=; fi; \
	$(VENV)/bin/python -m pip install --no-input --no-compile --disable-pip-version-check $$quiet \
		-c constraints.txt -e '.[notebooks,serving,text,xgboost,lightgbm,cluster,ray,bench,docs,dev]'
	@touch $@
	@echo "$(VENV) is ready"
