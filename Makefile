# make run      everything for the run RUN=digits: environment, workflow, leaderboard      make help lists the rest
# A CUDA or CPU build of torch: make run TORCH_INDEX=https://download.pytorch.org/whl/cu130 (any extra pip index).

SHELL := /bin/bash
RUN ?= digits
CORES ?= all
PORT ?= 5000
VENV ?= .venv
MINIMUM ?= .venv-minimum
TORCH_INDEX ?=
PIP_ARGS ?=
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export NO_MKDOCS_2_WARNING := 1

STAMP := $(VENV)/.installed
QUIET := --quiet host reason
STORE := sqlite:///mlflow.db
MLFLOW_UI = mlflow ui --backend-store-uri $(STORE) --host 127.0.0.1 --port $(PORT) --workers 1
REPORT := results/$(RUN)/report/index.html

.PHONY: help run ui test test-all test-minimum test-cluster lint docs gallery format schema adopt prune clean
.DEFAULT_GOAL := help

help:
	@echo "make run [RUN=digits]   environment, data, training, samples, report (CORES=$(CORES))"
	@echo "make ui [PORT=5000]     MLflow's pages over all runs"
	@echo "make test               tests but the slow ones; make test-all: every test"
	@echo "make test-minimum       the core's unit tests with the lowest versions that pyproject.toml states"
	@echo "make test-cluster       SLURM, PostgreSQL, an MLflow server and DVC remotes on this machine: as root, see docs/cluster.md"
	@echo "make lint               ruff, mypy, import layers, snakefmt, snakemake --lint, make docs"
	@echo "make docs               the documentation as pages in site/; every broken link is an error"
	@echo "make gallery [RUN=digits] the figures of a run, made if it is not finished, for the pages of docs/"
	@echo "make format             ruff format, snakefmt"
	@echo "make schema             workflow/schemas/params.schema.json from the settings models"
	@echo "make adopt              take what dvc checkout or dvc pull brought as current, after DVC has verified it"
	@echo "make prune [RUN=digits] delete result folders that the settings of the run no longer ask for"
	@echo "make clean              delete logs, caches and workflow metadata; results and the environment stay"

$(STAMP): pyproject.toml $(wildcard constraints.txt)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer must be on the PATH; none was found" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON): some minutes, about 2 GB"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile $(addprefix --extra-index-url ,$(TORCH_INDEX)) $(PIP_ARGS) \
		$(addprefix -c ,$(wildcard constraints.txt)) -e '.[test]'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || :  # on every core, where pip compiles on one
	@touch $@

run: $(STAMP)
	snakemake --cores $(CORES) $(QUIET) -- $(REPORT) state/$(RUN)/track/spec.json
	@cat results/$(RUN)/claims/board.txt 2>/dev/null || fewstep leaderboard results/$(RUN)/evaluate
	@echo
	@echo "report:  $(REPORT)"
	@echo "MLflow:  make ui    ($(MLFLOW_UI))"

ui: $(STAMP)
	@python -c 'import socket; socket.create_server(("127.0.0.1", $(PORT)))' 2>/dev/null || { \
		echo "port $(PORT) must be free, but it is not; choose another with make ui PORT=5001" >&2; exit 2; }
	@python -m fewstep.app.tracking $(STORE) http://127.0.0.1:$(PORT)
	@echo "These pages open once the server runs, in some seconds:"
	$(MLFLOW_UI)

test: $(STAMP)
	pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not slow"

test-all: $(STAMP)
	pytest

# Unit tests of the core alone, with what pyproject.toml states as the lowest versions, in an environment of its own.
CORE_TESTS := $(addprefix tests/unit/,diffusion sampling metrics nets data test_rng.py test_files.py test_typing.py \
	test_package.py test_devices.py) tests/contract/test_presets.py tests/contract/test_gpu_scripts.py

$(MINIMUM)/.installed: pyproject.toml constraints.txt tests/minimum.py
	$(PYTHON) -m venv --clear $(MINIMUM)
	$(PYTHON) tests/minimum.py > $(MINIMUM)/requirements.txt
	$(MINIMUM)/bin/python -m pip install --quiet $(addprefix --extra-index-url ,$(TORCH_INDEX)) $(PIP_ARGS) \
		-r $(MINIMUM)/requirements.txt
	@touch $@

test-minimum: $(MINIMUM)/.installed
	PYTHONPATH=src $(MINIMUM)/bin/python -m pytest -m "not slow" $(CORE_TESTS)

$(VENV)/.cluster: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[test,slurm,postgresql]' snakemake-storage-plugin-fs
	@touch $@

test-cluster: $(VENV)/.cluster
	FEWSTEP_TEST_CLUSTER=1 pytest tests/cluster

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile workflow
	snakemake --lint
	$(MAKE) --no-print-directory docs

$(VENV)/.docs: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --no-compile $(PIP_ARGS) $(addprefix -c ,$(wildcard constraints.txt)) -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	mkdocs build --strict --quiet
	@echo "pages:   site/index.html (search needs a server: python -m http.server --directory site)"

gallery: $(STAMP)
	snakemake --cores $(CORES) $(QUIET) -- docs/gallery/$(RUN)

format: $(STAMP)
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

schema: $(STAMP)
	python -c 'from fewstep.app.params import schema_text; print(schema_text(), end="")' \
		> workflow/schemas/params.schema.json

# DVC compares contents, --touch then dates them in the order of the rules; keys that do not fit are still seen.
adopt: $(STAMP)
	dvc checkout --quiet
	@dvc status --quiet || { dvc status; \
		echo "adopt: the folder must agree with dvc.lock, but it differs; run dvc repro instead" >&2; exit 1; }
	snakemake --cores 1 --quiet all --touch

prune: $(STAMP)
	@python -c 'from fewstep.app import keys, params; \
		print(*keys.leftovers("$(RUN)", params.settings(params.load_params("params.yaml"), "$(RUN)")), sep="\n")' \
		| while read -r folder; do [ -z "$$folder" ] || { echo "removed $$folder"; rm -rf -- "$$folder"; }; done

clean:
	rm -rf logs site .snakemake .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
